"""The state of a data link: rules one by one, and two ends in any interleaving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodepass.address import Endpoint
from nodepass.relay.stream import Cause
from nodepass.wire import Opening
from nodepass.wire.native.frames import (
    Data,
    Datagrams,
    Done,
    Fin,
    FlowClose,
    FlowOpen,
    Frame,
    FrameReader,
    Open,
    Reset,
    encode,
)
from nodepass.wire.native.link import End, LinkError, LinkState

#: All that may be on its way to the serving end of an idle link: FIN, and a RESET after it.
ENDING_SIZE = len(encode(Fin(1)) + encode(Reset(1, Cause.RESET)))
#: And to the taking end: a RESET that the serving end sent after its FIN.
RESET_SIZE = len(encode(Reset(1, Cause.RESET)))
OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))


def frames_in(raw: bytes) -> list[Frame]:
    """All frames in these bytes."""
    return FrameReader().feed(raw)


def decoded(raw: bytes) -> Frame:
    """The one frame in these bytes."""
    (frame,) = frames_in(raw)
    return frame


def opened() -> tuple[LinkState, LinkState]:
    """A taking and a serving end in their first session."""
    taker, server = LinkState(True), LinkState(False)
    server.receive(decoded(taker.open(OPENING)))
    return taker, server


def wrote(end: LinkState, data: bytes) -> bytes:
    """An end sends bytes."""
    end.given += len(data)
    return encode(Data(data))


def read(end: LinkState, raw: bytes) -> None:
    """An end reads frames."""
    for frame in frames_in(raw):
        if isinstance(frame, Data):
            end.taken += len(frame.data)
        end.receive(frame)


def test_a_session_ends_with_both_fins() -> None:
    """The link is idle at each end once both FINs are there, and may be taken again."""
    taker, server = opened()
    fin = decoded(taker.finish(True))
    assert server.receive(fin) == Fin(1)
    assert not taker.idle and not server.idle
    fin = decoded(server.finish(True))
    assert fin == Fin(1, 0)
    assert server.idle and server.conclude() == b""
    assert taker.receive(fin) == fin
    assert taker.idle and taker.conclude() == b""

    assert server.receive(decoded(taker.open(OPENING))) == Open(2, OPENING)


def test_a_serving_end_that_ends_first_and_has_read_all_says_so() -> None:
    """The taking end needs not wait: its own FIN is all that is left on the link."""
    taker, server = opened()
    read(server, wrote(taker, b"request"))
    read(taker, wrote(server, b"answer") + server.finish(True))
    fin = taker.finish(True)
    assert taker.idle
    opening = taker.open(OPENING)
    read(server, fin)
    assert server.idle and server.conclude() == b""
    assert server.receive(decoded(opening)) == Open(2, OPENING)


@pytest.mark.parametrize("arrived", [True, False], ids=["and does not read on", "what has come"])
def test_a_link_is_not_idle_before_the_serving_end_has_read_all(arrived: bool) -> None:
    """The serving end ended first; what would come behind what it has not read would wait."""
    taker, server = opened()
    request = wrote(taker, b"request")
    if arrived:
        read(server, request)
    read(taker, server.finish(reads=not arrived))
    fin = taker.finish(True)
    assert taker.over and not taker.idle
    with pytest.raises(RuntimeError):
        taker.open(OPENING)
    read(server, fin if arrived else request + fin)
    assert not server.idle
    taker.receive(decoded(server.conclude()))
    assert server.idle and taker.idle


def test_counts_of_long_sessions_are_compared_as_they_fit_a_frame() -> None:
    """After 4 GiB they begin again, at both ends."""
    taker, server = opened()
    taker.given = server.taken = (1 << 32) + 5
    fin = decoded(server.finish(True))
    assert fin == Fin(1, 5)
    taker.receive(fin)
    taker.finish(True)
    assert taker.idle


def test_an_opening_before_done_is_an_error() -> None:
    """The serving end has not said that the link may be taken again."""
    taker, server = opened()
    server.finish(False)
    server.receive(decoded(taker.finish(True)))
    with pytest.raises(LinkError):
        server.receive(Open(2, OPENING))


def test_done_out_of_turn_ends_the_link() -> None:
    """To the serving end, before a session, within one, with the peer's end alone, of another
    number, or twice."""
    taker, server = opened()
    for end, frame in ((server, Done(1)), (LinkState(True), Done(0)), (taker, Done(1))):
        with pytest.raises(LinkError):
            end.receive(frame)
    taker.receive(Fin(1))
    with pytest.raises(LinkError):
        taker.receive(Done(1))
    taker.finish(True)
    for number in (0, 2):
        with pytest.raises(LinkError):
            taker.receive(Done(number))
    taker.receive(Done(1))
    with pytest.raises(LinkError):
        taker.receive(Done(1))


def test_only_an_idle_link_is_taken_and_only_by_its_taker() -> None:
    """Opening out of turn is this node's own mistake."""
    taker, server = opened()
    for end in (taker, LinkState(False)):
        with pytest.raises(RuntimeError):
            end.open(OPENING)
    taker.datagrams = True
    with pytest.raises(RuntimeError):
        taker.open(OPENING)
    assert not server.takes


