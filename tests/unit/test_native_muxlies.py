"""Peers that break the rules of a shared link: each lie costs that link, or means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from nodepass.address import Endpoint
from nodepass.relay.stream import Cause
from nodepass.wire import Opening
from nodepass.wire.native import muxlink, sharing
from nodepass.wire.native.muxframes import (
    WINDOW,
    MuxType,
    open_stream,
    pack_head,
    reset,
    short,
    window,
)
from nodepass.wire.native.muxstream import MuxStream
from tests.muxrig import LOCAL, SIDES, Rig, data, know_distances
from tests.unit.test_native_linkpool import OPENING


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are near each other."""
    know_distances(monkeypatch)


def lie(rig: Rig, taking: bool, *frames: bytes) -> None:
    """One end sends what its rules do not allow."""
    rig.link(rig.taking if taking else rig.serving, rig.shared).send_frame(b"".join(frames))
    rig.flush()


LIES: dict[str, tuple[bool | None, list[bytes]]] = {
    # who lies (None: either), and what of stream 1
    "beyond the window": (None, [data(1, b"x" * WINDOW), data(1, b"x")]),
    "beyond it in short frames": (None, [data(1, b"x" * 4096)] * 17),
    "data after FIN": (None, [short(MuxType.FIN, 1), data(1, b"x")]),
    "nothing after FIN": (None, [short(MuxType.FIN, 1), data(1, b"")]),
    "FIN twice": (None, [short(MuxType.FIN, 1)] * 2),
    "too much room": (None, [window(1, 1)]),
    "far too much room": (None, [window(1, 0xFFFFFFFF)]),
    "OPEN twice": (True, [open_stream(1, OPENING)]),
    "OPEN from the serving end": (False, [open_stream(7, OPENING)]),
    "MOVE from the taking end": (True, [short(MuxType.MOVE, 1)]),
    "MOVED without JOIN": (False, [short(MuxType.MOVED, 1)]),
    "MOVED twice": (True, [short(MuxType.MOVED, 1)] * 2),
    "FIN after MOVED": (True, [short(MuxType.MOVED, 1), short(MuxType.FIN, 1)]),
    "data after MOVED": (True, [short(MuxType.MOVED, 1), data(1, b"x")]),
    "a long frame": (None, [pack_head(MuxType.FIN << 24 | 65, 1)]),
    "no frame": (None, [b"\xff" * 8]),
}


@pytest.mark.parametrize(
    ("taking", "how"),
    [
        (side, how)
        for how, (who, _) in LIES.items()
        for side in (True, False)
        if who in (None, side)
    ],
)
def test_lies(taking: bool, how: str) -> None:
    """Each costs the link, with one reason that says what it was, and no other link."""
    _, frames = LIES[how]
    rig = Rig(3).start()
    reasons: list[str] = []
    apart = rig.open()  # on the link that is shared from now on
    pool = (rig.serving if taking else rig.taking).pool
    lost = pool.link_lost

    def noting(link: Any, reason: str, *, wrong: bool) -> None:
        assert wrong
        reasons.append(reason)
        lost(link, reason, wrong=wrong)

    pool.link_lost = noting  # type: ignore[method-assign]
    beside = rig.open()
    victim = rig.serving.ends[1] if taking else rig.taking.ends[1]
    victim.stream.pause()
    count = len(rig.lines)
    lie(rig, taking, *frames)
    assert len(reasons) == 1
    assert reasons[0].startswith("a protocol error: ")
    assert len(pool) == count - 1
    for end in (*apart, *beside):
        assert end.heard[-1] == ("closed", Cause.LOST)
    near, far = rig.open()
    near.stream.write(b"still")
    rig.flush()
    assert far.heard == [b"still"]


@pytest.mark.parametrize(
    ("taking", "before"),
    # The serving end's MOVED would need JOIN before it.
    [(True, MuxType.FIN), (False, MuxType.FIN), (True, MuxType.MOVED)],
)
def test_no_end_is_foretold_of_what_is_refused(taking: bool, before: MuxType) -> None:
    """Bytes with FIN behind them, of a direction that has ended or moved."""
    rig = Rig(1).start()
    near, far = rig.open()
    victim = far if taking else near
    lie(rig, taking, short(before, 1), data(1, b"x"), short(MuxType.FIN, 1))
    assert victim.heard[-1] == ("closed", Cause.LOST)
    assert not victim.ends


