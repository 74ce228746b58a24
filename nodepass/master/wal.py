"""Whether SQLite's write-ahead log is whole.

SQLite replays a log up to the first frame whose checksum is wrong, and says nothing: a commit that
a crash cut short looks like that. The last frame of a commit behind it in the same log is another
matter, as it was written later: then something in the middle was damaged, and commits that were
acknowledged are lost. The format is that of https://www.sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import struct

__all__ = ["is_whole"]

_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")


def is_whole(data: bytes) -> bool:
    """Return whether a log shows no sign of damage; an empty one does not."""
    if not data:
        return True
    if len(data) < _HEADER.size:
        return False
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(data)
    order = _MAGIC.get(magic)
    if order is None or _checksum(order, data[:24], (0, 0)) != (sum1, sum2):
        return False
    sums, size = (sum1, sum2), _FRAME.size + page_size
    good = True
    for start in range(_HEADER.size, len(data) - size + 1, size):
        _, commits, *salts, sum1, sum2 = _FRAME.unpack_from(data, start)
        if good:
            sums = _checksum(order, data[start : start + 8], sums)
            sums = _checksum(order, data[start + _FRAME.size : start + size], sums)
            good = salts == [salt1, salt2] and sums == (sum1, sum2)
        if not good and commits and salts == [salt1, salt2]:
            return False
    return True


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
