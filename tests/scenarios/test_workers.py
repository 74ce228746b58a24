"""A role in several processes behaves as in one, and better when a process dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectError

from nodepass.address import Endpoint
from tests.certs import Authority
from tests.scenarios.datagrams import WAYS, Programs
from tests.scenarios.faults import (
    SERVES_AGAIN,
    begin,
    checkpoint,
    echoing,
    fleet,
    lives,
    said,
    says,
    serves,
    start_server,
    visit,
)
from tests.scenarios.harness import Node, node, sleep, until
from tests.scenarios.programs import Conn, connect, descriptors_of, listen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

#: Visitors at a time: so many that each of two or three workers surely gets some.
MANY = 24
#: How a visitor can see that it was refused.
REFUSED = (OSError, EOFError, ConnectError)


def offspring(pid: int) -> list[int]:
    """All processes below one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *offspring(child))]


def workers_of(one: Node) -> list[int]:
    """The worker processes of a node."""
    return [
        pid
        for pid in offspring(one.pid)
        if b"nodepass worker " in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


async def many(where: Endpoint, count: int = MANY) -> list[Conn]:
    """So many sessions with an echoing target, side by side."""
    return [await begin(where) for _ in range(count)]


async def end_all(conns: list[Conn]) -> None:
    """End sessions in order."""
    for conn in conns:
        conn.finish()
    for conn in conns:
        await conn.end()


async def knock(where: Endpoint, count: int) -> list[Conn]:
    """So many visitors at once, less those who were refused before they knew to be connected."""
    trying = [Deferred.fromCoroutine(connect(where)) for _ in range(count)]
    return [conn for good, conn in await DeferredList(trying, consumeErrors=True) if good]


async def forwarder(target: Endpoint, more: str = "workers=2") -> tuple[Node, Endpoint]:
    """A plain forwarder, and where its visitors connect."""
    one = node(f"client://127.0.0.1:0/{target}?mode=1&{more}")
    return one, Endpoint("127.0.0.1", await one.port())


@asynccontextmanager
async def entry(kind: str, target: Endpoint) -> AsyncIterator[tuple[Node, Endpoint]]:
    """The node that has the visitors, with two workers, and where they come in."""
    if kind == "single":
        one, where = await forwarder(target)
        yield one, where
        await one.stop()
    else:
        nodes = await fleet(target, flow=kind, server="workers=2", client="workers=2")
        yield nodes.server if kind == "-" else nodes.clients[0], nodes.visitor
        await nodes.stop()


def asking(where: Endpoint, stack: ExitStack) -> list[socket.socket]:
    """UDP sockets that learn of it when nobody has the port."""
    sockets = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(MANY)]
    for sock in sockets:
        sock.setblocking(False)
        sock.connect(where)
    return sockets


def ask(sock: socket.socket, data: bytes) -> bool:
    """Send a datagram; whether the same has come back, now or for an earlier one.

    @raise ConnectionRefusedError: nobody had the port.
    """
    heard = []
    try:
        while True:
            heard.append(sock.recv(100))
    except BlockingIOError:
        sock.send(data)
    return data in heard


async def answered(sockets: list[socket.socket], data: bytes) -> None:
    """Each sends it again and again until it comes back."""
    left = sockets

    def all_were() -> bool:
        nonlocal left
        left = [sock for sock in left if not ask(sock, data)]
        return not left

    await until(all_were, SERVES_AGAIN, "answers")