def test_a_reset_is_answered_once() -> None:
    """The end that hears of a reset answers it; the answer is not answered."""
    taker, server = opened()
    reset = decoded(taker.reset(Cause.IDLE))
    assert server.receive(reset) == Reset(1, Cause.IDLE)
    answer, done = frames_in(server.reset(Cause.IDLE))
    assert server.idle and not taker.over
    assert taker.receive(answer) is None
    assert taker.over
    taker.receive(done)
    assert taker.idle
    assert taker.reset(Cause.IDLE) == b"" == server.reset(Cause.IDLE)


def test_a_fin_sent_before_is_answer_enough() -> None:
    """Who has sent its FIN owes nothing more."""
    taker, server = opened()
    fin = decoded(server.finish(True))
    reset = decoded(taker.reset(Cause.RESET))
    assert server.receive(reset) == reset
    assert server.over
    assert server.reset(Cause.RESET) == b""
    assert taker.receive(fin) is None
    assert taker.over
    taker.receive(decoded(server.conclude()))
    assert taker.idle and server.idle


@pytest.mark.parametrize("takes", [True, False])
def test_a_reset_that_crossed_with_the_end_is_ignored(takes: bool) -> None:
    """Where the session is over in order already, and before anything else begins."""
    taker, server = opened()
    end, other = (taker, server) if takes else (server, taker)
    fin = decoded(end.finish(True))
    late = [decoded(other.finish(True)), decoded(other.reset(Cause.LOST))]
    assert end.receive(late[0]) is late[0]
    assert end.idle and end.conclude() == b""
    assert end.receive(late[1]) is None
    assert end.reset(Cause.LOST) == b"", "there is no session to reset"
    other.receive(fin)
    assert taker.idle and server.idle and server.conclude() == b""


def test_a_reset_of_an_earlier_session_ends_the_link() -> None:
    """At the serving end it can't have crossed with anything: it has read all of that session."""
    taker, server = opened()
    server.receive(decoded(taker.finish(True)))
    taker.receive(decoded(server.finish(True)))
    server.receive(decoded(taker.open(OPENING)))
    with pytest.raises(LinkError):
        server.receive(Reset(1, Cause.RESET))


def test_a_reset_that_crossed_with_the_next_session_is_ignored() -> None:
    """The serving end had read all, and reset what it had finished before it heard the other's
    FIN; no older session can be meant."""
    taker, server = opened()
    taker.receive(decoded(server.finish(True)))
    late = decoded(server.reset(Cause.RESET))
    server.receive(decoded(taker.finish(True)))
    assert server.idle and server.conclude() == b""
    taker.open(OPENING)
    assert taker.receive(late) is None
    assert taker.receiving
    with pytest.raises(LinkError):
        taker.receive(Reset(0, Cause.RESET))


def test_data_after_ones_own_reset_is_dropped() -> None:
    """What the peer had sent before it heard of the reset goes nowhere."""
    taker, server = opened()
    taker.reset(Cause.RESET)
    assert taker.receive(Data(b"late")) is None
    assert server.receive(Data(b"in time")) == Data(b"in time")


