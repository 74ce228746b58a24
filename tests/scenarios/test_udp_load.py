"""UDP under load and in trouble: name servers, floods, links that stall, nodes that die."""

from __future__ import annotations

import re
import signal
import socket
import struct
import sys
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutput
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from nodepass.address import Endpoint
from nodepass.wire.native.datagrams import BACKLOG_BYTES
from nodepass.wire.native.datalink import DataLink
from tests.scenarios.datagrams import Programs, Visitor, way
from tests.scenarios.faults import fleet, start_client
from tests.scenarios.harness import PATIENT, sleep, until
from tests.scenarios.programs import connect, echo, listen, memory_of, program

_QUESTION = b"\1x\4test\0" + struct.pack(">HH", 1, 1)  # an address of x.test
_ANSWER = bytes([1, 2, 3, 4])


def query(number: int) -> bytes:
    """A DNS query for the address of x.test."""
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + _QUESTION


class NameServer(ProcessProtocol):
    """dnsmasq, which knows x.test alone."""

    def __init__(self) -> None:
        self.ended: Deferred[None] | None = None

    def processEnded(self, reason: Any) -> None:
        ended, self.ended = self.ended, None
        if ended is not None:
            ended.callback(None)

    async def __aenter__(self) -> Endpoint:
        # Somebody else may take a port, of UDP or TCP, before dnsmasq has bound it.
        for _ in range(5):
            address = self._start()
            async with Programs() as programs:
                probe = programs.visitor(address)

                def settled(probe: Visitor = probe) -> bool:
                    probe.say(query(0))
                    return bool(probe.heard) or self.ended is None

                await until(settled, what="dnsmasq")
            if self.ended is not None:
                return address
        raise AssertionError("dnsmasq did not start")

    async def __aexit__(self, *exception: object) -> None:
        if self.ended is not None:
            ended = self.ended
            self.transport.signalProcess("TERM")
            await ended

    def _start(self) -> Endpoint:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            address = Endpoint(*free.getsockname())
        arguments = ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--no-resolv",
                     "--no-hosts", f"--port={address.port}", "--listen-address=127.0.0.1",
                     "--bind-interfaces", "--address=/x.test/1.2.3.4", "--user=root"]  # fmt: skip
        path = program("dnsmasq")
        self.ended = Deferred()
        reactor.spawnProcess(self, path, [path, *arguments])
        return address


async def ask_over_tcp(where: Endpoint, number: int) -> bytes:
    """A name server's answer on a connection."""
    conn = await connect(where)
    question = query(number)
    conn.write(struct.pack(">H", len(question)) + question)
    answer = b""
    while len(answer) < 2 or len(answer) < 2 + struct.unpack(">H", answer[:2])[0]:
        await conn.change(10.0)
        answer += conn.take()
    conn.reset()
    return answer[2:]


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_dns_through_a_tunnel(flow: str) -> None:
    """5,000 queries from as many ports within 10 s are all answered, and TCP visitors meanwhile."""
    count, step = 5000, 50
    async with NameServer() as server, Programs() as programs:
        nodes = await fleet(server, flow=flow)
        try:
            asked: list[tuple[int, Visitor]] = []
            tcp = 0
            began = reactor.seconds()
            for start in range(0, count, step):
                for number in range(start, start + step):
                    visitor = programs.visitor(nodes.visitor)
                    visitor.say(query(number))
                    asked.append((number, visitor))
                assert (await ask_over_tcp(nodes.visitor, 7)).endswith(_ANSWER)
                tcp += 1
                due = began + (start + step) / count * 5.0
                await sleep(max(0.0, due - reactor.seconds()))
                # A machine that is too slow for that must not overflow the name server's socket.
                latest = [visitor for _, visitor in asked[-200:]]
                await until(lambda latest=latest: sum(not v.heard for v in latest) < 100)
            await until(lambda: all(visitor.heard for _, visitor in asked), what="all answers")
            for number, visitor in asked:
                (answer,) = visitor.heard
                assert answer[:2] == query(number)[:2]
                assert answer.endswith(_ANSWER)
            assert tcp == count // step
        finally:
            await nodes.stop()


@pytest_twisted.ensureDeferred
async def test_dig_through_a_tunnel() -> None:
    """A real resolver's client gets its answer, over UDP and over TCP."""
    async with NameServer() as server:
        async with way("-", server) as between:
            host, port = between.visitors
            for how in ("+notcp", "+tcp"):
                question = (f"@{host}", "-p", str(port), how, "+short", "x.test", "A")
                said = await getProcessOutput(program("dig"), question)
                assert said == b"1.2.3.4\n"


_FLOOD = """
import socket, sys, time
to = ("127.0.0.1", int(sys.argv[1]))
end = time.monotonic() + float(sys.argv[2])
size = int(sys.argv[3])
sent = 0
while time.monotonic() < end:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(20):
        try:
            sender.sendto(bytes(size), to)
        except OSError:
            pass
        sent += 1
    sender.close()
print(sent)
"""


