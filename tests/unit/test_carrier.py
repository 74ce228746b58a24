"""Visitors find a peer: which one, how long they wait, and what if its dial fails."""

from __future__ import annotations

from typing import Any, cast

import pytest
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from nodepass.address import Endpoint
from nodepass.errors import PeerError
from nodepass.logs import Level, Log
from nodepass.meter import Meter
from nodepass.relay.session import SessionContext
from nodepass.relay.sessions import Sessions
from nodepass.relay.stream import Cause
from nodepass.roles.carrier import FIRST_PENALTY, LONGEST_PENALTY, Carrier
from nodepass.roles.instance import Instance
from nodepass.slots import Slots
from nodepass.tuning import Tuning
from nodepass.wire import Opening
from tests.streams import FakeStream

OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))


@define(eq=False)
class FakePeer:
    """A peer whose links come when the test says so."""

    name: str
    sessions: int = 0
    targets: str = "a target"
    there: bool = True
    ready: list[FakeStream] = field(factory=list)
    asked: list[Deferred[Any]] = field(factory=list)
    canceled: int = 0

    def __str__(self) -> str:
        return self.name

    origin: tuple[str, int] = ("its node", 0)

    def available(self, now: float) -> bool:
        return self.there

    def take(self, opening: Opening) -> FakeStream | None:
        assert opening is OPENING
        return self.ready.pop() if self.ready else None

    def open(self, opening: Opening) -> Deferred[Any]:
        assert opening is OPENING
        self.asked.append(Deferred(self._cancel))
        return self.asked[-1]

    def _cancel(self, _: object) -> None:
        self.canceled += 1

    def open_flow(self, opening: Opening) -> Any:
        return ("flow", self.name)

    def give(self, at: int = -1) -> FakeStream:
        """A link is there for the visitor who asked."""
        stream = FakeStream(self.name)
        self.asked[at].callback(stream)
        return stream


class FakeInstance:
    """What a carrier asks of an instance."""

    def __init__(self, limit: int = 10) -> None:
        self.reactor = Clock()
        self.tuning = Tuning(pool_get_timeout=30.0, semaphore_limit=limit)
        self.log = Log(Level.NONE)
        self.meter = Meter()
        self.slots = Slots(0)
        self.sessions = Sessions(self.reactor, 0)
        self.context = SessionContext(
            clock=self.reactor, log=self.log, meter=self.meter, read=3600.0
        )

    def release_tcp(self) -> None:
        self.slots.release_tcp()


class Case:
    """A carrier with some peers."""

    def __init__(self, *names: str, limit: int = 10) -> None:
        self.instance = FakeInstance(limit)
        self.clock = self.instance.reactor
        self.carrier = Carrier(cast(Instance, self.instance))
        self.peers = [FakePeer(name) for name in names]
        for peer in self.peers:
            self.carrier.add(peer)  # type: ignore[arg-type]

    def visit(self, stream: FakeStream | None = None) -> FakeStream:
        """A visitor comes."""
        visitor = stream or FakeStream("visitor")
        assert self.instance.slots.acquire_tcp()
        self.carrier.carry(visitor, OPENING)
        return visitor

    def nothing_left(self) -> None:
        """All slots are given back, nothing waits, no timer runs."""
        assert self.instance.slots.tcp == 0
        assert not self.instance.sessions
        assert not self.carrier._waiting
        assert not self.clock.getDelayedCalls()


def test_a_visitor_goes_to_the_peer_with_the_fewest_sessions() -> None:
    """Of those that are available."""
    case = Case("a", "b", "c")
    for peer, sessions in zip(case.peers, (3, 2, 1), strict=True):
        peer.sessions = sessions
    case.peers[2].there = False
    case.visit()
    assert [len(peer.asked) for peer in case.peers] == [0, 1, 0]


def test_a_link_that_is_ready_is_taken_at_once() -> None:
    """No timer is made for a visitor who does not wait."""
    case = Case("a")
    far = FakeStream("a")
    case.peers[0].ready.append(far)
    visitor = case.visit()
    assert not visitor.paused and not case.peers[0].asked
    assert not case.clock.getDelayedCalls()
    visitor.receive(b"question")
    assert far.written == b"question"


def test_a_session_from_begin_to_end() -> None:
    """Bytes flow once the link is there, and all is given back."""
    case = Case("a")
    visitor = case.visit()
    assert visitor.paused
    far = case.peers[0].give()
    visitor.receive(b"question")
    far.receive(b"answer")
    assert (far.written, visitor.written) == (b"question", b"answer")
    assert len(case.instance.sessions) == 1
    far.end()
    visitor.end()
    far.close(None)
    visitor.close(None)
    case.nothing_left()


