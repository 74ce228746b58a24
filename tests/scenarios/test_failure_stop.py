"""Nodes that are told to stop: what is under way may end, and nothing new begins."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError

from nodepass.address import Endpoint
from nodepass.process import SAME_SIGNAL
from nodepass.wire.native.proof import CHALLENGE_SIZE
from tests.scenarios.faults import (
    STREAM,
    Cutter,
    Fleet,
    begin,
    checkpoint,
    download,
    echoing,
    exit_status,
    fleet,
    lives,
    said,
    says,
    serves,
    start_client,
    start_server,
    visit,
)
from tests.scenarios.harness import Node, sleep, until
from tests.scenarios.programs import Conn, connect, data_of, listen

STOPPING = {"NP_SHUTDOWN_TIMEOUT": "20s"}


def at(nodes: Fleet, role: str) -> tuple[Node, Node]:
    """The node of this role, and the other one."""
    pair = (nodes.server, nodes.clients[0])
    return pair if role == "server" else (pair[1], pair[0])


def last_words(one: Node) -> None:
    """A node that stopped said its last checkpoint, then that it stopped, and no error."""
    assert "stopped: " in one.lines[-1], one.lines[-3:]
    assert "CHECK_POINT" in one.lines[-2] and "POOL=0|TCPS=0|UDPS=0" in one.lines[-2]
    assert not said(one, "ERROR|Traceback")


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest.mark.parametrize("role", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_stop_lets_sessions_finish(flow: str, role: str) -> None:
    """A node that is told to stop takes no new visitors, lets a download arrive whole, and ends
    with status 0 as soon as it has."""
    target = listen(download)
    nodes = await fleet(target.endpoint, flow=flow, env=STOPPING)
    stopping, other = at(nodes, role)
    visitor = await connect(nodes.visitor)
    await until(lambda: visitor.received > 100_000, what="bytes of a download")
    stopping.send_signal(signal.SIGTERM)
    await sleep(0.3)
    if (role == "server") == (flow == "-"):
        with pytest.raises(ConnectionRefusedError):  # its own port for visitors is closed
            await connect(nodes.visitor)
    else:
        late = await connect(nodes.visitor)  # held by the other node, for a peer to come
        await sleep(0.3)
        assert late.received == 0 and not late.gone
        late.reset()
    assert len(target.conns) == 1
    assert await visitor.read_all() == STREAM
    visitor.finish()
    began = reactor.seconds()
    assert await exit_status(stopping) == 0
    assert reactor.seconds() - began < 10
    last_words(stopping)
    await says(other, "is gone")
    assert not said(other, "WARN|ERROR|Traceback")
    assert await other.stop() == 0
    assert reactor.seconds() - began < 10, other.lines
    last_words(other)
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest.mark.parametrize("role", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_stop_cuts_what_does_not_finish(flow: str, role: str) -> None:
    """A session that does not end within NP_SHUTDOWN_TIMEOUT is reset at both ends, and the node
    ends with status 0."""
    target = echoing()
    nodes = await fleet(target.endpoint, flow=flow, env={"NP_SHUTDOWN_TIMEOUT": "800ms"})
    stopping, other = at(nodes, role)
    session = await begin(nodes.visitor)
    began = reactor.seconds()
    stopping.send_signal(signal.SIGTERM)
    await sleep(0.3)
    assert await lives(session)
    assert await session.end() == "reset"
    assert await target.conns[0].end() == "reset"
    assert await exit_status(stopping) == 0
    assert 0.7 < reactor.seconds() - began < 10
    last_words(stopping)
    await checkpoint(other, "TCPS=0")
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest.mark.parametrize("role", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_stop_loses_no_byte_that_was_taken(flow: str, role: str) -> None:
    """Bytes that a stopping node has taken from its target arrive, also those that were still on
    their way between the nodes when its last session was over."""
    data = data_of(1, 2_000_000)
    held: Deferred[None] = Deferred()

    async def give(conn: Conn) -> None:
        conn.write(await conn.read(1))
        await held
        await conn.send(data)
        conn.finish()

    target, cutter = listen(give), Cutter()
    nodes = await fleet(target.endpoint, flow=flow, env=STOPPING, through=cutter)
    stopping, _ = at(nodes, role)
    visitor = await connect(nodes.visitor)
    visitor.write(b"!")
    visitor.finish()  # the other direction is over before the stop
    assert await visitor.read(1) == b"!"
    await checkpoint(nodes.clients[0], r"POOL=8\|")  # so that all of them are held
    for number in cutter.data_links():
        cutter.hold(number)
    held.callback(None)
    await sleep(0.5)
    stopping.send_signal(signal.SIGTERM)
    await sleep(0.3)
    for number in cutter.data_links():
        cutter.hold(number, False)
    assert await visitor.read_all() == data
    assert await exit_status(stopping) == 0
    last_words(stopping)
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest.mark.parametrize("role", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_stop_while_a_session_moves_to_a_link_that_is_half_made(flow: str, role: str) -> None:
    """A session that has outgrown the shared link goes on when one of the nodes is told to stop,
    also where the link that it is to have is ready for one node, and not yet for the other. That it
    is where a client stops whose server has the visitors; in the other cases it never is."""
    data = data_of(1, 2_000_000)
    stopped: Deferred[None] = Deferred()

    async def give(conn: Conn) -> None:
        conn.write(await conn.read(1))
        await conn.send(data[:1_000_000])
        await stopped
        await conn.send(data[1_000_000:])
        conn.finish()

    target, cutter = listen(give), Cutter()
    nodes = await fleet(
        target.endpoint, flow=flow, server="max=1", client="min=1", env=STOPPING, through=cutter
    )
    stopping, _ = at(nodes, role)
    await checkpoint(nodes.clients[0], r"POOL=1\|")
    cutter.answers = CHALLENGE_SIZE
    visitor = await connect(nodes.visitor)
    visitor.write(b"!")
    visitor.finish()
    assert await visitor.read(1) == b"!"
    await checkpoint(nodes.server, "POOL=[12]")
    await checkpoint(nodes.clients[0], "POOL=0")
    stopping.send_signal(signal.SIGTERM)
    await sleep(0.3)
    cutter.release()
    stopped.callback(None)
    assert await visitor.read_all() == data
    assert await exit_status(stopping) == 0
    last_words(stopping)
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest.mark.parametrize("tls", [0, 1])
@pytest.mark.parametrize("role", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_stop_loses_no_byte_of_sessions_that_share_a_link(role: str, tls: int) -> None:
    """What a stopping node has taken arrives, also when the other node reads it late, and says of
    the first bytes that it has them while the rest is on its way."""
    target = listen()
    nodes = await fleet(
        target.endpoint, server=f"tls={tls}", client=f"tls={tls}" if tls else "", env=STOPPING
    )
    stopping, other = at(nodes, role)
    visitors = [await connect(nodes.visitor) for _ in range(30)]
    targets = [await target.accept() for _ in visitors]
    senders, readers = (visitors, targets) if role == "server" else (targets, visitors)
    for reader in readers:
        reader.finish()  # so that the end of the other direction is that of the session
    for sender in senders:
        assert await sender.read_all() == b""
    data = data_of(1, 60_000)
    other.send_signal(signal.SIGSTOP)
    for sender in senders:
        sender.write(data)
        sender.finish()
    stopping.send_signal(signal.SIGTERM)
    await sleep(0.5)
    other.send_signal(signal.SIGCONT)
    for reader in readers:
        assert await reader.read_all() == data
    assert await exit_status(stopping) == 0
    last_words(stopping)
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_stop_of_one_client_leaves_the_rest_alone() -> None:
    """New visitors go to the other client while one is stopping; both its sessions and those of
    the other live on."""
    one, two = echoing(b"1"), echoing(b"2")
    nodes = await fleet(one.endpoint, two.endpoint, env=STOPPING)
    sessions = [await begin(nodes.visitor) for _ in range(2)]
    nodes.clients[0].send_signal(signal.SIGTERM)
    await sleep(0.3)
    for _ in range(5):
        assert await visit(nodes.visitor) == b"2"
    for session in sessions:
        assert await lives(session)
        session.finish()
        await session.read_all()
    assert await exit_status(nodes.clients[0]) == 0
    assert await visit(nodes.visitor) == b"2"
    await nodes.stop()
    await one.stop()
    await two.stop()


@pytest.mark.parametrize("role", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_stop_without_a_peer(role: str) -> None:
    """A node that never had a peer stops at once, a waiting visitor is reset."""
    if role == "server":
        lonely = start_server(Endpoint("127.0.0.1", 9), env=STOPPING)
        visitor = await connect(Endpoint("127.0.0.1", await lonely.port()))
        await checkpoint(lonely, "TCPS=1")
    else:
        lonely = start_client(Endpoint("127.0.0.1", 9), 9, env=STOPPING)
        await says(lonely, "can't join the server")
    began = reactor.seconds()
    assert await lonely.stop() == 0
    assert reactor.seconds() - began < 8
    last_words(lonely)
    if role == "server":
        assert await visitor.end() == "reset"


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("how", ["refused", "silent"])
@pytest_twisted.ensureDeferred
async def test_stop_while_the_peer_is_away(role: str, how: str) -> None:
    """A node whose peer is being sought, or whose handshake is under way, stops at once."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, through=cutter)
    stopping, _ = at(nodes, role)
    await until(lambda: len(cutter.pairs) == 9, what="the control link and eight idle ones")
    cutter.open, cutter.silent = how == "silent", how == "silent"
    cutter.cut(0)
    await says(stopping, "control link to .* lost")
    await until(lambda: how != "silent" or len(cutter.pairs) > 9, what="a try to come back")
    began = reactor.seconds()
    assert await stopping.stop() == 0
    assert reactor.seconds() - began < 4
    last_words(stopping)
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_second_signal_ends_at_once() -> None:
    """Who does not want to wait for a graceful stop sends the signal again."""
    target = echoing()
    nodes = await fleet(target.endpoint, env=STOPPING)
    session = await begin(nodes.visitor)
    nodes.server.send_signal(signal.SIGTERM)
    await sleep(2 * SAME_SIGNAL)
    began = reactor.seconds()
    assert await nodes.server.stop() == 128 + signal.SIGTERM
    assert reactor.seconds() - began < 5
    assert await session.end() == "reset"
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_server_restarted_gracefully() -> None:
    """After a graceful stop and a new start of the server the tunnel serves again by itself."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    assert await nodes.server.stop() == 0
    await says(nodes.clients[0], "is gone")
    nodes.server = start_server(target.endpoint, tunnel=nodes.tunnel, visitors=nodes.visitors)
    await nodes.server.port("clients")
    await serves(nodes.visitor)
    await nodes.stop()
    await target.stop()
