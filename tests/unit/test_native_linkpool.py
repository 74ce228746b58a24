"""The pool of data links: who waits, what is asked for, and what is given up."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from nodepass.address import Endpoint
from nodepass.errors import PeerError
from nodepass.logs import Level, Log
from nodepass.pool.policy import MEMORY, STEP
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import take_over
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.native import linkpool
from nodepass.wire.native.datalink import DataLink
from nodepass.wire.native.flowlinks import DATAGRAM_LINK_REST
from nodepass.wire.native.frames import Done, encode
from nodepass.wire.native.idle import AGED_SHARE, LINK_MAX_AGE
from nodepass.wire.native.linkpool import SPARE_LINKS, LinkPool
from nodepass.wire.parting import PARTING_TIMEOUT
from tests.loopback import MemoryTransport, connect
from tests.streams import NotingSink

OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))


class NotingFlow:
    """A flow's sink."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def datagrams(self, batch: list[bytes]) -> None:
        self.heard += batch

    def closed(self, cause: Cause | None) -> None:
        self.heard.append(("closed", cause))


class Case:
    """Two pools and the links between them; links that one asks for come when the test says so."""

    name, address = "the peer", "192.0.2.9:1"

    def __init__(self, minimum: int = 2, maximum: int = 100) -> None:
        self.clock = Clock()
        self.joined = True
        self.wanted = 0
        self.retiring: list[int] = []
        self.streams: list[NotingSink] = []
        self.served: list[Stream] = []
        self.channels: list[Any] = []
        self.pairs: list[tuple[MemoryTransport, MemoryTransport]] = []
        options: dict[str, Any] = {
            "minimum": minimum,
            "maximum": maximum,
            "clock": self.clock,
            "watch": HangupWatch(self.clock),
            "log": Log(Level.INFO),
            "take_over": take_over,
            "soon": lambda call: call(),
        }
        self.pool = LinkPool(self, takes=True, **options)
        self.other = LinkPool(self, takes=False, **options)
        self._number = 0

    # PoolOwner

    def need_links(self, count: int) -> None:
        self.wanted += count

    def ask_to_retire(self, link: int) -> None:
        self.retiring.append(link)

    def opened(self, opening: Opening, stream: Stream) -> None:
        sink = NotingSink()
        self.streams.append(sink)
        self.served.append(stream)
        stream.attach(sink)

    def flow_opened(self, channel: Any) -> None:
        self.channels.append(channel)
        channel.attach(NotingFlow())

    def reset_around(self, link: int, session: int, cause: Cause) -> bool:
        return True

    # For tests

    def bring(self, count: int | None = None) -> Case:
        """Make links: as many as were asked for, or so many."""
        if count is None:
            count, self.wanted = self.wanted, 0
        for _ in range(count):
            self._number += 1
            taking, serving = self.pool.add(self._number), self.other.add(self._number)
            self.pairs.append(connect(taking, serving))
            self.other.ready(serving)
            self.pool.ready(taking)
        return self

    def flush(self) -> None:
        """Deliver all."""
        moved = True
        while moved:
            moved = any([t.deliver() for pair in self.pairs for t in pair])  # noqa: C419
        self.pairs = [pair for pair in self.pairs if pair[0].connected]

    def visit(self) -> Deferred[Any]:
        """A visitor asks for a link."""
        opened = self.pool.open(OPENING)
        opened.addCallback(self._listen)
        return opened

    def _listen(self, stream: Stream) -> Stream:
        stream.attach(NotingSink())
        return stream

    def later(self, seconds: float) -> None:
        """Time passes, with a look at the links each few seconds."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(STEP, end - self.clock.seconds()))
            self.pool.tidy()
            self.flush()
            self.bring()

    @property
    def links(self) -> int:
        """How many links there are."""
        self.flush()
        return len(self.pairs)


def start(minimum: int = 2, maximum: int = 100) -> Case:
    """A pool with its first links."""
    case = Case(minimum, maximum)
    case.pool.start_over()
    return case.bring()


def test_the_pool_begins_with_its_minimum() -> None:
    """Asked for at once, and once."""
    case = Case(8)
    case.pool.start_over()
    case.pool.balance()
    case.pool.tidy()
    assert case.wanted == 8
    assert case.bring().pool.idle == case.other.idle == 8
    assert case.wanted == 0


def test_a_link_that_is_lost_before_it_is_ready() -> None:
    """Another one is asked for."""
    case = Case(2)
    case.pool.start_over()
    case.wanted = 0
    for number in (1, 2):
        transport, _ = connect(case.pool.add(number), Protocol())
        transport.lose()
    assert case.wanted == 2
    assert case.bring().pool.idle == 2
    case.later(MEMORY)
    assert case.pool.idle == 2
    assert case.wanted == 0


def test_a_visitor_finds_a_link_or_waits_for_one() -> None:
    """In order; what waits is asked for on top of what is kept."""
    case = start(1)
    first = case.visit()
    assert first.called
    waiting = [case.visit() for _ in range(3)]
    assert not any(visitor.called for visitor in waiting)
    assert case.pool.sessions == 4
    assert case.wanted >= 3
    case.bring(1)
    assert [visitor.called for visitor in waiting] == [True, False, False]
    case.bring()
    assert all(visitor.called for visitor in waiting)


def test_what_comes_back_serves_who_waits() -> None:
    """A link whose session ends goes to a visitor, not to the pool."""
    case = start(1, 1)
    stream = case.visit().result
    waiting = case.visit()
    stream.abort(Cause.RESET)
    assert not waiting.called
    case.flush()
    assert waiting.called
    assert case.pool.idle == 0


def slow_to_drain(case: Case) -> Stream:
    """A session whose visitor has ended it, and whose target ended early and reads nothing; the
    serving end's stream."""
    stream = case.visit().result
    case.flush()
    far = case.served[-1]
    far.finish()
    case.flush()
    far.pause()
    stream.write(b"last bytes")
    stream.finish()
    case.flush()
    assert stream.sink is None, "the visitor was told"
    return far


