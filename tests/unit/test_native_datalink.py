"""Data links on transports: sessions as streams, resets on all ways, and who is told what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.task import Clock

from nodepass.address import Endpoint
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.native.datalink import DataLink
from nodepass.wire.native.frames import (
    MAX_DATA,
    Data,
    FlowOpen,
    Join,
    Open,
    Reset,
    data_header,
    encode,
    fin,
)
from nodepass.wire.native.frames import mux as mux_frame
from nodepass.wire.native.linkwriter import SEPARATE_FROM
from nodepass.wire.native.muxframes import open_stream
from nodepass.wire.native.muxlink import MuxLink
from nodepass.wire.native.muxstream import MuxStream
from nodepass.wire.native.resetanswer import RESET_ANSWER_TIMEOUT, RESET_PATIENCE
from tests.loopback import connect, flush
from tests.streams import NotingSink

OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))
#: All that may be on its way on an idle link.
RESET_SIZE = len(encode(Reset(1, Cause.RESET)))
FIN_SIZE = len(fin(1))
SMALL = 40  # bytes that a transport of these tests holds before it is congested


def at_once(call: Callable[[], None]) -> None:
    """Calls it without waiting for anything else."""
    call()


class Owner:
    """The owner of one end: notes what it is told, gives each stream a sink."""

    def __init__(self) -> None:
        self.openings: list[Opening] = []
        self.sessions: list[tuple[Stream, NotingSink]] = []
        self.free = self.ending = 0
        self.lost: list[str] = []
        self.around: list[tuple[int, Cause]] | None = []  # None: there is no control link
        self.sink: type[NotingSink] = NotingSink

    def begin(self, stream: Stream) -> tuple[Stream, NotingSink]:
        """Listen to a stream."""
        self.sessions.append((stream, self.sink()))
        stream.attach(self.sessions[-1][1])
        return self.sessions[-1]

    def link_opened(self, link: DataLink, opening: Opening, stream: Stream) -> None:
        self.openings.append(opening)
        self.begin(stream)

    def link_shared(self, link: DataLink, mux: MuxLink) -> None:
        mux.owner = self

    def stream_opened(self, opening: Opening, stream: Stream) -> None:
        self.openings.append(opening)
        self.begin(stream)

    def move(self, mux: MuxLink, stream: MuxStream) -> None:
        raise AssertionError("nothing here needs a link of its own")

    def unused(self, mux: MuxLink) -> None:
        pass

    def leave(self, mux: MuxLink) -> None:
        pass

    def link_free(self, link: DataLink) -> None:
        assert not self.lost
        assert link.idle
        self.free += 1

    def link_ending(self, link: DataLink) -> None:
        self.ending += 1

    def link_backed_up(self, link: DataLink, session: int, cause: Cause) -> bool:
        if self.around is None:
            return False
        self.around.append((session, cause))
        return True

    def link_lost(self, link: DataLink, reason: str, *, wrong: bool) -> None:
        self.lost.append(reason)

    def flows_opened(self, link: DataLink, flows: Any) -> None:
        pass


class Case:
    """Two ends of a link."""

    def __init__(self, high_water: int = 1 << 16) -> None:
        self.clock = Clock()
        self.watch = HangupWatch(self.clock)
        self.taking, self.serving = Owner(), Owner()
        self.taker = DataLink(1, True, self.taking, self.clock, self.watch, at_once)
        self.server = DataLink(1, False, self.serving, self.clock, self.watch, at_once)
        self.pair = connect(self.taker, self.server, high_water=high_water)

    def flush(self) -> None:
        """Deliver all."""
        flush(self.pair)

    def open(self) -> tuple[tuple[Stream, NotingSink], tuple[Stream, NotingSink]]:
        """A session, both ends attached."""
        near = self.taking.begin(self.taker.open(OPENING))
        self.flush()
        return near, self.serving.sessions[-1]

    def idle(self) -> None:
        """Both ends may be taken again, and no timer runs."""
        self.flush()
        assert self.taker.idle and self.server.idle
        assert not self.clock.getDelayedCalls()


def test_a_session_and_the_next() -> None:
    """Bytes and ends arrive, each end is free again once, and the link serves anew."""
    case = Case()
    for n in range(1, 4):
        (near, heard_near), (far, heard_far) = case.open()
        near.write(b"question")
        near.finish()
        case.flush()
        far.write(b"answer")
        far.finish()
        case.flush()
        assert heard_far.heard == [b"question", "ended", ("closed", None)]
        assert heard_near.heard == [b"answer", "ended", ("closed", None)]
        case.idle()
        assert case.taking.free == case.serving.free == n
    assert case.serving.openings == [OPENING] * 3


def test_a_visitors_bytes_follow_at_once() -> None:
    """Nothing is waited for between OPEN and the first bytes."""
    case = Case()
    near, _ = case.taking.begin(case.taker.open(OPENING))
    near.write(b"first")
    case.pair[0].deliver()
    assert case.serving.sessions[0][1].data == b"first"


@pytest.mark.parametrize("together", [False, True])
def test_an_end_that_came_with_the_last_bytes_is_foretold(together: bool) -> None:
    """They may leave with it; bytes whose end comes later may not wait."""
    case = Case()
    (near, _), (_, heard) = case.open()
    near.write(b"last")
    if not together:
        case.flush()
    near.finish()
    case.flush()
    assert heard.heard == [b"last", "ended"]
    assert heard.ends is together


def test_a_link_is_free_when_its_last_bytes_have_arrived() -> None:
    """A target that ends early and reads slowly holds up its own session's bytes, and the link
    with them: the visitor is done with it, and the next one does not get it before DONE."""
    case = Case()
    (near, heard_near), (far, heard_far) = case.open()
    far.finish()
    case.flush()
    far.pause()
    near.write(b"slowly read")
    near.finish()
    case.flush()
    assert heard_near.heard == ["ended", ("closed", None)]
    assert case.taker.over and not case.taker.idle
    assert case.taking.free == case.serving.free == 0
    case.clock.advance(RESET_ANSWER_TIMEOUT + 1)
    assert case.taking.lost == []
    far.resume()
    case.flush()
    assert heard_far.heard == [b"slowly read", "ended", ("closed", None)]
    assert case.taking.free == case.serving.free == 1
    case.idle()


def test_a_link_is_free_at_once_where_all_was_read() -> None:
    """A target that has read all ends first: the visitor's end frees the link, before the client
    hears of it, and the next session follows on its heels."""
    case = Case()
    (near, _), (far, heard_far) = case.open()
    near.write(b"question")
    case.flush()
    far.write(b"answer")
    far.finish()
    case.flush()
    assert not case.taker.idle
    near.finish()
    assert case.taker.idle and case.taking.free == 1
    again, _ = case.taking.begin(case.taker.open(OPENING))
    again.write(b"next")
    case.flush()
    assert heard_far.heard == [b"question", "ended", ("closed", None)]
    assert case.serving.free == 1
    assert case.serving.sessions[-1][1].heard == [b"next"]
    assert case.taking.lost == case.serving.lost == []


def test_a_link_is_shared_while_a_reset_of_its_last_session_is_on_its_way() -> None:
    """The serving end resets a session behind its end, which the taking end has done with: what
    comes of the reset on the shared link is not taken for something else."""
    case = Case()
    (near, _), (far, _) = case.open()
    far.finish()
    case.flush()
    near.finish()
    assert case.taker.idle
    far.abort(Cause.RESET)
    mux = case.taker.share()
    case.taking.link_shared(case.taker, mux)
    shared, heard = case.taking.begin(mux.open(OPENING))
    shared.write(b"question")
    case.flush()
    answering, heard_there = case.serving.sessions[-1]
    answering.write(b"answer")
    case.flush()
    assert heard_there.heard == [b"question"] and heard.heard == [b"answer"]
    assert case.taking.lost == case.serving.lost == []


def test_a_link_is_shared_by_the_taking_end_alone() -> None:
    """A word of the serving end that answers nothing costs it the link; so does a second one."""
    case = Case()
    case.server.transport.write(mux_frame())
    case.flush()
    assert case.taking.lost == ["a protocol error: a link shared out of turn"]
    case = Case()
    case.taking.link_shared(case.taker, case.taker.share())
    case.flush()
    case.server.transport.write(mux_frame())
    case.server.transport.write(bytes(4))
    case.flush()
    assert len(case.taking.lost) == 1 and "on a shared link" in case.taking.lost[0]


def test_a_link_whose_other_end_pauses_is_not_free() -> None:
    """All was read, but what comes next would not be."""
    case = Case()
    (near, _), (far, _) = case.open()
    near.write(b"question")
    case.flush()
    far.pause()
    far.finish()
    case.flush()
    near.finish()
    assert case.taker.over and not case.taker.idle
    assert case.taking.ending == 1
    far.resume()
    case.idle()
    assert case.taking.free == 1


def test_a_link_that_is_cut_by_who_hears_the_end_is_not_waited_for() -> None:
    """It was lost, and is not told of after that."""
    case = Case()
    stream = case.taker.open(OPENING)

    class Cutting(NotingSink):
        def closed(self, cause: Cause | None) -> None:
            super().closed(cause)
            case.taker.abort("cut")

    stream.attach(Cutting())
    case.flush()
    far = case.serving.sessions[-1][0]
    far.pause()
    far.finish()
    case.flush()
    stream.finish()
    assert case.taking.lost == ["cut"]
    assert case.taking.ending == 0


def test_who_pauses_when_the_session_is_over_reads_on_at_once() -> None:
    """The visitor ended first; the serving end's FIN says all, though it paused until then."""
    case = Case()
    (near, _), (far, _) = case.open()
    near.write(b"question")
    near.finish()
    case.flush()
    far.pause()
    far.finish()
    raw = case.pair[1].outbox
    case.flush()
    assert raw == fin(1, len(b"question"))
    case.idle()


