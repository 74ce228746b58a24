"""The frames of a data link: every frame survives, however it is cut, and garbage does no harm."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.address import Endpoint
from nodepass.relay.stream import Cause
from nodepass.wire import Opening
from nodepass.wire.native.frames import (
    HEADER_SIZE,
    MAX_DATA,
    MAX_DATAGRAM,
    MAX_SMALL,
    Data,
    Datagrams,
    Done,
    Fin,
    FlowClose,
    FlowOpen,
    Frame,
    FrameError,
    FrameReader,
    FrameType,
    Join,
    Mux,
    Open,
    Reset,
    data_header,
    datagrams,
    encode,
)

NUMBERS = st.integers(0, 2**32 - 1)
PORTS = st.integers(0, 65535)
ENDPOINTS = st.builds(Endpoint, st.ip_addresses().map(str), PORTS)
OPENINGS = st.builds(Opening, visitor=ENDPOINTS, local=ENDPOINTS, target=st.integers(0, 65535))
CAUSES = st.sampled_from(Cause)
FRAMES = st.one_of(
    st.builds(Open, NUMBERS, OPENINGS),
    st.builds(Data, st.binary(min_size=1, max_size=200)),
    st.builds(Fin, NUMBERS, st.none() | NUMBERS),
    st.builds(Reset, NUMBERS, CAUSES),
    st.builds(FlowOpen, NUMBERS, OPENINGS),
    st.builds(Datagrams, NUMBERS, st.lists(st.binary(max_size=200), min_size=1, max_size=4)),
    st.builds(FlowClose, NUMBERS, st.none() | CAUSES),
    st.builds(Done, NUMBERS),
    st.builds(Join, NUMBERS, NUMBERS, NUMBERS),
)


def joined(frames: list[Frame]) -> list[Frame]:
    """The frames with neighbouring DATA put together, and the datagrams of each flow between frames
    of another type: where it is cut means nothing."""
    result: list[Frame] = []
    batches: dict[int, list[bytes]] = {}
    for frame in frames:
        last = result[-1] if result else None
        if isinstance(frame, Data) and isinstance(last, Data):
            result[-1] = Data(last.data + frame.data)
        elif isinstance(frame, Datagrams):
            if frame.flow in batches:
                batches[frame.flow] += frame.batch
            else:
                batches[frame.flow] = list(frame.batch)
                result.append(Datagrams(frame.flow, batches[frame.flow]))
        else:
            if not isinstance(frame, Data):
                batches.clear()
            result.append(frame)
    return result


def read(reader: FrameReader, *chunks: bytes) -> list[Frame]:
    """All frames that the chunks give."""
    return [frame for chunk in chunks for frame in reader.feed(chunk)]


@given(st.lists(FRAMES, max_size=8), st.data())
def test_frames_survive_any_cut(frames: list[Frame], data: st.DataObject) -> None:
    """What is encoded comes out again wherever the stream is cut."""
    stream = b"".join(map(encode, frames))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    chunks = [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])]

    assert joined(read(FrameReader(), *chunks)) == joined(frames)


@given(FRAMES, FRAMES)
def test_frames_survive_a_cut_at_every_byte(first: Frame, second: Frame) -> None:
    """Two frames come out whole for each place of one cut, and byte by byte."""
    stream = encode(first) + encode(second)
    for cut in range(len(stream) + 1):
        got = read(FrameReader(), stream[:cut], stream[cut:])
        assert joined(got) == joined([first, second])
    assert joined(read(FrameReader(), *(bytes((byte,)) for byte in stream))) == joined(
        [first, second]
    )


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_garbage_raises_only_frame_errors(chunks: list[bytes]) -> None:
    """Bytes that nobody encoded give frames or FrameError, and nothing is held beyond a frame."""
    reader = FrameReader()
    try:
        for chunk in chunks:
            reader.feed(chunk)
            assert len(reader._held) < 4 + 4 + MAX_DATAGRAM
    except FrameError:
        pass


@pytest.mark.parametrize("at", [6, 13])
def test_an_opening_as_long_as_the_usual_one_but_of_another_kind(at: int) -> None:
    """The shorter way that most openings take finds what is wrong as well."""
    opening = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))
    raw = bytearray(encode(Open(1, opening)))
    assert raw[HEADER_SIZE + at] == 4
    raw[HEADER_SIZE + at] = 6
    with pytest.raises(FrameError, match="OPEN"):
        FrameReader().feed(bytes(raw))


@given(st.sampled_from(FrameType), st.binary(max_size=MAX_SMALL))
def test_wrong_bodies_raise_only_frame_errors(kind: FrameType, body: bytes) -> None:
    """A known type with any body is a frame or a FrameError."""
    try:
        read(FrameReader(), struct.pack(">I", kind << 24 | len(body)) + body)
    except FrameError:
        pass


@given(FRAMES, st.data())
def test_mutated_frames_raise_only_frame_errors(frame: Frame, data: st.DataObject) -> None:
    """A frame with one byte changed is a frame or a FrameError."""
    raw = bytearray(encode(frame))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(FrameReader(), bytes(raw))
    except FrameError:
        pass


@pytest.mark.parametrize("kind", FrameType)
def test_longest_bodies(kind: FrameType) -> None:
    """A header that announces more than the type's limit is refused before any of it is held."""
    limits = {FrameType.DATA: MAX_DATA, FrameType.DATAGRAM: 4 + MAX_DATAGRAM, FrameType.MUX: 0}
    limit = limits.get(kind, MAX_SMALL)

    FrameReader().feed(struct.pack(">I", kind << 24 | limit))
    with pytest.raises(FrameError, match=kind.name):
        FrameReader().feed(struct.pack(">I", kind << 24 | (limit + 1)))


