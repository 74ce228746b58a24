"""UDP sessions on channels that do as they are told: what they share, and what they leave."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from nodepass.address import Address, Endpoint
from nodepass.logs import Level, Log
from nodepass.meter import Meter
from nodepass.rate import RateLimiter
from nodepass.relay import flow as flow_module
from nodepass.relay import targetchannel
from nodepass.relay.flow import DELAYED_OVERHEAD, EXPIRY_BATCH, FlowLimits, FlowSession, FlowSet
from nodepass.relay.portable import PortableRelay
from nodepass.relay.session import SessionContext
from nodepass.relay.stream import Cause, FlowSink
from nodepass.relay.tally import INTERVAL
from nodepass.relay.targetchannel import LOOKUP_BYTES, LOOKUP_DATAGRAMS, LOOKUP_FLOW_BYTES, Held
from nodepass.slots import Slots

IDLE = 120.0


class FakeChannel:
    """A channel that keeps what it is given."""

    def __init__(self, able: bool = True) -> None:
        self.able = able
        self.sent: list[bytes] = []
        self.closings: list[Cause | None] = []
        self.sink: Any = None

    def attach(self, sink: FlowSink) -> None:
        self.sink = sink

    def send(self, batch: list[bytes]) -> list[bytes]:
        if not self.able:
            return batch
        self.sent += batch
        return []

    def close(self, cause: Cause | None = None) -> None:
        self.closings.append(cause)


class Bench:
    """A set of flows and its clock; with a rate of 8 kbit/s, 1,000 bytes a second, if asked."""

    def __init__(self, slot: int = 0, rate: bool = False, level: Level = Level.NONE) -> None:
        self.clock = Clock()
        self.meter = Meter()
        limiters = [RateLimiter(8000, self.clock) if rate else None for _ in "io"]
        context = SessionContext(
            clock=self.clock,
            log=Log(level),
            meter=self.meter,
            read=0.0,
            inbound=limiters[0],
            outbound=limiters[1],
        )
        self.slots = Slots(slot)
        self.flows = FlowSet(context, FlowLimits(slots=self.slots, idle=IDLE), near_answers=False)

    def start(self, key: str) -> tuple[FlowSession, FakeChannel, FakeChannel]:
        """A flow, the visitor's channel and the target's."""
        assert self.flows.room()
        near, far = FakeChannel(), FakeChannel()
        return self.flows.start(key, near, far, lambda: key), near, far


def test_no_timer_without_a_flow() -> None:
    """The last flow takes the timer along, whatever way it ends."""
    bench = Bench()
    for end in (
        lambda near: near.sink.closed(None),
        lambda near: bench.flows.close(Cause.STOPPED),
        lambda near: bench.clock.advance(IDLE),
    ):
        _, near, far = bench.start("a")
        assert len(bench.clock.getDelayedCalls()) == 1
        end(near)
        assert bench.clock.getDelayedCalls() == []
        assert len(far.closings) == 1
        assert (bench.slots.udp, len(bench.flows)) == (0, 0)


def test_silence_is_counted_from_the_last_datagram() -> None:
    """Each flow ends at its own time, by a datagram's age in either direction."""
    bench = Bench()
    _, near, first = bench.start("a")
    _, _, second = bench.start("b")
    bench.clock.advance(IDLE - 1)
    near.sink.datagrams([b""])
    bench.clock.advance(1)
    assert (first.closings, second.closings) == ([], [Cause.IDLE])
    bench.clock.advance(IDLE - 2)
    first.sink.datagrams([b"answer"])
    bench.clock.advance(IDLE - 1)
    assert first.closings == []
    bench.clock.advance(1)
    assert first.closings == [Cause.IDLE]


def test_many_silent_flows_end_in_turns() -> None:
    """A burst of flows falls silent at once and holds up nobody: a few end in each turn."""
    bench = Bench()
    count = 32_000
    ends = [bench.start(str(number))[1:] for number in range(count)]
    left = []

    def other_event() -> None:
        left.append(len(bench.flows))
        if left[-1]:
            bench.clock.callLater(0, other_event)

    bench.clock.callLater(IDLE, other_event)
    began = time.process_time()
    bench.clock.advance(IDLE)
    # Of the processor's time it takes a fraction of a second; half a minute if all flows are gone
    # through for each that ends.
    assert time.process_time() - began < 10
    assert {before - after for before, after in pairwise([count, *left])} == {EXPIRY_BATCH}
    assert all(near.closings == far.closings == [Cause.IDLE] for near, far in ends)
    assert (bench.slots.udp, len(bench.flows)) == (0, 0)
    assert bench.clock.getDelayedCalls() == []


