"""The frames of a shared link, byte for byte, and what is read of any bytes."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.address import Endpoint
from nodepass.errors import PeerError
from nodepass.relay.stream import Cause
from nodepass.wire import Opening
from nodepass.wire.native.link import LinkError
from nodepass.wire.native.muxframes import (
    DATA_WORD,
    FRAME_SIZE,
    MAX_MUX_DATA,
    MAX_MUX_SMALL,
    MuxType,
    open_stream,
    pack_head,
    reset,
    short,
    unpack_head,
    window,
)
from nodepass.wire.native.muxlink import MuxLink
from tests.streams import NotingSink

OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2), target=3)
LONGEST = Opening(visitor=Endpoint("2001:db8::1", 1), local=Endpoint("2001:db8::2", 2))


class CopyingSink(NotingSink):
    """A sink that copies what is only lent."""

    def received(self, data: bytes | memoryview) -> None:
        super().received(bytes(data))


class Serving:
    """A shared link at its serving end that carries nothing anywhere, and its owner.

    :ivar heard: the sinks of the streams that were opened, and their openings, by number.
    """

    number = 1
    congested = False

    def __init__(self) -> None:
        self.state = self.transport = self
        self.takes = False
        self.heard: dict[int, tuple[Opening, CopyingSink]] = {}
        self.mux = MuxLink(self, lambda call: call())  # type: ignore[arg-type]
        self.mux.owner = self

    def write(self, frame: bytes) -> None:
        pass

    def abort(self, reason: str) -> None:
        raise AssertionError(reason)

    def stream_opened(self, opening: Opening, stream: Any) -> None:
        self.heard[stream.number] = opening, CopyingSink()
        stream.attach(self.heard[stream.number][1])

    def move(self, mux: MuxLink, stream: Any) -> None:
        raise AssertionError("only the taking end moves")

    def unused(self, mux: MuxLink) -> None:
        pass

    def leave(self, mux: MuxLink) -> None:
        pass

    def told(self) -> dict[int, tuple[Opening, bytes, list[object]]]:
        """What came of each stream: bytes in one piece, as where they are cut means nothing."""
        return {
            number: (opening, sink.data, [one for one in sink.heard if not isinstance(one, bytes)])
            for number, (opening, sink) in self.heard.items()
        }


@pytest.mark.parametrize(
    ("frame", "raw"),
    [
        (open_stream(7, OPENING), "01000010 00000007 0003 04c0000201 0001 04c0000202 0002"),
        (pack_head(DATA_WORD + 2, 7) + b"hi", "02000002 00000007 6869"),
        (short(MuxType.FIN, 7), "03000000 00000007"),
        (reset(7, Cause.LOST), "04000001 00000007 08"),
        (window(7, 32768), "05000004 00000007 00008000"),
        (short(MuxType.MOVE, 7), "06000000 00000007"),
        (short(MuxType.MOVED, 7), "07000000 00000007"),
    ],
    ids=[kind.name for kind in MuxType],
)
def test_the_bytes_of_each_frame(frame: bytes, raw: str) -> None:
    """As the protocol has them: type, length of the body, stream, body."""
    assert frame == bytes.fromhex(raw)
    word, number = unpack_head(frame)
    assert (word & 0xFFFFFF, number) == (len(frame) - FRAME_SIZE, 7)


def test_the_longest_opening_is_allowed() -> None:
    """Two addresses of IPv6."""
    frame = open_stream(1, LONGEST)
    assert len(frame) - FRAME_SIZE == 40 <= MAX_MUX_SMALL
    serving = Serving()
    serving.mux.received(frame)
    assert serving.told() == {1: (LONGEST, b"", [])}


EVENTS = st.lists(
    st.tuples(st.integers(1, 3), st.binary(max_size=50) | st.sampled_from(["fin", "reset"])),
    max_size=12,
)


def frames_of(events: list[tuple[int, bytes | str]]) -> bytes:
    """The frames of three streams, each until its end."""
    raw = [open_stream(number, OPENING) for number in (1, 2, 3)]
    over: set[int] = set()
    for number, what in events:
        if number in over:
            continue
        if isinstance(what, bytes):
            raw.append(pack_head(DATA_WORD + len(what), number) + what)
        else:
            over.add(number)
            end = short(MuxType.FIN, number)
            raw.append(end if what == "fin" else reset(number, Cause.REFUSED))
    return b"".join(raw)


@given(EVENTS, st.data())
def test_frames_survive_any_cut(events: list[tuple[int, bytes | str]], data: st.DataObject) -> None:
    """Each stream's bytes and its end come out wherever the line cuts them, also byte by byte."""
    raw = frames_of(events)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=10).map(sorted))
    chunks = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
    whole, cut, bytewise = Serving(), Serving(), Serving()
    whole.mux.received(raw)
    for chunk in chunks:
        # As an engine gives it: in a buffer that is used again.
        buffer = bytearray(chunk)
        cut.mux.received(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
    for byte in raw:
        bytewise.mux.received(bytes((byte,)))
    assert list(whole.told()) == [1, 2, 3]
    assert cut.told() == bytewise.told() == whole.told()


def test_the_end_is_foretold_of_the_bytes_before_it() -> None:
    """Where FIN has come whole right behind them, and of no others."""
    serving = Serving()
    serving.mux.received(b"".join(open_stream(number, OPENING) for number in (1, 2, 3)))
    foretold: list[tuple[int, bytes, bool]] = []
    for number, (_, sink) in serving.heard.items():
        stream = serving.mux.streams[number]
        stream.deliver = lambda data, number=number, sink=sink: foretold.append(
            (number, bytes(data), sink.ends)
        )
    fins = [short(MuxType.FIN, number) for number in (1, 2, 3)]

    def data(number: int, body: bytes) -> bytes:
        return pack_head(DATA_WORD + len(body), number) + body

    whole = data(1, b"first") + data(2, b"last") + fins[1] + data(1, b"last") + fins[0]
    serving.mux.received(whole + data(3, b"last") + fins[2][:-1])
    serving.mux.received(fins[2][-1:])
    assert foretold == [
        (1, b"first", False),
        (2, b"last", True),
        (1, b"last", True),
        (3, b"last", False),
    ]
    assert [sink.heard for _, sink in serving.heard.values()] == [["ended"]] * 3


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_raises_only_peer_errors(chunks: list[bytes]) -> None:
    """Bytes that nobody encoded are frames or break a rule; nothing is held beyond a frame."""
    serving = Serving()
    try:
        for chunk in chunks:
            serving.mux.received(chunk)
            assert len(serving.mux._held) < FRAME_SIZE + MAX_MUX_DATA
    except PeerError:
        pass


@given(st.sampled_from(MuxType), st.sampled_from([1, 9]), st.binary(max_size=MAX_MUX_SMALL))
def test_wrong_bodies_raise_only_peer_errors(kind: MuxType, number: int, body: bytes) -> None:
    """A known type with any body, for a stream that is there and for one that is not."""
    serving = Serving()
    serving.mux.received(open_stream(1, OPENING))
    try:
        serving.mux.received(pack_head(kind << 24 | len(body), number) + body)
    except PeerError:
        pass


@pytest.mark.parametrize("kind", MuxType)
def test_the_longest_bodies(kind: MuxType) -> None:
    """A head that announces more is refused before any of it is held."""
    limit = MAX_MUX_DATA if kind is MuxType.DATA else MAX_MUX_SMALL
    Serving().mux.received(pack_head(kind << 24 | limit, 1))
    with pytest.raises(LinkError, match=f"a frame of {limit + 1} bytes"):
        Serving().mux.received(pack_head(kind << 24 | limit + 1, 1))


@pytest.mark.parametrize("number", [1, 9], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (MuxType.FIN, 1),
        (MuxType.RESET, 0),
        (MuxType.RESET, 2),
        (MuxType.WINDOW, 3),
        (MuxType.WINDOW, 5),
        (MuxType.MOVE, 1),
        (MuxType.MOVED, 1),
    ],
)
def test_bodies_of_another_length(kind: MuxType, size: int, number: int) -> None:
    """They are refused whether the stream is there or not."""
    serving = Serving()
    serving.mux.received(open_stream(1, OPENING))
    with pytest.raises(LinkError, match=f"frame type {kind:d} with {4 + size} bytes"):
        serving.mux.received(pack_head(kind << 24 | size, number) + bytes(size))


@pytest.mark.parametrize("kind", [0, max(MuxType) + 1, 255])
def test_unknown_types_are_refused(kind: int) -> None:
    """Nobody knows what they would mean."""
    with pytest.raises(LinkError, match=f"frame type {kind} "):
        Serving().mux.received(pack_head(kind << 24, 1))


@pytest.mark.parametrize("body", [b"", b"\0\0\5", struct.pack(">HB", 0, 9) + bytes(13)])
def test_openings_of_a_wrong_form(body: bytes) -> None:
    """Too short, or with an address of no family."""
    with pytest.raises(LinkError, match="wrong form"):
        Serving().mux.received(pack_head(MuxType.OPEN << 24 | len(body), 1) + body)


def test_an_unknown_cause_is_a_reset() -> None:
    """A cause that a newer peer may send still ends the stream."""
    serving = Serving()
    serving.mux.received(open_stream(1, OPENING) + reset(1, Cause.LOST)[:-1] + b"\xc8")
    assert serving.told() == {1: (OPENING, b"", [("closed", Cause.RESET)])}
