"""Datagrams through nodes: whole, in order, from the right address, none too many."""

from __future__ import annotations

import random

import pytest
import pytest_twisted
from attrs import evolve

from nodepass.address import Endpoint
from tests.scenarios.datagrams import LARGEST, WAYS, Programs, Way, way
from tests.scenarios.harness import PATIENT, sleep, until

#: Where visitors and the target are on the same machine, a socket takes this much at once.
BURST_BYTES = 200_000


def sized(number: int, size: int) -> bytes:
    """A datagram that can be told from all others of its flow, as far as its size permits."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


@pytest.mark.parametrize(("kind", "tls"), [("-", 0), ("+", 0), ("-", 1), ("+", 1), ("single", 0)])
@pytest_twisted.ensureDeferred
async def test_bursts_arrive_whole_and_in_order(kind: str, tls: int) -> None:
    """On 64 flows at once datagrams of every size arrive, none merged, cut or overtaken."""
    rng = random.Random(1)
    sizes = [0, 1, 2, 511, 1420, 1472, 8972, 32768, LARGEST - 1, LARGEST]
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address, tls=tls) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(64)]
            said: list[list[bytes]] = [[] for _ in visitors]
            turns = [number for number in range(64) for _ in sizes]
            rng.shuffle(turns)
            order = [rng.sample(sizes, len(sizes)) for _ in visitors]
            burst = 0
            for count, turn in enumerate(turns, 1):
                data = sized(len(said[turn]), order[turn][len(said[turn])])
                visitors[turn].say(data)
                said[turn].append(data)
                burst += len(data)
                if burst > BURST_BYTES:
                    burst = 0
                    await until(lambda count=count: len(target.heard) == count, what="the burst")
            await until(lambda: [visitor.heard for visitor in visitors] == said, what="the answers")
            assert between.dropped == 0
            assert between.entry.stats.udps == 64
            payload = sum(map(sum, order))
            assert between.entry.stats.udp_rx == between.entry.stats.udp_tx == payload
            assert between.exit.stats.udp_rx >= payload


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_sudden_burst_of_one_flow_arrives(kind: str) -> None:
    """What a socket takes at once also passes: 300 KB of one flow, before its link is there."""
    async with Programs() as programs:
        target = programs.silent()
        async with way(kind, target.address) as between:
            visitor = programs.visitor(between.visitors)
            burst = [sized(number, 10_000) for number in range(30)]
            for data in burst:
                visitor.say(data)
            await until(lambda: len(target.heard) == 30, what="the burst")
            for data in burst:
                visitor.say(data)
            await until(lambda: len(target.heard) == 60, what="the second burst")
            assert target.heard == burst + burst
            assert between.dropped == 0


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_an_empty_datagram_opens_a_flow_and_is_answered(kind: str) -> None:
    """A datagram without a byte is one like any other."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address) as between:
            visitor = programs.visitor(between.visitors)
            visitor.say(b"")
            await until(lambda: visitor.heard == [b""])
            visitor.say(b"")
            visitor.say(b"x")
            visitor.say(b"")
            await until(lambda: len(visitor.heard) == 4)
            assert visitor.heard == target.heard == [b"", b"", b"x", b""]


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_too_large_a_datagram_is_dropped_and_counted(kind: str) -> None:
    """NP_UDP_DATA_BUF_SIZE holds in both directions; nothing is cut to fit."""
    tuning = evolve(PATIENT, udp_buffer=1000)
    async with Programs() as programs:
        target = programs.target(lambda data: [b"a" * 1000, b"b" * 1001, b"c" * 60000, b"end"])
        async with way(kind, target.address, tuning=tuning) as between:
            visitor = programs.visitor(between.visitors)
            for size in (1001, 65000, 1000):
                visitor.say(b"v" * size)
            await until(lambda: len(visitor.heard) == 2)
            await sleep(0.1)
            assert visitor.heard == [b"a" * 1000, b"end"]
            assert target.heard == [b"v" * 1000]
            counts = {between.meter(node).udp_oversized for node in (between.entry, between.exit)}
            assert counts == ({4} if kind == "single" else {2})