@pytest.mark.parametrize("size", [10, SEPARATE_FROM], ids=["with FIN", "by itself"])
def test_last_bytes_count(size: int) -> None:
    """Those that leave together with FIN, too: without them the ends would not agree."""
    case = Case()
    (near, _), (far, _) = case.open()
    near.write_last(b"x" * size)
    near.finish()
    case.flush()
    far.write_last(b"y")
    far.finish()
    case.idle()
    assert case.taking.free == case.serving.free == 1


def test_the_serving_ends_last_words_leave_at_once() -> None:
    """Where short frames are held back for a moment: nothing follows them."""
    case = Case()
    held: list[Any] = []
    case.pair[1].last = held.append  # type: ignore[attr-defined]
    case.server.transport = None
    case.pair[1]._producer = None
    case.server.makeConnection(case.pair[1])
    (near, _), (far, _) = case.open()
    near.write(b"question")
    case.flush()
    far.write_last(b"answer")
    assert case.pair[1].outbox == b""
    far.finish()
    assert case.pair[1].outbox == data_header(6) + b"answer" + fin(1, len(b"question"))


def test_who_drains_slowly_may_still_be_reset() -> None:
    """The serving end gives up what the taking end had ended: the link is free again."""
    case = Case()
    (near, heard_near), (far, _) = case.open()
    far.finish()
    case.flush()
    far.pause()
    near.write(b"never read")
    near.finish()
    case.flush()
    far.abort(Cause.IDLE)
    case.flush()
    assert heard_near.heard == ["ended", ("closed", None)]
    assert case.taking.free == case.serving.free == 1
    case.idle()