def test_a_flow_that_ends_another_as_it_expires() -> None:
    """Flows that expire together may end each other: each gives its slot back once."""
    bench = Bench()
    _, _, first = bench.start("a")
    other, _, second = bench.start("b")
    first.close = lambda cause=None: other.close(cause)  # type: ignore[method-assign]
    bench.clock.advance(IDLE)
    assert second.closings == [Cause.IDLE]
    assert (bench.slots.udp, len(bench.flows)) == (0, 0)


def test_counters() -> None:
    """What visitors sent and got is counted; what could not be passed on is not sent."""
    bench = Bench()
    _, near, far = bench.start("a")
    near.sink.datagrams([b"12345"])
    far.sink.datagrams([b"123"])
    near.able = far.able = False
    near.sink.datagrams([b"1"])
    far.sink.datagrams([b"1"])
    assert (bench.meter.udp_rx, bench.meter.udp_tx, bench.meter.udp_dropped) == (6, 3, 2)


def test_counters_of_a_batch_that_is_sent_in_part() -> None:
    """Each datagram that could not be passed on is counted as dropped, the others as sent."""
    bench = Bench()
    _, near, far = bench.start("a")
    near.send = lambda batch: batch[1:]  # type: ignore[method-assign]
    far.sink.datagrams([b"123", b"1", b""])
    assert (bench.meter.udp_tx, bench.meter.udp_dropped) == (3, 2)


def test_losses_are_said_by_themselves() -> None:
    """The first loss of a kind is said at once, the others of a minute together at its end."""
    bench = Bench(slot=2, level=Level.WARN)
    _, near, far = bench.start("a")
    far.able = False
    with capturedLogs() as events:
        for _ in range(4):
            near.sink.datagrams([b"x"])
        bench.flows.oversized()
        far.sink.datagrams([b"answer"])  # so that it has to make room for nobody
        assert not bench.flows.room()
        at_once = list(map(formatEvent, events))
        bench.clock.advance(INTERVAL)
        in_time = list(map(formatEvent, events[len(at_once) :]))
    assert at_once == [
        "datagrams dropped: 1 (congestion)",
        "datagrams dropped: 1 above NP_UDP_DATA_BUF_SIZE; raise it to relay them",
        "new UDP sessions refused: 1; slot=2, of which UDP may take 1",
    ]
    assert in_time == ["datagrams dropped: 3 (congestion)"]
    assert (bench.meter.udp_dropped, bench.meter.udp_oversized) == (4, 1)


def test_losses_are_said_at_the_end() -> None:
    """What is unsaid when all flows are closed is said then; nothing runs on, even if more goes
    wrong afterwards."""
    bench = Bench(level=Level.WARN)
    with capturedLogs() as events:
        for _ in range(3):
            bench.flows.dropped("no peer", 1)
        bench.flows.close(Cause.STOPPED)
        bench.flows.dropped("no peer", 1)
    said = ["datagrams dropped: 1 (no peer)", "datagrams dropped: 2 (no peer)"]
    assert list(map(formatEvent, events)) == said
    assert bench.meter.udp_dropped == 4
    assert bench.clock.getDelayedCalls() == []


