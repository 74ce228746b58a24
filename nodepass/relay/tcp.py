"""TCP connections to visitors and targets as streams, on the engine's transports or Twisted's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from .hangup import HangupWatch
from .stream import Cause, Chunk, Pipe, Sink

#: Keep-alive of every leg: a peer that vanished is noticed after 15 + 3 * 5 seconds, before the
#: usual 60 s after which small NATs forget a connection.
KEEPALIVE_IDLE = 15
KEEPALIVE_INTERVAL = 5
KEEPALIVE_PROBES = 3

# Those times as options of a socket, where the system lets one choose.
KEEPALIVE_OPTIONS = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    )
    if hasattr(socket, name)
)

# SO_LINGER for "closing resets" and for "closing sends what is left, then FIN".
LINGER_RESET = struct.pack("ii", 1, 0)
LINGER_OFF = struct.pack("ii", 0, 0)

#: Bytes that come by one pipe: as many as a DATA frame may have.
MOST_PIPED = 1 << 20

#: Bytes that a visitor may send while its target is still being dialed, before it is asked to wait;
#: the read that reaches it is kept whole.
DIAL_BUFFER = 65536


def tune(transport: Any) -> None:
    """Set TCP_NODELAY and keep-alive on a TCP transport."""
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    set_keepalive_times(transport.getHandle())


def set_keepalive_times(handle: Any) -> None:
    """Say when a socket's keep-alive probes are sent, where the system lets one choose."""
    if hasattr(handle, "setsockopt"):
        for option, value in KEEPALIVE_OPTIONS:
            handle.setsockopt(socket.IPPROTO_TCP, option, value)


@implementer(IHalfCloseableProtocol, IPushProducer)
class TcpStream(Protocol):
    """One TCP connection as a stream.

    It starts paused. As its own transport's producer it hears when what was written waits
    (`pauseProducing`) and when it has left (`resumeProducing`).
    """

    transport: Any

    def __init__(self, watch: HangupWatch) -> None:
        self._watch = watch
        self._sink: Sink | None = None
        self._fd = -1
        self._ours = False  # the transport is the engine's
        self._congested = False
        self._read_ended = False
        self._finished = False  # no more will be written
        self._write_ended = False  # and what was has left
        self._lost: list[Cause | None] = []  # how it ended, when nobody listened yet
        self._aborted = False

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._lost)

    # Stream

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._lost:
            sink.closed(self._lost[0])
        elif self._congested:
            sink.congested()

    @property
    def congested(self) -> bool:
        """Whether what was written waits to leave."""
        return self._congested

    def write(self, data: Chunk) -> None:
        self.transport.write(data)

    def takes_pipes(self) -> bool:
        return getattr(self.transport, "takes_pipes", False)

    def write_pipe(self, pipe: Pipe) -> None:
        self.transport.write_pipe(b"", pipe)

    def finish(self) -> None:
        if self._finished or self._lost or self._aborted:
            return
        self._finished = True
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()

    def abort(self, cause: Cause) -> None:
        self._sink = None
        if not self._aborted and not self._lost:
            self._aborted = True
            self._watch.discard(self._fd)
            self.transport.abortConnection()

    def pause(self) -> None:
        if not self._lost and not self._read_ended:
            self.transport.pauseProducing()
            self._watch.add(self._fd, self._was_reset)

    def resume(self) -> None:
        if not self._lost and not self._read_ended:
            self._watch.discard(self._fd)
            self.transport.resumeProducing()

    def _was_reset(self) -> None:
        if not self._lost and not self._aborted:
            self._aborted = True
            self.transport.abortConnection()

    def _has_error(self) -> bool:
        handle = self.transport.getHandle()
        return (
            hasattr(handle, "getsockopt")
            and handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        )

    def _linger(self, option: bytes) -> None:
        handle = self.transport.getHandle()
        if hasattr(handle, "setsockopt"):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)

    # Protocol

    def connectionMade(self) -> None:
        self._ours = getattr(self.transport, "ours", False)
        if not self._ours:
            tune(self.transport)
            # The system closes the sockets of a process that is killed, and a cut stream must not
            # look like a whole one.
            self._linger(LINGER_RESET)
        self._fd = self.transport.fileno()
        self.transport.registerProducer(self, True)
        self.pause()

    def dataReceived(self, data: Chunk) -> None:
        sink = self._sink
        if sink is not None:
            sink.received(data)

    # For a transport of the engine that sees many bytes come.

    def next_bytes(self) -> tuple[int, bool]:
        """How many bytes to read next, and whether as a pipe; 0: as many as there are, copied."""
        sink = self._sink
        return (MOST_PIPED, True) if sink is not None and sink.takes_pipes() else (0, False)

    def piped(self, pipe: Pipe) -> None:
        """Many bytes came."""
        if self._sink is not None:
            self._sink.piped(pipe)
        else:
            pipe.release()

    def readConnectionLost(self) -> None:
        if not self._ours and self._has_error():
            # The reactor had the event while reading was paused, and takes any hang-up for an
            # orderly end where reading has been resumed since.
            self._was_reset()
            return
        self._read_ended = True
        # The reactor no longer looks at a socket that is only waited for with bytes to write.
        self._watch.add(self._fd, self._was_reset)
        if self._sink is not None:
            self._sink.ended()
        self._close_when_done()

    def writeConnectionLost(self) -> None:
        self._write_ended = True
        self._linger(LINGER_OFF)  # all that was written is the system's to deliver
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._read_ended and self._write_ended and not self._lost and not self._aborted:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._watch.discard(self._fd)
        done = self._read_ended and self._write_ended
        clean = done and (reason is connectionDone or reason.check(ConnectionDone) is not None)
        cause = None if clean else Cause.RESET
        self._lost.append(cause)
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.closed(cause)

    # IPushProducer, for what is written

    def pauseProducing(self) -> None:
        self._congested = True
        if self._sink is not None:
            self._sink.congested()

    def resumeProducing(self) -> None:
        self._congested = False
        if self._sink is not None:
            self._sink.drained()

    def stopProducing(self) -> None:
        pass  # connectionLost follows