def test_without_a_peer_visitors_wait_in_order() -> None:
    """They are placed when one is available, the first first."""
    case = Case()
    case.visit()
    case.visit()
    peer = FakePeer("late")
    case.carrier.add(peer)  # type: ignore[arg-type]
    assert len(peer.asked) == 2
    peer.give(0)
    peer.give(1)
    assert len(case.instance.sessions) == 2


def test_who_waits_is_placed_only_while_a_peer_is_there() -> None:
    """A false alarm leaves all of them waiting."""
    case = Case("a")
    case.peers[0].there = False
    case.visit()
    case.carrier.available()
    assert len(case.carrier._waiting) == 1
    case.peers[0].there = True
    case.carrier.available()
    assert len(case.peers[0].asked) == 1


def test_waiting_ends_after_the_timeout() -> None:
    """Counted from the visitor's arrival, wherever it waited."""
    case = Case("a")
    case.peers[0].there = False
    one = case.visit()
    case.clock.advance(20)
    case.peers[0].there = True
    case.carrier.available()
    case.clock.advance(9)
    assert one.told == []
    case.clock.advance(1)
    assert one.told == [Cause.TIMED_OUT]
    assert case.peers[0].canceled == 1
    case.nothing_left()


def test_a_visitor_that_leaves_while_it_waits() -> None:
    """For a peer or for a link: what it asked for is taken back."""
    case = Case("a")
    visitor = case.visit()
    visitor.close(Cause.RESET)
    assert case.peers[0].canceled == 1
    case.nothing_left()

    case.peers[0].there = False
    case.visit().close(Cause.RESET)
    case.nothing_left()


def test_a_visitor_that_is_gone_on_arrival() -> None:
    """A stream that closes inside attach asks no peer for anything."""
    case = Case("a")
    visitor = FakeStream("visitor")
    visitor.attach = lambda sink: sink.closed(Cause.RESET)  # type: ignore[method-assign]
    case.visit(visitor)
    assert case.peers[0].asked == []
    case.nothing_left()


def test_a_visitor_that_ends_as_another_is_placed() -> None:
    """Placing one may end others that wait: they are passed over."""
    case = Case()
    one, two, three = case.visit(), case.visit(), case.visit()
    peer = FakePeer("a")

    class Ending(FakePeer):
        def open(self, opening: Opening) -> Deferred[Any]:
            if not two.over:
                two.close(Cause.RESET)
            return super().open(opening)

    peer = Ending("a")
    case.carrier.add(peer)  # type: ignore[arg-type]
    assert len(peer.asked) == 2
    assert not one.over and not three.over


def test_a_target_that_fails_is_told_of() -> None:
    """Once in a while, whatever the node calls itself by then."""
    case = Case("a")
    with capturedLogs() as events:
        case.instance.log = Log(Level.INFO)
        for name in ("a", "b", "c"):
            case.peers[0].name = name
            fail(case)
    (line,) = map(formatEvent, events)
    assert line.endswith("target a target of a: refused")


@pytest.mark.parametrize(
    ("names", "why"), [((), "no other node has joined"), (("a",), "no peer could take it")]
)
def test_who_waited_in_vain_is_told_of(names: tuple[str, ...], why: str) -> None:
    """With what was missing: a peer, or a link of one."""
    case = Case(*names)
    with capturedLogs() as events:
        case.instance.log = Log(Level.INFO)
        visitor = case.visit()
        case.clock.advance(30)
    assert visitor.told == [Cause.TIMED_OUT]
    (line,) = map(formatEvent, events)
    assert line.endswith(f" was refused: {why} within 30 s")
    case.nothing_left()


def test_too_many_waiting_visitors_are_refused() -> None:
    """The limit bounds those who wait for a peer."""
    case = Case(limit=2)
    assert [case.visit().told for _ in range(3)] == [[], [], [Cause.NO_SLOT]]
    assert case.instance.slots.tcp == 2


def test_a_peer_that_goes_before_it_had_a_link() -> None:
    """Its visitors go to another peer, or wait for one."""
    case = Case("a", "b")
    case.peers[1].sessions = 5
    visitor = case.visit()
    case.carrier.remove(case.peers[0])  # type: ignore[arg-type]
    case.peers[0].asked[0].errback(PeerError("gone"))
    assert len(case.peers[1].asked) == 1
    case.carrier.remove(case.peers[1])  # type: ignore[arg-type]
    case.peers[1].asked[0].errback(PeerError("gone"))
    assert visitor.told == []
    assert len(case.carrier._waiting) == 1


