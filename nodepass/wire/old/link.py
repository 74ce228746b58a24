"""A link of an old dialect's pool: idle until it is taken, then the bytes of one session.

In between there is nothing on it, so a plain one is a TCP connection like any other, and a session
on it a `TcpStream`: with half-close, and with pipes where the engine has them.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause, Chunk, Pipe, Sink, Stream
from nodepass.relay.tcp import LINGER_OFF, LINGER_RESET, TcpStream

__all__ = ["LinkOwner", "OldLink"]

#: Bytes asked for by pipe at a time: as many as one holds. Those of visitors and targets are asked
#: for a little less, which may leave as a frame; here nothing is framed.
FULL_PIPE = 1 << 20
#: Seconds without a byte after which a link is closed that this end has finished. An old node does
#: not pass on that its own side has ended while it has a `read`, or where its links have TLS.
FINISHED_PATIENCE = 10.0


class LinkOwner(Protocol):
    """Who a link belongs to."""

    def link_spoke(self, link: OldLink) -> None:
        """Bytes have come on a link that was not taken; they are kept."""

    def link_ended(self, link: OldLink) -> None:
        """The other end sends no more on a link that was not taken."""

    def link_lost(self, link: OldLink) -> None:
        """The link is gone; the last call about it."""


class OldLink(TcpStream):
    """One end of a link, and once it is taken, its session's stream.

    What comes before it is taken is kept, one read of it: the other end's bytes may be here before
    its signal is.

    :ivar number: the link's number, 8 lowercase hex digits.
    :ivar fingerprint: of the certificate that the server showed on it; empty without TLS.
    :ivar came: when it came, in the clock's seconds.
    :ivar taken: it carries a session, or has.
    """

    def __init__(
        self,
        number: str,
        fingerprint: str,
        owner: LinkOwner,
        clock: IReactorTime,
        watch: HangupWatch,
    ) -> None:
        super().__init__(watch)
        self.number = number
        self.fingerprint = fingerprint
        self.came = clock.seconds()
        self.taken = False
        self._owner = owner
        self._clock = clock
        self._kept = b""
        self._reading = False
        self._told_end = False
        self._patience: IDelayedCall | None = None
        self._gave_up = False
        self._sink: Sink | None = _Idle(self)

    @property
    def fresh(self) -> bool:
        """Whether it may be taken by the end that has the visitors."""
        return not (self.taken or self.gone or self._aborted or self._read_ended or self._kept)

    @property
    def ended(self) -> bool:
        """Whether the other end sends no more."""
        return self._read_ended or self.gone

    def begin(self, rest: bytes) -> None:
        """It has its connection: listen for what comes.

        :param rest: what came behind the number.
        """
        if rest:
            self.keep(rest)
        else:
            super().resume()

    def keep(self, data: Chunk) -> None:
        """Keep what came before the link was taken, and read no more."""
        self._kept += bytes(data)
        super().pause()
        self._owner.link_spoke(self)

    def idle_ended(self) -> None:
        """The other end sends no more, and the link is not taken."""
        self._owner.link_ended(self)

    def take(self) -> None:
        """It carries a session from now on: `attach` a sink to it."""
        self.taken = True
        super().pause()
        # What is cut short must not look whole, also where this process is killed.
        self._linger(LINGER_RESET)

    def close(self) -> None:
        """Close a link that is not needed."""
        if self.gone or self._aborted:
            return
        if self._congested:
            self.abort(Cause.STOPPED)  # what waits may wait for ever
            return
        self._linger(LINGER_OFF)
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        # Under TLS that waits for the other end, and elsewhere for its window.
        self._stop_patience()
        if not self.gone:
            self._patience = self._clock.callLater(FINISHED_PATIENCE, self._cut)

    def _cut(self) -> None:
        """It was closed, and the other end has not let go of it."""
        self._patience = None
        self._gave_up = True
        self.transport.abortConnection()

    def end(self, cause: Cause) -> None:
        """Reset the link, and tell its session why."""
        sink = self._sink
        self.abort(cause)
        if sink is not None:
            sink.closed(cause)

    # Stream

    def takes_pipes(self) -> bool:
        return getattr(self.transport, "takes_pipes", False)

    def write_pipe(self, pipe: Pipe) -> None:
        self.transport.write_pipe(b"", pipe)

    def resume(self) -> None:
        self._reading = True
        if self._kept:
            kept, self._kept = self._kept, b""
            assert self._sink is not None
            self._sink.received(kept)
            if not self._reading:
                return  # it asked for a pause
        if self._read_ended and not self._told_end and self._sink is not None:
            self._told_end = True
            self._sink.ended()
        super().resume()

    def pause(self) -> None:
        self._reading = False
        super().pause()

    def finish(self) -> None:
        super().finish()
        sink = self._sink
        if not (sink is None or isinstance(sink, _Late) or self._read_ended or self.gone):
            self._sink = _Late(sink)
            self._be_patient()

    def abort(self, cause: Cause) -> None:
        self._stop_patience()
        super().abort(cause)

    def _be_patient(self) -> None:
        """This end has finished: wait a while for the other one."""
        self._patience = self._clock.callLater(FINISHED_PATIENCE, self._enough)

    def _enough(self) -> None:
        """Has the other end said nothing since, neither bytes nor their end?"""
        self._patience = None
        late, wrapped = self._sink, isinstance(self.transport, _Wrapped)
        if isinstance(late, _Late) and (late.heard or not (self._write_ended or wrapped)):
            late.heard = False
            self._be_patient()
        elif wrapped:
            self._gave_up = True
            self.transport.abortConnection()
        else:
            self.readConnectionLost()

    def _stop_patience(self) -> None:
        timer, self._patience = self._patience, None
        if timer is not None:
            timer.cancel()

    # For a transport of the engine that sees many bytes come.

    def next_bytes(self) -> tuple[int, bool]:
        """How many bytes to read next, and whether as a pipe; 0: as many as there are, copied."""
        sink = self._sink
        return (FULL_PIPE, True) if sink is not None and sink.takes_pipes() else (0, False)

    def piped(self, pipe: Pipe) -> None:
        """Many bytes came."""
        if self._sink is not None:
            self._sink.piped(pipe)
        else:
            pipe.release()

    # Protocol

    def connectionMade(self) -> None:
        if not getattr(self.transport, "half_closes", True) or isinstance(
            self.transport, TLSMemoryBIOProtocol
        ):
            self.transport = _Wrapped(self.transport)
        super().connectionMade()

    def readConnectionLost(self) -> None:
        self._stop_patience()
        self._told_end = self.taken
        super().readConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_patience()
        done = self._gave_up or reason.check(ConnectionDone) is not None
        if done and isinstance(self.transport, _Wrapped):
            # It has ended in order, both ways at once.
            reason = connectionDone
            self._aborted = self._write_ended = True  # there is nothing more to be done to it
            if not self._read_ended:
                self._read_ended = self._told_end = True
                if self._sink is not None:
                    self._sink.ended()
        super().connectionLost(reason)
        self._owner.link_lost(self)


class _Idle:
    """The sink of a link that is not taken."""

    def __init__(self, link: OldLink) -> None:
        self._link = link

    def takes_pipes(self) -> bool:
        return False

    def piped(self, pipe: Pipe) -> None:
        pipe.release()

    def received(self, data: Chunk) -> None:
        self._link.keep(data)

    def ending(self) -> None:
        pass  # what is kept waits anyway

    def ended(self) -> None:
        self._link.idle_ended()

    def congested(self) -> None:
        pass  # nothing is written

    def drained(self) -> None:
        pass  # nothing is written

    def became(self, stream: Stream) -> None:
        raise AssertionError("a link stays what it is")

    def closed(self, cause: Cause | None) -> None:
        pass  # the owner is told by the link


class _Late:
    """Stands in front of a session's sink while this end has finished and the other has not.

    :ivar heard: something has come.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.heard = False
        self.takes_pipes = sink.takes_pipes
        self.ending = sink.ending
        self.ended = sink.ended
        self.congested = sink.congested
        self.drained = sink.drained
        self.became = sink.became
        self.closed = sink.closed

    def piped(self, pipe: Pipe) -> None:
        self.heard = True
        self._sink.piped(pipe)

    def received(self, data: Chunk) -> None:
        self.heard = True
        self._sink.received(data)


class _Wrapped:
    """Twisted's TLS, or a WebSocket, as the transport of a stream."""

    def __init__(self, tls: Any) -> None:
        self._tls = tls

    def write(self, data: Chunk) -> None:
        # It keeps what it is given for a moment, and a view is good until this returns.
        self._tls.write(bytes(data))

    def loseWriteConnection(self) -> None:
        # It sends an end of its own, and goes on reading until the other's has come.
        self._tls.loseConnection()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)
