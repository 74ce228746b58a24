"""A data link after its proof."""

from __future__ import annotations

from functools import partial
from typing import Any
from typing import Protocol as Interface

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import Soon, end_writing, has_ended, socket_beneath
from nodepass.relay.stream import Cause, Chunk, Pipe, Stream
from nodepass.relay.tcpinfo import round_trip, sending, slowed
from nodepass.wire import Opening

from .datagrams import DatagramLink
from .frames import (
    HEADER_SIZE,
    Data,
    Datagrams,
    Done,
    Fin,
    FlowClose,
    FlowOpen,
    Frame,
    FrameReader,
    Join,
    Mux,
    Open,
    Reset,
)  # fmt: skip
from .frames import mux as mux_frame
from .link import LinkState
from .linkstream import LinkStream
from .linkwriter import LinkWriter
from .muxlink import MuxLink
from .resetanswer import ResetAnswer

#: Bytes of a frame that are worth a pipe: to copy fewer costs less than the calls.
LONG_FRAME = 16384


class LinkOwner(Interface):
    """Who a data link belongs to."""

    def link_opened(self, link: DataLink, opening: Opening, stream: Stream) -> None:
        """The peer opened a session on the link."""

    def link_joined(self, link: DataLink, join: Join, stream: LinkStream) -> None:
        """The peer goes on on the link with a session that shared another one."""

    def link_shared(self, link: DataLink, mux: MuxLink) -> None:
        """The peer lets many sessions share the link."""

    def link_free(self, link: DataLink) -> None:
        """The link's session is done; it may be taken again."""

    def link_ending(self, link: DataLink) -> None:
        """At the taking end: the link's session is over, and not yet done."""

    def link_backed_up(self, link: DataLink, session: int, cause: Cause) -> bool:
        """A RESET can't leave at once, or was not answered; whether it was passed on by another
        way."""

    def link_lost(self, link: DataLink, reason: str, *, wrong: bool) -> None:
        """The link is gone; the last call about it.

        :param wrong: because of what the peer does, which breaks a rule or bound.
        """

    def flows_opened(self, link: DataLink, flows: DatagramLink) -> None:
        """The peer made the link a datagram link."""