@SIDES
@pytest.mark.parametrize("kind", [MuxType.FIN, MuxType.MOVE, MuxType.MOVED])
def test_frames_for_streams_that_are_not_there(taking: bool, kind: MuxType) -> None:
    """They have crossed with the end of theirs, and mean nothing."""
    rig = Rig(1).start()
    near, far = rig.open()
    frames = [short(kind, 9), data(9, b"x"), window(9, 1), reset(9, Cause.IDLE)]
    lie(rig, taking, *frames)
    near.stream.write(b"on")
    rig.flush()
    assert far.heard == [b"on"]
    assert near.heard == []


def test_who_is_asked_to_wait_is_believed_once_there_is_room() -> None:
    """Room that was used may be given back in any parts, also nothing at a time."""
    rig = Rig(1).start()
    near, far = rig.open()
    far.stream.pause()
    near.stream.write(b"x" * 10)
    lie(rig, False, window(1, 0), window(1, 4), window(1, 6))
    assert near.heard == []
    lie(rig, False, window(1, 1))
    assert near.heard == [("closed", Cause.LOST)]


def test_a_stream_opened_behind_what_cut_the_link() -> None:
    """In one piece with it: the link is gone, and nobody would tell that stream."""
    rig = Rig(1).start()
    _, far = rig.open()
    link = rig.link(rig.serving, rig.shared)
    far.ended = lambda: link.abort("cut")  # type: ignore[method-assign]
    lie(rig, True, short(MuxType.FIN, 1), open_stream(2, OPENING))
    assert list(rig.serving.ends) == [1]
    assert far.heard == [("closed", Cause.LOST)]


