"""UDP flows: how they begin and end, what they give back, and what they share."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol

from nodepass.address import Address, Endpoint
from nodepass.config import parse_url
from nodepass.roles import instance
from nodepass.roles.visitors import VisitorPorts
from nodepass.service import makeService
from tests.ports import HERE
from tests.scenarios.datagrams import WAYS, Programs, Visitor, Way, target_sockets, way
from tests.scenarios.harness import KEY, QUICK, sleep, until

#: Flows end after this many seconds of silence, where a scenario waits for it.
IDLE = 1.0
SILENCE = evolve(QUICK, udp_read_timeout=IDLE)


async def answered(*visitors: Visitor, data: bytes = b"hello", timeout: float = 10.0) -> None:
    """Each visitor says something until it hears it back, as a program does that expects loss."""
    for visitor in visitors:
        visitor.heard.clear()
    deadline = reactor.seconds() + timeout
    while not all(data in visitor.heard for visitor in visitors):
        assert reactor.seconds() < deadline, "no answer"
        for visitor in visitors:
            if data not in visitor.heard:
                visitor.say(data)
        await sleep(0.1)


@pytest.mark.parametrize(
    ("kind", "parameter"), [("-", ""), ("+", ""), ("single", ""), ("-", "read=1s")]
)
@pytest_twisted.ensureDeferred
async def test_silence_ends_flows_and_gives_all_back(kind: str, parameter: str) -> None:
    """After NP_UDP_READ_TIMEOUT, or `read` where it is given, nothing of a flow is left."""
    tuning = QUICK if parameter else SILENCE
    async with Programs() as programs:
        target = programs.target()
        async with way(
            kind, target.address, entry=parameter, exit=parameter, tuning=tuning
        ) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(20)]
            await answered(*visitors)
            assert between.entry.stats.udps == between.exit.stats.udps == 20
            assert target_sockets() == 20
            await until(lambda: between.held == 0, what="the end of the flows")
            await answered(*visitors, data=b"again")
            assert between.entry.stats.udps == 20


@pytest.mark.parametrize("kind", ["-", "+"])
@pytest.mark.parametrize("short", ["entry", "exit"])
@pytest_twisted.ensureDeferred
async def test_the_shorter_silence_counts(kind: str, short: str) -> None:
    """Where the nodes differ, the flow ends at both when it ends at one, and stays ended."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address, tuning=QUICK, **{short: "read=500ms"}) as between:
            visitor = programs.visitor(between.visitors)
            await answered(visitor)
            heard = len(target.heard)
            await until(lambda: between.held == 0, what="the end of the flow")
            await sleep(0.3)
            assert between.held == 0
            assert len(target.heard) == heard


@pytest.mark.parametrize("speaker", ["visitor", "target"])
@pytest.mark.parametrize("kind", ["-", "single"])
@pytest_twisted.ensureDeferred
async def test_either_direction_keeps_a_flow(kind: str, speaker: str) -> None:
    """A flow on which only one side speaks is not silent."""
    tuning = evolve(QUICK, udp_read_timeout=1.0)
    async with Programs() as programs:
        target = programs.silent()
        async with way(kind, target.address, tuning=tuning) as between:
            visitor = programs.visitor(between.visitors)
            visitor.say(b"hello")
            await until(lambda: bool(target.heard))
            source = target.sources[0]
            for _ in range(14):
                if speaker == "visitor":
                    visitor.say(b"still here")
                else:
                    target.transport.write(b"still here", tuple(source))
                await sleep(0.1)
            await until(lambda: len(target.heard) + len(visitor.heard) == 15)
            assert set(target.sources) == {source}


@pytest.mark.parametrize("kind", ["-", "+"])
@pytest.mark.parametrize("stopped", ["entry", "exit"])
@pytest_twisted.ensureDeferred
async def test_flows_end_when_either_node_stops(kind: str, stopped: str) -> None:
    """The node that stays holds nothing of the flows, and waits for none."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(5)]
            await answered(*visitors)
            gone, there = between.entry, between.exit
            if stopped == "exit":
                gone, there = there, gone
            await gone.stopService()
            await until(lambda: Way(there, there).held == 0)


@pytest.mark.parametrize("kind", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_lost_link_ends_its_flows_and_they_come_back(kind: str) -> None:
    """Flows whose data link broke end at both nodes; each next datagram opens one anew."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(32)]
            await answered(*visitors)
            assert 2 <= len(between.links) <= 8
            for link in between.links:
                link.transport.abortConnection()
            await until(lambda: between.held == 0, what="the end of the flows")
            await answered(*visitors, data=b"anew")
            assert between.entry.stats.udps == between.exit.stats.udps == 32