@pytest.mark.parametrize("side", ["taking", "serving"])
def test_a_reset_arrives_with_its_cause(side: str) -> None:
    """From either end; the link is used again."""
    case = Case()
    ends = case.open()
    (one, heard_one), (_, heard_two) = ends if side == "taking" else ends[::-1]
    one.abort(Cause.REFUSED)
    case.flush()
    assert heard_one.heard == []
    assert heard_two.heard == [("closed", Cause.REFUSED)]
    case.idle()
    assert case.taking.free == case.serving.free == 1


def test_resets_that_cross() -> None:
    """Both ends give up at once: neither is told, and both are idle."""
    case = Case()
    (one, heard_one), (two, heard_two) = case.open()
    one.abort(Cause.RESET)
    two.abort(Cause.REFUSED)
    assert heard_one.heard == heard_two.heard == []
    case.idle()


def test_what_comes_after_the_end_is_not_heard() -> None:
    """Calls on a stream of an earlier session do nothing to the next one."""
    case = Case()
    (old, _), _ = case.open()
    old.abort(Cause.RESET)
    case.flush()
    (_, heard_near), (_, heard_far) = case.open()
    for call in (lambda: old.write(b"x"), old.finish, old.pause, old.resume):
        call()
    old.abort(Cause.RESET)
    case.flush()
    assert heard_near.heard == heard_far.heard == []
    assert case.pair[0].reading