def test_much_that_is_left_of_sessions_that_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What those under way have sent may wait; what others have left may not without end."""
    monkeypatch.setattr(muxlink, "LOOK_EACH", 1)
    monkeypatch.setattr(muxlink, "MAX_LEFT", 2 * WINDOW + 100)
    rig = Rig(1).start()
    pairs = [rig.open() for _ in range(9)]
    link = rig.link(rig.serving, rig.shared)
    link.pauseProducing()
    for _, far in pairs:
        far.stream.write(b"x" * WINDOW)
    mux = rig.mux(rig.serving)
    for number in (1, 2):
        mux.received(reset(number, Cause.IDLE))
    assert len(mux._stalled) == 7, "those that are over wait for nothing"
    assert all(("closed", Cause.LOST) not in far.heard for _, far in pairs)
    mux.received(reset(3, Cause.IDLE))
    assert all(far.heard[-1] == ("closed", Cause.LOST) for _, far in pairs[3:])


def test_a_session_that_begins_as_the_link_is_lost() -> None:
    """Who hears of the end of another begins it: not on the link that is going."""
    rig = Rig(2).start()
    near, _ = rig.open()
    number = rig.shared
    opened: list[int] = []
    near.closed = lambda cause: opened.append(rig.visit())  # type: ignore[method-assign]
    rig.link(rig.taking, number).abort("cut")
    (port,) = opened
    stream = rig.taking.ends[port].stream
    assert isinstance(stream, MuxStream) and stream.link_number != number


# JOIN.


def joining(rig: Rig, link: int, stream: int) -> Any:
    """The taking end takes an idle link for that stream; its stream there."""
    taken = rig.taking.pool.take_idle()
    assert taken is not None
    return taken.join(link, stream)


def test_join_of_a_session_that_is_over() -> None:
    """It has crossed with its end: the link is free again."""
    rig = Rig(3).start()
    near, far = rig.open()
    near.stream.abort(Cause.IDLE)
    rig.flush()
    new = joining(rig, rig.shared, 1)
    rig.flush()
    assert new.over
    assert far.heard == [("closed", Cause.IDLE)]
    rig.nothing_left()


def test_join_twice() -> None:
    """The second link is reset; the session goes on on the first."""
    rig = Rig(3).start()
    near, far = rig.open()
    near.stream.write(b"x" * (WINDOW + 1))
    (one,) = rig.taking.pool._sharing._moving
    rig.deliver(one.number, True)
    two = joining(rig, rig.shared, 1)
    rig.flush(*(number for number in rig.lines if number != rig.shared))
    assert two.over and not far.moved
    rig.flush()
    three = joining(rig, rig.shared, 1)
    rig.flush()
    assert three.over
    assert far.moved and far.data == b"x" * (WINDOW + 1)


@pytest.mark.parametrize("place", ["no link", "another link", "itself", "no stream"])
def test_join_of_what_is_not_there(place: str) -> None:
    """It may have overtaken what would have said so: it is kept as long as the peer wants that, and
    harms nobody. A second one is not kept."""
    rig = Rig(4).start()
    near, far = rig.open()
    other, *_, itself = rig.taking.pool._idle
    link = {
        "no link": 99,
        "another link": other.number,
        "itself": itself.number,
        "no stream": rig.shared,
    }[place]
    new = joining(rig, link, 2)
    rig.flush()
    again = joining(rig, link, 2)
    rig.flush()
    assert again.over and not new.over
    near.stream.write(b"on")
    rig.flush()
    assert far.heard == [b"on"]
    assert len(rig.serving.pool._sharing._early) == 1
    new.abort(Cause.IDLE)
    rig.flush()
    assert not rig.serving.pool._sharing._early
    near.stream.abort(Cause.IDLE)
    rig.nothing_left()


def test_join_of_what_was_never_to_come() -> None:
    """What a link brought that is lost is remembered no longer."""
    rig = Rig(4).start()
    *_, last = rig.taking.pool._idle
    joining(rig, 99, 1)
    joining(rig, 99, 2)
    rig.flush()
    rig.lines[last.number][0].lose()
    assert list(rig.serving.pool._sharing._early) == [(99, 2)]


def test_many_joins_of_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps a link that counts for nothing else: from some number on it is closed."""
    monkeypatch.setattr(sharing, "MOST_EARLY", 2)
    rig = Rig(4).start()
    for stream in range(1, 4):
        joining(rig, 99, stream)
        rig.flush()
    assert list(rig.serving.pool._sharing._early) == [(99, 1), (99, 2)]
    assert len(rig.serving.pool) == len(rig.taking.pool) == 3


def test_a_reset_of_the_new_link_alone() -> None:
    """The serving end takes back what it was asked for, and says nothing of it where the session
    is: the session is given up."""
    rig = Rig(3).start()
    near, far = rig.open()
    near.stream.write(b"x" * (WINDOW + 1))
    (new,) = rig.taking.pool._sharing._moving
    rig.deliver(new.number, True)
    stream = rig.link(rig.serving, new.number)._stream
    assert stream is not None
    stream.abort(Cause.RESET)
    rig.flush(new.number)
    new.abort_session(1, Cause.RESET)
    rig.flush(new.number)
    assert near.events[-1] == ("closed", Cause.RESET)
    rig.flush()
    assert far.heard[-1] == ("closed", Cause.RESET)
    rig.nothing_left()


def test_bytes_on_the_new_link_before_its_turn() -> None:
    """They mean nothing, and the session goes on as the rules have it."""
    rig = Rig(3).start()
    _, far = rig.open()
    new = joining(rig, rig.shared, 1)
    new.write(b"too early")
    rig.flush()
    lie(rig, True, data(1, b"first"), short(MuxType.MOVED, 1))
    new.write(b"second")
    rig.flush()
    assert far.heard == [b"first", b"second"]


def test_more_to_share_than_was_asked_for() -> None:
    """MUX from the serving end, or on a link that carries a session, costs that link only."""
    rig = Rig(3).start()
    near, far = rig.open()
    mux = bytes.fromhex("0a000000")
    one, two = rig.taking.pool._idle
    rig.lines[one.number][1].write(mux)
    two.open(Opening(Endpoint("192.0.2.1", 99), LOCAL))
    rig.lines[two.number][0].write(mux)
    rig.flush()
    assert len(rig.serving.pool) == 1
    near.stream.write(b"on")
    rig.flush()
    assert far.heard == [b"on"]
