"""What a session takes along when it leaves a shared link, and what happens while there is no other
link to go to."""

from __future__ import annotations

import pytest

from nodepass.relay.stream import Cause
from nodepass.wire.native.muxframes import WINDOW, MuxType, short
from tests.muxrig import BEHIND, LITTLE, MUCH, Moving, Rig, know_distances

SIDES = pytest.mark.parametrize("taking", [True, False], ids=["by the taker", "by the server"])


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are near each other."""
    know_distances(monkeypatch)


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
    """When the last one has moved it is closed."""
    case = Moving(True)
    case.rig.handle(case.shared).slowed = True
    case.rig.taking.pool.tidy()
    case.keeper[0].stream.abort(Cause.IDLE)
    case.rig.flush()
    case.rig.rest()
    assert case.shared not in case.rig.taking.pool
    assert case.shared not in case.rig.serving.pool
    case.write(False, BEHIND)
    case.rig.flush()
    assert case.near.data == case.wrote[False]


@SIDES
def test_a_reader_that_stays_paused_behind_the_end(taking: bool) -> None:
    """Who has finished writing to its socket does not hear any more that this has drained, so it
    never goes on: the end that is told again on the new link is read all the same."""
    rig = Rig(2).start()
    near, far = rig.open()
    mover, other = (near, far) if taking else (far, near)
    other.stream.write(LITTLE)
    other.stream.finish()
    rig.flush()
    assert "ended" in mover.heard and not mover.moved
    mover.stream.pause()
    mover.stream.write(MUCH)
    rig.flush()
    assert mover.moved and other.moved
    mover.stream.finish()
    rig.flush()
    assert other.data == MUCH and mover.data == LITTLE
    assert ("closed", None) in mover.heard and ("closed", None) in other.heard
    rig.nothing_left()