@pytest.mark.parametrize("side", ["taking", "serving"])
def test_pause_and_resume(side: str) -> None:
    """A paused stream reads nothing and loses nothing; its session's end reads on."""
    case = Case()
    ends = case.open()
    (one, heard), (two, _) = ends if side == "taking" else ends[::-1]
    one.pause()
    two.write(b"later")
    case.flush()
    assert heard.heard == []
    one.resume()
    case.flush()
    assert heard.heard == [b"later"]
    one.pause()
    one.abort(Cause.RESET)
    case.idle()


def test_congestion_is_told_and_taken_back() -> None:
    """Also to who attaches while the link is congested."""
    case = Case(high_water=SMALL)
    (near, heard), (far, _) = case.open()
    far.pause()
    near.write(b"x" * 100)
    assert heard.heard == ["congested"]
    late = NotingSink()
    case.taker._stream.attach(late)  # type: ignore[union-attr]
    assert late.heard == ["congested"]
    far.resume()
    case.flush()
    assert late.heard == ["congested", "drained"]


def test_a_reset_goes_around_a_congested_link() -> None:
    """The peer that does not read hears of it over the control link, and reads on."""
    case = Case(high_water=SMALL)
    (near, _), (far, heard_far) = case.open()
    far.pause()
    near.write(b"x" * 100)
    near.abort(Cause.RESET)
    case.flush()
    assert case.taking.around == [(1, Cause.RESET)]
    assert heard_far.heard == []
    case.server.abort_session(1, Cause.RESET)
    assert heard_far.heard == [("closed", Cause.RESET)]
    case.idle()


def test_a_reset_that_can_go_nowhere_cuts_the_link() -> None:
    """Without a control link the data link itself is given up."""
    case = Case(high_water=SMALL)
    case.taking.around = None
    (near, _), (far, heard_far) = case.open()
    far.pause()
    near.write(b"x" * 100)
    near.abort(Cause.RESET)
    case.flush()
    assert heard_far.heard == [("closed", Cause.LOST)]
    assert len(case.taking.lost) == len(case.serving.lost) == 1
    assert not case.clock.getDelayedCalls()


def test_a_reset_without_answer() -> None:
    """It is repeated over the control link, and in the end the link is given up."""
    case = Case()
    (near, _), (far, _) = case.open()
    far.pause()
    near.abort(Cause.IDLE)
    case.clock.advance(RESET_PATIENCE)
    assert case.taking.around == [(1, Cause.IDLE)]
    assert case.taking.lost == []
    case.clock.advance(RESET_ANSWER_TIMEOUT - RESET_PATIENCE)
    assert case.taking.lost == ["a reset was not answered"]
    case.flush()
    assert not case.clock.getDelayedCalls()


