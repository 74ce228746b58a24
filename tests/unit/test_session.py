"""Sessions: bytes both ways, both orders of the end, another client, silence, and the rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from nodepass.errors import PeerError
from nodepass.logs import Level, Log
from nodepass.meter import Meter
from nodepass.rate import RateLimiter
from nodepass.relay.session import REPLAY_LIMIT, Session, SessionContext
from nodepass.relay.sessions import Sessions
from nodepass.relay.stream import DIAL_FAILURES, Cause
from tests.streams import FakeStream

READ = 60.0


class Case:
    """A session between two doubles."""

    def __init__(self, *, rate: float = 0, retry: bool = False, read: float = READ) -> None:
        self.clock = Clock()
        self.meter = Meter()
        limiters = [RateLimiter(rate, self.clock) if rate else None for _ in range(2)]
        self.context = SessionContext(
            clock=self.clock, log=Log(Level.NONE), meter=self.meter, read=read,
            inbound=limiters[0], outbound=limiters[1],
        )  # fmt: skip
        self.near, self.far = FakeStream("near"), FakeStream("far")
        self.done: list[Cause | None] = []
        self.asked: list[Cause] = []
        self.canceled = 0
        self.other: Deferred[FakeStream] | None = Deferred(self._count_cancel)
        self.session = Session(
            self.near,
            self.far,
            context=self.context,
            owner=self,
            movable=retry,
        )

        self.sessions = Sessions(self.clock, read)

    def session_over(self, session: Session, cause: Cause | None) -> None:
        assert session is self.session
        self.sessions.discard(session)
        self.done.append(cause)

    def _count_cancel(self, _: object) -> None:
        self.canceled += 1

    def another(self, cause: Cause) -> Any:
        self.asked.append(cause)
        return self.other

    def start(self) -> Case:
        """Begin."""
        self.sessions.start(self.session)
        return self

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.5] * round(2 * seconds))

    def over(self, cause: Cause | None) -> None:
        """The session has ended once, with this cause, and holds nothing any more."""
        assert self.done == [cause]
        self.clock.advance(3 * READ)
        assert self.done == [cause]
        assert not self.clock.getDelayedCalls()


def test_bytes_go_both_ways_and_are_counted() -> None:
    """What one stream receives is written to the other; RX is the near side."""
    case = Case().start()
    case.near.receive(b"question")
    case.far.receive(b"an answer")
    assert case.far.written == b"question"
    assert case.near.written == b"an answer"
    assert (case.meter.tcp_rx, case.meter.tcp_tx) == (8, 9)
    assert (case.session.received, case.session.sent) == (8, 9)


@pytest.mark.parametrize("order", ["near first", "far first"])
def test_half_close_is_carried(order: str) -> None:
    """The end of one direction is passed on, the other goes on, and closing both ends it."""
    case = Case().start()
    one, two = (case.near, case.far) if order == "near first" else (case.far, case.near)
    one.end()
    assert two.told[-1] == "finish"
    two.receive(b"still")
    assert one.written == b"still"
    two.end()
    assert one.told[-1] == "finish"
    one.close(None)
    assert case.done == []
    two.close(None)
    case.over(None)


@pytest.mark.parametrize("order", ["near first", "far first"])
def test_the_last_bytes_may_wait_for_the_end(order: str) -> None:
    """Those that were foretold, and they are counted; the other direction's leave at once."""
    case = Case().start()
    one, two = (case.near, case.far) if order == "near first" else (case.far, case.near)
    one.receive(b"first")
    one.ending()
    one.receive(b"last")
    one.end()
    assert two.lasts == [b"last"]
    assert two.told[-3:] == [b"first", b"last", "finish"]
    two.receive(b"answer")
    assert one.written == b"answer" and not one.lasts
    assert {case.meter.tcp_rx, case.meter.tcp_tx} == {9, 6}
    two.end()
    one.close(None)
    two.close(None)
    case.over(None)


def test_last_bytes_that_the_rate_holds_back_leave_at_once() -> None:
    """The end behind them may be long in coming."""
    case = Case(rate=1000).start()
    case.near.ending()
    case.near.receive(b"last")
    assert case.far.written == b"last" and not case.far.lasts
    case.session.abort(Cause.STOPPED)


@pytest.mark.parametrize("side", ["near", "far"])
@pytest.mark.parametrize("cause", Cause)
def test_a_reset_of_one_side_resets_the_other(side: str, cause: Cause) -> None:
    """The cause is passed on and told once."""
    case = Case().start()
    one, two = (case.near, case.far) if side == "near" else (case.far, case.near)
    one.close(cause)
    assert two.told[-1] is cause
    case.over(cause)