@pytest.mark.parametrize(
    "frame",
    [
        Open(3, OPENING),
        Open(1, OPENING),
        Open(2, OPENING),
        Fin(2),
        Fin(0),
        Reset(2, Cause.RESET),
        Done(1),
        Datagrams(1, [b""]),
        FlowClose(1, None),
        FlowOpen(1, OPENING),
    ],
    ids=repr,
)
def test_frames_out_of_turn_end_the_link(frame: Frame) -> None:
    """In session 1: each frame that can't come now is an error."""
    _, server = opened()
    with pytest.raises(LinkError):
        server.receive(frame)


@pytest.mark.parametrize(
    "frame", [Data(b"x"), Fin(0), Fin(1), Reset(1, Cause.RESET), Open(2, OPENING)], ids=repr
)
def test_frames_on_a_fresh_link(frame: Frame) -> None:
    """Before the first OPEN nothing of a session may come."""
    with pytest.raises(LinkError):
        LinkState(False).receive(frame)


def test_the_taking_end_is_sent_no_openings() -> None:
    """The end with the visitors takes no visitors from the other."""
    for frame in (Open(1, OPENING), FlowOpen(1, OPENING)):
        with pytest.raises(LinkError):
            LinkState(True).receive(frame)


def test_nothing_follows_a_fin() -> None:
    """Bytes or a second FIN after a FIN are errors."""
    taker, server = opened()
    server.receive(decoded(taker.finish(True)))
    for frame in (Data(b"x"), Fin(1)):
        with pytest.raises(LinkError):
            server.receive(frame)


def test_a_datagram_link_stays_one() -> None:
    """After the first FLOW_OPEN no session can begin."""
    server = LinkState(False)
    assert server.receive(FlowOpen(1, OPENING)) == FlowOpen(1, OPENING)
    assert not server.idle
    with pytest.raises(LinkError):
        server.receive(Open(1, OPENING))


#: What is on its way to an end: frames, each with the session that it was sent in, and aborts on
#: the control link, which may be overtaken.
Queue = tuple[tuple[Frame, int], ...]
World = tuple[LinkState, LinkState, Queue, Queue, frozenset[int], frozenset[int]]

SESSIONS = 3
ON_THE_WAY = 4
MOST_BYTES = 1


def _key(world: World) -> object:
    taker, server, *rest = world
    return tuple(
        tuple(getattr(end, name) for name in LinkState.__slots__) for end in (taker, server)
    ), *rest


def _acted(world: World, takes: bool, act: Callable[[LinkState], bytes]) -> World:
    """The world after an end has done something."""
    ends = [copy(world[0]), copy(world[1])]
    me = 0 if takes else 1
    raw = act(ends[me])
    queues = [world[2], world[3]]
    queues[1 - me] += tuple((frame, ends[me].number) for frame in frames_in(raw))
    return ends[0], ends[1], queues[0], queues[1], world[4], world[5]


def _reset(around: bool, world: World, takes: bool) -> World:
    """An end gives its session up, and may say so over the control link as well."""
    before = world[0 if takes else 1]
    after = _acted(world, takes, lambda end: end.reset(Cause.RESET))
    if not around or before.over or before.sent is End.RESET:
        return after
    aborts = [after[4], after[5]]
    aborts[1 if takes else 0] |= {before.number}
    return (*after[:4], aborts[0], aborts[1])


def _delivered(world: World, takes: bool) -> World:
    """The next frame arrives at an end, which answers as it must."""
    me = 0 if takes else 1
    queues = [world[2], world[3]]
    (frame, session), *rest = queues[me]
    queues[me] = tuple(rest)
    ends = [copy(world[0]), copy(world[1])]
    if isinstance(frame, Data):
        ends[me].taken += len(frame.data)
    heard = ends[me].receive(frame)
    if heard is not None:
        assert session == ends[me].number, f"{frame} of session {session} reached another"
    world = ends[0], ends[1], queues[0], queues[1], world[4], world[5]
    if isinstance(heard, Reset):
        world = _acted(world, takes, lambda end: end.reset(heard.cause))
    if isinstance(frame, (Fin, Reset)):
        world = _acted(world, takes, LinkState.conclude)
    return world