def test_a_reset_without_answer_when_the_control_link_is_gone() -> None:
    """What can't be repeated is not waited for."""
    case = Case()
    (near, _), (far, heard_far) = case.open()
    far.pause()
    near.abort(Cause.IDLE)
    case.taking.around = None
    case.clock.advance(RESET_PATIENCE)
    case.flush()
    assert len(case.taking.lost) == 1
    assert heard_far.heard == [("closed", Cause.LOST)]
    assert not case.clock.getDelayedCalls()


def test_an_abort_for_another_session_is_ignored() -> None:
    """One that was overtaken by its session's end reaches no later session."""
    case = Case()
    (near, _), _ = case.open()
    near.abort(Cause.RESET)
    case.flush()
    case.server.abort_session(1, Cause.RESET)
    _, (_, heard) = case.open()
    case.server.abort_session(1, Cause.RESET)
    case.server.abort_session(3, Cause.RESET)
    assert heard.heard == []


@pytest.mark.parametrize("how", ["lost", "garbage", "out of turn", "abort"])
def test_a_link_that_ends_resets_its_session(how: str) -> None:
    """Whatever ends a link, both streams and both owners are told once."""
    case = Case()
    (_, heard_near), (_, heard_far) = case.open()
    if how == "lost":
        case.pair[0].lose()
    elif how == "garbage":
        case.pair[0].write(b"\xff" * 8)
    elif how == "out of turn":
        case.pair[0].write(data_header(0) + b"\x01\x00\x00\x01x")
    else:
        case.taker.abort("why not", Cause.STOPPED)
        case.taker.abort("again")
    case.flush()
    cause = Cause.STOPPED if how == "abort" else Cause.LOST
    assert heard_near.heard == [("closed", cause)]
    assert heard_far.heard == [("closed", Cause.LOST)]
    assert len(case.taking.lost) == len(case.serving.lost) == 1
    assert not case.taker.idle and not case.server.idle


def test_who_hears_of_the_end_may_end_all_else() -> None:
    """The connection is cut by then: the reactor, which the end of a node's last link may end, has
    taken it from its transport when that returns."""
    case = Case()
    transport: Any = case.taker.transport

    class Ending(Owner):
        def link_lost(self, link: DataLink, reason: str, *, wrong: bool) -> None:
            super().link_lost(link, reason, wrong=wrong)
            assert transport.aborting
            link.transport = None

    case.taker._owner = owner = Ending()
    case.taker.abort("why not")
    assert owner.lost == ["why not"]


def test_an_idle_link_is_closed_in_order() -> None:
    """What was sent before arrives first; closing twice does no harm."""
    case = Case()
    (near, _), (far, heard_far) = case.open()
    far.finish()
    case.flush()
    near.write(b"last")
    near.finish()
    case.taker.close()
    case.taker.close()
    assert not case.taker.idle
    case.flush()
    assert heard_far.heard == [b"last", "ended", ("closed", None)]
    assert case.taking.lost == ["closed"]


@pytest.mark.parametrize(
    "came",
    [
        encode(Open(1, OPENING)) + encode(Data(b"first")),
        encode(Join(1, 7, 8)),
        mux_frame() + open_stream(1, OPENING),
        encode(FlowOpen(1, OPENING)),
    ],
    ids=["session", "moved", "shared", "flow"],
)
def test_nothing_begins_on_a_link_that_is_being_closed(came: bytes) -> None:
    """What has crossed with the end is still given by a transport such as Twisted's TLS."""
    case = Case()
    case.server.close()
    case.server.dataReceived(came)
    assert not (case.serving.openings or case.serving.sessions or case.serving.lost)
    assert case.server.mux is None and case.server.flows is None