def test_stopping_refuses_who_waits_now_or_later() -> None:
    """Also visitors whose peer goes after the stop; nothing is left behind."""
    case = Case("a")
    with_peer = case.visit()
    case.peers[0].there = False
    waiting = case.visit()
    case.carrier.stop()
    assert waiting.told == [Cause.STOPPED]
    case.peers[0].asked[0].errback(PeerError("the server is stopping"))
    assert isinstance(with_peer.told[-1], Cause)
    case.nothing_left()


# Failed dials.


def fail(case: Case, cause: Cause = Cause.REFUSED) -> FakeStream:
    """A visitor whose dial fails through the peer that it got."""
    visitor = case.visit()
    peer = next(peer for peer in case.peers if peer.asked and not peer.asked[-1].called)
    peer.give().close(cause)
    return visitor


def test_another_peer_is_tried() -> None:
    """The visitor goes on there, and the first peer is passed over from then on."""
    case = Case("a", "b")
    visitor = case.visit()
    visitor_far = case.peers[0].give()
    visitor.receive(b"hello")
    visitor_far.close(Cause.REFUSED)
    second = case.peers[1].give()
    assert second.written == b"hello"
    case.peers[1].sessions = 100
    case.visit()
    assert (len(case.peers[0].asked), len(case.peers[1].asked)) == (1, 2)


def test_the_only_peer_is_used_all_the_same() -> None:
    """A penalty only prefers others."""
    case = Case("a")
    assert fail(case).told[-1] is Cause.REFUSED
    case.visit()
    assert len(case.peers[0].asked) == 2


def test_penalties_grow_and_end() -> None:
    """Each failure after the last pause doubles it, up to a bound; failures within it do not."""
    case = Case("a", "b")
    bad, good = case.peers
    pause = FIRST_PENALTY
    for _ in range(10):
        case.carrier.dial_failed(bad)  # type: ignore[arg-type]
        case.carrier.dial_failed(bad)  # type: ignore[arg-type]
        assert case.carrier.choose() is good
        case.clock.advance(pause * 0.99)
        assert case.carrier.choose() is good
        case.clock.advance(pause * 0.02)
        assert case.carrier.choose() is bad
        pause = min(LONGEST_PENALTY, pause * 2)


def test_a_dial_that_works_clears_the_penalty() -> None:
    """The next failure begins at the shortest pause again."""
    case = Case("a")
    for _ in range(5):
        case.carrier.dial_failed(case.peers[0])  # type: ignore[arg-type]
        case.clock.advance(LONGEST_PENALTY)
    visitor = case.visit()
    far = case.peers[0].give()
    far.receive(b"welcome")
    visitor.close(Cause.RESET)
    assert not case.carrier._penalties


def test_the_peer_that_had_no_link_is_not_blamed() -> None:
    """Where another peer can't take the visitor, the failure stays the first one's."""
    for how in ("gone", "timeout"):
        case = Case("a", "b")
        visitor = fail(case)
        assert visitor.told[-1] == "pause"
        if how == "gone":
            case.peers[1].asked[0].errback(PeerError("gone"))
        else:
            case.clock.advance(30)
        assert visitor.told[-1] is Cause.REFUSED
        assert list(case.carrier._penalties) == [case.peers[0]]
        assert case.instance.slots.tcp == 0


def test_both_peers_fail() -> None:
    """Each has its penalty, and the visitor is reset with the second cause."""
    case = Case("a", "b")
    visitor = fail(case)
    case.peers[1].give().close(Cause.REFUSED)
    assert visitor.told[-1] is Cause.REFUSED
    assert list(case.carrier._penalties) == case.peers
    assert case.instance.slots.tcp == 0


@pytest.mark.parametrize("cause", [Cause.RESET, Cause.LOST, Cause.IDLE, Cause.STOPPED])
def test_other_ends_are_nobodys_fault(cause: Cause) -> None:
    """Only failed dials are held against a peer."""
    case = Case("a", "b")
    visitor = fail(case, cause)
    assert visitor.told[-1] is cause
    assert not case.carrier._penalties
    case.nothing_left()


def test_a_peer_that_left_leaves_no_penalty() -> None:
    """Nothing is remembered of it; removing it twice does no harm."""
    case = Case("a")
    case.carrier.dial_failed(case.peers[0])  # type: ignore[arg-type]
    for _ in range(2):
        case.carrier.remove(case.peers[0])  # type: ignore[arg-type]
    assert not case.carrier._penalties and not case.carrier.peers


def test_flows_take_the_best_peer_or_none() -> None:
    """A flow does not wait for a peer."""
    case = Case("a")
    assert case.carrier.open_flow(OPENING) == ("flow", "a")
    case.peers[0].there = False
    assert case.carrier.open_flow(OPENING) is None