def test_abort_resets_both() -> None:
    """Giving a session up resets what is left of it, once."""
    case = Case().start()
    case.session.abort(Cause.STOPPED)
    case.session.abort(Cause.LOST)
    assert case.near.told[-1] is case.far.told[-1] is Cause.STOPPED
    case.over(Cause.STOPPED)


def test_abort_after_one_side_closed() -> None:
    """A side that is gone is not touched again."""
    case = Case().start()
    case.near.end()
    case.far.end()
    case.near.close(None)
    case.session.abort(Cause.STOPPED)
    assert case.far.told[-1] is Cause.STOPPED
    case.over(Cause.STOPPED)


@pytest.mark.parametrize("side", ["near", "far"])
def test_a_stream_that_closes_inside_attach(side: str) -> None:
    """A stream that is gone before it is listened to ends the session before it began."""
    case = Case()
    one, two = (case.near, case.far) if side == "near" else (case.far, case.near)
    one.attach = lambda sink: sink.closed(Cause.LOST)  # type: ignore[method-assign]
    case.start()
    assert two.told[-1] is Cause.LOST
    case.over(Cause.LOST)


def test_a_session_given_up_while_it_receives() -> None:
    """What ends a session from inside a write or a rate check is no error."""
    case = Case(rate=8).start()
    case.session.far.write = lambda data: case.session.abort(Cause.LOST)
    case.near.receive(b"x" * 1000)
    case.over(Cause.LOST)


def test_back_pressure() -> None:
    """A congested stream stops the other's reading, and only that."""
    case = Case().start()
    case.far.congested()
    assert case.near.paused and not case.far.paused
    case.far.congested()
    case.far.drained()
    assert not case.near.paused
    case.far.drained()
    assert case.near.told == ["resume", "pause", "resume"]


# Silence.


def test_silence_ends_a_session() -> None:
    """Without a byte in either direction for `read` seconds both sides are reset, never earlier
    and not much later."""
    case = Case().start()
    case.wait(READ - 1)
    case.far.receive(b"x")
    case.wait(READ - 1)
    case.near.receive(b"x")
    case.wait(READ - 1)
    assert case.done == []
    case.wait(1 + READ / 4)
    assert case.near.told[-1] is case.far.told[-1] is Cause.IDLE
    case.over(Cause.IDLE)


def test_no_limit_on_silence() -> None:
    """With read=0 no timer runs."""
    assert not Case(read=0).start().clock.getDelayedCalls()


# The rate.


def test_the_rate_pauses_and_resumes() -> None:
    """A session in debt is paused until the debt is paid."""
    case = Case(rate=8000).start()  # 1000 bytes a second, and as many at once
    case.near.receive(b"x" * 3000)
    assert case.near.paused and not case.far.paused
    assert len(case.far.written) == 3000
    case.clock.advance(1.5)
    assert case.near.paused
    case.clock.pump([0.1] * 10)
    assert not case.near.paused


def test_rate_and_congestion_together() -> None:
    """A stream reads again only when both its rate and the other stream allow it."""
    case = Case(rate=8000).start()
    case.near.receive(b"x" * 2000)
    case.far.congested()
    case.clock.pump([0.1] * 30)
    assert case.near.paused
    case.far.drained()
    assert not case.near.paused

    case.near.receive(b"x" * 2000)
    case.far.congested()
    case.far.drained()
    assert case.near.paused
    case.clock.pump([0.1] * 30)
    assert not case.near.paused


def test_who_waits_for_the_rate_and_ends_leaves_the_queue() -> None:
    """A session that ended is not resumed by its rate."""
    case = Case(rate=8000).start()
    case.near.receive(b"x" * 3000)
    case.far.close(Cause.RESET)
    case.over(Cause.RESET)


# Another client.


@pytest.mark.parametrize("cause", sorted(DIAL_FAILURES))
def test_a_failed_dial_is_tried_elsewhere(cause: Cause) -> None:
    """What the visitor has sent is sent again, and the session goes on there."""
    case = Case(retry=True).start()
    case.near.receive(b"hello ")
    case.near.receive(b"world")
    case.far.close(cause)
    assert case.asked == [cause]
    assert case.near.paused
    assert case.done == []

    second = FakeStream("second")
    assert case.other is not None
    case.other.callback(second)
    assert second.written == b"hello world"
    assert not case.near.paused and not second.paused
    case.near.receive(b"!")
    assert second.written == b"hello world!"
    second.receive(b"welcome")
    assert case.near.written == b"welcome"
    assert case.meter.tcp_rx == 12, "counted once"