@pytest.mark.parametrize("kind", [0, max(FrameType) + 1, 255])
def test_unknown_types_are_refused(kind: int) -> None:
    """A type that version 1 does not have ends the link, as nobody knows what it would mean."""
    with pytest.raises(FrameError, match=f"unknown frame type {kind}"):
        FrameReader().feed(struct.pack(">I", kind << 24))


def test_data_is_not_held() -> None:
    """Each part of a long DATA frame is passed on as it comes."""
    reader = FrameReader()

    assert reader.feed(data_header(MAX_DATA)) == []
    assert reader.feed(b"a" * 1000) == [Data(b"a" * 1000)]
    assert reader._held == b""
    assert read(reader, b"b" * (MAX_DATA - 1000) + encode(Fin(1)))[1:] == [Fin(1)]


def test_an_empty_data_frame_is_nothing() -> None:
    """A DATA frame without bytes carries nothing and disturbs nothing."""
    assert read(FrameReader(), data_header(0) + encode(Fin(7))) == [Fin(7)]


@given(st.lists(FRAMES, max_size=3), st.binary(max_size=40))
def test_what_follows_mux_is_left_alone(frames: list[Frame], behind: bytes) -> None:
    """The bytes behind it are in another form, whatever they look like."""
    before = b"".join(map(encode, frames))
    got = FrameReader().feed(before + bytes.fromhex("0a000000") + behind)
    assert joined(got[:-1]) == joined(frames)
    assert got[-1] == Mux(behind)
    assert encode(Mux(behind)) == bytes.fromhex("0a000000") + behind


def test_the_bytes_of_join() -> None:
    """Session, link, stream."""
    assert encode(Join(1, 2, 3)) == bytes.fromhex("0900000c 00000001 00000002 00000003")


def test_datagrams_that_come_together_are_given_together() -> None:
    """Each flow's in one list and in their order, but for those that a frame of another type comes
    between: the end of a flow is not overtaken."""
    stream = b"".join(
        (
            datagrams(1, [b"a", b""]),
            datagrams(2, [b"b"]),
            datagrams(1, [b"c"]),
            encode(FlowClose(1, None)),
            datagrams(1, [b"late"]),
        )
    )
    assert FrameReader().feed(stream) == [
        Datagrams(1, [b"a", b"", b"c"]),
        Datagrams(2, [b"b"]),
        FlowClose(1, None),
        Datagrams(1, [b"late"]),
    ]
    assert encode(Datagrams(7, [b"x"])) == bytes.fromhex("06000005 00000007") + b"x"


def test_an_unknown_cause_is_a_reset() -> None:
    """A cause that a newer peer may send still ends the session."""
    raw = bytearray(encode(Reset(3, Cause.LOST)))
    raw[-1] = 200
    assert read(FrameReader(), bytes(raw)) == [Reset(3, Cause.RESET)]


def test_a_scope_stays_at_home() -> None:
    """The scope of a link-local address is not sent, as it means nothing on another host."""
    opening = Opening(visitor=Endpoint("fe80::1%eth0", 5), local=Endpoint("fe80::2%lo", 6))
    (frame,) = read(FrameReader(), encode(Open(1, opening)))
    assert isinstance(frame, Open)
    assert frame.opening.visitor == Endpoint("fe80::1", 5)
    assert frame.opening.local == Endpoint("fe80::2", 6)
