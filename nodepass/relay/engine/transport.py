"""A TCP connection of the engine, with the interface that Twisted's transports have."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ..stream import Chunk
from ..tcp import LINGER_RESET
from .pipes import EnginePipe
from .poller import Poller

__all__ = ["EngineTransport", "address_of"]

#: Bytes read at a time, into a buffer that all connections share.
READ_SIZE = 256 * 1024
#: Reads of one connection before others have their turn.
MOST_READS = 4
#: Reads in a row that fill the buffer, after which bytes are to stay in the kernel if they can.
FULL_READS = 2
#: Bytes of a read by pipe below which it is not worth its calls.
LEAST_PIPED = 16384
#: Reads by pipe, and of the headers between them, before others have their turn.
MOST_PIPED_READS = 8

# After these a short read is no sign that nothing is left: a read stops at an urgent byte too.
_MORE_BEHIND = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI
_READ = EPOLLIN | _MORE_BEHIND

#: Why a connection ended that broke. One for all: nobody adds to it.
LOST = Failure(ConnectionLost())
_ABORTED = Failure(ConnectionAborted())

_buffer = memoryview(bytearray(READ_SIZE))


class EngineTransport:
    """A connected socket, which is non-blocking.

    Rule 1: what is written leaves at once as far as the system takes it. The rest is kept, and the
    producer asked to pause: it is bounded by what one read brings.

    Rule 2: the kernel tells once of what there is to read. So reading goes on until nothing is
    left, or until it is paused; then `_readable` remembers that there may be more.

    Rule 3: a hang-up is told once as well. After it a short read is no sign that nothing is left,
    nor is it after an urgent byte, which itself is dropped.

    Rule 4: a protocol is never called from within its own call of the transport, but for the
    producer's pause.

    :cvar takes_pipes: `write_pipe` may be called.
    :cvar ours: the socket has the options that all connections have, and a reset is told as one.
    """

    ours = True
    takes_pipes = True

    __slots__ = (
        "_closing",
        "_ends_writing",
        "_fd",
        "_gone",
        "_half_closes",
        "_left",
        "_more_behind",
        "_much",
        "_paused",
        "_peer",
        "_pipe",
        "_poller",
        "_producer",
        "_protocol",
        "_read_ended",
        "_readable",
        "_scheduled",
        "_socket",
        "_throttled",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        *,
        left: bytes = b"",
        peer: Any = None,
    ) -> None:
        """
        :param left: bytes that were written before, and have not left.
        :param peer: where the other end is, if known: the socket no longer says so after a reset.
        """
        self._poller = poller
        self._socket = sock
        self._fd = sock.fileno()
        self._protocol: Any = None
        self._half_closes = False
        self._left = left
        self._peer = peer
        self._producer: Any = None
        self._throttled = False  # the producer was asked to pause
        self._much = 0  # reads in a row that filled the buffer
        self._pipe: EnginePipe | None = None  # leaves before `_left`
        self._paused = False
        self._readable = True
        self._more_behind = False
        self._scheduled = False  # `_read_on` is due
        self._read_ended = False
        self._ends_writing = False
        self._closing = False  # nothing more is read, written or said but the end
        self._gone = False

    def begin(self, protocol: Any, *, told: int = 0) -> None:
        """Let a protocol have the connection.

        :param told: the events that another owner was told of; 0: the poller has not seen the
            socket yet.
        """
        self._protocol = protocol
        self._half_closes = IHalfCloseableProtocol.providedBy(protocol)
        if told:
            self._more_behind = bool(told & _MORE_BEHIND)
            self._poller.replace(self._fd, self)
        else:
            try:
                self._poller.add(self._fd, self)
            except OSError:
                self._broken()
        protocol.makeConnection(self)
        if not self._paused:
            self._read_soon()

    # Watched

    def ready(self, events: int) -> None:
        try:
            if events & EPOLLOUT and (self._left or self._pipe is not None):
                self._flush()
            if events & _READ:
                self._readable = True
                if events & _MORE_BEHIND:
                    self._more_behind = True
                    if events & EPOLLERR and (self._paused or self._read_ended):
                        # No read will tell.
                        self._broken()
                        return
                if not self._paused:
                    self._read()
        except Exception:
            # A protocol that fails has lost its connection, as with the reactor.
            self.abortConnection()
            raise

    def _read(self) -> None:
        if self._much >= FULL_READS:
            self._read_much()
            return
        receive = self._socket.recv_into
        for _ in range(MOST_READS):
            if self._paused or self._read_ended or self._closing:
                return
            try:
                size = receive(_buffer)
            except BlockingIOError:
                self._readable = False
                return
            except OSError:
                self._lose(LOST)
                return
            if size == 0:
                self._end_of_file()
                return
            if size < READ_SIZE:
                self._much = 0
                if not self._more_behind:
                    self._readable = False
                    self._deliver(_buffer[:size])
                    return
            else:
                self._much += 1
            self._deliver(_buffer[:size])
            if self._much >= FULL_READS:
                break
        self._read_soon()

    def _read_much(self) -> None:
        """Read as the protocol says that it takes many bytes."""
        for _ in range(MOST_PIPED_READS):
            if self._paused or self._read_ended or self._closing:
                return
            most, piped = self._protocol.next_bytes()
            pipe = self._poller.pipes.take() if piped else None
            if not most or (piped and pipe is None):
                self._much = 0
                break
            try:
                if pipe is None:
                    size = self._socket.recv_into(_buffer, most)
                else:
                    size = pipe.fill(self._fd, most)
            except BlockingIOError:
                size = -1
            except OSError:
                size = -2
            if size <= 0:
                if pipe is not None:
                    pipe.release()
                    if size == 0 or (size == -1 and self._more_behind):
                        # No pipe gets past an urgent byte, and with FIN behind that the kernel
                        # says that it is the end. Copying will tell.
                        self._much = 0
                        break
                if size == -1:
                    self._readable = False
                elif size == 0:
                    self._end_of_file()
                else:
                    self._lose(LOST)
                return
            if pipe is None:
                self._deliver(_buffer[:size])
            else:
                if size < LEAST_PIPED:
                    self._much = 0
                self._protocol.piped(pipe)
                if not self._much:
                    break
        self._read_soon()

    def _deliver(self, data: memoryview) -> None:
        self._protocol.dataReceived(data)

    def _read_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._poller.soon(self._read_on)

    def _read_on(self) -> None:
        self._scheduled = False
        if self._readable and not self._paused:
            try:
                self._read()
            except Exception:
                self.abortConnection()
                raise

    def _end_of_file(self) -> None:
        self._readable = False
        if self._half_closes:
            self._read_ended = True
            self._protocol.readConnectionLost()
        else:
            self._lose(connectionDone)

    # ITransport

    def write(self, data: Chunk) -> None:
        """Send bytes. They need to stay what they are only until this returns."""
        if self._ends_writing or self._closing:
            return
        if self._left or self._pipe is not None:
            self._left += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken()
            return
        if sent < len(data):
            self._left = bytes(data[sent:])
            self._throttle()

    def writeSequence(self, parts: Sequence[Chunk]) -> None:
        """Send several pieces as one."""
        if self._ends_writing or self._closing:
            return
        if self._left or self._pipe is not None:
            self._left += b"".join(parts)
            return
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken()
            return
        if sent < sum(map(len, parts)):
            self._left = b"".join(parts)[sent:]
            self._throttle()

    def write_pipe(self, head: bytes, pipe: EnginePipe) -> None:
        """Send a few bytes, and all that a pipe holds behind them. The pipe is given away."""
        if self._ends_writing or self._closing:
            pipe.release()
            return
        if self._left or self._pipe is not None:
            self._left += head + pipe.read()
            return
        if head:
            try:
                sent = self._socket.send(head, socket.MSG_MORE)
            except BlockingIOError:
                sent = 0
            except OSError:
                pipe.release()
                self._broken()
                return
            if sent < len(head):
                self._left = head[sent:] + pipe.read()
                self._throttle()
                return
        self._pipe = pipe
        if not self._send_pipe() and not self._closing:
            self._throttle()

    def _send_pipe(self) -> bool:
        """Send what the pipe holds; whether all of it has left."""
        pipe = self._pipe
        assert pipe is not None
        try:
            done = pipe.drain(self._fd)
        except OSError:
            self._broken()
            return False
        if done:
            self._pipe = None
            pipe.release()
        return done

    def last(self, call: Callable[[], None]) -> None:
        """Call something when all that is ready now has been read: what was held back until then
        may leave with what follows it."""
        self._poller.last(call)

    def _throttle(self) -> None:
        if self._producer is not None and not self._throttled:
            self._throttled = True
            self._producer.pauseProducing()

    def _flush(self) -> None:
        if self._pipe is not None and not self._send_pipe():
            return
        if self._left:
            try:
                sent = self._socket.send(self._left)
            except BlockingIOError:
                return
            except OSError:
                self._broken()
                return
            self._left = self._left[sent:]
            if self._left:
                return
        if self._closing:
            self._lose(connectionDone)
        elif self._ends_writing:
            self._shut()
        elif self._throttled:
            self._throttled = False
            self._producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        """Send FIN after what was written."""
        if not (self._ends_writing or self._closing):
            self._ends_writing = True
            if not (self._left or self._pipe):
                self._poller.soon(self._shut)

    def _shut(self) -> None:
        if self._closing:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._lose(LOST)
            return
        if self._half_closes:
            self._protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        """Close after what was written."""
        if not self._closing:
            self._closing = True
            if not (self._left or self._pipe):
                self._poller.soon(lambda: self._lose(connectionDone))

    def abortConnection(self) -> None:
        """Reset the connection."""
        if not self._gone:
            self._closing = True
            self._forget()
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            self._poller.soon(lambda: self._lose(_ABORTED))

    def _forget(self) -> None:
        """What was written and has not left will not."""
        self._left = b""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.release()

    def _failed(self) -> bool:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _broken(self) -> None:
        """The connection broke, and no read will tell."""
        self._forget()
        self._closing = True
        self._poller.soon(lambda: self._lose(LOST))

    def _lose(self, reason: Failure) -> None:
        if self._gone:
            return
        self._gone = self._closing = True
        self._poller.remove(self._fd, closing=True)
        self._socket.close()
        self._forget()
        self._producer = None
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(reason)

    # IPushProducer

    def pauseProducing(self) -> None:
        """Read nothing for now."""
        self._paused = True
        if self._more_behind and not self._gone and self._failed():
            # It was told already, and no read will tell either.
            self._broken()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._readable:
                self._read_soon()

    # IConsumer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Ask a push producer to pause whenever what was written waits."""
        assert streaming and self._producer is None
        self._producer = producer
        if self._left or self._pipe is not None:
            self._throttle()

    def unregisterProducer(self) -> None:
        """Ask it no more."""
        self._producer = None
        self._throttled = False

    # ITCPTransport

    def getPeer(self) -> IPv4Address | IPv6Address:
        """Where the other end is."""
        return address_of(self._peer or self._socket.getpeername())

    def getHost(self) -> IPv4Address | IPv6Address:
        """Where this end is."""
        return address_of(self._socket.getsockname())

    def getHandle(self) -> socket.socket:
        """The socket, for its options."""
        return self._socket

    def fileno(self) -> int:
        """None that others may watch: here a reset is noticed even while reading is paused."""
        return -1

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small pieces at once."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Probe a silent connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)


def address_of(name: Any) -> IPv4Address | IPv6Address:
    """Return the address that a socket's name stands for."""
    return IPv4Address("TCP", *name) if len(name) == 2 else IPv6Address("TCP", *name)
