"""A data link that many sessions share.

What all of them have to say while the reactor is at work leaves in one piece, and comes in one: a
short message costs a part of a system call then, instead of a whole one at either end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nodepass.relay.stream import Cause, Chunk
from nodepass.wire import Opening

from .frames import cause_of
from .link import LinkError
from .muxframes import (
    DATA_WORD,
    FIN_WORD,
    FRAME_SIZE,
    MAX_MUX_DATA,
    MAX_MUX_SMALL,
    WINDOW,
    MuxType,
    open_stream,
    pack_head,
    reset,
    unpack_head,
)
from .muxstream import CREDIT, MuxStream
from .openings import unpack_opening

if TYPE_CHECKING:
    from .datalink import DataLink

__all__ = ["MuxLink", "MuxOwner"]

#: Bytes of frames without data that may wait to leave a link that is backed up. Only a peer that
#: opens sessions without end and does not read what becomes of them lets so many wait.
MAX_UNREAD = 1 << 20
#: Bytes of streams that are over which may wait likewise: as many as the links of so many sessions
#: would hold; and the number of ends after which it is seen how many they are.
MAX_LEFT = 1 << 26
LOOK_EACH = 256
#: Frames that wait when a session begins or ends, beyond which they leave at once: the other end
#: can go about them while this one sees to the next. Those of a few sessions cost little apiece.
MOST_GATHERED = 12

_WORD = struct.Struct(">I")
_LAST_NUMBER = 0xFFFFFFFF
_LAST_DATA = DATA_WORD + MAX_MUX_DATA
# As plain numbers: to ask an enumeration for its members takes longer than to compare them. DATA
# and FIN are known by their first words.
_OPEN, _, _FIN, _RESET, _WINDOW, _MOVE, _MOVED = map(int, MuxType)
# Bytes of a frame's body and of the number before it.
_SIZES = {_RESET: 5, _WINDOW: 8, _MOVE: 4, _MOVED: 4}


class MuxOwner(Protocol):
    """Who has the shared links of a peer."""

    def stream_opened(self, opening: Opening, stream: MuxStream) -> None:
        """The peer opened a stream."""

    def move(self, mux: MuxLink, stream: MuxStream) -> None:
        """At the taking end: a stream needs a link of its own."""

    def unused(self, mux: MuxLink) -> None:
        """A link's last stream has left it."""

    def leave(self, mux: MuxLink) -> None:
        """Begin no new session on this link."""


