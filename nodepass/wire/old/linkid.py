"""The number that a server writes on each new link of the pool. No I/O."""

from __future__ import annotations

import re
from collections.abc import Collection

from .dialect import Dialect

__all__ = ["LinkIdReader", "encode_id", "takes_raw"]

_RAW_SIZE = 4
_HEX_SIZE = 8
_HEX = re.compile(rb"[0-9a-f]{8}")
_HEX_START = re.compile(rb"[0-9a-f]{4}")


def encode_id(number: str, dialect: Dialect) -> bytes:
    """What the server writes.

    :param number: 8 lowercase hex digits, as in signals.
    """
    return bytes.fromhex(number) if dialect.traits.raw_id else number.encode()


class LinkIdReader:
    """The client's side: waits for the number.

    Servers of 1.6 write 8 hex digits or 4 bytes, and say nowhere which. The 8 come in one piece, so
    that is how they are told apart.

    :ivar rest: bytes behind it, the first of a session.
    """

    __slots__ = ("_held", "_http", "rest")

    def __init__(self, dialect: Dialect) -> None:
        self._http = dialect.traits.http
        self._held = b""
        self.rest = b""

    def feed(self, data: bytes) -> str | None:
        """The number, 8 lowercase hex digits, once it is there."""
        held = self._held = self._held + data
        if not self._http and _HEX.match(held):
            self.rest = held[_HEX_SIZE:]
            return held[:_HEX_SIZE].decode()
        if len(held) < _RAW_SIZE:
            return None
        self.rest = held[_RAW_SIZE:]
        return held[:_RAW_SIZE].hex()


def takes_raw(launched: str, numbers: Collection[str]) -> bool:
    """Whether a client that was written 8 digits has read 4 bytes, and names those.

    :param launched: the number that it names.
    :param numbers: those of the links that are there.
    """
    start = bytes.fromhex(launched)
    if launched in numbers or not _HEX_START.fullmatch(start):
        return False
    return any(number.startswith(start.decode()) for number in numbers)
