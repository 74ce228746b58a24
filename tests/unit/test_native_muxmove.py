"""Sessions that leave a shared link for one of their own: in every order in which the two links can
deliver, with ends, resets and losses at each point between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nodepass.relay.stream import Cause
from nodepass.wire.native.frames import fin, join
from nodepass.wire.native.muxframes import WINDOW, MuxType, short
from nodepass.wire.native.muxlink import MAX_UNREAD
from tests.muxrig import End, Rig, know_distances

#: What one direction has to send, more than the window; and what the other has.
MUCH, LITTLE = b"m" * (WINDOW + 1000), b"l" * 500
BEHIND = b"behind"

SIDES = pytest.mark.parametrize("taking", [True, False], ids=["by the taker", "by the server"])


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are near each other."""
    know_distances(monkeypatch)


class Moving:
    """A session that one end has made move, both links holding what they were given.

    :param taking: it was the taking end.
    :param fresh: it wrote at once, so that OPEN is under way as well.
    """

    def __init__(
        self, taking: bool, *, fresh: bool = False, idle: int = 2, high_water: int = 1 << 20
    ) -> None:
        self.rig = Rig(idle + 1, high_water=high_water).start()
        self.keeper = self.rig.open()  # so that the shared link is kept
        if fresh:
            port = self.rig.visit()
            self.near: End = self.rig.taking.ends[port]
        else:
            self.near, _ = self.rig.open()
            port = 2
        self.port = port
        self.wrote = {True: b"", False: b""}  # by the taking end, and by the serving end
        self.shared = self.rig.shared
        self.write(taking, MUCH)
        if not fresh:
            self.write(not taking, LITTLE)
        self.rig.turn()
        while not taking and self.rig.lines[self.shared][1].outbox:
            self.rig.deliver(self.shared, False)
        self.rig.turn()

    @property
    def far(self) -> End | None:
        """The serving end, when it is there."""
        return self.rig.serving.ends.get(self.port)

    def end(self, taking: bool) -> End | None:
        """One end, if it is there."""
        return self.near if taking else self.far

    @property
    def new(self) -> int:
        """The link that is to be its own."""
        (link,) = self.rig.taking.pool._sharing._moving
        return link.number

    def write(self, taking: bool, data: bytes) -> None:
        """One end sends bytes."""
        end = self.end(taking)
        assert end is not None
        self.wrote[taking] += data
        end.stream.write(data)

    def come(self, *links: str) -> None:
        """What is under way to the serving end on these arrives there."""
        for link in links:
            self.rig.deliver(self.new if link == "JOIN" else self.shared, True)


STAGES: dict[str, Callable[[Moving], None]] = {
    "asked": lambda case: None,
    "JOIN came": lambda case: case.come("JOIN"),
    "MOVED came": lambda case: case.come("MOVED"),
    "JOIN and MOVED came": lambda case: case.come("JOIN", "MOVED"),
    "MOVED and JOIN came": lambda case: case.come("MOVED", "JOIN"),
    "moved": lambda case: case.rig.flush(),
}
STAGED = pytest.mark.parametrize("stage", STAGES)
FRESH = pytest.mark.parametrize(
    ("taking", "fresh"),
    [(True, False), (True, True), (False, False)],
    ids=["by the taker", "by the taker at once", "by the server"],
)


@STAGED
@FRESH
@pytest.mark.parametrize("who", ["nobody", "near", "far", "both"])
def test_bytes_and_ends_at_each_point(taking: bool, fresh: bool, stage: str, who: str) -> None:
    """Whatever is written and finished meanwhile arrives in order, whole and once, and both links
    serve again."""
    case = Moving(taking, fresh=fresh)
    new = case.new
    STAGES[stage](case)
    for side in (True, False):
        end = case.end(side)
        if end is not None:
            case.write(side, BEHIND)
            if who in ("both", "near" if side else "far"):
                end.stream.finish()
    case.rig.flush()
    near, far = case.near, case.far
    assert far is not None
    assert near.moved and far.moved
    assert near.data == case.wrote[False]
    assert far.data == case.wrote[True]
    near.stream.finish()
    far.stream.finish()
    case.rig.flush()
    for end in (near, far):
        waits = ("congested", "drained")
        assert [event for event in end.events if event not in waits] == ["ended", ("closed", None)]
    assert list(case.rig.mux(case.rig.taking).streams) == [1]
    assert case.rig.link(case.rig.taking, new).idle
    assert case.rig.link(case.rig.serving, new).idle
    for end in case.keeper:
        assert end.heard == []
        end.stream.abort(Cause.IDLE)
    case.rig.nothing_left()


