"""Nodes that are killed or frozen, and what their neighbours make of it."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted

from tests.scenarios.faults import (
    begin,
    checkpoint,
    download,
    echoing,
    fleet,
    lives,
    said,
    says,
    serves,
    start_client,
    start_server,
    visit,
)
from tests.scenarios.harness import sleep, until
from tests.scenarios.programs import connect, descriptors_of, listen


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_killed_server_comes_back(flow: str) -> None:
    """A server that was killed and started again serves within the promised time, the client needs
    no help, and keeps nothing of the time before."""
    target = echoing()
    nodes = await fleet(target.endpoint, flow=flow)
    (client,) = nodes.clients
    await serves(nodes.visitor)
    session = await begin(nodes.visitor)
    await checkpoint(client, "TCPS=1")
    before = descriptors_of(client.pid)
    mark = len(client.lines)
    await nodes.server.stop(signal.SIGKILL)
    assert await session.end() == "reset"
    nodes.server = start_server(
        target.endpoint, flow, tunnel=nodes.tunnel, visitors=nodes.visitors if flow == "-" else 0
    )
    await nodes.server.port("clients")
    await serves(nodes.visitor)
    assert len(said(client, "WARN.*control link", mark)) == 1
    await checkpoint(client, "TCPS=0")
    await until(lambda: descriptors_of(client.pid) <= before, what="as few sockets as before")
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_killed_client_comes_back() -> None:
    """A killed client's sessions are reset, another client serves meanwhile and is not disturbed,
    and the killed one serves again once started."""
    one, two = echoing(b"1"), echoing(b"2")
    nodes = await fleet(one.endpoint, two.endpoint)
    first = await begin(nodes.visitor)
    second = await begin(nodes.visitor)
    assert len(one.conns) == len(two.conns) == 1  # the two went to different clients
    await nodes.clients[0].stop(signal.SIGKILL)
    await until(lambda: bool(first.gone or second.gone), what="a reset")
    victim, survivor = (first, second) if first.gone else (second, first)
    assert victim.gone == "reset"
    for _ in range(5):
        assert await visit(nodes.visitor) == b"2"
    assert await lives(survivor)
    nodes.clients[0] = start_client(one.endpoint, nodes.tunnel)
    await serves(nodes.visitor, b"1")
    assert await lives(survivor)
    survivor.reset()
    await checkpoint(nodes.server, "TCPS=0")
    await nodes.stop()
    await one.stop()
    await two.stop()


@pytest_twisted.ensureDeferred
async def test_frozen_client_is_passed_over_and_returns() -> None:
    """A client that hangs gets no new visitors while another serves; its sessions are reset when it
    did not come back in time; thawed, it serves again."""
    one, two = echoing(b"1"), echoing(b"2")
    nodes = await fleet(one.endpoint, two.endpoint)
    sessions = [await begin(nodes.visitor) for _ in range(2)]
    nodes.clients[0].send_signal(signal.SIGSTOP)
    mark = len(nodes.server.lines)
    await says(nodes.server, "control link to .* lost: nothing heard for", mark)
    for _ in range(5):
        assert await visit(nodes.visitor) == b"2"
    await says(nodes.server, "is gone; clients: 1", mark)
    await until(lambda: any(conn.gone for conn in sessions), what="a reset")
    (victim,) = [conn for conn in sessions if conn.gone]
    (survivor,) = [conn for conn in sessions if not conn.gone]
    assert victim.gone == "reset"
    assert await lives(survivor)
    nodes.clients[0].send_signal(signal.SIGCONT)
    await serves(nodes.visitor, b"1")
    survivor.reset()
    await checkpoint(nodes.server, "TCPS=0")
    await checkpoint(nodes.clients[0], "TCPS=0")
    await nodes.stop()
    await one.stop()
    await two.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_frozen_server_returns(flow: str) -> None:
    """A server that hung for longer than sessions may wait serves again after that, without a
    restart of anything."""
    target = echoing()
    nodes = await fleet(target.endpoint, flow=flow)
    (client,) = nodes.clients
    session = await begin(nodes.visitor)
    mark = len(client.lines)
    nodes.server.send_signal(signal.SIGSTOP)
    await says(client, "control link to .* lost: nothing heard for", mark)
    await says(client, "server .* is gone", mark)
    nodes.server.send_signal(signal.SIGCONT)
    await serves(nodes.visitor, timeout=15)
    assert await session.end() == "reset"
    await checkpoint(client, "TCPS=0")
    await checkpoint(nodes.server, "TCPS=0")
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_short_freeze_harms_nothing() -> None:
    """A node that hangs for less than three intervals keeps its sessions and its control link."""
    target = echoing()
    nodes = await fleet(target.endpoint, env={"NP_REPORT_INTERVAL": "1s"})
    session = await begin(nodes.visitor)
    for one in (nodes.server, nodes.clients[0]):
        one.send_signal(signal.SIGSTOP)
        await sleep(1.2)
        one.send_signal(signal.SIGCONT)
        assert await lives(session)
    assert not said(nodes.server, "lost") and not said(nodes.clients[0], "lost")
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("-", 1), ("+", 0)])
@pytest.mark.parametrize("victim", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_killed_node_never_looks_like_a_clean_end(flow: str, victim: str, tls: int) -> None:
    """A download that a killed node cuts short ends in a reset at the visitor and at the target,
    whichever of the two was connected to the killed process itself."""
    target = listen(download)
    nodes = await fleet(target.endpoint, flow=flow, server=f"tls={tls}")
    visitor = await connect(nodes.visitor)
    await until(lambda: visitor.received > 100_000, what="bytes of a download")
    await {"server": nodes.server, "client": nodes.clients[0]}[victim].stop(signal.SIGKILL)
    assert await visitor.end() == "reset"
    assert await target.conns[0].end() == "reset"
    await nodes.stop()
    await target.stop()