class DialedStream:
    """A stream to a target that is still being dialed: it holds what is written until then.

    :param connecting: fires with the connected stream; its failure closes this stream with the
        cause that `cause_of` finds in it.
    :param header: makes what is written before anything else, such as a PROXY line.
    """

    def __init__(
        self,
        connecting: Deferred[TcpStream],
        cause_of: Callable[[Failure], Cause],
        header: Callable[[TcpStream], bytes] | None = None,
    ) -> None:
        self._connecting: Deferred[TcpStream] | None = connecting
        self._cause_of = cause_of
        self._header = header
        self._stream: TcpStream | None = None
        self._sink: Sink | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._congested = False
        self._finished = False
        self._reading = False
        self._cause: Cause | None = None
        connecting.addCallbacks(self._connected, self._failed)

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._cause is not None:
            sink.closed(self._cause)
        elif self._stream is not None:
            self._stream.attach(sink)

    def write(self, data: Chunk) -> None:
        if self._stream is not None:
            self._stream.write(data)
            return
        self._held.append(bytes(data))
        self._size += len(data)
        if self._size >= DIAL_BUFFER and not self._congested and self._sink is not None:
            self._congested = True
            self._sink.congested()

    def takes_pipes(self) -> bool:
        return self._stream is not None and self._stream.takes_pipes()

    def write_pipe(self, pipe: Pipe) -> None:
        assert self._stream is not None, "it takes none before it is connected"
        self._stream.write_pipe(pipe)

    def finish(self) -> None:
        self._finished = True
        if self._stream is not None:
            self._stream.finish()

    def abort(self, cause: Cause) -> None:
        self._sink = None
        self._held.clear()
        if self._stream is not None:
            self._stream.abort(cause)
        elif self._connecting is not None:
            self._connecting.cancel()

    def pause(self) -> None:
        self._reading = False
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        self._reading = True
        if self._stream is not None:
            self._stream.resume()

    def _connected(self, stream: TcpStream) -> None:
        self._connecting = None
        self._stream = stream
        if self._header is not None:
            stream.write(self._header(stream))
        for data in self._held:
            stream.write(data)
        self._held.clear()
        if self._finished:
            stream.finish()
        # It hears of all from the stream itself from now on.
        sink, self._sink = self._sink, None
        if sink is not None:
            stream.attach(sink)
            if not stream.gone:
                if self._reading:
                    stream.resume()
                if self._congested and not stream.congested:
                    sink.drained()

    def _failed(self, failure: Failure) -> None:
        self._connecting = None
        if failure.check(CancelledError) is not None and self._sink is None:
            return  # our own abort
        self._cause = self._cause_of(failure)
        failure.cleanFailure()  # the frames in it know this stream
        self._held.clear()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.closed(self._cause)