def _abort_delivered(world: World, takes: bool, session: int) -> World:
    """An abort arrives over the control link."""
    aborts = [world[4], world[5]]
    aborts[0 if takes else 1] -= {session}
    world = (*world[:4], aborts[0], aborts[1])
    end = world[0 if takes else 1]
    if session != end.number or end.over:
        return world
    return _acted(world, takes, lambda end: end.reset(Cause.RESET))


def _next(world: World) -> Iterator[World]:
    """All worlds that may follow."""
    taker, server, to_taker, to_server, abort_taker, abort_server = world
    if taker.idle and taker.number < SESSIONS and len(to_server) < ON_THE_WAY:
        yield _acted(world, True, lambda end: end.open(OPENING))
    for takes, end, inbox, outbox, aborts in (
        (True, taker, to_taker, to_server, abort_taker),
        (False, server, to_server, to_taker, abort_server),
    ):
        if inbox:
            yield _delivered(world, takes)
        for session in aborts:
            yield _abort_delivered(world, takes, session)
        if len(outbox) >= ON_THE_WAY or end.over:
            continue
        for around in (False, True):
            yield _reset(around, world, takes)
        if end.sent is End.OPEN:
            for reads in (False, True):
                yield _acted(world, takes, partial(LinkState.finish, reads=reads))
            if end.given < MOST_BYTES:
                yield _acted(world, takes, lambda end: wrote(end, b"x"))


def test_every_order_of_events() -> None:
    """An exhaustive search: in no order of events does anything of one session reach another, is
    a rule broken, is a link idle with something on it, or does an end wait for what will never
    come."""
    nothing: Queue = ()
    first = (LinkState(True), LinkState(False), nothing, nothing, frozenset(), frozenset())
    seen, todo = {_key(first)}, [first]
    while todo:
        world = todo.pop()
        taker, server, to_taker, to_server, *_ = world
        if taker.idle and not server.idle:
            assert (Fin(taker.number), taker.number) in to_server
        if taker.idle:
            # Either may have reset what it had finished, before it heard that the session was over.
            assert all(isinstance(frame, Reset) for frame, _ in to_taker)
            assert all(isinstance(frame, (Fin, Reset)) for frame, _ in to_server)
        if not to_taker and not to_server:
            assert taker.number == server.number
            assert (taker.sent is End.OPEN) == (server.got is End.OPEN)
            assert (server.sent is End.OPEN) == (taker.got is End.OPEN)
            assert taker.over == taker.idle == server.over == server.idle
        for after in _next(world):
            key = _key(after)
            if key not in seen:
                seen.add(key)
                todo.append(after)
    assert len(seen) > 10_000


class _End:
    """One end with its reader, what its applications sent and heard, and the queue towards it."""

    def __init__(self, takes: bool) -> None:
        self.state = LinkState(takes)
        self.reader = FrameReader()
        self.inbox = b""
        self.sent: dict[int, bytes] = {}
        self.heard: dict[int, bytes] = {}
        self.fins: set[int] = set()  # sessions that ended in order, as heard
        self.finished: set[int] = set()  # sessions that this end finished
        self.resets: set[int] = set()  # sessions whose reset was heard
        self.gave_up: set[int] = set()  # sessions that this end's application reset

    @property
    def open(self) -> bool:
        """Whether the application may still send."""
        return not self.state.over and self.state.sent.value == "open"