def test_another_client_at_once() -> None:
    """The other stream may be there when the retry returns."""
    case = Case(retry=True)
    second = FakeStream("second")
    assert case.other is not None
    case.other.callback(second)
    case.far.attach = lambda sink: sink.closed(Cause.REFUSED)  # type: ignore[method-assign]
    case.start()
    case.near.receive(b"hello")
    assert second.written == b"hello"


def test_a_visitor_that_had_finished_is_finished_elsewhere() -> None:
    """The half-close is replayed as well."""
    case = Case(retry=True).start()
    case.near.receive(b"all")
    case.near.end()
    case.far.close(Cause.REFUSED)
    second = FakeStream("second")
    assert case.other is not None
    case.other.callback(second)
    assert second.told[:2] == [b"all", "finish"]


def test_a_congested_second_stream_holds_the_visitor() -> None:
    """A stream that is congested when it is given stops the visitor until it has drained."""
    case = Case(retry=True).start()
    case.near.receive(b"hello")
    case.far.close(Cause.REFUSED)

    class Congested(FakeStream):
        def attach(self, sink: Any) -> None:
            super().attach(sink)
            sink.congested()

    second = Congested("second")
    assert case.other is not None
    case.other.callback(second)
    assert case.near.paused
    second.drained()
    assert not case.near.paused


def test_a_visitor_that_waits_for_its_rate_meanwhile() -> None:
    """Neither the rate's turn nor the second stream alone lets it read."""
    case = Case(rate=8000, retry=True).start()
    case.near.receive(b"x" * 3000)
    case.far.close(Cause.REFUSED)
    second = FakeStream("second")
    assert case.other is not None
    case.other.callback(second)
    assert case.near.paused, "the rate does not allow it yet"
    case.clock.pump([0.1] * 30)
    assert not case.near.paused

    case = Case(rate=8000, retry=True).start()
    case.near.receive(b"x" * 3000)
    case.far.close(Cause.REFUSED)
    case.clock.pump([0.1] * 30)
    assert case.near.paused, "there is no second stream yet"


@pytest.mark.parametrize("fails", ["none", "failure", "second dial"])
def test_when_nobody_else_can_take_it(fails: str) -> None:
    """Without another client, or where that one fails too, the visitor is reset; no third try."""
    case = Case(retry=True)
    expected = Cause.REFUSED
    if fails == "none":
        case.other = None
    case.start()
    case.far.close(Cause.REFUSED)
    if fails == "failure":
        assert case.other is not None
        case.other.errback(PeerError("gone"))
    elif fails == "second dial":
        second = FakeStream("second")
        assert case.other is not None
        case.other.callback(second)
        second.close(Cause.TIMED_OUT)
        expected = Cause.TIMED_OUT
    assert case.near.told[-1] is expected
    assert case.asked == [Cause.REFUSED]
    case.over(expected)


def test_a_second_stream_that_closes_inside_attach() -> None:
    """Nothing is written to it."""
    case = Case(retry=True).start()
    case.near.receive(b"hello")
    case.far.close(Cause.REFUSED)
    second = FakeStream("second")
    second.attach = lambda sink: second.over or sink.closed(Cause.LOST)  # type: ignore
    assert case.other is not None
    case.other.callback(second)
    assert second.told == []
    case.over(Cause.LOST)


@pytest.mark.parametrize("how", ["answered", "too much", "other cause"])
def test_when_a_session_stays_where_it_is(how: str) -> None:
    """Once the target answered, or with too much to replay, or lost by other means: no retry."""
    case = Case(retry=True).start()
    cause = Cause.REFUSED
    if how == "answered":
        case.far.receive(b"hi")
    elif how == "too much":
        case.near.receive(b"x" * (REPLAY_LIMIT + 1))
    else:
        cause = Cause.LOST
    case.far.close(cause)
    assert case.asked == []
    case.over(cause)


@pytest.mark.parametrize("ends", ["visitor", "abort", "silence"])
def test_the_end_while_another_client_is_looked_for(ends: str) -> None:
    """The search is given up with the session."""
    case = Case(retry=True).start()
    case.far.close(Cause.REFUSED)
    if ends == "visitor":
        case.near.close(Cause.RESET)
    elif ends == "abort":
        case.session.abort(Cause.STOPPED)
    else:
        case.wait(READ * 1.25)
    assert case.canceled == 1
    case.over({"visitor": Cause.RESET, "abort": Cause.STOPPED, "silence": Cause.IDLE}[ends])