def test_what_is_sent_for_it() -> None:
    """Byte for byte, in the order of the rules, and each once, whatever is written and finished."""
    case = Moving(True, idle=0)
    rig, shared = case.rig, case.shared
    far = case.far
    assert far is not None
    rig.flush()
    taker, server = rig.lines[shared]
    far.stream.write(MUCH)
    far.stream.write(MUCH)
    rig.turn()
    assert server.outbox.endswith(short(MuxType.MOVE, 2))
    assert server.outbox.count(short(MuxType.MOVE, 2)) == 1
    rig.flush()
    rig.bring()
    rig.turn()
    assert taker.outbox == short(MuxType.MOVED, 2)
    new = rig.lines[case.new]
    assert new[0].outbox == join(1, shared, 2)
    case.near.stream.finish()
    rig.turn()
    assert taker.outbox == short(MuxType.MOVED, 2)
    rig.flush(case.new)
    far.stream.finish()
    rig.turn()
    assert server.outbox == new[1].outbox == b""
    rig.deliver(shared, True)
    rig.turn()
    assert server.outbox == short(MuxType.MOVED, 2)
    rig.deliver(shared, False)
    rig.turn()
    assert taker.outbox == server.outbox == b""
    assert new[0].outbox == fin(1)
    assert new[1].outbox == fin(1, 0)


def test_a_move_that_can_not_be_answered() -> None:
    """The serving end's MOVED is too much for a link that nobody reads: it is cut, and the session
    with it, on either link."""
    case = Moving(True)
    rig, mux, new = case.rig, case.rig.mux(case.rig.serving), case.new
    far = case.far
    assert far is not None
    rig.link(rig.serving, case.shared).send_frame(short(MuxType.FIN, 9) * (1 << 18))
    assert mux.congested
    mux.send(b"x" * MAX_UNREAD)
    case.come("JOIN", "MOVED")
    assert far.events == [("closed", Cause.LOST)]
    rig.flush()
    assert case.near.events[-1] == ("closed", Cause.LOST)
    assert rig.link(rig.taking, new).idle and rig.link(rig.serving, new).idle
    rig.nothing_left()


@FRESH
@pytest.mark.parametrize("early", ["near", "far"])
def test_an_end_before_the_move(taking: bool, fresh: bool, early: str) -> None:
    """One direction has ended on the shared link; its end is told once, though it is sent on both,
    and the other moves."""
    case = Moving(taking, fresh=fresh, idle=0)  # no link comes yet
    case.rig.flush()
    near, far = case.near, case.far
    assert far is not None
    done, other = (near, far) if early == "near" else (far, near)
    done.stream.finish()
    case.rig.flush()
    held = early == ("near" if taking else "far")  # the end waits behind what is held
    case.rig.bring().flush()
    assert near.moved == far.moved is True
    assert other.events.count("ended") == 1
    other.stream.write(MUCH)
    other.stream.finish()
    case.rig.flush()
    assert near.events[-1] == far.events[-1] == ("closed", None)
    assert other.data == (MUCH if held else b"" if fresh else LITTLE)
    case.keeper[0].stream.abort(Cause.IDLE)
    case.rig.nothing_left()


@STAGED
@FRESH
@pytest.mark.parametrize("aborting", ["near", "far"])
@pytest.mark.parametrize("finished", [False, True])
def test_resets_at_each_point(
    taking: bool, fresh: bool, stage: str, aborting: str, finished: bool
) -> None:
    """By either end, also one that had ended: the other hears the cause, whichever link brings it
    first, and both links serve again."""
    case = Moving(taking, fresh=fresh)
    new = case.new
    STAGES[stage](case)
    end = case.end(aborting == "near")
    if end is None:
        end = case.near
    other = case.far if end is case.near else case.near
    if finished:
        end.stream.finish()
    end.stream.abort(Cause.DENIED)
    end.over = True
    case.rig.flush()
    other = other or case.far
    assert other is not None
    assert other.heard[-1] == ("closed", Cause.DENIED)
    assert case.rig.link(case.rig.taking, new).idle
    for kept in case.keeper:
        assert kept.heard == []
    case.keeper[1].stream.abort(Cause.IDLE)
    case.rig.nothing_left()