@pytest.mark.parametrize(
    ("flow", "tls", "servers", "clients"),
    [("-", 0, 2, 1), ("-", 1, 1, 2), ("+", 1, 2, 2), ("+", 0, 1, 2), ("-", 1, 3, 2)],
)
@pytest_twisted.ensureDeferred
async def test_every_combination_serves(flow: str, tls: int, servers: int, clients: int) -> None:
    """Visitors are spread over all workers of each end, get all of their bytes, and the checkpoint
    of each end counts all of them."""
    target = echoing()
    nodes = await fleet(
        target.endpoint,
        flow=flow,
        server=f"workers={servers}&tls={tls}",
        client=f"workers={clients}",
    )
    ends = [nodes.server, nodes.clients[0]]
    before = {pid: descriptors_of(pid) for one in ends for pid in workers_of(one)}
    assert len(before) == sum(count for count in (servers, clients) if count > 1)
    conns = await many(nodes.visitor)
    for one in ends:
        await checkpoint(one, f"TCPS={MANY}\\|")
        assert len(said(one, "tunnel established")) == 1
    for pid, count in before.items():
        assert descriptors_of(pid) > count, "a worker got nothing"
    await end_all(conns)
    # Six bytes to each, and back with the target's name in front.
    size = "TCPRX={}\\|TCPTX={}\\|"
    here, there = 6 * MANY, 7 * MANY
    visited, dialing = ends if flow == "-" else reversed(ends)
    await checkpoint(visited, "TCPS=0.*" + size.format(here, there))
    await checkpoint(dialing, "TCPS=0.*" + size.format(there, here))
    await nodes.stop()
    await target.stop()
    for one in ends:
        assert not said(one, "WARN|ERROR"), one.lines


@pytest_twisted.ensureDeferred
async def test_a_flow_stays_with_its_worker() -> None:
    """Each visitor's datagrams are one flow, in order, whichever worker has it."""
    async with Programs() as programs:
        target = programs.target()
        one, where = await forwarder(target.address, "workers=3")
        visitors = [programs.visitor(where) for _ in range(MANY)]
        for number in range(10):
            for visitor in visitors:
                visitor.say(b"%d" % number)
            await sleep(0.005)
        await until(lambda: all(len(visitor.heard) == 10 for visitor in visitors), what="answers")
        for visitor in visitors:
            assert visitor.heard == [b"%d" % number for number in range(10)]
        # A flow that had moved would have come to the target from another port.
        assert len(Counter(target.sources)) == MANY
        await checkpoint(one, f"UDPS={MANY}.*UDPRX={10 * MANY}\\|UDPTX={10 * MANY}")
        await one.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_killed_worker_is_replaced(flow: str) -> None:
    """Its own sessions are reset and give their slots back, the others' live on, nothing that was
    counted is lost, and new visitors are served."""
    target = echoing()
    nodes = await fleet(
        target.endpoint,
        flow=flow,
        server=f"workers=2&slot={MANY}",
        client=f"workers=2&slot={MANY}",
    )
    visited = nodes.server if flow == "-" else nodes.clients[0]
    conns = await many(nodes.visitor)
    await checkpoint(visited, f"TCPS={MANY}.*TCPRX={6 * MANY}")
    victim = workers_of(visited)[0]
    os.kill(victim, signal.SIGKILL)
    await says(visited, r"worker . of 2 ended \(signal 9\)")
    await until(lambda: any(conn.gone for conn in conns), what="resets")
    await sleep(0.2)
    left = [conn for conn in conns if not conn.gone]
    lost = len(conns) - len(left)
    assert 0 < lost < MANY
    assert all(conn.gone == "reset" for conn in conns if conn.gone)
    assert all([await lives(conn) for conn in left])
    # As many as were lost find a slot, through either worker, and no more; at the other end slots
    # are free as soon as it has noticed.
    await checkpoint(nodes.clients[0] if flow == "-" else nodes.server, f"TCPS={len(left)}\\|")
    again = await many(nodes.visitor, lost)
    with pytest.raises(REFUSED):
        await visit(nodes.visitor)
    assert victim not in workers_of(visited) and len(workers_of(visited)) == 2
    await checkpoint(visited, f"TCPS={MANY}.*TCPRX={6 * MANY + 6 * len(left) + 6 * lost}\\|")
    await end_all(left + again)
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize("killed", [1, 2])
@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_visitors_wait_for_the_next_worker(kind: str, killed: int) -> None:
    """While one worker is dead, or all are, nobody is refused: who was in its queue, and who comes
    meanwhile, is served by the next one in its place."""
    target = echoing()
    async with entry(kind, target.endpoint) as (one, where):
        await serves(where)
        victims = workers_of(one)[:killed]
        for victim in victims:
            os.kill(victim, signal.SIGSTOP)  # from now on it accepts nobody
        visits = [Deferred.fromCoroutine(visit(where, SERVES_AGAIN)) for _ in range(MANY)]
        await sleep(0.2)
        waiting = [each for each in visits if not each.called]
        assert len(waiting) == MANY if killed == 2 else waiting
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        while not all(each.called for each in waiting):
            visits.append(Deferred.fromCoroutine(visit(where, SERVES_AGAIN)))
            await sleep(0.01)
        heard = await DeferredList(visits, consumeErrors=True)
        assert Counter(str(answer) for _, answer in heard) == {str(b"1"): len(visits)}
        assert len(said(one, "worker . of 2 ended")) == killed
    await target.stop()