def test_a_link_that_still_drains_is_not_given() -> None:
    """The next visitor takes another link, and is served at once; the first comes back when its
    target has read all."""
    case = start(2)
    far = slow_to_drain(case)
    assert (case.pool.idle, case.pool.sessions) == (1, 0)
    first = far._link.number
    streams = [case.visit(), case.visit()]
    assert streams[0].result._link.number != first
    case.flush()
    assert len(case.served) == 2
    assert not streams[1].called, "it was given the link that still drains"
    far.resume()
    case.flush()
    assert streams[1].result._link.number == first
    assert case.streams[0].heard == [b"last bytes", "ended", ("closed", None)]
    assert len(case.served) == 3


def test_a_link_that_breaks_while_it_drains() -> None:
    """It is no longer counted, and the target is reset."""
    case = start(1)
    slow_to_drain(case)
    case.pairs[0][0].lose()
    assert case.pool.sessions == 0
    assert case.streams[0].heard == [("closed", Cause.LOST)]


def test_links_that_never_drain_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never says that it has read all keeps only so many, those that came last."""
    monkeypatch.setattr(linkpool, "MOST_ENDING", 3)
    case = start(1)
    for _ in range(8):
        case.bring()
        slow_to_drain(case)
    assert case.pool.sessions == 0
    assert [heard.heard[-1:] for heard in case.streams] == [[("closed", Cause.LOST)]] * 5 + [[]] * 3


def test_who_stops_waiting_gets_nothing() -> None:
    """The link stays in the pool."""
    case = start(1)
    case.visit()
    waiting = case.visit()
    waiting.addErrback(lambda failure: failure.trap(CancelledError))
    waiting.cancel()
    case.bring(1)
    assert (case.pool.idle, case.pool.sessions) == (1, 1)


def test_the_newest_link_is_taken_first() -> None:
    """So that those beyond need stay idle, and are given up."""
    case = start(3)
    link = case.visit().result._link
    assert link.number == 3


def test_a_link_that_broke_while_idle_is_not_given() -> None:
    """It is replaced."""
    case = start(2)
    case.pairs[1][0].lose()
    assert case.pool.idle == 1
    assert case.wanted == 1
    assert case.visit().result._link.number == 1


def test_when_most_idle_links_break_the_rest_are_replaced() -> None:
    """What broke more than half of the idle links is not trusted to have spared the others."""
    case = start(8)
    case.clock.advance(1)
    for pair in case.pairs[:3]:
        pair[0].lose()
    case.later(STEP)
    assert {link.number for link in case.pool._idle} == {4, 5, 6, 7, 8, 9, 10, 11}
    for pair in case.pairs[:5]:
        pair[0].lose()
    case.later(STEP)
    assert case.pool.idle == 8
    assert min(link.number for link in case.pool._idle) > 11


def test_a_burst_is_kept_for_a_minute_and_given_up_for_good() -> None:
    """Links that are being closed are no demand: the pool does not grow again by itself."""
    case = start(2)
    streams = [case.visit() for _ in range(50)]
    case.bring()
    for visitor in streams:
        visitor.result.abort(Cause.RESET)
    case.flush()
    case.later(MEMORY / 2)
    assert case.pool.idle == case.links >= 50
    case.later(MEMORY + 2 * STEP)
    assert case.pool.idle == case.links == 2
    case.later(3 * MEMORY)
    assert case.pool.idle == case.links == 2


def test_the_maximum_bounds_idle_links() -> None:
    """What comes back beyond it is closed."""
    case = start(1, 5)
    streams = [case.visit() for _ in range(20)]
    case.bring()
    for visitor in streams:
        visitor.result.abort(Cause.RESET)
    assert case.links == case.pool.idle == 5


def test_more_links_than_asked_for() -> None:
    """A peer that makes links without end is stopped; busy links do not count."""
    case = start(1, 5)
    case.bring(5)
    assert case.links == case.pool.idle == 5
    for _ in range(SPARE_LINKS):
        case._number += 1
        case.other.add(case._number)
    with pytest.raises(PeerError, match="more data links"):
        case.other.add(0)


def test_old_links_are_replaced_a_few_at_a_time() -> None:
    """Links of one age do not leave visitors without any."""
    case = start(16)
    case.clock.advance(LINK_MAX_AGE + 1)
    case.pool.tidy()
    assert case.pool.idle == 16 - (16 // AGED_SHARE + 1)
    case.later(20 * STEP)
    assert case.pool.idle == 16
    assert min(link.number for link in case.pool._idle) > 16


def test_links_slowed_by_loss_are_replaced_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The taking end closes those that are slow in its own direction; the serving end, which alone
    knows of the other one, asks for it. Busy ones are let be."""
    case = start(16)
    busy = case.visit()
    case.flush()
    slow = {link.number for link in case.pool._links.values()}
    monkeypatch.setattr(DataLink, "slowed", property(lambda link: link.number in slow))
    case.other.tidy()
    assert len(case.retiring) == 15 // AGED_SHARE + 1
    assert not case.other.get(case.retiring[0])._closing
    case.pool.tidy()
    assert case.pool.idle == 15 - (15 // AGED_SHARE + 1)
    case.later(30 * STEP)
    case.other.tidy()
    assert slow & set(case.pool._links) == {busy.result._link.number}
    assert case.pool.idle == 16


def test_a_retired_link_is_closed_when_it_is_free() -> None:
    """At once if it is idle; one with a session afterwards, and it serves nobody else."""
    case = start(2)
    stream = case.visit().result
    for number in (1, 2, 77):
        case.pool.retire(number)
    case.flush()
    assert (1 in case.pool, 2 in case.pool) == (False, True)
    assert stream._over is None, "its session was cut"
    waiting = [case.visit(), case.visit()]
    stream.abort(Cause.RESET)
    case.flush()
    assert 2 not in case.pool
    assert not waiting[0].called
    case.bring()
    assert all(visitor.called for visitor in waiting)
    assert not case.pool._retired


def test_a_link_retired_before_it_is_ready() -> None:
    """It is closed instead of being put into the pool."""
    case = start(1)
    link = case.pool.add(9)
    connect(link, case.other.add(9))
    case.pool.retire(9)
    case.pool.ready(link)
    assert case.pool.idle == 1
    assert not link.idle


def test_the_serving_end_retires_nothing() -> None:
    """Only the end that takes links closes idle ones."""
    case = start(1)
    case.other.retire(1)
    case.visit().result.abort(Cause.RESET)
    assert case.links == case.pool.idle == 1
    assert not case.other._retired


def test_nothing_is_asked_for_without_a_control_link() -> None:
    """What was asked for before it was lost is asked for again when it is back."""
    case = Case(4)
    case.pool.start_over()
    case.joined = False
    case.pool.balance()
    assert case.wanted == 4
    case.wanted, case.joined = 0, True
    case.pool.start_over()
    assert case.wanted == 4


def test_refusing_who_waits() -> None:
    """Visitors fail, and flows that wait are closed; those with links go on."""
    case = start(1)
    with_link = case.visit()
    failures: list[Any] = []
    case.visit().addErrback(failures.append)
    flow = NotingFlow()
    channel = case.pool.open_flow(OPENING)
    channel.attach(flow)
    channel.send([b"x"])
    case.pool.refuse_waiting(Cause.LOST, "gone")
    assert failures[0].check(PeerError)
    assert flow.heard == [("closed", Cause.LOST)]
    assert with_link.called and case.pool.sessions == 1


# Flows.


def test_flows_share_links_and_their_datagrams_arrive() -> None:
    """What was sent before there was a link as well, in order; the links are given back."""
    case = start(2)
    sinks = []
    for port in range(40):
        opening = Opening(visitor=Endpoint("192.0.2.1", port), local=OPENING.local)
        channel = case.pool.open_flow(opening)
        sinks.append(NotingFlow())
        channel.attach(sinks[-1])
        assert not channel.send([b"one"])
        assert not channel.send([b""])
    case.clock.advance(0)
    case.bring()
    case.flush()
    assert len(case.channels) == 40
    assert all(channel._sink.heard == [b"one", b""] for channel in case.channels)
    assert len(case.pool._flows._links) <= 8
    for channel in case.channels:
        channel.send([b"answer"])
        channel.close(None)
    case.flush()
    assert all(sink.heard == [b"answer", ("closed", None)] for sink in sinks)
    assert case.pool.sessions == 0
    case.later(DATAGRAM_LINK_REST + STEP)
    assert not case.pool._flows._links
    case.later(2 * MEMORY)
    assert case.links == case.pool.idle == 2


def test_a_lost_datagram_link_ends_its_flows() -> None:
    """A new flow gets a new link."""
    case = start(2)
    flow = NotingFlow()
    case.pool.open_flow(OPENING).attach(flow)
    case.clock.advance(0)
    (link,) = case.pool._flows._links.values()
    link.transport.lose()
    assert flow.heard == [("closed", Cause.LOST)]
    again = case.pool.open_flow(OPENING)
    case.clock.advance(0)
    case.bring()
    assert not again.send([b"x"])
    case.flush()
    assert case.channels[-1]._sink.heard == [b"x"]


def test_a_visitor_is_served_before_a_flow() -> None:
    """A link that a flow asked for may go to a visitor; the flow gets the next one."""
    case = start(1)
    channel = case.pool.open_flow(OPENING)
    visitor = case.visit()
    case.clock.advance(0)
    case.bring()
    assert visitor.called
    assert channel.link is not None


# The end.


def test_closing_resets_and_refuses() -> None:
    """All links, all who wait; fires when nothing is left."""
    case = start(2)
    stream = case.visit().result
    heard = stream.sink.heard
    failures: list[Any] = []
    case.visit()
    case.visit().addErrback(failures.append)
    done: list[object] = []
    case.pool.close(Cause.LOST, "over", linger=False).addCallback(done.append)
    assert len(failures) == 1
    assert heard == [("closed", Cause.LOST)]
    assert done == [None]
    case.flush()
    assert not case.pairs and not case.clock.getDelayedCalls()


def test_idle_links_part_in_order_and_sessions_may_linger() -> None:
    """When the other end stops, what it sent last arrives; what does not end is cut."""
    case = start(2)
    case.visit()
    done: list[object] = []
    case.pool.close(Cause.STOPPED, "it left", linger=True).addCallback(done.append)
    case.flush()
    assert done == [] and len(case.pairs) == 1
    case.clock.advance(PARTING_TIMEOUT)
    assert done == [None]
    case.flush()
    assert case.streams[0].heard == [("closed", Cause.LOST)]
    assert not case.clock.getDelayedCalls()


def test_a_link_that_drains_parts_in_order() -> None:
    """When the end with the visitors stops, what they sent last still arrives."""
    case = start(1)
    far = slow_to_drain(case)
    case.pool.close(Cause.STOPPED, "stopping", linger=False)
    case.flush()
    far.resume()
    case.flush()
    assert case.streams[0].heard == [b"last bytes", "ended", ("closed", None)]
    assert not case.pairs


def test_a_closed_pool_asks_for_nothing() -> None:
    """Nor does it keep what comes."""
    case = start(2)
    case.pool.close(Cause.LOST, "over", linger=False)
    case.wanted = 0
    case.pool.balance()
    case.pool.tidy()
    assert case.wanted == case.pool.idle == 0


def test_a_peer_that_breaks_the_rules_is_told_of() -> None:
    """Once in a while, whatever it calls itself by then; a link that is closed in order is not."""
    with capturedLogs() as events:
        case = start(4)
        for number, pair in enumerate(list(case.pairs)):
            case.name = f"peer {number}"
            pair[0].write(encode(Done(7)))
            case.flush()
        case.pool.close(Cause.STOPPED, "enough", linger=False)
        case.flush()
    (line,) = map(formatEvent, events)
    assert line == "a data link of peer 0 is cut: a protocol error: session 7 done out of turn"