# Sinks that act from inside a call.


@pytest.mark.parametrize("call", ["received", "ended"])
@pytest.mark.parametrize("act", ["abort", "finish", "cut"])
def test_acting_inside_a_call(call: str, act: str) -> None:
    """A sink that ends its session, or its link, from inside what it is told."""
    case = Case()

    class Acting(NotingSink):
        stream: Stream

        def received(self, data: bytes) -> None:
            super().received(data)
            if call == "received":
                self.act()

        def ended(self) -> None:
            super().ended()
            if call == "ended":
                self.act()

        def act(self) -> None:
            if act == "abort":
                self.stream.abort(Cause.RESET)
                self.over = True
            elif act == "finish":
                self.stream.finish()
            else:
                case.server.abort("cut")

    case.serving.sink = Acting
    (near, heard), _ = case.open()
    Acting.stream = case.serving.sessions[0][0]
    near.write(b"x")
    near.write(b"y")
    near.finish()
    case.flush()
    far_heard = case.serving.sessions[0][1].heard
    if act == "finish":
        assert heard.heard[-1] == ("closed", None)
        assert far_heard == [b"x", b"y", "ended", ("closed", None)]
        case.idle()
    elif act == "cut":
        assert len(case.serving.lost) == 1
        assert heard.heard[-1] == ("closed", Cause.LOST)
    else:
        assert far_heard[0] == b"x"
        case.idle()


def test_taken_again_from_inside_the_end() -> None:
    """The owner may open the next session in `link_free`, in the middle of a delivery."""
    case = Case()

    class Eager(Owner):
        def link_free(self, link: DataLink) -> None:
            super().link_free(link)
            if self.free < 3:
                stream, _ = self.begin(link.open(OPENING))
                stream.write(b"next")
                stream.finish()

    class Answering(NotingSink):
        def ended(self) -> None:
            super().ended()
            case.serving.sessions[-1][0].finish()

    case.taking = case.taker._owner = Eager()
    case.serving.sink = Answering
    stream, _ = case.taking.begin(case.taker.open(OPENING))
    stream.finish()
    case.idle()
    assert case.taking.free == case.serving.free == 3
    assert [heard.data for _, heard in case.serving.sessions] == [b"", b"next", b"next"]


def test_a_long_frame_arrives_in_parts() -> None:
    """The largest frame is passed on as it comes."""
    case = Case()
    (near, _), (_, heard) = case.open()
    near.write(b"x" * MAX_DATA)
    case.pair[0].deliver(1000)
    assert len(heard.data) == 1000 - 4
    case.flush()
    assert len(heard.data) == MAX_DATA