@STAGED
@FRESH
def test_resets_that_cross(taking: bool, fresh: bool, stage: str) -> None:
    """Both ends give up: neither is told."""
    case = Moving(taking, fresh=fresh)
    STAGES[stage](case)
    for end in (case.near, case.far):
        if end is not None:
            end.heard.clear()
            end.stream.abort(Cause.DENIED)
            end.over = True
    case.rig.flush()
    assert case.near.heard == []
    case.keeper[1].stream.abort(Cause.IDLE)
    case.rig.nothing_left()


@STAGED
@FRESH
@pytest.mark.parametrize("which", ["the new link", "the shared link"])
@pytest.mark.parametrize("how", ["lost", "cut by the taker", "cut by the server"])
def test_losses_at_each_point(taking: bool, fresh: bool, stage: str, which: str, how: str) -> None:
    """A session that needs the link that is lost is lost at both ends; the one that has moved does
    not need the shared one. The other link serves on."""
    case = Moving(taking, fresh=fresh)
    new, shared = case.new, case.shared
    STAGES[stage](case)
    number = new if which == "the new link" else shared
    if how == "lost":
        case.rig.lines[number][0].lose()
    else:
        side = case.rig.taking if how == "cut by the taker" else case.rig.serving
        case.rig.link(side, number).abort("cut")
    case.rig.flush()
    near, far = case.near, case.far
    if stage == "moved" and number == shared:
        case.write(True, BEHIND)
        case.write(False, BEHIND)
        case.rig.flush()
        assert far is not None and far.data == case.wrote[True]
        assert near.data == case.wrote[False]
        near.stream.abort(Cause.IDLE)
    else:
        assert near.events[-1] == ("closed", Cause.LOST)
        assert far is None or far.events[-1] == ("closed", Cause.LOST)
    for kept in case.keeper:
        assert kept.heard == ([] if number == new else [("closed", Cause.LOST)])
    case.rig.flush()
    other = case.rig.link(case.rig.taking, shared if number == new else new)
    assert other.mux is not None or other.idle
    if number == new:
        case.keeper[1].stream.abort(Cause.IDLE)
    case.rig.nothing_left()


# No link.


@SIDES
def test_no_idle_link_at_first(taking: bool) -> None:
    """One is asked for, and the session goes on by credit until it comes; then it has it before it
    is kept for visitors."""
    case = Moving(taking, idle=0)
    case.rig.flush()
    pool = case.rig.taking.pool
    assert pool._sharing.waiting == 1
    far = case.far
    assert far is not None and not far.moved
    assert far.data == case.wrote[True] and case.near.data == case.wrote[False]
    case.rig.bring().flush()
    assert far.moved and case.near.moved
    assert pool._sharing.waiting == 0
    case.write(True, BEHIND)
    case.write(False, BEHIND)
    case.rig.flush()
    assert far.data == case.wrote[True] and case.near.data == case.wrote[False]


@SIDES
def test_who_is_over_needs_no_link(taking: bool) -> None:
    """The one that was asked for it stays idle; without one coming it is forgotten as well."""
    case = Moving(taking, idle=0)
    case.rig.flush()
    case.near.stream.abort(Cause.IDLE)
    case.rig.flush()
    case.rig.bring().flush()
    pool = case.rig.taking.pool
    assert pool._sharing.waiting == 0
    assert pool.idle >= 1 and not pool._busy
    again = Moving(taking, idle=0)
    again.rig.flush()
    again.near.stream.write(MUCH)
    stream = again.near.mux
    again.near.stream.abort(Cause.IDLE)
    assert stream._held is None, "what it held is kept for nothing"
    again.rig.taking.pool.tidy()
    assert again.rig.taking.pool._sharing.waiting == 0


def test_a_link_is_asked_for() -> None:
    """On top of what is kept for visitors."""
    rig = Rig(1).start()
    near, _ = rig.open()
    wanted = rig.taking.wanted
    near.stream.write(MUCH)
    assert rig.taking.wanted == wanted + 1


def test_it_is_asked_for_once() -> None:
    """However much is written before the link is there, and by both ends."""
    case = Moving(True, idle=0)
    case.rig.flush()
    far = case.far
    assert far is not None
    far.stream.pause()
    case.write(True, MUCH)
    case.write(True, MUCH)
    case.write(False, MUCH)
    case.rig.flush()
    assert case.rig.taking.pool._sharing.waiting == 1
    case.rig.bring().flush()
    assert len(case.rig.taking.pool._busy) == len(case.rig.serving.pool._busy) == 1


