"""Sessions that leave a shared link for one of their own: in every order in which the two links can
deliver, with ends, resets and losses at each point between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nodepass.relay.stream import Cause
from nodepass.wire.native.frames import fin, join
from nodepass.wire.native.muxframes import MuxType, short
from nodepass.wire.native.muxlink import MAX_UNREAD
from tests.muxrig import BEHIND, LITTLE, MUCH, Moving, know_distances

SIDES = pytest.mark.parametrize("taking", [True, False], ids=["by the taker", "by the server"])


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are near each other."""
    know_distances(monkeypatch)


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
    far.stream.pause()  # so that it gives no credit
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
