"""One session on a link that many share, as a stream.

Rule 1: each direction may have `WINDOW` bytes on their way, and not one more. The reader says how
many it has passed on, in WINDOW, each time they are half of it, and not while it is paused: a slow
socket holds up its own session alone. Whoever breaks this loses the link.

Rule 2: a stream is over at an end that has sent FIN and has the peer's, and at one that has sent or
got RESET. Frames that come for it then have crossed with its end and mean nothing.

Rule 3: a stream that has more to send than the window allows moves to a data link of its own. The
serving end asks for it with MOVE. The taking end takes an idle link and sends JOIN on it, and MOVED
on the shared link, after which none of its bytes follow there. When both have come the serving end
sends MOVED likewise, and goes on on the new link. The taking end writes to the new link, and reads
from it, when that MOVED has come. So in either direction all bytes of the shared link come first.
As the links are two, JOIN may come before all else, even OPEN.

Rule 4: a FIN that was sent on the shared link is sent on the new one again; RESET is sent on both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nodepass.relay.stream import Cause, Chunk, Pipe, Sink

from .link import LinkError
from .muxframes import DATA_WORD, WINDOW, MuxType, pack_head, reset, short, window

if TYPE_CHECKING:
    from .linkstream import LinkStream
    from .muxlink import MuxLink

__all__ = ["MuxStream"]

#: Bytes passed on of which the sender is told: often enough that it never waits while there is
#: room, rarely enough that small messages go without.
CREDIT = WINDOW // 2
#: Bytes of a message that leaves at once: to gather more with it would not make it cheaper.
LONG = 8192

# Room for nothing, not even for an empty message.
_NONE = -1


class MuxStream:
    """One session of a shared link.

    :ivar number: the stream's, on its link.
    :ivar deliver: takes what comes of it.
    :ivar due: bytes that have come of which the sender was not told yet that they were passed on.
    """

    __slots__ = (
        "_asked",
        "_blocked",
        "_ended",
        "_fin",
        "_finished",
        "_held",
        "_mux",
        "_new",
        "_over",
        "_paused",
        "_peer_moved",
        "_room",
        "_sink",
        "deliver",
        "due",
        "number",
    )

    def __init__(self, mux: MuxLink, number: int) -> None:
        self._mux = mux
        self.number = number
        self.deliver: Callable[[Chunk], None] = _drop
        self.due = 0
        self._room = WINDOW
        self._sink: Sink | None = None
        self._held: list[bytes] | None = None  # what there was no room for
        self._blocked = False  # the sink was told to wait
        self._paused = False
        self._finished = False  # nothing is written any more
        self._fin = False  # and FIN was sent
        self._ended = False  # nothing comes any more
        self._over: tuple[Cause | None] | None = None
        self._asked = False  # for a link of its own
        self._new: LinkStream | None = None  # on the link that it is about to have
        self._peer_moved = False

    @property
    def moving(self) -> bool:
        """Whether it is about to have a link of its own, or needs none any more."""
        return self._new is not None or self._over is not None

    @property
    def link_number(self) -> int:
        """The number of the link that it shares."""
        return self._mux.number

    # Stream

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._over is not None:
            sink.closed(self._over[0])
            return
        if not (self._ended or self._peer_moved):
            self.deliver = sink.received
        if self._blocked:
            sink.congested()

    def write(self, data: Chunk) -> None:
        # All that is moved passes here, or through `MuxLink.received`.
        size = len(data)
        room = self._room - size
        if room < 0:
            self._hold(data)
            return
        self._room = room
        mux = self._mux
        mux.gathered.append(pack_head(DATA_WORD + size, self.number) + data)
        if size >= LONG or not mux.flush_due:
            mux.gathered_more(self, size >= LONG)

    write_last = write

    def takes_pipes(self) -> bool:
        return False

    def write_pipe(self, pipe: Pipe) -> None:
        raise AssertionError("it takes none")

    def finish(self) -> None:
        if not self._finished and self._over is None:
            self._finished = True
            if self._held is None and self._new is None:
                self._send_fin()

    def abort(self, cause: Cause) -> None:
        self._sink = None
        if self._over is None:
            self._mux.send(reset(self.number, cause))
            self._leave(cause)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self.due >= CREDIT:
                self.credit()

    # From the link

    def credit(self) -> None:
        """Many bytes have been passed on, or wait for who reads slowly.

        :raises LinkError: the peer has sent more than it may.
        """
        if self.due > WINDOW:
            raise LinkError(f"stream {self.number} sent more than there was room for")
        if not self._paused and self._over is None and not self._ended:
            self._mux.send(window(self.number, self.due))
            self.due = 0

    def room(self, size: int) -> None:
        """The peer has passed on so many bytes.

        :raises LinkError: it can't have.
        """
        if self._fin or self._new is not None:
            return  # nothing more is sent here
        if self._room + size > WINDOW:
            raise LinkError(f"stream {self.number} was given more room than there is")
        self._room += size
        held, self._held = self._held, None
        if held is not None:
            for data in held:
                self.write(data)
            if self._held is None:
                if self._finished:
                    self._send_fin()
                else:
                    self.unblock()

    def ending(self) -> None:
        """FIN follows what comes next, which may leave with the end behind it."""
        if self._sink is not None and not (self._ended or self._peer_moved):
            self._sink.ending()

    def ended(self) -> None:
        """FIN came.

        :raises LinkError: it came before, or MOVED did.
        """
        if self._ended or self._peer_moved:
            raise LinkError(f"stream {self.number} ended out of turn")
        self._ended = True
        self.deliver = _refuse
        if self._sink is not None:
            self._sink.ended()
        if self._fin:
            self.closed(None)

    def closed(self, cause: Cause | None) -> None:
        """The peer gave it up, or the link was lost."""
        if self._over is None:
            self._leave(cause)
            sink, self._sink = self._sink, None
            if sink is not None:
                sink.closed(cause)

    def block(self) -> None:
        """What was written waits to leave."""
        if not self._blocked:
            self._blocked = True
            if self._sink is not None:
                self._sink.congested()

    def unblock(self) -> None:
        """The link has room again, or the peer."""
        if not self._blocked or self._held is not None or self._new is not None:
            return
        if self._mux.congested:
            self._mux.stall(self)
            return
        self._blocked = False
        if self._sink is not None:
            self._sink.drained()

    # Moving

    def move(self, stream: LinkStream) -> None:
        """At the taking end: go on by this stream of another link, soon.

        It has sent JOIN, and is paused.
        """
        self._take_new(stream)
        self._mux.send(short(MuxType.MOVED, self.number))

    def joined(self, stream: LinkStream) -> None:
        """At the serving end: JOIN came, for this stream of the other link."""
        self._take_new(stream)
        if self._peer_moved:
            self._go()

    def moved(self) -> None:
        """MOVED came.

        :raises LinkError: it is not its turn.
        """
        if self._peer_moved or (self._mux.takes and self._new is None):
            raise LinkError(f"stream {self.number} moved out of turn")
        self._peer_moved = True
        self.deliver = _refuse
        if self._new is not None:
            self._go()

    def not_moved(self) -> None:
        """The link that it was about to have is gone, or was reset by itself."""
        if self._over is None:
            new, self._new = self._new, None
            cause = None if new is None else new.cause
            if cause is None:
                cause = Cause.LOST
            self._mux.send(reset(self.number, cause))
            self.closed(cause)

    def _take_new(self, stream: LinkStream) -> None:
        self._new = stream
        self._room = _NONE

    def _go(self) -> None:
        """Go on on the new link. The sink has to do with that alone from now on."""
        if not self._mux.takes:
            self._mux.send(short(MuxType.MOVED, self.number))
        new, self._new = self._new, None
        if new is None:
            return  # that could not leave, and the shared link was cut
        held = self._held
        self._leave(None)
        new.ended_before = self._ended
        if self._paused:
            new.pause()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.became(new)
            new.attach(sink)
        for data in held or ():
            new.write(data)
        if self._finished:
            new.finish()
        if self._ended or not self._paused:
            new.resume()
        if self._blocked and sink is not None and not (new.over or new.backed_up):
            sink.drained()

    # The end

    def _hold(self, data: Chunk) -> None:
        """Send what there is room for, and keep the rest."""
        if self._over is not None:
            return
        if self._held is None:
            room = self._room
            if room > 0:
                self.write(data[:room])
                data = data[room:]
            self._held = []
        self._held.append(bytes(data))
        self.block()
        if not self._asked:
            self._asked = True
            if self._mux.takes:
                self._mux.move(self)
            else:
                self._mux.send(short(MuxType.MOVE, self.number))

    def _send_fin(self) -> None:
        self._fin = True
        self._room = _NONE
        self._mux.send_fin(self.number)
        if self._ended:
            self.closed(None)

    def _leave(self, cause: Cause | None) -> None:
        """It has nothing to do with the shared link any more."""
        self._over = (cause,)
        self._room = _NONE
        self._held = None
        self.deliver = _drop
        self._mux.forget(self)
        if self._new is not None:
            # The other end has left as well, or will: no use for the link that was to be.
            self._new.abort(cause or Cause.RESET)
            self._new = None


def _drop(data: Chunk) -> None:
    pass


def _refuse(data: Chunk) -> None:
    raise LinkError("bytes after the end of a stream")
