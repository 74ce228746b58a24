"""The frames of a data link.

Each frame begins with one 32-bit word in network order: the type in its upper 8 bits, the length of
the body in the lower 24. Bodies, with u32 and u16 in network order:

    OPEN        u32 session, u16 target, address visitor, address local
    DATA        bytes of the session
    FIN         u32 session; from the serving end perhaps u32 read
    RESET       u32 session, u8 cause
    FLOW_OPEN   u32 flow, u16 target, address visitor, address local
    DATAGRAM    u32 flow, the datagram
    FLOW_CLOSE  u32 flow, u8 cause (255: none)
    DONE        u32 session
    JOIN        u32 session, u32 link, u32 stream
    MUX         nothing; what its sender says from then on are frames of `muxframes`

An address is as `openings` has it.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from attrs import define

from nodepass.errors import PeerError
from nodepass.relay.stream import Cause, Chunk
from nodepass.wire import Opening

from .openings import IPV4_SIZE, pack_opening, unpack_opening


class FrameType(IntEnum):
    """The frame types of version 1."""

    OPEN = 1
    DATA = 2
    FIN = 3
    RESET = 4
    FLOW_OPEN = 5
    DATAGRAM = 6
    FLOW_CLOSE = 7
    DONE = 8
    JOIN = 9
    MUX = 10


#: Bytes of the word that each frame begins with.
HEADER_SIZE = 4
#: Longest body of a DATA frame: what one pipe or TLS buffer is ever asked to carry at once.
MAX_DATA = 1 << 20
#: Longest datagram: the most that UDP over IPv4 can carry is 65,507, IPv6 a little more.
MAX_DATAGRAM = 65535
#: Longest body of all other frames; OPEN with two IPv6 addresses has 44 bytes.
MAX_SMALL = 64

#: A FIN counts bytes modulo 2^32: who compares two counts knows that they are of one session.
COUNT_MASK = 0xFFFFFFFF

# As plain numbers: to ask an enumeration for its members takes longer than to compare them.
_OPEN, _DATA, _FIN, _RESET, _FLOW_OPEN, _DATAGRAM, _FLOW_CLOSE, _DONE, _JOIN, _MUX = map(
    int, FrameType
)

_LIMITS = {
    _OPEN: MAX_SMALL,
    _DATA: MAX_DATA,
    _FIN: MAX_SMALL,
    _RESET: MAX_SMALL,
    _FLOW_OPEN: MAX_SMALL,
    _DATAGRAM: 4 + MAX_DATAGRAM,
    _FLOW_CLOSE: MAX_SMALL,
    _DONE: MAX_SMALL,
    _JOIN: MAX_SMALL,
    _MUX: 0,
}

_NO_CAUSE = 255
_WORD = struct.Struct(">I")
pack_word, _unpack_word = _WORD.pack, _WORD.unpack_from
_TWO_WORDS = struct.Struct(">II")
_THREE_WORDS = struct.Struct(">III")
_NUMBER_AND_CAUSE = struct.Struct(">IB")
_OPEN_WORD, _OPEN_SIZE = _OPEN << 24 | IPV4_SIZE, HEADER_SIZE + IPV4_SIZE
DATA_WORD = _DATA << 24
_DATAGRAM_WORD = _DATAGRAM << 24


class FrameError(PeerError):
    """The peer sent what is no frame."""


@define(unsafe_hash=True)
class Open:
    """A session begins."""

    session: int
    opening: Opening


@define(unsafe_hash=True)
class Data:
    """Bytes of the current session; a long frame arrives in several of these."""

    data: Chunk


@define(unsafe_hash=True)
class Fin:
    """The sender has no more bytes for this session.

    :ivar read: how many bytes of the session it has read; None: it does not say.
    """

    session: int
    read: int | None = None


@define(unsafe_hash=True)
class Reset:
    """The sender gave the session up."""

    session: int
    cause: Cause


@define(unsafe_hash=True)
class FlowOpen:
    """A UDP flow begins."""

    flow: int
    opening: Opening


@define(unsafe_hash=True)
class Datagrams:
    """Datagrams of a flow, each a frame: those that came together, in their order."""

    flow: int
    batch: list[bytes]


@define(unsafe_hash=True)
class FlowClose:
    """A flow ended."""

    flow: int
    cause: Cause | None


@define(unsafe_hash=True)
class Done:
    """The session is over at the serving end too; the link may be taken again."""

    session: int


@define(unsafe_hash=True)
class Join:
    """A session that shared a link has this one for itself from now on.

    :ivar link: the link that it shared.
    :ivar stream: its number there.
    """

    session: int
    link: int
    stream: int


@define(unsafe_hash=True)
class Mux:
    """Many sessions share the link from now on.

    :ivar rest: what came behind this frame, in the form that frames have from here on.
    """

    rest: bytes


Frame = Open | Data | Fin | Reset | FlowOpen | Datagrams | FlowClose | Done | Join | Mux

# Frames that are one number: by the word that they begin with.
_FIN_WORD, _DONE_WORD = _FIN << 24 | 4, _DONE << 24 | 4
_FIN_READ_WORD = _FIN << 24 | 8
_SHORT: dict[int, type[Fin] | type[Done]] = {_FIN_WORD: Fin, _DONE_WORD: Done}


def fin(session: int, read: int | None = None) -> bytes:
    """A whole FIN."""
    if read is None:
        return _TWO_WORDS.pack(_FIN_WORD, session)
    return _THREE_WORDS.pack(_FIN_READ_WORD, session, read)


def done(session: int) -> bytes:
    """A whole DONE."""
    return _TWO_WORDS.pack(_DONE_WORD, session)


def join(session: int, link: int, stream: int) -> bytes:
    """A whole JOIN."""
    return pack_word(_JOIN << 24 | _THREE_WORDS.size) + _THREE_WORDS.pack(session, link, stream)


def mux() -> bytes:
    """A whole MUX."""
    return pack_word(_MUX << 24)


def open_session(session: int, opening: Opening) -> bytes:
    """A whole OPEN."""
    body = pack_opening(session, opening)
    return pack_word(_OPEN << 24 | len(body)) + body


def data_header(length: int) -> bytes:
    """What goes before `length` bytes of a session; at most `MAX_DATA`. Where all that is moved
    passes, `pack_word` is called without this detour."""
    return pack_word(DATA_WORD | length)


def datagrams(flow: int, batch: list[bytes]) -> bytes:
    """A DATAGRAM frame for each datagram."""
    parts: list[bytes] = []
    size = -1
    for data in batch:
        if len(data) != size:
            size = len(data)
            head = _TWO_WORDS.pack(_DATAGRAM_WORD | (4 + size), flow)
        parts += (head, data)
    return b"".join(parts)


def encode(frame: Frame) -> bytes:
    """A whole frame, or those of several datagrams."""
    if isinstance(frame, Open):
        return open_session(frame.session, frame.opening)
    if isinstance(frame, Fin):
        return fin(frame.session, frame.read)
    if isinstance(frame, Done):
        return done(frame.session)
    if isinstance(frame, Datagrams):
        return datagrams(frame.flow, frame.batch)
    if isinstance(frame, Join):
        return join(frame.session, frame.link, frame.stream)
    if isinstance(frame, Mux):
        return mux() + frame.rest
    kind, body = _body(frame)
    return _WORD.pack(kind << 24 | len(body)) + body


def _body(frame: Data | Reset | FlowOpen | FlowClose) -> tuple[int, bytes]:
    if isinstance(frame, Data):
        return _DATA, bytes(frame.data)
    if isinstance(frame, Reset):
        return _RESET, _NUMBER_AND_CAUSE.pack(frame.session, frame.cause)
    if isinstance(frame, FlowOpen):
        return _FLOW_OPEN, pack_opening(frame.flow, frame.opening)
    cause = _NO_CAUSE if frame.cause is None else frame.cause
    return _FLOW_CLOSE, _NUMBER_AND_CAUSE.pack(frame.flow, cause)


def cause_of(number: int) -> Cause:
    """The cause of this number."""
    try:
        return Cause(number)
    except ValueError:
        return Cause.RESET  # a newer peer's cause: what matters is that the session is over


def _decode(kind: int, body: Chunk) -> Frame:
    try:
        if kind == _OPEN:
            return Open(*unpack_opening(body))
        if kind == _RESET:
            number, cause = _NUMBER_AND_CAUSE.unpack(body)
            return Reset(number, cause_of(cause))
        if kind == _FLOW_CLOSE:
            number, cause = _NUMBER_AND_CAUSE.unpack(body)
            return FlowClose(number, None if cause == _NO_CAUSE else cause_of(cause))
        if kind == _FIN:
            return Fin(*_TWO_WORDS.unpack(body))
        if kind == _JOIN:
            return Join(*_THREE_WORDS.unpack(body))
        if kind == _FLOW_OPEN:
            return FlowOpen(*unpack_opening(body))
    except (struct.error, IndexError, ValueError) as error:
        raise FrameError(f"a {FrameType(kind).name} frame of a wrong form") from error
    raise FrameError(f"a {FrameType(kind).name} frame of a wrong form")


def _take_datagrams(data: Chunk, at: int, end: int, frames: list[Frame]) -> int:
    """Take the DATAGRAM frames that begin at a place, at least one, and follow each other, those of
    each flow together; return where they end."""
    batches: dict[int, list[bytes]] = {}
    batch: list[bytes] = []
    last = -1
    while end - at >= 8:
        word, flow = _TWO_WORDS.unpack_from(data, at)
        size = word - _DATAGRAM_WORD - 4
        stop = at + 8 + size
        if not 0 <= size <= MAX_DATAGRAM or stop > end:
            break  # another frame, one that is not whole, or one that is none
        if flow != last:
            last = flow
            if flow in batches:
                batch = batches[flow]
            else:
                batch = batches[flow] = []
                frames.append(Datagrams(flow, batch))
        batch.append(bytes(data[at + 8 : stop]))
        at = stop
    return at


class FrameReader:
    """Takes bytes as they come and gives frames.

    DATA is passed on as it arrives, so that nothing waits for a long frame's end; all other frames
    are short and come whole. What is held is at most one unfinished datagram.

    :ivar left: bytes of the current DATA frame still to come.
    :ivar length: bytes of the last DATA frame that did not come whole.
    """

    __slots__ = ("_held", "left", "length")

    def __init__(self) -> None:
        self._held = b""
        self.left = self.length = 0

    @property
    def holds(self) -> bool:
        """Whether a part of a frame other than DATA has come."""
        return bool(self._held)

    def bytes_only(self, data: Chunk) -> Chunk | None:
        """What is nearly always to be read: these bytes when they are within one DATA frame, or
        that frame's body when they are one DATA frame; else None, and `feed` is to have them."""
        size = len(data)
        if not self.left:
            if (
                size > HEADER_SIZE
                and not self._held
                and _unpack_word(data)[0] == DATA_WORD + size - HEADER_SIZE
            ):
                return data[HEADER_SIZE:]
        elif size <= self.left:
            self.left -= size
            return data
        return None

    def feed(self, data: Chunk) -> list[Frame]:
        """The frames that these bytes complete.

        :raises FrameError: the bytes are no frames; the link can't go on.
        """
        frames: list[Frame] = []
        at = 0
        if self.left:
            if len(data) <= self.left:
                self.left -= len(data)
                return [Data(data)]
            at = self.left
            self.left = 0
            frames.append(Data(data[:at]))
        elif self._held:
            data = self._held + data
            self._held = b""
        end = len(data)
        while end - at >= HEADER_SIZE:
            (word,) = _WORD.unpack_from(data, at)
            short = _SHORT.get(word)
            if short is not None and end - at >= 8:
                frames.append(short(*_WORD.unpack_from(data, at + 4)))
                at += 8
                continue
            if word == _OPEN_WORD and end - at >= _OPEN_SIZE:
                frames.append(_decode(_OPEN, data[at + HEADER_SIZE : at + _OPEN_SIZE]))
                at += _OPEN_SIZE
                continue
            kind, length = word >> 24, word & 0xFFFFFF
            limit = _LIMITS.get(kind)
            if limit is None:
                raise FrameError(f"unknown frame type {kind}")
            if length > limit:
                raise FrameError(f"a {FrameType(kind).name} frame of {length} bytes")
            body = at + 4
            have = end - body
            if kind == _DATA:
                if have < length:
                    if have:
                        frames.append(Data(data[body:]))
                    self.left, self.length = length - have, length
                    return frames
                if length:
                    frames.append(Data(data[body : body + length]))
            elif have < length:
                break
            elif kind == _MUX:
                frames.append(Mux(bytes(data[body:])))
                return frames
            elif kind == _DATAGRAM and length >= 4:
                at = _take_datagrams(data, at, end, frames)
                continue
            else:
                frames.append(_decode(kind, bytes(data[body : body + length])))
            at = body + length
        if at < end:
            self._held = bytes(data[at:])
        return frames