class AnyLink(RuleBasedStateMachine):
    """Two ends, their sessions' programs, a control link and the line between, in any order.

    The sinks assert that nothing follows `closed`.
    """

    @initialize()
    def begin(self) -> None:
        self.case = Case(high_water=SMALL)
        self.near: list[tuple[Stream, NotingSink]] = self.case.taking.sessions
        self.far: list[tuple[Stream, NotingSink]] = self.case.serving.sessions
        self.sent: dict[int, bytes] = {}  # by the identity of the sending stream's sink
        self.done: set[int] = set()  # sinks whose stream was finished or aborted
        self.aborted: dict[int, Cause] = {}

    def _ends(self) -> list[list[tuple[Stream, NotingSink]]]:
        return [self.near, self.far]

    def _current(self, taking: bool) -> tuple[Stream, NotingSink] | None:
        sessions = self.near if taking else self.far
        if not sessions or sessions[-1][1].over or id(sessions[-1][1]) in self.aborted:
            return None
        return sessions[-1]

    @precondition(lambda self: self.case.taker.idle)
    @rule()
    def open(self) -> None:
        self.case.taking.begin(self.case.taker.open(OPENING))

    @rule(taking=st.booleans(), data=st.binary(min_size=1, max_size=30))
    def write(self, taking: bool, data: bytes) -> None:
        current = self._current(taking)
        if current is not None and id(current[1]) not in self.done:
            self.sent[id(current[1])] = self.sent.get(id(current[1]), b"") + data
            current[0].write(data)

    @rule(taking=st.booleans())
    def finish(self, taking: bool) -> None:
        current = self._current(taking)
        if current is not None:
            self.done.add(id(current[1]))
            current[0].finish()

    @rule(taking=st.booleans(), cause=st.sampled_from(Cause))
    def reset(self, taking: bool, cause: Cause) -> None:
        current = self._current(taking)
        if current is not None:
            self.done.add(id(current[1]))
            self.aborted[id(current[1])] = cause
            current[0].abort(cause)

    @rule(taking=st.booleans(), on=st.booleans())
    def read(self, taking: bool, on: bool) -> None:
        current = self._current(taking)
        if current is not None:
            current[0].resume() if on else current[0].pause()

    @rule(taking=st.booleans(), size=st.integers(1, 60))
    def deliver(self, taking: bool, size: int) -> None:
        self.case.pair[0 if taking else 1].deliver(size)

    @rule(from_taker=st.booleans())
    def deliver_abort(self, from_taker: bool) -> None:
        owner = self.case.taking if from_taker else self.case.serving
        link = self.case.server if from_taker else self.case.taker
        if owner.around:
            link.abort_session(*owner.around.pop(0))

    @rule(seconds=st.sampled_from([0.1, RESET_PATIENCE]))
    def wait(self, seconds: float) -> None:
        self.case.clock.advance(seconds)

    @precondition(lambda self: len(self.near) > 3)
    @rule()
    def lose(self) -> None:
        if self.case.pair[0].connected:
            self.case.pair[0].lose()

    @invariant()
    def an_idle_link_is_empty(self) -> None:
        if hasattr(self, "case") and self.case.taker.idle:
            # Of the last session nothing is left but the taking end's FIN, and a RESET behind the
            # FIN of either.
            to_server, to_taker = (end.outbox for end in self.case.pair)
            assert len(to_taker) <= RESET_SIZE
            assert len(to_server) <= RESET_SIZE + (0 if self.case.server.idle else FIN_SIZE)

    @invariant()
    def sessions_keep_to_themselves(self) -> None:
        if not hasattr(self, "case"):
            return
        for (_, near), (_, far) in zip(self.near, self.far, strict=False):
            for one, two in ((near, far), (far, near)):
                assert self.sent.get(id(two), b"").startswith(one.data)
                if ("closed", None) in one.heard:
                    assert one.data == self.sent.get(id(two), b"")
                    assert id(two) in self.done
                for heard in one.heard:
                    if isinstance(heard, tuple) and heard[1] not in (None, Cause.LOST):
                        assert heard[1] == self.aborted.get(id(two)), "nobody asked for this reset"
        assert len(self.far) <= len(self.near) <= len(self.far) + 1

    def teardown(self) -> None:
        """With all read and all delivered both ends are idle, or the link is gone at both."""
        if not hasattr(self, "case"):
            return
        case = self.case
        for _ in range(20):
            for taking in (True, False):
                self.read(taking, True)
                self.finish(taking)
            case.flush()
            for from_taker in (True, False):
                self.deliver_abort(from_taker)
            case.flush()
        if case.pair[0].connected:
            assert case.taker.idle and case.server.idle
            assert case.taker.state.number == case.server.state.number == len(self.near)
            assert case.taking.free == len(self.near)
            assert case.serving.free == len(self.far) == len(self.near)
        else:
            assert len(case.taking.lost) == len(case.serving.lost) == 1
        for sessions in self._ends():
            for _, heard in sessions:
                assert heard.over or id(heard) in self.aborted, "a session that never ended"
        assert not case.clock.getDelayedCalls()


AnyLink.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAnyLink = AnyLink.TestCase
