r"""Lines of 1.6: short URLs under the XOR, which may put a line feed into their midst. No I/O.

Where a byte of the text and one of the key make ``\n`` the reader sees two lines, and two old nodes
lose the tunnel. It depends on the visitor's port and the link's number, and on a key that was often
made from a port and chosen by nobody. So we

- write the same URL otherwise where the plain form would break: a user name of some letters in
  front of the host, which an old node parses and ignores, moves the text along the key;
- put the halves together again when we read: no half is a whole signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from .cipher import xor

__all__ = ["MAX_PADDING", "LineUnwritable", "Mender", "write"]

#: Most bytes of one signal: an IPv6 visitor with a zone, and all that may be put in.
MAX_SIGNAL = 512

#: Most lines that one signal may be broken into. An IPv6 visitor's has some 50 characters of which
#: one key byte can make line feeds. Each line is tried with all those before it, so that more would
#: be work for a peer to make.
MOST_PIECES = 64

#: Most letters put in: in these steps a key of usual length has met the text in every way.
MAX_PADDING = 128

# No byte of a key makes a line feed of both.
_LETTERS = b"ab"
_NEWLINE = b"\n"
# What is in every line, before its last character.
_MARK = ord("#")

Parsed = TypeVar("Parsed")


class LineUnwritable(ValueError):
    """The key turns some character of the text into a line feed wherever it may stand."""


def write(before: str, forms: Iterable[str], key: bytes) -> bytes:
    """A line for a 1.6 node to read.

    :param before: what the text begins with, such as ``np://``. Behind it a user name may be
        inserted, or before a lone ``#``, a path.
    :param forms: the rest, in every form that says the same, the best first.
    :raises LineUnwritable: it can't be written with this key.
    """
    head = before.encode()
    for form in forms:
        for text in _moved(head, form.encode(), key):
            line = xor(text, key)
            if _NEWLINE not in line:
                return line + _NEWLINE
    raise LineUnwritable("the key turns a character of the line into a line feed")


def _moved(head: bytes, tail: bytes, key: bytes) -> Iterator[bytes]:
    """A text, and with letters put in that move what is behind them along the key."""
    yield head + tail
    mark = b"@" if head else b""
    padding = b""
    for place in range(len(head), len(head) + min(len(key), MAX_PADDING)):
        byte = key[place % len(key)]
        padding += _LETTERS[:1] if _LETTERS[0] ^ byte != _NEWLINE[0] else _LETTERS[1:]
        yield head + padding + mark + tail


class Mender(Generic[Parsed]):
    """Makes out lines, also those that a line feed of the XOR has broken.

    :param parse: what a text means; None for nothing.
    :ivar skipped: lines that nothing could be made of.
    """

    def __init__(self, key: bytes, parse: Callable[[str], Parsed | None]) -> None:
        self._key = key
        self._parse = parse
        self._pieces: list[bytes] = []
        self._size = 0  # theirs, with the ends
        self.skipped = 0

    def take(self, line: bytes) -> Parsed | None:
        """What a line means, or it and those before it that meant nothing."""
        pieces, key = self._pieces, self._key
        pieces.append(line)
        self._size += len(line) + 1
        while len(pieces) > MOST_PIECES or self._size > MAX_SIGNAL:
            self._size -= len(pieces.pop(0)) + 1
            self.skipped += 1
        whole = _NEWLINE.join(pieces)
        size = len(whole)  # of what is left from the piece on
        for place, piece in enumerate(pieces):
            # Most are no signal, and this shows it soon.
            if size >= 2 and whole[-2] ^ key[(size - 2) % len(key)] == _MARK:
                parsed = self._parse(xor(whole[-size:], key).decode("latin-1"))
                if parsed is not None:
                    self.skipped += place
                    pieces.clear()
                    self._size = 0
                    return parsed
            size -= len(piece) + 1
        return None
