"""Server-sent events: bytes in, events out.

Source: HTML Living Standard, 9.2.5 and 9.2.6 (https://html.spec.whatwg.org/multipage/
server-sent-events.html).
"""

from __future__ import annotations

from attrs import frozen

__all__ = ["SSEError", "SSEParser", "ServerSentEvent"]

#: Most bytes of one event. Ours stay below 64 KiB; other masters send log lines whole.
MOST_EVENT = 1 << 20

_BOM = b"\xef\xbb\xbf"


class SSEError(ValueError):
    """An event is larger than this end is willing to keep."""


@frozen
class ServerSentEvent:
    """One event.

    :ivar type: its ``event:``, ``message`` where there is none.
    :ivar data: its ``data:`` lines, joined by line feeds.
    :ivar id: the last ``id:`` of the stream so far.
    """

    type: str
    data: str
    id: str


class SSEParser:
    """Reads one stream.

    :param last_id: where the stream was resumed; events without an ``id:`` carry it on.
    :ivar last_id: id of the last event that was complete.
    :ivar retry: what the server said about reconnecting, ms; None while it has not.
    :ivar comments: comment lines so far, which servers send to show that they are alive.
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: int | None = None
        self.comments = 0
        self._id = last_id
        self._type = ""
        self._data: list[str] = []
        self._size = 0
        self._line = bytearray()
        self._start = True
        self._after_return = False

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Take the next bytes, however they were cut, and return the events that they complete.

        :raises SSEError: an event is too large. The stream can't be read any further.
        """
        events: list[ServerSentEvent] = []
        if self._after_return and data:
            # CR LF is one line end, also across two reads.
            self._after_return = False
            data = data.removeprefix(b"\n")
        self._line += data
        if b"\n" not in data and b"\r" not in data:
            # The usual look at all of the line would make a long one, byte by byte, quadratic.
            self._bound(len(self._line))
            return events
        # splitlines() of bytes knows exactly CR, LF and CR LF, the line ends of this format.
        lines = bytes(self._line).splitlines(keepends=True)
        self._line.clear()
        for line in lines:
            if line[-1:] == b"\r" and line is lines[-1]:
                self._after_return = True
            elif line[-1:] not in (b"\r", b"\n"):
                self._line += line
                self._bound(len(line))
                break
            event = self._take(line.rstrip(b"\r\n"))
            if event is not None:
                events.append(event)
        return events

    def _bound(self, more: int) -> None:
        if self._size + more > MOST_EVENT:
            raise SSEError(f"an event of more than {MOST_EVENT} bytes")

    def _take(self, line: bytes) -> ServerSentEvent | None:
        """Take one line without its end."""
        if self._start:
            self._start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            self.comments += 1
            return None
        self._bound(len(line))
        self._size += len(line)
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdecimal():
            self.retry = int(value[:9])
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        """A blank line: the event is complete, unless it had no data."""
        kind, data = self._type, self._data
        self._type, self._data, self._size = "", [], 0
        self.last_id = self._id
        if not data:
            return None
        return ServerSentEvent(kind or "message", "\n".join(data), self.last_id)
