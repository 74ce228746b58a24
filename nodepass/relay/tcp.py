"""TCP connections to visitors and targets as streams, on Twisted's transports."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.address import Endpoint, endpoint_of

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

    @property
    def peer(self) -> Endpoint:
        """Where the other program is."""
        return endpoint_of(self.transport.getPeer())

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

    def write_last(self, data: Chunk) -> None:
        self.write(data)

    def takes_pipes(self) -> bool:
        return False

    def write_pipe(self, pipe: Pipe) -> None:
        raise AssertionError("it takes none")

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
        tune(self.transport)
        # The system closes the sockets of a process that is killed, and a cut stream must not look
        # like a whole one.
        self._linger(LINGER_RESET)
        self._fd = self.transport.fileno()
        self.transport.registerProducer(self, True)
        self.pause()

    def dataReceived(self, data: Chunk) -> None:
        sink = self._sink
        if sink is not None:
            sink.received(data)

    def readConnectionLost(self) -> None:
        if self._has_error():
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
