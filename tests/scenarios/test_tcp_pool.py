"""The pool of links: warm for who comes, as large as need was, and small again."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults

from nodepass.address import Endpoint
from nodepass.pool import policy
from nodepass.service import RoleService
from tests.scenarios.harness import APART, QUICK, Tunnel, sleep, tunnel, until
from tests.scenarios.programs import Conn, connect, listen

flows = pytest.mark.parametrize("flow", ["-", "+"])


async def both_have(pair: Tunnel, links: int) -> None:
    """Wait until both nodes count so many idle links."""
    nodes: list[RoleService] = [pair.server, pair.client]
    await until(
        lambda: all(node.stats.pool == links for node in nodes),
        what=f"a pool of {links} at both nodes",
    )


async def served(where: Endpoint) -> Conn:
    """A visitor that was answered, and stays."""
    visitor = await connect(where)
    visitor.write(b"?")
    assert await visitor.read(1) == b"!"
    return visitor


async def answer(conn: Conn) -> None:
    """Answers once, and closes when the visitor does."""
    await conn.read(1)
    conn.write(b"!")
    await conn.read_all()
    conn.finish()


@flows
@pytest.mark.parametrize(("minimum", "maximum", "links"), [(1, 1024, 1), (5, 1024, 5), (64, 4, 4)])
@pytest_twisted.ensureDeferred
async def test_idle_links(flow: str, minimum: int, maximum: int, links: int) -> None:
    """A quiet pool holds `min` links, and never more than the server's `max`."""
    target = listen(answer)
    pair = await tunnel(
        target.endpoint, flow=flow, client=f"min={minimum}", server=f"max={maximum}"
    )
    await both_have(pair, links)
    visitor = await served(pair.visitor)
    visitor.finish()
    assert await visitor.end() == "closed"
    await pair.stop()
    await target.stop()


@flows
@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_burst(flow: str, tls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred visitors at once on a pool of one are all served; the pool then remembers them,
    and when its memory fades it is as small as before."""
    monkeypatch.setattr(policy, "MEMORY", 3.0)
    monkeypatch.setattr(policy, "STEP", 0.5)
    target = listen(answer)
    pair = await tunnel(target.endpoint, flow=flow, tls=tls, client="min=1", tuning=APART)
    await both_have(pair, 1)
    visitors = await gatherResults(
        [Deferred.fromCoroutine(served(pair.visitor)) for _ in range(200)], consumeErrors=True
    )
    assert pair.server.stats.tcps == pair.client.stats.tcps == 200
    for visitor in visitors:
        visitor.finish()
    for visitor in visitors:
        assert await visitor.end() == "closed"
    await until(lambda: pair.server.stats.pool >= 200 and pair.client.stats.pool >= 200)
    again = await gatherResults(
        [Deferred.fromCoroutine(served(pair.visitor)) for _ in range(200)], consumeErrors=True
    )
    for visitor in again:
        visitor.finish()
    for visitor in again:
        assert await visitor.end() == "closed"
    await both_have(pair, 1)
    await pair.stop()
    await target.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_sessions_above_max(flow: str) -> None:
    """`max` bounds idle links, not sessions: more visitors than that are served side by side, and
    of the links that they leave so many are kept."""
    target = listen(answer)
    pair = await tunnel(target.endpoint, flow=flow, client="min=2", server="max=3")
    visitors = [await served(pair.visitor) for _ in range(20)]
    assert pair.server.stats.tcps == 20
    for visitor in visitors:
        visitor.finish()
    for visitor in visitors:
        assert await visitor.end() == "closed"
    await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, what="the end")
    await both_have(pair, 3)
    await pair.stop()
    await target.stop()


@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_links_are_used_again(tls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Visitors that come one after another, and with pauses, cost no links, and with TLS no
    handshakes: they take turns on those that are there."""
    handshakes: list[Any] = []
    made = SSL.Connection.__init__

    def make(connection: Any, *arguments: Any) -> None:
        handshakes.append(connection)
        made(connection, *arguments)

    monkeypatch.setattr(SSL.Connection, "__init__", make)
    target = listen(answer)
    pair = await tunnel(target.endpoint, tls=tls, client="min=2", tuning=APART)
    await both_have(pair, 2)
    # Two ends of the control link, and of each data link.
    assert len(handshakes) == (6 if tls else 2)
    for _ in range(2):
        for _ in range(15):
            visitor = await served(pair.visitor)
            visitor.finish()
            assert await visitor.end() == "closed"
        await both_have(pair, 3)  # one was made when the first visitor came
        await sleep(2 * QUICK.report_interval)
    assert len(handshakes) == (8 if tls else 2)
    await pair.stop()
    await target.stop()
