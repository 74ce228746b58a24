"""The frames of a data link.

Each frame begins with one 32-bit word in network order: the type in its upper 8 bits, the length of
the body in the lower 24. Bodies, with u32 and u16 in network order:

    OPEN        u32 session, u16 target, address visitor, address local
    DATA        bytes of the session
    FIN         u32 session
    RESET       u32 session, u8 cause
    FLOW_OPEN   u32 flow, u16 target, address visitor, address local
    DATAGRAM    u32 flow, the datagram
    FLOW_CLOSE  u32 flow, u8 cause (255: none)
    DONE        u32 session

An address is u8 4 or 6, the 4 or 16 bytes of it, u16 port.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_pton

from attrs import frozen

from nodepass.address import Endpoint
from nodepass.errors import PeerError
from nodepass.relay.stream import Cause, Chunk
from nodepass.wire import Opening


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


#: Bytes of the word that each frame begins with.
HEADER_SIZE = 4
#: Longest body of a DATA frame: what one pipe or TLS buffer is ever asked to carry at once.
MAX_DATA = 1 << 20
#: Longest datagram: the most that UDP over IPv4 can carry is 65,507, IPv6 a little more.
MAX_DATAGRAM = 65535
#: Longest body of all other frames; OPEN with two IPv6 addresses has 44 bytes.
MAX_SMALL = 64

#: Hosts whose other form is remembered: those of the visitors who come again and again.
HOSTS_KEPT = 1024

_LIMITS = {
    FrameType.OPEN: MAX_SMALL,
    FrameType.DATA: MAX_DATA,
    FrameType.FIN: MAX_SMALL,
    FrameType.RESET: MAX_SMALL,
    FrameType.FLOW_OPEN: MAX_SMALL,
    FrameType.DATAGRAM: 4 + MAX_DATAGRAM,
    FrameType.FLOW_CLOSE: MAX_SMALL,
    FrameType.DONE: MAX_SMALL,
}

_NO_CAUSE = 255
_WORD = struct.Struct(">I")
_U16 = struct.Struct(">H")
_OPEN_HEAD = struct.Struct(">IH")
_RESET = struct.Struct(">IB")
_DATAGRAM_HEAD = struct.Struct(">II")
_DATA = FrameType.DATA << 24
_DATAGRAM = FrameType.DATAGRAM << 24


class FrameError(PeerError):
    """The peer sent what is no frame."""


@frozen
class Open:
    """A session begins."""

    session: int
    opening: Opening


@frozen
class Data:
    """Bytes of the current session; a long frame arrives in several of these."""

    data: Chunk


@frozen
class Fin:
    """The sender has no more bytes for this session."""

    session: int


@frozen
class Reset:
    """The sender gave the session up."""

    session: int
    cause: Cause


@frozen
class FlowOpen:
    """A UDP flow begins."""

    flow: int
    opening: Opening


@frozen
class Datagrams:
    """Datagrams of a flow, each a frame: those that came together, in their order."""

    flow: int
    batch: list[bytes]


@frozen
class FlowClose:
    """A flow ended."""

    flow: int
    cause: Cause | None


@frozen
class Done:
    """The session is over at the serving end too; the link may be taken again."""

    session: int


Frame = Open | Data | Fin | Reset | FlowOpen | Datagrams | FlowClose | Done


def data_header(length: int) -> bytes:
    """What goes before `length` bytes of a session; at most `MAX_DATA`."""
    return _WORD.pack(_DATA | length)


def datagrams(flow: int, batch: list[bytes]) -> bytes:
    """A DATAGRAM frame for each datagram."""
    parts: list[bytes] = []
    size = -1
    for data in batch:
        if len(data) != size:
            size = len(data)
            head = _DATAGRAM_HEAD.pack(_DATAGRAM | (4 + size), flow)
        parts += (head, data)
    return b"".join(parts)


def encode(frame: Frame) -> bytes:
    """A whole frame, or those of several datagrams."""
    if isinstance(frame, Datagrams):
        return datagrams(frame.flow, frame.batch)
    kind, body = _body(frame)
    return _WORD.pack(kind << 24 | len(body)) + body


def _body(
    frame: Open | Data | Fin | Reset | FlowOpen | FlowClose | Done,
) -> tuple[FrameType, bytes]:
    if isinstance(frame, Open):
        return FrameType.OPEN, _pack_opening(frame.session, frame.opening)
    if isinstance(frame, Data):
        return FrameType.DATA, bytes(frame.data)
    if isinstance(frame, Fin):
        return FrameType.FIN, _WORD.pack(frame.session)
    if isinstance(frame, Reset):
        return FrameType.RESET, _RESET.pack(frame.session, frame.cause)
    if isinstance(frame, FlowOpen):
        return FrameType.FLOW_OPEN, _pack_opening(frame.flow, frame.opening)
    if isinstance(frame, Done):
        return FrameType.DONE, _WORD.pack(frame.session)
    cause = _NO_CAUSE if frame.cause is None else frame.cause
    return FrameType.FLOW_CLOSE, _RESET.pack(frame.flow, cause)


def _pack_opening(number: int, opening: Opening) -> bytes:
    return (
        _OPEN_HEAD.pack(number, opening.target)
        + _pack_address(opening.visitor)
        + _pack_address(opening.local)
    )


def _pack_address(endpoint: Endpoint) -> bytes:
    return _pack_host(endpoint.host) + _U16.pack(endpoint.port)


@lru_cache(HOSTS_KEPT)
def _pack_host(host: str) -> bytes:
    if ":" in host:
        # A link-local scope means nothing on another host.
        return b"\6" + inet_pton(AF_INET6, host.partition("%")[0])
    return b"\4" + inet_pton(AF_INET, host)


def _unpack_address(body: bytes, at: int) -> tuple[Endpoint, int]:
    size = {4: 4, 6: 16}.get(body[at])
    if size is None:
        raise FrameError(f"unknown address family {body[at]}")
    end = at + 1 + size
    (port,) = _U16.unpack_from(body, end)
    return Endpoint(_unpack_host(body[at + 1 : end]), port), end + 2


@lru_cache(HOSTS_KEPT)
def _unpack_host(packed: bytes) -> str:
    return str(ip_address(packed))


def _unpack_opening(body: bytes) -> tuple[int, Opening]:
    number, target = _OPEN_HEAD.unpack_from(body)
    visitor, at = _unpack_address(body, _OPEN_HEAD.size)
    local, at = _unpack_address(body, at)
    if at != len(body):
        raise FrameError("an opening of a wrong length")
    return number, Opening(visitor=visitor, local=local, target=target)


def _cause(number: int) -> Cause:
    try:
        return Cause(number)
    except ValueError:
        return Cause.RESET  # a newer peer's cause: what matters is that the session is over


def _decode(kind: int, body: bytes) -> Frame:
    try:
        if kind == FrameType.FIN:
            return Fin(_WORD.unpack(body)[0])
        if kind == FrameType.DONE:
            return Done(_WORD.unpack(body)[0])
        if kind == FrameType.RESET:
            number, cause = _RESET.unpack(body)
            return Reset(number, _cause(cause))
        if kind == FrameType.FLOW_CLOSE:
            number, cause = _RESET.unpack(body)
            return FlowClose(number, None if cause == _NO_CAUSE else _cause(cause))
        number, opening = _unpack_opening(body)
    except (struct.error, IndexError, ValueError) as error:
        raise FrameError(f"a {FrameType(kind).name} frame of a wrong form") from error
    return (Open if kind == FrameType.OPEN else FlowOpen)(number, opening)


def _take_datagrams(data: Chunk, at: int, end: int, frames: list[Frame]) -> int:
    """Take the DATAGRAM frames that begin at a place, at least one, and follow each other, those of
    each flow together; return where they end."""
    batches: dict[int, list[bytes]] = {}
    batch: list[bytes] = []
    last = -1
    while end - at >= 8:
        word, flow = _DATAGRAM_HEAD.unpack_from(data, at)
        size = word - _DATAGRAM - 4
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
        if self.left:
            if size <= self.left:
                self.left -= size
                return data
        elif size > 4 and not self._held and _WORD.unpack_from(data)[0] == _DATA + size - 4:
            return data[4:]
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
        while end - at >= 4:
            (word,) = _WORD.unpack_from(data, at)
            kind, length = word >> 24, word & 0xFFFFFF
            limit = _LIMITS.get(kind)
            if limit is None:
                raise FrameError(f"unknown frame type {kind}")
            if length > limit:
                raise FrameError(f"a {FrameType(kind).name} frame of {length} bytes")
            body = at + 4
            have = end - body
            if kind == FrameType.DATA:
                if have < length:
                    if have:
                        frames.append(Data(data[body:]))
                    self.left, self.length = length - have, length
                    return frames
                if length:
                    frames.append(Data(data[body : body + length]))
            elif have < length:
                break
            elif kind == FrameType.DATAGRAM and length >= 4:
                at = _take_datagrams(data, at, end, frames)
                continue
            else:
                frames.append(_decode(kind, bytes(data[body : body + length])))
            at = body + length
        self._held = bytes(data[at:])
        return frames