def own_addresses(between: Way, hosts: list[str]) -> list[Endpoint]:
    return [Endpoint(host, between.visitors.port) for host in hosts]


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_answers_leave_from_the_address_written_to(kind: str) -> None:
    """On a listener for every interface the visitor hears from whom it had written to."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address, host="::") as between:
            for address in own_addresses(between, ["127.0.0.1", "127.0.0.2", "::1"]):
                visitor = programs.visitor(address)
                visitor.say(b"hello")
                await until(lambda visitor=visitor: bool(visitor.heard))
                assert visitor.sources == [address]


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_one_visitor_at_two_addresses_has_two_flows(kind: str) -> None:
    """The same port writing to two addresses of a node hears each of them answer."""
    async with Programs() as programs:
        target = programs.target()
        async with way(kind, target.address, host="0.0.0.0") as between:
            first, second = own_addresses(between, ["127.0.0.1", "127.0.0.2"])
            visitor = programs.visitor(first)
            for _ in range(2):
                visitor.transport.write(b"one", tuple(first))
                visitor.transport.write(b"two", tuple(second))
            await until(lambda: len(visitor.heard) == 4)
            assert set(zip(visitor.heard, visitor.sources, strict=True)) == {
                (b"one", first),
                (b"two", second),
            }
            assert between.entry.stats.udps == 2


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_ipv6_from_end_to_end(kind: str) -> None:
    """Visitors, nodes and target may all speak IPv6."""
    async with Programs() as programs:
        target = programs.target(at=Endpoint("::1", 0))
        async with way(kind, target.address, host="::1") as between:
            visitor = programs.visitor(between.visitors)
            visitor.say(b"six")
            await until(lambda: visitor.heard == [b"six"])


@pytest.mark.parametrize("kind", WAYS)
@pytest_twisted.ensureDeferred
async def test_a_targets_own_datagrams_reach_the_visitor(kind: str) -> None:
    """A target may say more than it is asked, and later; it sees one address per visitor."""
    async with Programs() as programs:
        target = programs.silent()
        async with way(kind, target.address) as between:
            visitors = [programs.visitor(between.visitors) for _ in range(2)]
            for number, visitor in enumerate(visitors):
                visitor.say(b"%d" % number)
                visitor.say(b"%d" % number)
            await until(lambda: len(target.heard) == 4)
            seen = dict(zip(target.heard, target.sources, strict=True))
            assert len(set(target.sources)) == 2
            for number, visitor in enumerate(visitors):
                for word in (b"call", b"", b"back"):
                    target.transport.write(word, tuple(seen[b"%d" % number]))
                await until(lambda visitor=visitor: len(visitor.heard) == 3)
                assert visitor.heard == [b"call", b"", b"back"]


@pytest.mark.parametrize(("kind", "tls"), [("-", 1), ("+", 1), ("single", 0)])
@pytest_twisted.ensureDeferred
async def test_a_steady_flow_of_vpn_packets(kind: str, tls: int) -> None:
    """1420-byte datagrams both ways at once, 2,000 each way, arrive in order and without loss."""
    count, step = 2000, 20
    async with Programs() as programs:
        target = programs.silent()
        async with way(kind, target.address, tls=tls) as between:
            visitor = programs.visitor(between.visitors)
            visitor.say(sized(0, 1420))
            await until(lambda: len(target.heard) == 1)
            peer = tuple(target.sources[0])
            for start in range(1, count, step):
                for number in range(start, start + step):
                    visitor.say(sized(number, 1420))
                    target.transport.write(sized(number, 1420), peer)
                await until(
                    lambda start=start: min(len(target.heard), len(visitor.heard)) > start - 200
                )
            await until(lambda: len(target.heard) == len(visitor.heard) + 1 == count + 1)
            assert target.heard == [sized(number, 1420) for number in range(count + 1)]
            assert visitor.heard == target.heard[1:]