@pytest_twisted.ensureDeferred
async def test_flows_spread_over_the_links() -> None:
    """No link has more than a fair share, by and large: ports one after the other spread well."""
    async with Programs() as programs:
        target = programs.target()
        async with way("-", target.address) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(256)]
            await answered(*visitors)
            shares = sorted(len(link.flows.flows) for link in between.links)
            assert len(shares) == 8
            assert sum(shares) == 256
            assert shares[-1] <= 64  # twice the fair share; 6 standard deviations


@pytest_twisted.ensureDeferred
async def test_idle_datagram_links_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link without flows is kept for a while from its last flow's end, then closed."""
    monkeypatch.setattr("nodepass.wire.native.flowlinks.DATAGRAM_LINK_REST", 1.0)
    async with Programs() as programs:
        target = programs.target()
        async with way("-", target.address, tuning=evolve(SILENCE, report_interval=0.1)) as between:
            visitor = programs.visitor(between.visitors)
            for _ in range(5):
                await answered(visitor)
                await sleep(0.2)
            await until(lambda: between.held == 0)
            ended = reactor.seconds()
            assert len(between.links) == 1
            await until(lambda: not between.links)
            assert reactor.seconds() - ended > 0.6
            await answered(visitor)


@pytest_twisted.ensureDeferred
async def test_flows_take_half_of_the_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of flows does not take the descriptors that connections need."""
    # A quarter of so few is for other things than sessions.
    monkeypatch.setattr("nodepass.roles.instance.open_files", lambda: 11)
    async with Programs() as programs:
        target = programs.target()
        async with way("single", target.address) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(4)]
            await answered(*visitors)
            programs.visitor(between.visitors).say(b"no room")
            await until(lambda: between.dropped == 1)
            assert between.flows == target_sockets() == 4


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_flows_take_half_of_the_slots(kind: str) -> None:
    """Of slot=8 flows take four, and TCP visitors still find room."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address, entry="slot=8", exit="slot=0") as between:
            visitors = [programs.visitor(between.visitors) for _ in range(4)]
            await answered(*visitors)
            late = programs.visitor(between.visitors)
            for _ in range(5):
                late.say(b"no room")
            dropped = between.meter(between.entry)
            await until(lambda: dropped.udp_dropped == 5, what="the refusals")
            assert late.heard == []
            await answered(*visitors, data=b"not disturbed")
            assert between.entry.stats.udps == 4


@pytest.mark.parametrize(
    ("kind", "limited"),
    [("-", "entry"), ("+", "entry"), ("-", "exit"), ("+", "exit"), ("single", "entry")],
)
@pytest_twisted.ensureDeferred
async def test_the_oldest_unanswered_flow_makes_room(kind: str, limited: str) -> None:
    """Flows that were answered stay; of the others the oldest goes for a new one."""
    async with Programs() as programs:
        target = programs.target(lambda data: [] if data == b"quiet" else [data])
        async with way(kind, target.address, **{limited: "slot=8"}) as between:
            known = [programs.visitor(between.visitors) for _ in range(2)]
            await answered(*known)
            quiet = [programs.visitor(between.visitors) for _ in range(6)]
            for number, visitor in enumerate(quiet):
                visitor.say(b"quiet")
                await until(lambda number=number: target.heard.count(b"quiet") == number + 1)
                node = getattr(between, limited)
                assert node.stats.udps == min(4, 3 + number)
            await until(lambda: between.entry.stats.udps == between.exit.stats.udps == 4)
            ports = {visitor.port for visitor, _ in between.entry._role.visitors._channels}
            expected = [*known, *quiet[-2:]]
            assert ports == {visitor.address.port for visitor in expected}
            await answered(*known, data=b"still there")