@implementer(IPushProducer)
class DataLink(LinkWriter):
    """One end of a data link; to its transport, a protocol.

    :ivar number: the link's id within its association.
    :ivar free_since: of a datagram link: when it last had a flow, in the clock's seconds.
    """

    __slots__ = (
        "_answer",
        "_clock",
        "_closing",
        "_fd",
        "_hears_mux",
        "_owner",
        "_reader",
        "_soon",
        "_stream",
        "_watch",
        "flows",
        "free_since",
        "made_at",
        "mux",
        "number",
    )

    def __init__(
        self,
        number: int,
        takes: bool,
        owner: LinkOwner,
        clock: IReactorTime,
        watch: HangupWatch,
        soon: Soon,
    ) -> None:
        super().__init__(LinkState(takes))
        self.number = number
        self.made_at = self.free_since = clock.seconds()
        self.flows: DatagramLink | None = None
        self.mux: MuxLink | None = None
        self._hears_mux = False  # what comes is of its form
        self._owner = owner
        self._clock = clock
        self._watch = watch
        self._soon = soon
        self._reader = FrameReader()
        self._stream: LinkStream | None = None
        self._answer: ResetAnswer | None = None
        self._closing = False
        self._fd = -1

    @property
    def idle(self) -> bool:
        """Whether the link may be taken."""
        return self._usable and self.state.idle

    @property
    def over(self) -> bool:
        """Whether the link carries nothing: idle, or its last session is over here, and its last
        bytes may still be on their way."""
        state = self.state
        return state.over and not (state.datagrams or state.shared) and self._usable

    @property
    def slowed(self) -> bool:
        """Whether loss has made it slow in this end's direction."""
        return self._usable and slowed(self.transport.getHandle())

    @property
    def sending(self) -> bool:
        """Whether what was written still has to leave, or to reach the other end's system."""
        return self.congested or sending(socket_beneath(self.transport))

    @property
    def round_trip(self) -> float | None:
        """Seconds to the other end and back at best; None where the system does not say."""
        return round_trip(self.transport.getHandle())

    @property
    def _usable(self) -> bool:
        return not self._closing and not self._lost

    # The taking end

    def open(self, opening: Opening) -> Stream:
        """Begin a session on this idle link."""
        self._send(self.state.open(opening))
        self._stream = LinkStream(self, self.state.number)
        return self._stream

    def join(self, link: int, stream: int) -> LinkStream:
        """Go on on this idle link with a session that shares another one."""
        self._send(self.state.join(link, stream))
        self._stream = LinkStream(self, self.state.number)
        return self._stream

    def share(self) -> MuxLink:
        """Let many sessions share this idle link."""
        self._send(self.state.share())
        return self._become_shared()

    def _become_shared(self) -> MuxLink:
        self._send_held()  # from here on the sessions write by themselves
        self.mux = MuxLink(self, self.transport.last if self._holds_back else self._soon)
        return self.mux

    def carry_flows(self) -> DatagramLink:
        """Make this idle link a datagram link."""
        self.state.datagrams = True
        self.flows = DatagramLink(self, self._soon)
        return self.flows

    # For the stream and the flows, besides writing

    def flows_ended(self) -> None:
        """A datagram link's last flow is over."""
        self.free_since = self._clock.seconds()

    def finish(self) -> None:
        """Send no more in the current session."""
        stream = self._stream
        self._send(self.state.finish(reads=stream is not None and not stream.paused))
        if not self.state.takes:
            self._send_held()  # nothing follows that could go with it
        self._check_over()

    def reset(self, cause: Cause) -> None:
        """Give the current session up."""
        frame = self.state.reset(cause)
        if not frame or self._lost:
            return
        self._send(frame)
        if self.congested and not self._owner.link_backed_up(self, self.state.number, cause):
            self.abort("a session had to be reset, and nothing could be sent")
            return
        self.read_on(True)
        if not self.state.over:
            repeat = partial(self._owner.link_backed_up, self, self.state.number, cause)
            self._answer = ResetAnswer(self._clock, repeat, self.abort)
        self._check_over()

    def read_on(self, on: bool) -> None:
        """Read from the link, or let it wait; a link that waits still notices that it broke."""
        if self._lost or self._closing:
            return
        if on:
            self._watch.discard(self._fd)
            self.transport.resumeProducing()
        else:
            self.transport.pauseProducing()
            self._watch.add(self._fd, self._was_reset)

    # For the owner

    def abort_session(self, session: int, cause: Cause) -> None:
        """The peer gave a session up and says so over the control link, as this link is backed up
        with what this end does not read."""
        if session == self.state.number and self._stream is not None:
            self._stream.closed(cause)
            self.reset(cause)

    def close(self) -> None:
        """Close a link whose session is over, after what was written has left."""
        if not self._closing and not self._lost:
            self._send_held()
            if self.flows is not None:
                self.flows.flush()
            if self.mux is not None:
                self.mux.flush(anyway=True)
            self._closing = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def part(self, cause: Cause) -> None:
        """Reset the sessions of a shared link and say no more; it is closed when the other end says
        no more either.

        That end may still have to read the last bytes of sessions that are over, and what it then
        says of them must find a connection that is open: else its system throws away the rest.
        """
        if self.mux is not None and self._usable:
            self._closing = True
            self._send_held()
            self.mux.stop(cause)
            if not self._lost:
                self.transport.unregisterProducer()
                end_writing(self.transport)

    def abort(self, reason: str, cause: Cause = Cause.LOST, *, wrong: bool = False) -> None:
        """Close now, and reset what the link carries.

        :param wrong: because of what the peer does, which breaks a rule or bound.
        """
        if not self._lost:
            self._lost = True
            # First, as who hears of the end of the last link may end the reactor.
            if has_ended(self.transport):
                self.transport.loseConnection()  # who is late may still read all
            else:
                self.transport.abortConnection()
            self._end(reason, cause, wrong)

    # Protocol

    def makeConnection(self, transport: Any) -> None:
        self._write_to(transport)
        self._fd = transport.fileno()
        transport.registerProducer(self, True)

    def dataReceived(self, data: Chunk) -> None:
        stream, state = self._stream, self.state
        if stream is not None and state.receiving:
            bytes_ = self._reader.bytes_only(data)
            if bytes_ is not None:
                state.taken += len(bytes_)
                sink = stream.sink
                if sink is not None:
                    sink.received(bytes_)
                return
        try:
            if self._hears_mux and self.mux is not None:
                self.mux.received(data)
                return
            frames = self._reader.feed(data)
            if stream is not None and len(frames) > 1 and isinstance(frames[1], Fin):
                stream.ending()
            for frame in frames:
                if self._lost or (self._closing and self.mux is None):
                    return  # what else came has crossed with the end, which resets it
                if isinstance(frame, Data):
                    state.taken += len(frame.data)
                    if state.receiving:
                        if self._stream is not None:
                            self._stream.received(frame.data)
                        continue
                heard = state.receive(frame)
                if heard is not None:
                    self._hear(heard)
                if isinstance(frame, (Fin, Reset)):
                    self._check_over()
        except PeerError as error:
            self.abort(f"a protocol error: {error}", wrong=True)

    # For a transport of the engine that sees many bytes come.

    def next_bytes(self) -> tuple[int, bool]:
        """How many bytes to read next, and whether as a pipe; 0: as many as there are, copied.

        In a long frame its bytes come as a pipe; then the next frame's header is read alone, so
        that what follows it can come as a pipe too.
        """
        stream, reader = self._stream, self._reader
        if stream is None or not (self.state.receiving and stream.sink_takes_pipes):
            return 0, False
        if reader.length < LONG_FRAME or reader.holds:
            return 0, False
        return (reader.left, reader.left >= LONG_FRAME) if reader.left else (HEADER_SIZE, False)

    def piped(self, pipe: Pipe) -> None:
        """Many bytes of the current frame came."""
        stream = self._stream
        assert stream is not None, "there is one since the bytes were asked for"
        self._reader.left -= len(pipe)
        self.state.taken += len(pipe)
        stream.piped(pipe)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._lost:
            self._end("closed" if self._closing else "connection lost", Cause.LOST)

    def _hear(self, frame: Frame) -> None:
        stream = self._stream
        if isinstance(frame, Fin):
            if stream is not None:
                stream.ended()
        elif isinstance(frame, Done):
            self._become_free()
        elif isinstance(frame, Open):
            self._stream = LinkStream(self, frame.session)
            self._owner.link_opened(self, frame.opening, self._stream)
        elif isinstance(frame, Join):
            self._stream = LinkStream(self, frame.session)
            self._owner.link_joined(self, frame, self._stream)
        elif isinstance(frame, Mux):
            mux = self.mux
            if mux is None:
                self._send(mux_frame())
                mux = self._become_shared()
                self._owner.link_shared(self, mux)
            self._hears_mux = True
            mux.received(frame.rest)
        elif isinstance(frame, Reset):
            if stream is not None:
                stream.closed(frame.cause)
            self.reset(frame.cause)
        elif isinstance(frame, (FlowOpen, Datagrams, FlowClose)):
            if self.flows is None:
                self.flows = DatagramLink(self, self._soon)
                self._owner.flows_opened(self, self.flows)
            self.flows.receive(frame)

    def _was_reset(self) -> None:
        self.abort("connection lost")

    def _check_over(self) -> None:
        if self._lost or not self.state.over:
            return
        if not self.state.takes:
            self._send(self.state.conclude())
        stream, self._stream = self._stream, None
        if stream is None:
            return  # told before
        self._await_no_answer()
        if stream.paused:
            self.read_on(True)
        stream.closed(None)
        if self.state.done:
            self._become_free()
        elif self._usable:  # who heard of the end may have closed the link
            self._owner.link_ending(self)

    def _become_free(self) -> None:
        if self.idle:
            self._owner.link_free(self)

    def _end(self, reason: str, cause: Cause, wrong: bool = False) -> None:
        self._lost = True
        self._watch.discard(self._fd)
        self._await_no_answer()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.closed(cause)
        if self.flows is not None:
            self.flows.lost(cause)
        if self.mux is not None:
            self.mux.lost(cause)
        self._owner.link_lost(self, reason, wrong=wrong)

    def _await_no_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.stop()

    # IPushProducer, for what is written

    def pauseProducing(self) -> None:
        self.congested = True
        if self._stream is not None:
            self._stream.congested(True)

    def resumeProducing(self) -> None:
        self.congested = False
        if self._stream is not None:
            self._stream.congested(False)
        if self.flows is not None:
            self.flows.drained()
        if self.mux is not None:
            self.mux.drained()

    def stopProducing(self) -> None:
        pass  # connectionLost follows
