"""The frames of a link that many sessions share.

Each frame begins with two 32-bit words in network order: the type in the upper 8 bits of the first
and the length of the body in its lower 24; then the number of the session, which is a *stream*
here. Bodies, as far as they are known from `frames`:

    OPEN        u16 target, address visitor, address local
    DATA        bytes of the stream
    FIN         nothing
    RESET       u8 cause
    WINDOW      u32 bytes that have been read since the last WINDOW
    MOVE        nothing: from the serving end, the stream needs a link of its own
    MOVED       nothing: this direction of the stream goes on on a link of its own
"""

from __future__ import annotations

import struct
from enum import IntEnum

from nodepass.relay.stream import Cause
from nodepass.wire import Opening

from .openings import pack_opening

__all__ = [
    "DATA_WORD",
    "FIN_WORD",
    "FRAME_SIZE",
    "MAX_MUX_DATA",
    "MAX_MUX_SMALL",
    "WINDOW",
    "MuxType",
    "open_stream",
    "pack_head",
    "reset",
    "short",
    "unpack_head",
    "window",
]


class MuxType(IntEnum):
    """The frame types of version 1."""

    OPEN = 1
    DATA = 2
    FIN = 3
    RESET = 4
    WINDOW = 5
    MOVE = 6
    MOVED = 7


#: Bytes of one direction of a stream that may be on their way at most, or wait at the receiving
#: end for its socket: an ordinary request or answer fits, and what thousands of stuck ones hold is
#: little. Who has more to send at once needs a link of its own.
WINDOW = 65536
#: Longest body of a DATA frame.
MAX_MUX_DATA = WINDOW
#: Longest body of all other frames; OPEN with two IPv6 addresses has 40 bytes.
MAX_MUX_SMALL = 64

_HEAD = struct.Struct(">II")
_WITH_WORD = struct.Struct(">III")
_WITH_CAUSE = struct.Struct(">IIB")

#: Bytes that a frame begins with.
FRAME_SIZE = _HEAD.size
#: The first word of a DATA frame, but for its length.
DATA_WORD = MuxType.DATA << 24
#: The whole first word of a FIN.
FIN_WORD = MuxType.FIN << 24

#: A frame's first two words, as bytes and back.
pack_head, unpack_head = _HEAD.pack, _HEAD.unpack_from

_OPEN_WORD = MuxType.OPEN << 24
_WINDOW_WORD = MuxType.WINDOW << 24 | 4
_RESET_WORD = MuxType.RESET << 24 | 1


def open_stream(number: int, opening: Opening) -> bytes:
    """A whole OPEN."""
    body = pack_opening(number, opening)
    return (_OPEN_WORD | (len(body) - 4)).to_bytes(4, "big") + body


def short(kind: MuxType, number: int) -> bytes:
    """A whole frame without a body."""
    return pack_head(kind << 24, number)


def reset(number: int, cause: Cause) -> bytes:
    """A whole RESET."""
    return _WITH_CAUSE.pack(_RESET_WORD, number, cause)


def window(number: int, size: int) -> bytes:
    """A whole WINDOW."""
    return _WITH_WORD.pack(_WINDOW_WORD, number, size)