@pytest.mark.parametrize("kind", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_slots_of_the_node_at_the_target(kind: str) -> None:
    """Its refusals cost one flow per datagram, no more, and disturb nobody."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address, exit="slot=4") as between:
            visitors = [programs.visitor(between.visitors) for _ in range(2)]
            await answered(*visitors)
            late = programs.visitor(between.visitors)
            opened = 0
            dialer = between.exit._role.dialer
            dial_flow = dialer.dial_flow

            def count(*arguments: object) -> None:
                nonlocal opened
                opened += 1
                dial_flow(*arguments)

            dialer.dial_flow = count
            for _ in range(10):
                late.say(b"no room")
                await sleep(0.02)
            await until(lambda: between.entry.stats.udps == 2)
            await sleep(0.2)
            assert 1 <= opened <= 10
            assert late.heard == []
            await answered(*visitors, data=b"not disturbed")


@pytest.mark.parametrize("kind", ["-", "single"])
@pytest_twisted.ensureDeferred
async def test_rate_delays_then_drops(kind: str) -> None:
    """What is above the rate comes late while a queue has room for it; the rest is counted."""
    size, count = 10_000, 50  # 500 kB; a burst of one second is 125 kB, a queue 256 KiB
    async with Programs() as programs:
        target = programs.silent()
        async with way(kind, target.address, entry="rate=1") as between:
            visitor = programs.visitor(between.visitors)
            began = reactor.seconds()
            for number in range(count):
                visitor.say(number.to_bytes(4, "big") * (size // 4))
                await sleep(0.002)
            meter = between.meter(between.entry)
            await until(lambda: len(target.heard) + meter.udp_dropped == count, timeout=20)
            took = reactor.seconds() - began
            passed = len(target.heard) * size
            assert 125_000 + 200_000 < passed < 125_000 * (took + 1.5)
            assert meter.udp_dropped > 0
            assert target.heard == sorted(target.heard)
            role = between.entry._role
            assert role.visitors.flows.delayed == 0


@pytest.mark.parametrize("kind", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_flow_that_waits_for_a_link_delays_no_other(kind: str) -> None:
    """While no new link can be had, flows that have one go on; the others start when there is."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(3)]
            await answered(*visitors)
            (peer,) = between.entry._role.peers
            pool = peer.links
            need_links, peer.need_links = peer.need_links, lambda count: None
            taken = list(iter(pool._idle.take, None))
            waiting: list[Visitor] = []
            while not pool._flows._lanes:
                waiting.append(programs.visitor(between.visitors))
                waiting[-1].say(b"waits")
                waiting[-1].say(b"in order")
                await sleep(0.02)
            for number in range(10):
                await answered(*visitors, data=b"goes on %d" % number)
            assert waiting[-1].heard == []
            peer.need_links = need_links
            for link in taken:
                pool._put(link)
            await until(lambda: all(v.heard == [b"waits", b"in order"] for v in waiting))


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_target_that_starts_late(kind: str) -> None:
    """ICMP errors end nothing: the same flow gets through when somebody listens."""
    async with Programs() as programs:
        place = programs.target().port
        address = Endpoint("127.0.0.1", place.getHost().port)
        await place.stopListening()
        async with way(kind, address) as between:
            visitor = programs.visitor(between.visitors)
            for _ in range(10):
                visitor.say(b"anybody?")
                await sleep(0.03)
            assert between.flows == 1
            target = programs.target(at=address)
            await answered(visitor)
            assert between.flows == 1
            assert len(set(target.sources)) == 1
            target.port.stopListening()
            await sleep(0.1)
            visitor.say(b"gone?")
            await sleep(0.1)
            programs.target(at=address)
            await answered(visitor, data=b"back")


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_name_that_does_not_resolve(kind: str) -> None:
    """The flow ends, with all that it held; each datagram may try again."""
    async with Programs() as programs:
        async with way(kind, "no-such-host.invalid:53") as between:
            visitors = [programs.visitor(between.visitors) for _ in range(5)]
            for visitor in visitors:
                visitor.say(b"hello?")
            await until(lambda: between.held == 0, what="the end of the flows", timeout=30)
            visitors[0].say(b"again?")
            await sleep(0.05)
            await until(lambda: between.held == 0, what="the end of the flow", timeout=30)


@pytest.mark.parametrize("kind", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_no_peer_no_flow(kind: str) -> None:
    """Without a peer datagrams are dropped and counted, and nothing is held for them."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address) as between:
            visitor = programs.visitor(between.visitors)
            await answered(visitor)
            await between.exit.stopService()
            await until(lambda: between.entry.stats.udps == 0)
            meter = between.meter(between.entry)
            dropped = meter.udp_dropped
            for _ in range(3):
                visitor.say(b"anybody?")
            await until(lambda: meter.udp_dropped == dropped + 3)
            assert between.entry.stats.udps == 0


@pytest_twisted.ensureDeferred
async def test_tcp_may_take_all_slots() -> None:
    """Flows have no slots of their own: when TCP visitors have taken all, datagrams are dropped."""
    async with Programs() as programs:
        while True:  # until there is a port that TCP has free as well
            target = programs.target()
            host, port = target.address
            try:
                tcp = reactor.listenTCP(port, Factory.forProtocol(Protocol), interface=host)
                break
            except CannotListenError:
                continue
        async with way("single", target.address, entry="slot=2") as between:
            entry = TCP4ClientEndpoint(reactor, *between.visitors)
            guests = [await connectProtocol(entry, Protocol()) for _ in range(2)]
            await until(lambda: between.entry.stats.tcps == 2)
            visitor = programs.visitor(between.visitors)
            visitor.say(b"no room")
            await until(lambda: between.dropped == 1)
            guests[0].transport.abortConnection()
            await until(lambda: between.entry.stats.tcps == 1)
            await answered(visitor)
            guests[1].transport.abortConnection()
            await until(lambda: between.entry.stats.tcps == 0)
        await tcp.stopListening()


@pytest.mark.parametrize("kind", ["-", "single"])
@pytest_twisted.ensureDeferred
async def test_any_free_port_is_free_for_both(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the URL asks for any port, one that is taken for UDP is not tried for ever."""
    taken: list[socket.socket] = []
    choose = instance.choose_relay

    def choose_relay(*arguments: Any, **named: Any) -> Any:
        relay = choose(*arguments, **named)
        monkeypatch.setattr(relay, "listen_tcp", partial(listen, relay.listen_tcp))
        return relay

    def listen(listen_tcp: Any, address: Address, accepted: Any) -> Any:
        port = listen_tcp(address, accepted)
        if len(taken) < 3:
            taken.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            taken[-1].bind(("127.0.0.1", port.getHost().port))
        return port

    starts: list[VisitorPorts] = []
    start = VisitorPorts.start

    def count_starts(ports: VisitorPorts) -> None:
        starts.append(ports)
        start(ports)

    monkeypatch.setattr(instance, "choose_relay", choose_relay)
    monkeypatch.setattr(VisitorPorts, "start", count_starts)
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address) as between:
            await answered(programs.visitor(between.visitors))
    assert len(taken) == 3
    assert len(starts) == 1, "it had to wait before it tried again"
    for each in taken:
        each.close()


@pytest_twisted.ensureDeferred
async def test_ready_means_that_visitors_can_come() -> None:
    """A server whose visitors' port is still taken is not ready, though a client has joined."""
    async with Programs() as programs:
        target = programs.target()
        taken = programs.target(at=Endpoint(HERE, 0))  # no connection has its number for TCP
        url = f"server://{KEY}@127.0.0.1:0/{taken.address}?log=none&mode=1"
        server = makeService(parse_url(url), tuning=QUICK)
        server.startService()
        url = f"client://{KEY}@{server.tunnel_address}/{target.address}?log=none&mode=2"
        client = makeService(parse_url(url), tuning=QUICK)
        client.startService()
        ready = server.whenReady()
        await until(lambda: server.stats.peers == 1)
        await sleep(0.1)
        assert not ready.called
        await maybeDeferred(taken.port.stopListening)
        await ready
        assert server.visitor_address is not None
        await answered(programs.visitor(server.visitor_address))
        await gatherResults([client.stopService(), server.stopService()])
