"""What a TLS client offers, read from its first bytes before there is any TLS. No I/O."""

from __future__ import annotations

import struct

__all__ = ["HANDSHAKE", "MAX_RECORD", "MOST_NEEDED", "RECORD_HEADER", "alpn"]

#: The first byte of a TLS connection: a record of the handshake (RFC 8446, 5.1).
HANDSHAKE = 0x16
_RECORD = struct.Struct(">BHH")
#: Bytes of a record's header.
RECORD_HEADER = _RECORD.size
#: Bytes of the largest record behind it (RFC 8446, 5.1). A ClientHello takes 200 to 2,000.
MAX_RECORD = 16384
#: Bytes after which a decision is due, come what may.
MOST_NEEDED = RECORD_HEADER + MAX_RECORD

_CLIENT_HELLO, _ALPN = 1, 16


def alpn(first: bytes) -> list[bytes] | None:
    """The ALPN names that a client offers; None: more is needed.

    :param first: what has come so far, all of it, beginning with `HANDSHAKE`.
    :returns: the names; none where it offers none, or makes no sense.
    """
    if len(first) < RECORD_HEADER:
        return None
    size = _RECORD.unpack_from(first)[2]
    if len(first) < min(MOST_NEEDED, RECORD_HEADER + size):
        return None
    try:
        return _offered(_Reader(first[RECORD_HEADER : RECORD_HEADER + size]))
    except ValueError:
        return []


class _Reader:
    """Takes a structure apart; ValueError where it ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes."""
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise ValueError("too short")
        self._at += size
        return piece

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Bytes behind their length, which takes so many."""
        return self.take(self.number(size))


def _offered(record: _Reader) -> list[bytes]:
    """The ALPN names of a ClientHello (RFC 8446, 4.1.2; RFC 7301, 3.1)."""
    if record.number(1) != _CLIENT_HELLO:
        return []
    hello = _Reader(record.vector(3))
    hello.take(2 + 32)  # legacy_version, random
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    extensions = _Reader(hello.vector(2))
    while extensions:
        kind = extensions.number(2)
        body = _Reader(extensions.vector(2))
        if kind == _ALPN:
            names = _Reader(body.vector(2))
            offered = []
            while names:
                offered.append(names.vector(1))
            return offered
    return []
