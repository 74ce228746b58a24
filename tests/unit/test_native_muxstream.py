"""Sessions on a shared link: their bytes, their ends, and the window."""

from __future__ import annotations

from typing import Any

import pytest

from nodepass.relay.stream import Cause
from nodepass.wire.native.muxframes import (
    WINDOW,
    reset,
    window,
)
from nodepass.wire.native.muxstream import CREDIT
from tests.muxrig import SIDES, End, Rig, know_distances


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are near each other."""
    know_distances(monkeypatch)


def alone(**options: Any) -> Rig:
    """Two nodes with one link, and no more to come: nothing moves to another."""
    return Rig(1, **options).start()


def ends(rig: Rig, taking: bool) -> tuple[End, End]:
    """A session, the end that is meant first."""
    both = rig.open()
    return both if taking else both[::-1]


def test_a_session_and_others_beside_it() -> None:
    """Each has its own bytes and its own end, in either direction, on one link."""
    rig = alone()
    pairs = [rig.open() for _ in range(3)]
    for n, (near, far) in enumerate(pairs):
        near.stream.write(b"question %d" % n)
        far.stream.write(b"answer %d" % n)
    rig.flush()
    for n, (near, far) in enumerate(pairs):
        assert near.heard == [b"answer %d" % n]
        assert far.heard == [b"question %d" % n]
    assert len(rig.mux(rig.taking).streams) == rig.taking.pool.sessions == 3
    for near, far in pairs:
        near.stream.finish()
        far.stream.finish()
    rig.flush()
    for near, far in pairs:
        assert near.events == far.events == ["ended", ("closed", None)]
    rig.nothing_left()


@SIDES
def test_half_closed(taking: bool) -> None:
    """One direction ends; the other goes on, until it ends as well."""
    rig = alone()
    one, two = ends(rig, taking)
    one.stream.write(b"all")
    one.stream.finish()
    rig.flush()
    assert two.heard == [b"all", "ended"]
    assert one.heard == []
    two.stream.write(b"more")
    rig.flush()
    two.stream.write(b"and more")
    two.stream.finish()
    rig.flush()
    assert one.heard == [b"more", b"and more", "ended", ("closed", None)]
    assert two.heard == [b"all", "ended", ("closed", None)]
    rig.nothing_left()


def test_ends_that_cross() -> None:
    """Both finish at once, or both give up at once, or one does this and the other that."""
    rig = alone()
    near, far = rig.open()
    near.stream.finish()
    far.stream.finish()
    rig.flush()
    assert near.heard == far.heard == ["ended", ("closed", None)]
    near, far = rig.open()
    near.stream.abort(Cause.IDLE)
    far.stream.abort(Cause.REFUSED)
    rig.flush()
    assert near.heard == far.heard == []
    near, far = rig.open()
    near.stream.finish()
    far.stream.abort(Cause.REFUSED)
    rig.flush()
    assert near.heard == [("closed", Cause.REFUSED)]
    assert far.heard == []
    rig.nothing_left()


@SIDES
@pytest.mark.parametrize("point", ["at once", "written", "finished", "has heard the end"])
def test_a_reset_arrives_with_its_cause(taking: bool, point: str) -> None:
    """From either end and at any time before its end; what comes after it means nothing."""
    rig = alone()
    one, two = ends(rig, taking)
    if point == "written":
        one.stream.write(b"before")
        two.stream.write(b"crosses")
    elif point == "finished":
        one.stream.finish()
        two.stream.write(b"crosses")
    elif point == "has heard the end":
        two.stream.finish()
        rig.flush()
        one.heard.clear()
    one.stream.abort(Cause.DENIED)
    for late in (lambda: one.stream.write(b"late"), one.stream.finish, one.stream.resume):
        late()
    one.stream.abort(Cause.IDLE)
    rig.flush()
    assert one.heard == []
    assert two.heard[-1] == ("closed", Cause.DENIED)
    assert two.data == (b"before" if point == "written" else b"")
    rig.nothing_left()


def test_who_attaches_late_hears_how_it_ended() -> None:
    """And who attaches while it has to wait hears that."""
    rig = alone()
    near, _ = rig.open()
    near.stream.write(b"x" * (WINDOW + 1))
    late = End(near.stream)
    assert late.heard == ["congested"]
    rig.lines[1][0].lose()
    assert late.heard == ["congested", ("closed", Cause.LOST)]
    assert End(near.stream).heard == [("closed", Cause.LOST)]


@SIDES
def test_a_lost_link_ends_all_its_sessions(taking: bool) -> None:
    """At both ends, whichever gave it up; the other links and their sessions go on."""
    rig = Rig(3).start()
    pairs = [rig.open() for _ in range(3)]
    side = rig.taking if taking else rig.serving
    rig.link(side, rig.shared).abort("cut")
    rig.flush()
    for pair in pairs:
        for end in pair:
            assert end.heard == [("closed", Cause.LOST)]
    near, far = rig.open()
    near.stream.write(b"still")
    rig.flush()
    assert far.heard == [b"still"]
    near.stream.abort(Cause.RESET)
    rig.nothing_left()


# The window.


@SIDES
def test_no_more_than_the_window_is_on_its_way(taking: bool) -> None:
    """The rest waits at its sender, who is told, once; it follows when there is room, with the
    end behind it."""
    rig = alone()
    one, two = ends(rig, taking)
    two.stream.pause()
    one.stream.write(b"x" * WINDOW)
    assert one.heard == []
    one.stream.write(b"y")
    one.stream.write(b"z" * WINDOW)
    one.stream.finish()
    rig.flush()
    assert one.heard == ["congested"]
    assert two.heard == [b"x" * WINDOW]
    two.stream.resume()
    rig.flush()
    assert two.data == b"x" * WINDOW + b"y" + b"z" * WINDOW
    assert two.events == ["ended"]
    assert one.heard == ["congested"], "nothing more is to be written"


@SIDES
def test_who_waited_for_the_window_goes_on(taking: bool) -> None:
    """It is told when all that it had written has left, not before."""
    rig = alone()
    one, two = ends(rig, taking)
    two.stream.pause()
    one.stream.write(b"x" * (2 * WINDOW + CREDIT))
    rig.flush()
    two.stream.resume()
    rig.flush()
    assert one.heard == ["congested", "drained"]
    assert two.data == b"x" * (2 * WINDOW + CREDIT)
    one.stream.write(b"y" * (WINDOW - CREDIT))
    assert one.heard == ["congested", "drained"]


def test_a_slow_reader_holds_up_nobody_else() -> None:
    """The link is read on, whoever is paused."""
    rig = alone()
    (_, slow), (near, far) = rig.open(), rig.open()
    slow.stream.pause()
    rig.taking.ends[1].stream.write(b"x" * (3 * WINDOW))
    near.stream.write(b"quick")
    rig.flush()
    assert far.heard == [b"quick"]


def test_credit_is_given_when_half_the_window_has_come() -> None:
    """Neither before, so that short sessions go without, nor while the reader is paused."""
    rig = alone()
    near, far = rig.open()
    line = rig.lines[1][1]
    near.stream.write(b"x" * (CREDIT - 1))
    rig.flush()
    assert far.mux.due == CREDIT - 1
    near.stream.write(b"x")
    rig.turn()
    rig.deliver(1, True)
    rig.turn()
    assert line.outbox == window(1, CREDIT)
    rig.flush()
    far.stream.pause()
    near.stream.write(b"x" * (CREDIT - 1))
    rig.flush()
    far.stream.resume()
    rig.turn()
    assert line.outbox == b""
    far.stream.pause()
    near.stream.write(b"xx")
    rig.turn()
    rig.deliver(1, True)
    rig.turn()
    assert line.outbox == b""
    far.stream.resume()
    far.stream.resume()
    rig.turn()
    assert line.outbox == window(1, CREDIT + 1)


def test_no_credit_for_who_gives_up() -> None:
    """Even if that is because of the very bytes."""
    rig = alone()
    near, far = rig.open()
    far.received = lambda data: far.stream.abort(Cause.IDLE)  # type: ignore[method-assign]
    far.stream.attach(far)
    near.stream.write(b"x" * CREDIT)
    rig.deliver(1, True)
    rig.turn()
    assert rig.lines[1][1].outbox == reset(1, Cause.IDLE)


def test_no_credit_for_what_has_ended() -> None:
    """Nobody needs it."""
    rig = alone()
    near, far = rig.open()
    far.stream.pause()
    near.stream.write(b"x" * CREDIT)
    near.stream.finish()
    rig.flush()
    far.stream.resume()
    rig.turn()
    assert rig.lines[1][1].outbox == b""


@SIDES
def test_nothing_is_written_and_read(taking: bool) -> None:
    """Messages without bytes do no harm, with room, without it, and among those that wait."""
    rig = alone()
    one, two = ends(rig, taking)
    two.stream.pause()
    for body in (b"", b"x" * WINDOW, b"", b"y", b"", b"z"):
        one.stream.write(body)
    one.stream.finish()
    rig.flush()
    two.stream.resume()
    rig.flush()
    assert two.data == b"x" * WINDOW + b"yz"
    assert two.events == ["ended"]


def test_what_is_lent_is_copied() -> None:
    """A view may be used again as soon as the call returns, also where its bytes have to wait."""
    rig = alone()
    near, far = rig.open()
    far.stream.pause()
    buffer = bytearray(b"a" * (WINDOW + 5))
    near.stream.write(memoryview(buffer))
    buffer[:] = b"b" * len(buffer)
    rig.flush()
    far.stream.resume()
    rig.flush()
    assert far.data == b"a" * (WINDOW + 5)