class TwoEnds(RuleBasedStateMachine):
    """Two ends joined by byte queues, with any cut, any order and any stall."""

    @initialize()
    def begin(self) -> None:
        self.taker, self.server = _End(True), _End(False)
        self.aborts: list[tuple[_End, int, Cause]] = []  # on their way over the control link

    def _other(self, end: _End) -> _End:
        return self.server if end is self.taker else self.taker

    def _send(self, end: _End, raw: bytes) -> None:
        self._other(end).inbox += raw

    def _end(self, takes: bool) -> _End:
        return self.taker if takes else self.server

    @precondition(lambda self: self.taker.state.idle)
    @rule()
    def open(self) -> None:
        self._send(self.taker, self.taker.state.open(OPENING))

    @rule(takes=st.booleans(), data=st.binary(min_size=1, max_size=6))
    def write(self, takes: bool, data: bytes) -> None:
        end = self._end(takes)
        if end.open:
            number = end.state.number
            end.sent[number] = end.sent.get(number, b"") + data
            self._send(end, wrote(end.state, data))

    @rule(takes=st.booleans(), reads=st.booleans())
    def finish(self, takes: bool, reads: bool) -> None:
        end = self._end(takes)
        if end.open:
            end.finished.add(end.state.number)
        self._send(end, end.state.finish(reads))

    @rule(takes=st.booleans(), cause=st.sampled_from(Cause), around=st.booleans())
    def reset(self, takes: bool, cause: Cause, around: bool) -> None:
        end = self._end(takes)
        if end.state.over:
            return
        end.gave_up.add(end.state.number)
        raw = end.state.reset(cause)
        self._send(end, raw)
        if raw and around:
            self.aborts.append((self._other(end), end.state.number, cause))

    @precondition(lambda self: self.aborts)
    @rule(data=st.data())
    def deliver_abort(self, data: st.DataObject) -> None:
        """The control link is quicker or slower than the data link."""
        at = data.draw(st.integers(0, len(self.aborts) - 1))
        end, number, cause = self.aborts.pop(at)
        if number == end.state.number and not end.state.over:
            self._hear_reset(end, number)
            self._send(end, end.state.reset(cause))

    @rule(takes=st.booleans(), size=st.integers(1, 80))
    def deliver(self, takes: bool, size: int) -> None:
        end = self._end(takes)
        chunk, end.inbox = end.inbox[:size], end.inbox[size:]
        for frame in end.reader.feed(chunk):
            number = end.state.number
            if isinstance(frame, Data):
                end.state.taken += len(frame.data)
            heard = end.state.receive(frame)
            if isinstance(heard, Data):
                end.heard[number] = end.heard.get(number, b"") + heard.data
            elif isinstance(heard, Fin):
                assert heard.session == number
                end.fins.add(number)
            elif isinstance(heard, Reset):
                assert heard.session == number
                self._hear_reset(end, number)
                self._send(end, end.state.reset(heard.cause))
            if isinstance(frame, (Fin, Reset)):
                self._send(end, end.state.conclude())

    def _hear_reset(self, end: _End, number: int) -> None:
        assert number in self._other(end).gave_up, "a reset that nobody asked for"
        end.resets.add(number)

    @invariant()
    def no_byte_of_one_session_reaches_another(self) -> None:
        if not hasattr(self, "taker"):
            return
        for end in (self.taker, self.server):
            other = self._other(end)
            for number, heard in end.heard.items():
                assert other.sent.get(number, b"").startswith(heard)
            for number in end.fins:
                assert number in other.finished
                assert end.heard.get(number, b"") == other.sent.get(number, b"")

    @invariant()
    def an_idle_link_is_empty(self) -> None:
        if hasattr(self, "taker") and self.taker.state.idle:
            assert len(self.taker.inbox) <= RESET_SIZE
            assert len(self.server.inbox) <= ENDING_SIZE

    @invariant()
    def numbers_agree(self) -> None:
        if hasattr(self, "taker"):
            assert 0 <= self.taker.state.number - self.server.state.number <= 1

    def teardown(self) -> None:
        """Once all is delivered and the sessions are ended, both ends are idle and agree."""
        if not hasattr(self, "taker"):
            return
        self._drain()
        for end in (self.taker, self.server):
            self._send(end, end.state.finish(True))
        self._drain()
        assert self.taker.state.idle and self.server.state.idle
        assert self.taker.state.number == self.server.state.number
        for end in (self.taker, self.server):
            ended = end.fins | end.resets | end.gave_up
            assert ended >= set(range(1, end.state.number + 1)), "a session with no end"

    def _drain(self) -> None:
        while self.aborts:
            end, number, cause = self.aborts.pop()
            if number == end.state.number and not end.state.over:
                self._hear_reset(end, number)
                self._send(end, end.state.reset(cause))
        while self.taker.inbox or self.server.inbox:
            self.deliver(True, 1 << 20)
            self.deliver(False, 1 << 20)


TwoEnds.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTwoEnds = TwoEnds.TestCase
