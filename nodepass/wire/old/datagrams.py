"""Datagrams on a link of 2.0: each behind its length, in 2 bytes. No I/O.

(In 1.6 and 1.14 a datagram is what one write holds and one read gives: nothing to encode.)
"""

from __future__ import annotations

import struct

from .dialect import Dialect

__all__ = ["MAX_DATAGRAM", "DatagramReader", "frames"]

#: Longest datagram, bytes, that a node of 2.0 takes. A longer one ends its session.
MAX_DATAGRAM = Dialect.V2_0.traits.udp_read

_LENGTH = struct.Struct(">H")


def frames(batch: list[bytes]) -> tuple[bytes, int]:
    """Datagrams as bytes of the link.

    :returns: the bytes, and how many datagrams are too long and left out.
    """
    parts: list[bytes] = []
    for data in batch:
        size = len(data)
        if size <= MAX_DATAGRAM:
            parts += (_LENGTH.pack(size), data)
    return b"".join(parts), len(batch) - len(parts) // 2


class DatagramReader:
    """Takes bytes as they come and gives datagrams; holds at most one that is not whole."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The datagrams that these bytes complete, empty ones too."""
        if self._held:
            data = self._held + data
        batch = []
        at, end = 0, len(data)
        while end - at >= 2:
            (size,) = _LENGTH.unpack_from(data, at)
            stop = at + 2 + size
            if stop > end:
                break
            batch.append(data[at + 2 : stop])
            at = stop
        self._held = data[at:]
        return batch