class MuxLink:
    """The sessions on one data link.

    :param soon: calls something when what has come by now has been passed on.
    :ivar link: carries it.
    :ivar owner: hears of what happens on it; set by whom it is given to.
    :ivar gathered: frames that leave then.
    :ivar flush_due: they will, by themselves.
    :ivar streams: by number.
    """

    __slots__ = (
        "_deaf",
        "_held",
        "_last",
        "_left",
        "_soon",
        "_stalled",
        "_unread",
        "_write",
        "flush_due",
        "gathered",
        "link",
        "owner",
        "streams",
        "takes",
    )

    owner: MuxOwner

    def __init__(self, link: DataLink, soon: Callable[[Callable[[], None]], None]) -> None:
        self.link = link
        self._soon = soon
        self._write = link.transport.write
        self.takes = link.state.takes
        self.streams: dict[int, MuxStream] = {}
        self.gathered: list[bytes] = []
        self.flush_due = False
        self._last = 0  # the number of the stream that was opened last
        self._held = b""  # a frame that has not come whole
        # Told to wait, as the link is backed up; the first comes first.
        self._stalled: dict[MuxStream, None] = {}
        self._unread = 0
        self._left = 0  # streams that are over since the link was backed up
        self._deaf = False  # there will be no streams any more

    @property
    def number(self) -> int:
        """The link's."""
        return self.link.number

    @property
    def congested(self) -> bool:
        """Whether what was written waits to leave."""
        return self.link.congested

    # The taking end

    def open(self, opening: Opening) -> MuxStream:
        """Begin a stream."""
        if len(self.gathered) >= MOST_GATHERED:
            self.flush()
        number = self._last % _LAST_NUMBER + 1
        while number in self.streams:
            number = number % _LAST_NUMBER + 1
        self._last = number
        stream = self.streams[number] = MuxStream(self, number)
        self.send(open_stream(number, opening))
        return stream

    # The serving end

    def awaits(self, number: int) -> bool:
        """Whether a stream may still be opened: its OPEN was overtaken by what came elsewhere."""
        return 0 < (number - self._last) & _LAST_NUMBER <= _LAST_NUMBER // 2

    # For the streams

    def send(self, frame: bytes) -> None:
        """Send a frame without data."""
        self.gathered.append(frame)
        if self.link.congested:
            self._unread += len(frame)
            if self._unread > MAX_UNREAD:
                self.link.abort("the peer does not read what becomes of its sessions", wrong=True)
        elif not self.flush_due:
            self.flush_due = True
            self._soon(self.flush)

    def send_fin(self, number: int) -> None:
        """Send FIN of a stream."""
        self.send(pack_head(FIN_WORD, number))
        if len(self.gathered) >= MOST_GATHERED:
            self.flush()

    def gathered_more(self, stream: MuxStream, long: bool) -> None:
        """A stream's frame was gathered that is long, or the first one."""
        if self.link.congested:
            self.stall(stream)
        elif long:
            self.flush()
        else:
            self.flush_due = True
            self._soon(self.flush)

    def stall(self, stream: MuxStream) -> None:
        """A stream is to wait until the link has room again."""
        self._stalled[stream] = None
        stream.block()

    def move(self, stream: MuxStream) -> None:
        """A stream has more to send than the link is for."""
        self.owner.move(self, stream)

    def forget(self, stream: MuxStream) -> None:
        """A stream is over, or has left."""
        self.streams.pop(stream.number, None)
        if self.link.congested:
            self._stalled.pop(stream, None)
            self._left += 1
            if not self._left % LOOK_EACH:
                self._look_what_is_left()
        if not self.streams:
            self.owner.unused(self)

    def _look_what_is_left(self) -> None:
        """See how much of streams that are over waits to leave."""
        most = MAX_LEFT + len(self.streams) * WINDOW
        if sum(map(len, self.gathered)) > most:
            self.link.abort("the peer does not read what its sessions have left", wrong=True)

    def flush(self, *, anyway: bool = False) -> None:
        """Let what was gathered leave now.

        :param anyway: even to wait at the link, which is backed up.
        """
        self.flush_due = False
        gathered = self.gathered
        if gathered and (anyway or not self.link.congested):
            frames = gathered[0] if len(gathered) == 1 else b"".join(gathered)
            gathered.clear()
            self._write(frames)

    # From the link

    def drained(self) -> None:
        """The link may send again."""
        self._unread = self._left = 0
        self.flush()
        if self.link.congested:
            return
        # Where what one of them sends backs it up again, the others wait on.
        stalled, self._stalled = self._stalled, {}
        for stream in stalled:
            stream.unblock()

    def received(self, data: Chunk) -> None:
        """Bytes came.

        :raises PeerError: they are no frames, or break a rule; the link can't go on.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        at, end, streams = 0, len(data), self.streams
        while end - at >= FRAME_SIZE:
            word, number = unpack_head(data, at)
            begin = at + FRAME_SIZE
            if DATA_WORD <= word <= _LAST_DATA:
                stop = begin + word - DATA_WORD
                if stop > end:
                    break
                stream = streams.get(number)
                if stream is not None:
                    stream.due += word - DATA_WORD
                    if stop < end and data[stop] == _FIN and _ends(data, stop, number):
                        stream.ending()
                    deliver = stream.deliver
                    deliver(data[begin:stop])
                    if stream.due >= CREDIT:
                        stream.credit()
            elif word == FIN_WORD:
                stop = begin
                stream = streams.get(number)
                if stream is not None:
                    stream.ended()
            else:
                size = word & 0xFFFFFF
                if size > MAX_MUX_SMALL:
                    raise LinkError(f"a frame of {size} bytes on a shared link")
                stop = begin + size
                if stop > end:
                    break
                if word >> 24 == _OPEN:
                    self._opened(data[begin - 4 : stop])
                else:
                    self._receive(word >> 24, number, data[begin - 4 : stop])
            at = stop
        if at < end:
            self._held = bytes(data[at:])

    def _receive(self, kind: int, number: int, body: Chunk) -> None:
        """A frame of another type; the body begins with the number."""
        if self._deaf:
            return  # this end has stopped, or who heard of what came before has cut the link
        stream = self.streams.get(number)
        if len(body) != _SIZES.get(kind):
            raise LinkError(f"frame type {kind} with {len(body)} bytes on a shared link")
        if stream is None:
            return
        if kind == _RESET:
            stream.closed(cause_of(body[4]))
        elif kind == _WINDOW:
            stream.room(*_WORD.unpack_from(body, 4))
        elif kind == _MOVED:
            stream.moved()
        elif self.takes:
            self.owner.move(self, stream)
        else:
            raise LinkError("the taking end asks for another link")

    def _opened(self, body: Chunk) -> None:
        """OPEN came; the body begins with the number."""
        if self._deaf:
            return
        try:
            number, opening = unpack_opening(body)
        except (struct.error, IndexError, ValueError) as error:
            raise LinkError("a stream opened by a frame of a wrong form") from error
        if self.takes or number in self.streams:
            raise LinkError(f"stream {number} opened out of turn")
        self._last = number
        stream = self.streams[number] = MuxStream(self, number)
        self.owner.stream_opened(opening, stream)

    # The end

    def stop(self, cause: Cause) -> None:
        """Reset all streams, and let the peer know; what it still says means nothing."""
        self._deaf = True
        for stream in list(self.streams.values()):
            self.send(reset(stream.number, cause))
            stream.closed(cause)
        self.flush(anyway=True)

    def lost(self, cause: Cause) -> None:
        """The link is gone."""
        self._deaf = True
        self.owner.leave(self)  # who hears of the end of a stream may begin another
        for stream in list(self.streams.values()):
            stream.closed(cause)
        self.gathered.clear()
        self._stalled.clear()


def _ends(data: Chunk, at: int, number: int) -> bool:
    """Whether the frame there is FIN of this stream, if it has come whole."""
    return len(data) - at >= FRAME_SIZE and unpack_head(data, at) == (FIN_WORD, number)
