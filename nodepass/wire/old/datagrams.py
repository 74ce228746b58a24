"""Datagrams on a link of 2.0: each behind its length, in 2 bytes. No I/O.

(In 1.6 and 1.14 a datagram is what one write holds and one read gives: nothing to encode.)
"""

from __future__ import annotations

import struct

__all__ = ["DatagramReader", "frames"]

_LENGTH = struct.Struct(">H")


def frames(batch: list[bytes]) -> bytes:
    """Datagrams as bytes of the link.

    :param batch: none longer than the other node's buffer, which would end its session.
    """
    parts: list[bytes] = []
    for data in batch:
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


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
