"""Lines of 1.6 as its nodes write and read them: nothing is done about a line feed in their midst.

`nodepass.wire.old.signals` writes around such bytes and puts broken lines together; a simulated
node must not, or nobody would notice where that is needed.
"""

from __future__ import annotations

import re

from nodepass.address import Endpoint, endpoint_of, is_literal
from nodepass.wire.old.cipher import xor
from nodepass.wire.old.signals import Flush, Launch, Ping, Pong, Signal, Verify

__all__ = ["BadLine", "PlainReader", "write_plain"]

_FRAGMENTS: dict[str, Signal] = {"0": Flush(), "i": Ping(), "o": Pong()}
_NAMES = {signal: name for name, signal in _FRAGMENTS.items()}

#: What the old program can't parse as a URL: control characters anywhere, nothing before a colon.
_UNPARSABLE = re.compile(r"[\x00-\x1f\x7f]|^:")


class BadLine(Exception):
    """The old program gives the tunnel up for such a line."""


def write_plain(signal: Signal, key: bytes) -> bytes:
    """A line; for its reader it may be two."""
    assert not isinstance(signal, Verify)
    if isinstance(signal, Launch):
        text = f"np://{signal.visitor or ''}/{signal.id}#{2 if signal.udp else 1}"
    else:
        text = f"#{_NAMES[signal]}"
    return xor(text.encode(), key) + b"\n"


class PlainReader:
    """Takes bytes of a control link as they come and gives signals."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._held = b""

    def feed(self, data: bytes) -> list[Signal]:
        """The signals that these bytes complete.

        :raises BadLine: the program would end the tunnel.
        """
        *lines, self._held = (self._held + data).split(b"\n")
        signals = (self._decode(line) for line in lines)
        return [signal for signal in signals if signal is not None]

    def _decode(self, line: bytes) -> Signal | None:
        text = xor(line, self._key).decode("latin-1")
        if _UNPARSABLE.search(text):
            raise BadLine(f"a line that is no URL: {text!r}")
        url, _, fragment = text.partition("#")
        if fragment in _FRAGMENTS:
            return _FRAGMENTS[fragment]
        if fragment not in ("1", "2"):
            return None
        host, _, number = url.partition("://")[2].rpartition("@")[2].partition("/")
        return Launch(fragment == "2", _endpoint(host), number)


def _endpoint(text: str) -> Endpoint | None:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return endpoint_of(Endpoint(host, int(port or 0))) if is_literal(host) else None
