"""Lines out of bytes: what control links of the old dialects carry. No I/O."""

from __future__ import annotations

from nodepass.errors import PeerError

__all__ = ["MAX_LINE", "LineError", "LineSplitter"]

#: Longest line, bytes. The longest that a node writes, a verify, has 200; the rest is for fields
#: that a later node may add.
MAX_LINE = 4096


class LineError(PeerError):
    """The peer's bytes are no lines; the link can't go on."""


class LineSplitter:
    """Takes bytes as they come and gives whole lines, without their ends."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    @property
    def rest(self) -> bytes:
        """What has come behind the last line feed."""
        return self._held

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete.

        :raises LineError: a line is too long.
        """
        *lines, self._held = (self._held + data).split(b"\n")
        if max(map(len, lines), default=0) > MAX_LINE or len(self._held) > MAX_LINE:
            raise LineError(f"a line of more than {MAX_LINE} bytes on the control link")
        return lines
