"""Links that break while both nodes are well: control links alone, cables, routes."""

from __future__ import annotations

import pytest
import pytest_twisted

from nodepass.address import Endpoint
from tests.scenarios.faults import (
    STREAM,
    Cutter,
    Network,
    begin,
    checkpoint,
    download,
    echoing,
    fleet,
    lives,
    named,
    said,
    says,
    serves,
    start_client,
    start_server,
    visit,
)
from tests.scenarios.harness import KEY, node, sleep, until
from tests.scenarios.programs import connect, listen


@pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("-", 1), ("+", 0)])
@pytest_twisted.ensureDeferred
async def test_download_outlives_its_control_link(flow: str, tls: int) -> None:
    """When the control link alone is cut, a download arrives whole, the client comes back to the
    same association, and both logs say so."""
    target, cutter = listen(download), Cutter()
    nodes = await fleet(target.endpoint, flow=flow, server=f"tls={tls}", through=cutter)
    (client,) = nodes.clients
    visitor = await connect(nodes.visitor)
    await until(lambda: visitor.received > 100_000, what="bytes of a download")
    cutter.cut(0)
    await says(nodes.server, "control link to .* lost: .*; 1 sessions wait for its return")
    await says(client, "control link to .* lost: .*; 1 sessions wait for its return")
    await says(client, "tunnel established again")
    await says(nodes.server, "tunnel established again with .*clients: 1")
    assert await visitor.read_all() == STREAM
    visitor.finish()
    other = await connect(nodes.visitor)
    assert await other.read(1) == STREAM[:1]
    other.reset()
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_silent_control_link_is_given_up() -> None:
    """A control link on which nothing passes any more, though nothing closed it, is lost after
    three intervals; its sessions live on and the client comes back."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, through=cutter)
    session = await begin(nodes.visitor)
    cutter.hold(0)
    await says(nodes.server, "control link to .* lost: nothing heard for")
    await says(nodes.clients[0], "control link to .* lost: nothing heard for")
    await says(nodes.server, "established again")
    assert await lives(session)
    await serves(nodes.visitor)
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_sessions_are_reset_when_nobody_returns() -> None:
    """Sessions whose control link does not come back within cooldown + three intervals are reset,
    at the visitor and at the target."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, through=cutter)
    session = await begin(nodes.visitor)
    cutter.silent = True
    cutter.cut(0)
    await says(nodes.server, "is gone; clients: 0")
    assert await session.end() == "reset"
    assert await target.conns[0].end() == "reset"
    await checkpoint(nodes.server, "POOL=0.TCPS=0")
    await checkpoint(nodes.clients[0], "POOL=0.TCPS=0")
    cutter.silent = False
    for number in cutter.live():
        cutter.cut(number)
    await serves(nodes.visitor, timeout=15)
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_dead_idle_links_never_meet_a_visitor() -> None:
    """Idle data links that are cut are replaced, and no visitor notices."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, through=cutter)
    await checkpoint(nodes.server, "POOL=8")
    for number in cutter.data_links():
        cutter.cut(number)
    for _ in range(10):
        assert await visit(nodes.visitor) == b"1"
    await checkpoint(nodes.server, r"POOL=[89]\|")
    assert not said(nodes.server, "lost")
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_unreachable_server_is_one_warning() -> None:
    """A client without a server says so once for each cause, however often it tries and however
    the causes alternate, and joins when there is one."""
    target, cutter = echoing(), Cutter()
    cutter.open = False
    client = start_client(target.endpoint, cutter.port, env={"NP_SERVICE_COOLDOWN": "50ms"})
    await says(client, "can't join the server")
    await sleep(1)
    told = [line[25:] for line in said(client, "can't join the server")]
    assert len(told) == len(set(told)) <= 3, told
    server = start_server(target.endpoint)
    cutter.onward = await server.port("clients")
    cutter.open = True
    await says(client, "tunnel established")
    assert await visit(Endpoint("127.0.0.1", await server.port())) == b"1"
    await client.stop()
    await server.stop()
    await cutter.stop()
    await target.stop()


@pytest.mark.parametrize("how", ["cable", "route"])
@pytest_twisted.ensureDeferred
async def test_network_that_goes_and_comes(how: str) -> None:
    """A client whose network is gone for a while serves again by itself once it is back; a short
    gap costs no session."""
    target = listen(named(b"1"), host="0.0.0.0")
    network = Network()
    clients = []
    server = node(f"server://{KEY}@{network.here}:0/127.0.0.1:0?mode=1")
    try:
        tunnel = await server.port("clients")
        visitors = Endpoint("127.0.0.1", await server.port())
        at = Endpoint(network.here, target.endpoint.port)
        client = start_client(at, tunnel, host=network.here, netns=network.name)
        clients.append(client)
        await says(server, "clients: 1")
        session = await begin(visitors)
        network.pull()
        await sleep(0.6)
        network.plug()
        assert await lives(session)
        mark, at_client = len(server.lines), len(client.lines)
        network.pull() if how == "cable" else network.drop_route()
        await says(server, "control link to .* lost", mark)
        await says(server, "is gone; clients: 0", mark)
        await says(client, "control link to .* lost", at_client)
        assert await session.end() == "reset"
        network.plug() if how == "cable" else network.give_route()
        await serves(visitors, timeout=20)
        await checkpoint(server, "TCPS=0")
        await checkpoint(client, "TCPS=0")
    finally:
        for one in [*clients, server]:
            await one.stop()
        network.remove()
        await target.stop()
