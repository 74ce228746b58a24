"""A link that many sessions share: what leaves together, and what waits when it is backed up."""

from __future__ import annotations

from typing import Any

import pytest

from nodepass.relay.stream import Cause
from nodepass.wire.native.muxframes import (
    WINDOW,
    MuxType,
    reset,
    short,
)
from nodepass.wire.native.muxlink import MAX_UNREAD
from nodepass.wire.native.muxstream import LONG
from tests.muxrig import Rig, data, know_distances


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are near each other."""
    know_distances(monkeypatch)


def alone(**options: Any) -> Rig:
    """Two nodes with one link, and no more to come: nothing moves to another."""
    return Rig(1, **options).start()


def test_what_is_said_in_one_turn_leaves_in_one_piece() -> None:
    """Short messages of many sessions together; a long one takes along what came before it."""
    rig = alone()
    (one, _), (two, _) = rig.open(), rig.open()
    line = rig.lines[1][0]
    one.stream.write(b"a")
    two.stream.write(b"b")
    one.stream.finish()
    assert line.outbox == b""
    rig.turn()
    assert line.outbox == data(1, b"a") + data(2, b"b") + short(MuxType.FIN, 1)
    rig.flush()
    two.stream.write(b"c")
    two.stream.write(b"x" * LONG)
    assert line.outbox == data(2, b"c") + data(2, b"x" * LONG)
    rig.flush()
    assert line.outbox == b""


def test_numbers_begin_anew() -> None:
    """After the last one, and those of sessions that are still under way are passed over."""
    rig = alone()
    pairs = [rig.open() for _ in range(2)]
    rig.mux(rig.taking)._last = rig.mux(rig.serving)._last = 0xFFFFFFFE
    pairs += [rig.open() for _ in range(2)]
    assert list(rig.mux(rig.serving).streams) == [1, 2, 0xFFFFFFFF, 3]
    assert rig.mux(rig.serving).awaits(4) and rig.mux(rig.serving).awaits(1 << 31)
    for number in (0xFFFFFFFE, 0xFFFFFFFF, 1, 2, 3):
        assert not rig.mux(rig.serving).awaits(number)
    for near, _ in pairs:
        near.stream.write(b"on")
    rig.flush()
    assert [far.heard for _, far in pairs] == [[b"on"]] * 4


def test_a_link_that_is_backed_up() -> None:
    """Whoever writes is told to wait, and to go on when it has room; nothing is lost, and new
    sessions go elsewhere meanwhile."""
    rig = Rig(2, high_water=100).start()
    pairs = [rig.open() for _ in range(3)]
    shared = rig.shared
    for near, _ in pairs:
        near.stream.write(b"x" * LONG)
    assert [near.heard for near, _ in pairs] == [[], ["congested"], ["congested"]]
    pairs[1][0].stream.write(b"more")
    apart = rig.visit()
    assert rig.taking.ends[apart].moved
    rig.flush()
    assert [near.heard for near, _ in pairs] == [[], *[["congested", "drained"]] * 2]
    assert [far.data for _, far in pairs] == [b"x" * LONG, b"x" * LONG + b"more", b"x" * LONG]
    assert rig.shared == shared


def test_nothing_is_added_to_what_backs_it_up() -> None:
    """What was about to leave when it came to that waits with the rest."""
    rig = Rig(1, high_water=100).start()
    (one, _), (two, _) = rig.open(), rig.open()
    one.stream.write(b"a")
    two.stream.write(b"x" * 100)
    rig.link(rig.taking, 1).send_frame(data(9, b"x" * 200))
    one.stream.finish()
    before = len(rig.lines[1][0].outbox)
    rig.turn()
    assert len(rig.lines[1][0].outbox) == before
    rig.flush()
    assert rig.serving.ends[1].heard == [b"a", "ended"]


def test_one_that_waits_for_its_window_is_not_told_of_the_link() -> None:
    """It has nothing to be told of before what it has held has left."""
    rig = Rig(1, high_water=2 * WINDOW).start()
    (one, slow), (two, _), (three, _) = rig.open(), rig.open(), rig.open()
    slow.stream.pause()
    one.stream.write(b"x" * WINDOW)
    two.stream.write(b"x" * WINDOW)
    assert rig.mux(rig.taking).congested
    three.stream.write(b"x")
    one.stream.write(b"y")
    assert one.heard == three.heard == ["congested"]
    rig.flush()
    assert three.heard == ["congested", "drained"]
    assert one.heard == ["congested"]
    slow.stream.resume()
    rig.flush()
    assert one.heard == ["congested", "drained"]


def test_a_link_that_is_backed_up_again_at_once() -> None:
    """What was gathered while it was is enough for that: who waited waits on, and is not
    forgotten."""
    rig = Rig(1, high_water=100).start()
    pairs = [rig.open() for _ in range(4)]
    for near, _ in pairs:
        near.stream.write(b"x" * LONG)
    rig.turn()
    rig.deliver(1, True)
    waiting = [near.heard for near, _ in pairs[1:]]
    assert waiting == [["congested"]] * 3
    rig.flush()
    assert waiting == [["congested", "drained"]] * 3


def test_the_window_opens_while_the_link_is_backed_up() -> None:
    """What was held leaves into what is gathered; its sender waits for the link from then on."""
    rig = Rig(1, high_water=WINDOW + 100).start()
    (one, slow), (two, _) = rig.open(), rig.open()
    slow.stream.pause()
    one.stream.write(b"x" * (WINDOW + 1))
    rig.flush()
    slow.stream.resume()
    rig.turn()
    two.stream.write(b"x" * WINDOW)
    rig.mux(rig.taking).send(b"")  # something else is about to leave
    rig.link(rig.taking, 1).send_frame(data(9, b"x" * 100))
    assert rig.mux(rig.taking).congested
    rig.deliver(1, False)
    assert one.heard == ["congested"]
    rig.flush()
    assert one.heard == ["congested", "drained"]


def test_resets_that_nobody_reads() -> None:
    """They wait without data, for a peer that reads nothing: the link is cut before they are too
    many."""
    rig = Rig(1, high_water=100).start()
    near, _ = rig.open()
    near.stream.write(b"x" * 100)
    rig.turn()
    mux = rig.mux(rig.taking)
    frame = reset(9, Cause.IDLE)
    for _ in range(MAX_UNREAD // len(frame)):
        mux.send(frame)
    assert near.heard == []
    near.stream.abort(Cause.IDLE)
    assert len(rig.taking.pool) == 0
    rig.flush()
    assert len(rig.serving.pool) == 0
    rig.nothing_left()


def test_a_link_that_drains_may_have_unread_again() -> None:
    """What has left counts no more."""
    rig = Rig(1, high_water=100).start()
    near, _ = rig.open()
    mux = rig.mux(rig.taking)
    frame = reset(9, Cause.IDLE)
    for _ in range(3):
        near.stream.write(b"x" * 100)
        rig.turn()
        for _ in range(MAX_UNREAD // len(frame)):
            mux.send(frame)
        rig.flush()
    assert ("closed", Cause.LOST) not in near.heard