def test_both_ends_ask_at_once() -> None:
    """The serving end's MOVE crosses with JOIN: one link is taken."""
    case = Moving(True)
    case.write(False, MUCH)
    far = case.far
    assert far is not None
    case.rig.turn()
    assert short(MuxType.MOVE, 2) in case.rig.lines[case.shared][1].outbox
    case.rig.flush()
    assert len(case.rig.taking.pool._busy) == 1
    assert far.data == case.wrote[True] and case.near.data == case.wrote[False]


# What goes with it.


@SIDES
@pytest.mark.parametrize("paused", ["near", "far", "both"])
def test_who_is_paused_stays_paused(taking: bool, paused: str) -> None:
    """And reads all when it goes on, also the end; a serving end that has finished while it is
    paused does not say that it reads."""
    case = Moving(taking)
    far = case.far
    assert far is not None
    ends = [case.near] * (paused != "far") + [far] * (paused != "near")
    for end in ends:
        end.stream.pause()
    case.rig.flush()
    case.write(True, BEHIND)
    case.write(False, BEHIND)
    case.near.stream.finish()
    far.stream.finish()
    case.rig.flush()
    for end in ends:
        assert BEHIND not in end.data and "ended" not in end.heard
    for end in ends:
        end.stream.resume()
    case.rig.flush()
    assert far.data == case.wrote[True] and case.near.data == case.wrote[False]
    assert case.near.events[-1] == far.events[-1] == ("closed", None)
    case.keeper[0].stream.abort(Cause.IDLE)
    case.rig.nothing_left()


def test_one_that_finished_and_paused_does_not_say_that_it_reads() -> None:
    """Else its link could be taken again while it is held up."""
    case = Moving(False)
    far = case.far
    assert far is not None
    far.stream.finish()
    far.stream.pause()
    case.rig.flush()
    assert far.moved
    case.near.stream.finish()
    number = next(iter(case.rig.taking.pool._ending)).number
    assert not case.rig.link(case.rig.taking, number).idle
    far.stream.resume()
    case.rig.flush()
    assert case.rig.link(case.rig.taking, number).idle


@SIDES
def test_who_waits_is_told_when_it_has_moved(taking: bool) -> None:
    """It may write on; told once."""
    case = Moving(taking)
    mover = case.end(taking)
    assert mover is not None
    assert mover.events == ["congested"]
    case.rig.flush()
    assert mover.events == ["congested", "drained"]


def test_the_new_link_may_be_backed_up_at_once() -> None:
    """Then it is told when that has room."""
    case = Moving(True, high_water=2 * WINDOW)
    case.write(True, b"x" * (4 * WINDOW))
    new = case.new
    case.rig.flush(case.shared)
    case.come("JOIN")
    case.rig.turn()
    case.rig.deliver(case.shared, False)
    assert case.near.moved
    assert "drained" not in case.near.events
    case.rig.flush()
    assert case.near.events[-1] == "drained"
    assert case.far is not None and case.far.data == case.wrote[True]
    assert case.rig.link(case.rig.taking, new).state.given > 4 * WINDOW


def test_the_server_goes_on_on_a_link_that_is_gone() -> None:
    """It hears that it is over, and nothing after that."""
    case = Moving(False)
    far, new = case.far, case.new
    assert far is not None
    case.come("JOIN")
    case.rig.link(case.rig.serving, new).abort("cut")
    case.come("MOVED")
    assert far.events == ["congested", ("closed", Cause.LOST)]
    case.rig.flush()
    assert case.near.events == [("closed", Cause.LOST)]


def test_a_link_that_is_lost_while_nothing_is_read_of_it() -> None:
    """The taking end notices, though it does not read from the link yet: the session is reset where
    it was."""
    case = Moving(True)
    new = case.rig.link(case.rig.taking, case.new)
    new._was_reset()
    assert case.near.events == ["congested", ("closed", Cause.LOST)]
    case.rig.flush()
    far = case.far
    assert far is not None and far.heard[-1] == ("closed", Cause.LOST)


def test_a_shared_link_that_is_left_goes_when_it_is_not_for_new_ones() -> None:
    """The last one that moves closes it."""
    case = Moving(True)
    case.rig.handle(case.shared).slowed = True
    case.rig.taking.pool.tidy()
    case.keeper[0].stream.abort(Cause.IDLE)
    case.rig.flush()
    assert case.shared not in case.rig.taking.pool
    assert case.shared not in case.rig.serving.pool
    case.write(False, BEHIND)
    case.rig.flush()
    assert case.near.data == case.wrote[False]