@pytest.mark.parametrize("size", [64, 1420])
@pytest_twisted.ensureDeferred
async def test_a_flood_of_datagrams(size: int) -> None:
    """Datagrams without pause, 20 a port, for 3 s: TCP is served, memory bounded, nobody dies."""
    target = listen(echo)
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(tuple(target.endpoint))
    nodes = await fleet(target.endpoint, env={"NP_UDP_READ_TIMEOUT": "2s"})
    try:
        before = [memory_of(one.pid) for one in (nodes.server, *nodes.clients)]
        flood = getProcessOutput(
            sys.executable, ("-c", _FLOOD, str(nodes.visitors), "3", str(size)), errortoo=True
        )
        served = 0
        while not flood.called:
            conn = await connect(nodes.visitor)
            for _ in range(5):
                conn.write(b"in spite of it")
                await conn.change(10.0)
                assert conn.take() == b"in spite of it"
                served += 1
            conn.reset()
        sent = int(await flood)
        after = [memory_of(one.pid) for one in (nodes.server, *nodes.clients)]
        grown = [now - then for now, then in zip(after, before, strict=True)]
        assert sent > 10_000
        assert served >= 5
        assert max(grown) < 100 << 20, grown
        await nodes.server.line(r"CHECK_POINT\|.*UDPS=[1-9]")
        await sleep(0.1)
        for one in (nodes.server, *nodes.clients):
            one.lines.clear()
            await one.line(r"CHECK_POINT\|.*UDPS=0\|", timeout=30)
    finally:
        await nodes.stop()
        await target.stop()
        silent.close()


@pytest_twisted.ensureDeferred
async def test_a_stalled_link_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stuck link can't take is dropped, counted and logged; it goes on when it can."""
    monkeypatch.setenv("SCENARIO_LOG", "warn")
    said: list[str] = []

    def observe(event: LogEvent) -> None:
        said.append(formatEvent(event))

    async with Programs() as programs:
        target = programs.silent()
        async with way("-", target.address, tuning=PATIENT) as between:
            visitor = programs.visitor(between.visitors)
            visitor.say(b"first")
            await until(lambda: target.heard == [b"first"])
            (link,) = between.links
            (far,) = [
                each
                for peer in between.exit._role.peers
                for each in peer.links._links.values()
                if each.number == link.number
            ]
            far.transport.pauseProducing()
            globalLogPublisher.addObserver(observe)
            try:
                sent = 0
                while between.dropped < 50:
                    visitor.say(bytes(60_000))
                    sent += 1
                    await sleep(0)
                    assert sent < 2000, "nothing was dropped"
                # The peer is not told of flows that come meanwhile: they would fill the link. A few
                # have their turn where the system still finds some room.
                stuck = [programs.visitor(between.visitors) for _ in range(100)]
                for each in stuck:
                    each.say(bytes(60_000))
                    await sleep(0)
                await until(lambda: between.entry.stats.udps == 101)
                assert link.flows is not None
                assert len(link.flows.flows) > 1
                assert sum(channel.known for channel in link.flows.flows.values()) < 5
                assert link.flows._backlog.cost <= BACKLOG_BYTES
            finally:
                globalLogPublisher.removeObserver(observe)
            (line,) = [line for line in said if "dropped" in line]
            assert re.fullmatch(r"datagrams dropped: \d+ \(congestion\)", line)
            far.transport.resumeProducing()
            await until(lambda: not link.congested and not link.flows._backlog)
            visitor.say(b"last")
            await until(lambda: target.heard[-1] == b"last")
            others = sum(len(data) == 60_000 for data in target.heard)
            assert others + between.dropped == sent + len(stuck)


@pytest_twisted.ensureDeferred
async def test_a_flood_beside_a_quiet_flow() -> None:
    """On one link, which is stuck: the flood loses its own datagrams, the quiet visitor none."""
    async with Programs() as programs:
        target = programs.silent()
        async with way("-", target.address) as between:
            flood, *others = [programs.visitor(between.visitors) for _ in range(60)]
            for each in (flood, *others):
                each.say(b"first")
            await until(lambda: len(target.heard) == 60)
            (link,) = [link for link in between.links if _carries(link, flood)]
            quiet = next(each for each in others if _carries(link, each))
            (far,) = [
                each
                for peer in between.exit._role.peers
                for each in peer.links._links.values()
                if each.number == link.number
            ]
            far.transport.pauseProducing()
            sent, said = 0, []
            while between.dropped < 1000:
                for _ in range(20):
                    flood.say(bytes(1000))
                sent += 20
                if link.congested and len(said) < 100:
                    said.append(b"%d" % len(said))
                    quiet.say(said[-1])
                await sleep(0)
                assert sent < 200_000, "nothing was dropped"
            assert link.flows is not None
            assert link.flows._backlog.cost <= BACKLOG_BYTES
            far.transport.resumeProducing()
            heard = target.heard
            await until(
                lambda: not link.congested and heard.count(bytes(1000)) + between.dropped == sent
            )
            assert len(said) > 20
            assert [data for data in heard if len(data) < 5] == said


def _carries(link: DataLink, visitor: Visitor) -> bool:
    """Whether the visitor's flow is on the link."""
    assert link.flows is not None
    port = visitor.address.port
    return any(flow.opening.visitor.port == port for flow in link.flows.flows.values())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest_twisted.ensureDeferred
async def test_flows_recover_when_a_client_is_replaced(number: int) -> None:
    """A visitor's next datagrams go through the new client; the flows of the old one are gone."""
    async with Programs() as programs:
        target = programs.target()
        nodes = await fleet(target.address)
        try:
            visitors = [programs.visitor(nodes.visitor) for _ in range(10)]
            await heard_back(visitors, b"before")
            await nodes.clients[0].stop(number)
            nodes.clients.append(start_client(target.address, nodes.tunnel))
            await heard_back(visitors, b"after")
            nodes.server.lines.clear()
            await nodes.server.line(r"CHECK_POINT\|.*UDPS=10\|")
        finally:
            await nodes.stop()


async def heard_back(visitors: list[Visitor], data: bytes) -> None:
    """Each visitor says it until it hears it back."""

    def done() -> bool:
        for visitor in visitors:
            if data not in visitor.heard:
                visitor.say(data)
        return all(data in visitor.heard for visitor in visitors)

    deadline = reactor.seconds() + 20
    while not done():
        assert reactor.seconds() < deadline, "no answer"
        await sleep(0.1)
