"""What a session is allowed: a slot, and so long a silence."""

from __future__ import annotations

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.error import ConnectError

from tests.scenarios.harness import QUICK, either_link, sleep, tunnel, until
from tests.scenarios.programs import Conn, connect, listen

pytestmark = either_link

flows = pytest.mark.parametrize("flow", ["-", "+"])
nodes = pytest.mark.parametrize("node", ["server", "client"])


async def served(conn: Conn, far: Conn) -> None:
    """Bytes move both ways."""
    conn.write(b"hello")
    assert await far.read(5) == b"hello"
    far.write(b"world")
    assert await conn.read(5) == b"world"


@flows
@nodes
@pytest_twisted.ensureDeferred
async def test_no_slot_is_left(flow: str, node: str) -> None:
    """Visitors above `slot`, of either node, are refused at once, and the others go on."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, **{node: "slot=3"})
    inside = []
    for _ in range(3):
        conn = await connect(pair.visitor)
        conn.write(b"?")
        far = await target.accept()
        await far.read(1)
        inside.append((conn, far))
    for _ in range(5):
        began = reactor.seconds()
        try:
            outside = await connect(pair.visitor)
        except ConnectError:
            continue  # before this end knew that it was there
        assert await outside.end() == "reset"
        assert reactor.seconds() - began < 2.0
        assert outside.received == 0
    assert len(target.conns) == 3
    for conn, far in inside:
        await served(conn, far)
    for conn, _ in inside:
        conn.reset()
    await pair.stop()
    await target.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_slots_are_given_back(flow: str) -> None:
    """With one slot at each node, the next visitor is served whatever way the last one ended."""
    target = listen()
    pair = await tunnel(
        target.endpoint, flow=flow, server="slot=1&read=1s", client="slot=1&read=1s"
    )

    async def visit(ending: str) -> None:
        conn = await connect(pair.visitor)
        conn.write(b"?")
        far = await target.accept()
        assert await far.read(1) == b"?"
        if ending == "visitor ends":
            conn.finish()
            await far.read_all()
            far.finish()
        elif ending == "target ends":
            far.finish()
            await conn.read_all()
            conn.finish()
        elif ending == "visitor resets":
            conn.reset()
        elif ending == "target resets":
            far.reset()
        elif ending == "visitor resets a full session":
            far.pause()
            conn.flood()
            await sleep(0.3)
            conn.reset()
            far.resume()
        else:
            assert ending == "silence"
        await conn.end()
        await far.end()
        await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0)

    for ending in (
        "visitor ends",
        "target ends",
        "visitor resets",
        "target resets",
        "visitor resets a full session",
        "silence",
        "visitor ends",
    ):
        await visit(ending)
    await pair.stop()
    await target.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_a_refused_target_gives_the_slot_back(flow: str) -> None:
    """A visitor whose target refused holds no slot, at neither node."""
    target = listen()
    await target.stop()  # nobody listens on its port from now on
    pair = await tunnel(target.endpoint, flow=flow, server="slot=1", client="slot=1")
    for _ in range(5):
        conn = await connect(pair.visitor)
        assert await conn.end() == "reset"
        await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0)
    back = listen(port=target.endpoint.port)
    conn = await connect(pair.visitor)
    conn.write(b"hello")
    assert await (await back.accept()).read(5) == b"hello"
    conn.reset()
    await pair.stop()
    await back.stop()


@flows
@nodes
@pytest_twisted.ensureDeferred
async def test_silence_ends_a_session(flow: str, node: str) -> None:
    """A session without a byte for `read` is closed at both ends; one with traffic in only one
    direction is not."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, **{node: "read=600ms"})
    busy = await connect(pair.visitor)
    busy_far = await target.accept()
    quiet = await connect(pair.visitor)
    quiet_far = await target.accept()
    quiet.write(b"?")
    assert await quiet_far.read(1) == b"?"
    began = reactor.seconds()
    while not (quiet.gone and quiet_far.gone):
        assert reactor.seconds() - began < 20, "the silent session stays"
        busy_far.write(b".")
        await sleep(0.1)
    assert reactor.seconds() - began >= 0.5
    for _ in range(10):
        busy_far.write(b".")
        await sleep(0.1)
    assert not busy.gone
    assert not busy_far.gone
    busy.reset()
    await pair.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_no_limit_of_silence() -> None:
    """With read=0 a silent session stays."""
    target = listen()
    pair = await tunnel(target.endpoint, server="read=0", client="read=0")
    conn = await connect(pair.visitor)
    far = await target.accept()
    await sleep(1.5)
    await served(conn, far)
    conn.reset()
    await pair.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_visitors_that_leave_at_once() -> None:
    """Connections that come and go without a byte, one after the other and faster than targets are
    dialed, leave every slot free."""
    target = listen()
    pair = await tunnel(target.endpoint, server="slot=50", client="slot=50")
    for _ in range(10):
        for conn in [await connect(pair.visitor) for _ in range(40)]:
            conn.reset()
        await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0)
    conn = await connect(pair.visitor)
    conn.write(b"hello")
    await until(lambda: any(far.received == 5 for far in target.conns), what="the word")
    conn.reset()
    await pair.stop()
    await target.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_the_wait_for_a_link_ends_with_it(flow: str) -> None:
    """NP_POOL_GET_TIMEOUT bounds the wait for a link, not the session."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, tuning=evolve(QUICK, pool_get_timeout=0.5))
    conn = await connect(pair.visitor)
    far = await target.accept()
    await sleep(1.0)
    await served(conn, far)
    conn.reset()
    await pair.stop()
    await target.stop()