def test_a_stream_that_comes_too_late_is_given_back() -> None:
    """A stream that is there although the search was given up is reset, not leaked."""
    case = Case(retry=True)
    second = FakeStream("second")

    def give_anyway(deferred: Any) -> None:
        deferred.callback(second)

    case.other = Deferred(give_anyway)
    case.start()
    case.far.close(Cause.REFUSED)
    case.near.close(Cause.RESET)
    assert second.told == [Cause.RESET]
    case.over(Cause.RESET)


class AnySession(RuleBasedStateMachine):
    """A session whose two streams do whatever streams may do, in any order.

    The doubles assert that no stream is asked for anything once it is over.
    """

    @initialize(rate=st.sampled_from([0, 80_000]), retry=st.booleans())
    def begin(self, rate: int, retry: bool) -> None:
        self.case = Case(rate=rate, retry=retry)
        self.received: dict[str, bytes] = {"near": b"", "far": b""}
        self.ended: set[str] = set()
        self.second: FakeStream | None = None
        self.case.start()

    def _side(self, near: bool) -> tuple[str, FakeStream]:
        if near:
            return "near", self.case.near
        return "far", self.second or self.case.far

    def _each(self, near: bool, ready: Callable[[str, FakeStream], bool]) -> FakeStream | None:
        name, stream = self._side(near)
        return stream if not stream.over and ready(name, stream) else None

    @rule(near=st.booleans(), data=st.binary(min_size=1, max_size=20_000))
    def receive(self, near: bool, data: bytes) -> None:
        stream = self._each(near, lambda n, s: not s.paused and n not in self.ended)
        if stream is not None:
            self.received["near" if near else "far"] += data
            stream.receive(data)

    @rule(near=st.booleans())
    def end(self, near: bool) -> None:
        stream = self._each(near, lambda n, s: not s.paused and n not in self.ended)
        if stream is not None:
            self.ended.add("near" if near else "far")
            stream.end()

    @rule(near=st.booleans())
    def close_in_order(self, near: bool) -> None:
        stream = self._each(near, lambda n, s: n in self.ended and s.finished)
        if stream is not None:
            stream.close(None)

    @rule(near=st.booleans(), cause=st.sampled_from(Cause))
    def break_off(self, near: bool, cause: Cause) -> None:
        stream = self._each(near, lambda n, s: True)
        if stream is not None:
            if not near:
                self.ended.discard("far")
            stream.close(cause)

    @rule(near=st.booleans(), on=st.booleans())
    def congest(self, near: bool, on: bool) -> None:
        stream = self._each(near, lambda n, s: True)
        if stream is not None:
            stream.congested() if on else stream.drained()

    @rule(seconds=st.floats(0, READ / 2))
    def wait(self, seconds: float) -> None:
        self.case.clock.advance(seconds)

    @precondition(lambda self: self.case.asked and self.second is None and not self.case.done)
    @rule(works=st.booleans())
    def find_another(self, works: bool) -> None:
        assert self.case.other is not None
        if self.case.other.called:
            return
        if works:
            self.second = FakeStream("second")
            self.case.other.callback(self.second)
        else:
            self.case.other.errback(PeerError("nobody"))

    @rule()
    def abort(self) -> None:
        self.case.session.abort(Cause.STOPPED)

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        if not hasattr(self, "case"):
            return
        _, far = self._side(False)
        assert self.received["far"].startswith(self.case.near.written)
        assert self.received["near"].startswith(far.written)
        if not self.case.done and not self.case.session.retrying:
            assert far.written == self.received["near"]
            assert self.case.near.written == self.received["far"]

    @invariant()
    def it_ends_once_and_wholly(self) -> None:
        if not hasattr(self, "case"):
            return
        assert len(self.case.done) <= 1
        _, far = self._side(False)
        if self.case.done:
            assert self.case.near.over and far.over
            assert not self.case.sessions
        elif not self.case.session.retrying:
            assert not (self.case.near.over and far.over)


AnySession.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAnySession = AnySession.TestCase


def test_cancelled_search_raises_nothing() -> None:
    """A search that fails with CancelledError is no error of anybody's."""
    case = Case(retry=True).start()
    case.far.close(Cause.REFUSED)
    assert case.other is not None
    case.other.errback(CancelledError())
    case.over(Cause.REFUSED)