def test_delayed_datagrams_of_all_flows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many flows together hold no more than one bound while they wait for the rate."""
    monkeypatch.setattr(flow_module, "DELAYED_BYTES", 10 * (100 + DELAYED_OVERHEAD))
    bench = Bench(rate=True)
    started = [bench.start(str(number)) for number in range(30)]
    for _, near, _ in started:
        near.sink.datagrams([bytes(1000)])  # the first overdraws the second of burst
        near.sink.datagrams([bytes(100)])
    waiting = bench.flows.delayed
    assert 0 < waiting <= 10 * (100 + DELAYED_OVERHEAD)
    assert bench.meter.udp_dropped > 0
    sent = sum(len(far.sent) for _, _, far in started)
    bench.clock.pump([0.5] * 60)
    assert sum(len(far.sent) for _, _, far in started) > sent
    assert bench.flows.delayed == 0


def test_an_ended_flow_gives_its_delayed_room_back() -> None:
    """What waited with a flow goes with it."""
    bench = Bench(rate=True)
    _, near, far = bench.start("a")
    for _ in range(5):
        near.sink.datagrams([bytes(1000)])
    assert bench.flows.delayed > 0
    bench.flows.close(Cause.STOPPED)
    assert bench.flows.delayed == 0
    sent = len(far.sent)
    bench.clock.advance(30)
    assert len(far.sent) == sent


def test_what_flows_hold_during_a_look_up_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer does not fill the memory."""
    look_ups: list[Deferred[Any]] = []

    async def resolve(*arguments: object) -> Any:
        look_ups.append(Deferred())
        return await look_ups[-1]

    monkeypatch.setattr(targetchannel, "resolve_udp", resolve)
    monkeypatch.setattr(targetchannel, "LOOKUP_BYTES", 1000)
    nothing: Any = None
    relay = PortableRelay(Clock(), nothing, nothing, Log(Level.NONE))
    channels = [relay.dial_udp(Address("x.test", 53), 10.0, 65507, lambda: None) for _ in range(4)]
    assert [len(channel.send([bytes(300)])) for channel in channels] == [0, 0, 0, 1]
    channels[0].close()
    assert not channels[3].send([bytes(300)])
    for channel in channels:
        channel.close()
    one = relay.dial_udp(Address("x.test", 53), 10.0, 65507, lambda: None)
    assert not one.send([bytes(1000)])
    one.close()


def test_what_one_flow_holds_during_a_look_up_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes, so that others find room beside it."""

    async def resolve(*arguments: object) -> Any:
        return await Deferred()

    monkeypatch.setattr(targetchannel, "resolve_udp", resolve)
    nothing: Any = None
    relay = PortableRelay(Clock(), nothing, nothing, Log(Level.NONE))
    few, many = [relay.dial_udp(Address("x.test", 53), 10.0, 65507, lambda: None) for _ in "12"]
    large = LOOKUP_FLOW_BYTES // 4
    assert len(few.send([bytes(large)] * 10)) == 6
    assert len(many.send([b""] * 100)) == 100 - LOOKUP_DATAGRAMS
    assert 2 * LOOKUP_FLOW_BYTES <= LOOKUP_BYTES
    for channel in (few, many):
        channel.close()


@pytest.mark.parametrize(
    "error, cause, words",
    [
        (DNSLookupError("x.test: no address"), Cause.UNREACHABLE, "name not found"),
        (None, Cause.TIMED_OUT, "timed out"),
    ],
)
def test_a_flow_whose_target_is_not_found(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, cause: Cause, words: str
) -> None:
    """It ends with the cause, which the log says with the target; what it held is gone."""
    looking: Deferred[Any] = Deferred()

    async def resolve(*arguments: object) -> Any:
        return await looking

    monkeypatch.setattr(targetchannel, "resolve_udp", resolve)
    nothing: Any = None
    clock, sink = Clock(), Mock()
    with capturedLogs() as events:
        relay = PortableRelay(clock, nothing, nothing, Log(Level.INFO))
        channel = relay.dial_udp(Address("x.test", 53), 10.0, 65507, lambda: None)
        channel.attach(sink)
        assert not channel.send([b"held"])
        if error is None:
            clock.advance(10)
        else:
            looking.errback(error)
    sink.closed.assert_called_once_with(cause)
    assert [formatEvent(event) for event in events] == [f"UDP target x.test:53: {words}"]
    assert channel.send([b"late"]) == [b"late"]
    assert not clock.getDelayedCalls()


def test_a_flow_whose_target_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says so once in a while, however many datagrams are refused; the flow goes on."""

    async def resolve(*arguments: object) -> Endpoint:
        return Endpoint("192.0.2.1", 53)

    monkeypatch.setattr(targetchannel, "resolve_udp", resolve)
    nothing: Any = None
    sink = Mock()
    with capturedLogs() as events:
        log = Log(Level.INFO)
        channels = [
            targetchannel.TargetChannel(
                Clock(), nothing, Mock(), Address("x.test", 53), 10.0, 65507, Mock(), log, Held()
            )
            for _ in range(2)
        ]
        for channel in channels:
            channel.attach(sink)
            for _ in range(3):
                channel.refused()
    assert [formatEvent(event) for event in events] == ["UDP target x.test:53: refused"]
    sink.closed.assert_not_called()