@pytest.mark.parametrize("killed", [1, 2])
@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_datagrams_while_workers_are_dead(kind: str, killed: int) -> None:
    """While one worker is dead, or all are, the port is there for datagrams, and every visitor is
    answered by the next one in its place."""
    async with Programs() as programs:
        target = programs.target()
        async with entry(kind, target.address) as (one, where):
            with ExitStack() as stack:
                visitors = asking(where, stack)
                await answered(visitors, b"before")
                for victim in workers_of(one)[:killed]:
                    os.kill(victim, signal.SIGKILL)

                def ended() -> bool:
                    for visitor in visitors:
                        ask(visitor, b"meanwhile")
                    return len(said(one, "worker . of 2 ended")) == killed

                await until(ended, what="their ends")
                await answered(visitors, b"after")


@pytest_twisted.ensureDeferred
async def test_a_killed_worker_of_the_dialing_end() -> None:
    """Once it is noticed visitors go on through the other one, and nobody waits for the next."""
    target = echoing()
    nodes = await fleet(target.endpoint, server="workers=2", client="workers=2")
    (client,) = nodes.clients
    await serves(nodes.visitor)
    os.kill(workers_of(client)[0], signal.SIGKILL)
    await says(client, "worker . of 2 ended")
    await serves(nodes.visitor)
    for _ in range(10):
        assert await visit(nodes.visitor) == b"1"
    await until(lambda: len(workers_of(client)) == 2, what="another worker")
    assert await visit(nodes.visitor) == b"1"
    assert not said(nodes.server, "is gone")
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_slot_is_never_exceeded() -> None:
    """Of many visitors at once, exactly as many get in as there are slots, whoever accepts them."""
    target = echoing()
    one, where = await forwarder(target.endpoint, "workers=3&slot=10")
    conns = await knock(where, MANY)
    await until(lambda: all(conn.received or conn.gone for conn in conns), what="verdicts")
    assert [bool(conn.received) for conn in conns].count(True) == 10
    assert len(target.conns) == 10
    await checkpoint(one, "TCPS=10\\|")
    assert len(said(one, "slot=10: visitor .* was refused")) == 1
    inside = [conn for conn in conns if conn.received]
    await end_all(inside[:4])
    await checkpoint(one, "TCPS=6\\|")  # a visitor has its end a moment before its slot is free
    await many(where, 4)
    with pytest.raises(REFUSED):
        await visit(where)
    await one.stop(signal.SIGKILL)
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_rate_is_that_of_the_whole() -> None:
    """Eight visitors on two workers together get a second's burst and then the rate."""
    seconds = 3.0

    async def flood(conn: Conn) -> None:
        conn.flood()

    target = listen(flood)
    one, where = await forwarder(target.endpoint, "workers=2&rate=40")
    conns = [await connect(where) for _ in range(8)]
    for conn in conns:
        conn.keep = False
    await sleep(1.0)  # the burst
    began, before = reactor.seconds(), sum(conn.received for conn in conns)
    await sleep(seconds)
    took = reactor.seconds() - began
    moved = sum(conn.received for conn in conns) - before
    assert moved / took == pytest.approx(5_000_000, rel=0.1)
    assert all(conn.received > 0 for conn in conns)
    for conn in conns:
        conn.reset()
    await one.stop(signal.SIGKILL)
    await until(lambda: all(conn.gone for conn in target.conns), what="their ends")
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_certificates_are_reloaded_by_all(tmp_path: Path) -> None:
    """SIGHUP reaches every worker, and is told once; links made after it are good."""
    authority = Authority(tmp_path)
    leaf = authority.leaf("127.0.0.1", file="one")
    target = echoing()
    files = f"tls=2&crt={leaf.crt}&key={leaf.key}&workers=2"
    nodes = await fleet(target.endpoint, server=files, client=f"tls=2&ca={authority.ca}&workers=2")
    await serves(nodes.visitor)
    fresh = authority.leaf("127.0.0.1", file="two")
    Path(leaf.crt).write_bytes(Path(fresh.crt).read_bytes())
    Path(leaf.key).write_bytes(Path(fresh.key).read_bytes())
    nodes.server.send_signal(signal.SIGHUP)
    await says(nodes.server, "certificate reloaded")
    await sleep(0.3)
    assert len(said(nodes.server, "certificate reloaded")) == 1
    conns = await many(nodes.visitor)
    await end_all(conns)
    assert not said(nodes.clients[0], "WARN"), nodes.clients[0].lines
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_graceful_stop(flow: str) -> None:
    """The port is free at once, sessions under way may finish, then all processes are gone, with
    status 0 and all that was counted in the last line."""
    target = echoing()
    nodes = await fleet(target.endpoint, flow=flow, server="workers=2", client="workers=2")
    visited = nodes.server if flow == "-" else nodes.clients[0]
    conns = await many(nodes.visitor, 8)
    pids = offspring(visited.pid)
    mark = len(visited.lines)
    visited.send_signal(signal.SIGTERM)
    await says(visited, "stopping: 8 TCP sessions", mark)
    with pytest.raises(REFUSED):
        await visit(nodes.visitor)
    assert all([await lives(conn) for conn in conns])
    await end_all(conns)
    assert await visited.ended.addTimeout(10, reactor) == 0
    assert said(visited, f"CHECK_POINT.*TCPS=0\\|UDPS=0\\|TCPRX={12 * 8}\\|", mark)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not said(visited, "ERROR|WARN"), visited.lines
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_workers_end_with_their_parent() -> None:
    """A parent that is killed leaves no process, and its sessions end in resets."""
    target = echoing()
    one, where = await forwarder(target.endpoint)
    conns = await many(where, 4)
    pids = offspring(one.pid)
    await one.stop(signal.SIGKILL)
    for conn in conns:
        assert await conn.end() == "reset"
    await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="their ends")
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_port_is_nobody_elses() -> None:
    """Another node with workers does not come to share a port that is in use; it waits for it."""
    target = echoing()
    one, where = await forwarder(target.endpoint)
    two = node(f"client://{where}/{target.endpoint}?mode=1&workers=2")
    await says(
        two, f"can't listen for visitors on {where}: in use by another program, .*; trying on"
    )
    await one.stop()
    await says(two, "listening for visitors")
    await serves(where)
    await two.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_hung_worker_keeps_its_slots() -> None:
    """A worker that does nothing for a while costs no slot twice, and goes on afterwards."""
    target = echoing()
    one, where = await forwarder(target.endpoint, "workers=2&slot=8")
    conns = await many(where, 8)
    stopped = workers_of(one)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        late = await knock(where, 8)
        await sleep(0.3)
        assert not any(conn.received for conn in late)
    finally:
        os.kill(stopped, signal.SIGCONT)
    await until(lambda: all(conn.gone for conn in late), what="refusals")
    assert all([await lives(conn) for conn in conns])
    await end_all(conns)
    await serves(where)
    await one.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_without_a_key_one_process_serves() -> None:
    """A server without a key has one client at a time, says why it has no workers, and by which URL
    it runs."""
    one = start_server("127.0.0.1:1", more="workers=2", key="")
    await says(one, "parameter workers: one process is used, as a server without a key")
    await says(one, "started: server://.*workers=1$")
    assert workers_of(one) == []
    assert await one.stop() == 0
    assert said(one, "stopped: server://.*workers=1$")
