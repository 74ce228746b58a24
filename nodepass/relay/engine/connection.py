"""A TCP connection of the engine: reads, writes and ends. What it is for is its subclasses'."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from types import FunctionType
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ..stream import Chunk
from ..tcp import LINGER_RESET
from .pipes import EnginePipe
from .poller import READABLE, WRITABLE, Poller

__all__ = ["EngineConnection", "address_of", "drop"]

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
# Who is told of room is nearly always told of that as well, when bytes have come.
_USUAL = EPOLLIN | EPOLLOUT

#: Why a connection ended that broke. One for all: nobody adds to it.
LOST = Failure(ConnectionLost())
ABORTED = Failure(ConnectionAborted())

_buffer = memoryview(bytearray(READ_SIZE))


class EngineConnection:
    """A connected socket, which is non-blocking.

    Rule 1: what is written leaves at once as far as the system takes it. The rest is kept, and the
    writer asked to pause: it is bounded by what one read brings.

    Rule 2: the kernel tells once of what there is to read. So reading goes on until nothing is
    left, or until it is paused; then `_readable` remembers that there may be more.

    Rule 3: a hang-up is told once as well. After it a short read is no sign that nothing is left,
    nor is it after an urgent byte, which itself is dropped.

    Rule 4: nobody is told of anything from within a call of theirs, but that they are to pause.

    :cvar ours: the socket has the options that all connections have, and a reset is told as one.
    """

    ours = True

    __slots__ = (
        "_closing",
        "_deaf",
        "_deliver",
        "_ends_writing",
        "_fd",
        "_gone",
        "_left",
        "_more_behind",
        "_much",
        "_peer",
        "_pipe",
        "_poller",
        "_read_ended",
        "_readable",
        "_scheduled",
        "_socket",
        "_throttled",
        "_told_of_room",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.SocketType,
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
        self._left = left
        self._peer = peer
        #: Takes what was read.
        self._deliver: Callable[[memoryview], None] = drop
        self._throttled = False  # the writer was asked to pause
        self._much = 0  # reads in a row that filled the buffer
        self._pipe: EnginePipe | None = None  # leaves before `_left`
        self._deaf = False  # nothing is to be read: for now, after the end of file, or at the end
        self._readable = False
        self._more_behind = 0  # of `_MORE_BEHIND`, what was told
        self._told_of_room = False
        self._scheduled = False  # `_read_on` is due
        self._read_ended = False
        self._ends_writing = False
        self._closing = False  # nothing more is read, written or said but the end
        self._gone = False

    def __init_subclass__(cls) -> None:
        """Give each kind of connection what runs for each message as functions of its own.

        At each place where an attribute is looked up the interpreter remembers one kind of object;
        where several kinds pass in turn that place takes several times as long.
        """
        for name in ("ready", "_read", "write"):
            if name not in vars(cls):
                setattr(cls, name, _copy(getattr(cls, name)))

    # What subclasses tell to whom they are for.

    def _next_bytes(self) -> tuple[int, bool]:
        """How many bytes to read next of many, and whether as a pipe; 0: as many as there are."""
        raise NotImplementedError

    def _deliver_pipe(self, pipe: EnginePipe) -> None:
        """Many bytes came."""
        raise NotImplementedError

    def _hear_ending(self) -> None:
        """What is read now is the last, and the end is behind it."""

    def _hear_end(self) -> None:
        """The other end will send no more."""
        raise NotImplementedError

    def _hear_finished(self) -> None:
        """All that was written has left, and FIN behind it."""
        raise NotImplementedError

    def _hear_full(self) -> None:
        """What was written waits."""
        raise NotImplementedError

    def _hear_room(self) -> None:
        """What was written has left."""
        raise NotImplementedError

    def _hear_loss(self, reason: Failure) -> None:
        """The connection is gone; the last call."""
        raise NotImplementedError

    def _watch_socket(self, told: int) -> None:
        """Begin to hear of the socket.

        :param told: the events that another owner was told of; 0: the poller has not seen the
            socket yet.
        :raises OSError: the system can't watch one more.
        """
        self._told_of_room = bool(told or self._left)
        if told:
            self._more_behind = told & _MORE_BEHIND
            self._readable = bool(told & _READ)
            self._poller.replace(self._fd, self)
        else:
            self._poller.add(self._fd, self, WRITABLE if self._told_of_room else READABLE)

    # Watched

    def ready(self, events: int) -> None:
        try:
            if (self._left or self._pipe is not None) and events & EPOLLOUT:
                self._flush()
            if events == EPOLLIN or events == _USUAL or self._can_read(events):
                self._readable = True
                if not self._deaf:
                    self._read()
        except Exception:
            # Who fails has lost the connection, as with the reactor.
            self.abortConnection()
            raise

    def _can_read(self, events: int) -> bool:
        if events & _MORE_BEHIND:
            self._more_behind |= events & _MORE_BEHIND
            if events & EPOLLERR and self._deaf:
                # No read will tell.
                self._broken()
                return False
        return events & _READ != 0

    def _read(self) -> None:
        if self._much >= FULL_READS:
            self._read_much()
            return
        left = MOST_READS
        while not self._deaf:
            try:
                size = self._socket.recv_into(_buffer)
            except BlockingIOError:
                self._readable = False
                return
            except OSError:
                self._lose(LOST)
                return
            if size < READ_SIZE:
                self._much = 0
                if size == 0:
                    self._end_of_file()
                    return
                if not self._more_behind:
                    self._readable = False
                    deliver = self._deliver
                    deliver(_buffer[:size])
                    return
                if self._more_behind == EPOLLRDHUP:
                    # All that had come before the end is read, then.
                    self._hear_ending()
                    deliver = self._deliver
                    deliver(_buffer[:size])
                    if not self._deaf:
                        self._end_of_file()
                    return
            else:
                self._much += 1
            deliver = self._deliver
            deliver(_buffer[:size])
            left -= 1
            if not left or self._much >= FULL_READS:
                self._read_soon()
                return

    def _read_much(self) -> None:
        """Read as many bytes as are asked for at a time, and as they are asked for."""
        for _ in range(MOST_PIPED_READS):
            if self._deaf:
                return
            most, piped = self._next_bytes()
            if not most or (piped and not self._read_pipe(most)):
                self._much = 0
            elif not piped:
                self._read_few(most)
            if not (self._much and self._readable):
                break
        if self._readable:
            self._read_soon()

    def _read_pipe(self, most: int) -> bool:
        """Read by pipe; False when copying must go on instead."""
        pipe = self._poller.pipes.take()
        if pipe is None:
            return False
        try:
            size = pipe.fill(self._fd, most)
        except BlockingIOError:
            pipe.release()
            # No pipe gets past an urgent byte.
            self._readable = bool(self._more_behind)
            return not self._readable
        except OSError:
            pipe.release()
            self._lose(LOST)
            return True
        if size == 0:
            # The end; or an urgent byte, with FIN behind it. Copying will tell.
            pipe.release()
            return False
        self._deliver_pipe(pipe)
        return size >= LEAST_PIPED

    def _read_few(self, most: int) -> None:
        try:
            size = self._socket.recv_into(_buffer, most)
        except BlockingIOError:
            self._readable = False
        except OSError:
            self._lose(LOST)
        else:
            if size:
                self._deliver(_buffer[:size])
            else:
                self._end_of_file()

    def _read_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._poller.soon(self._read_on)

    def _read_on(self) -> None:
        self._scheduled = False
        if self._readable and not self._deaf:
            try:
                self._read()
            except Exception:
                self.abortConnection()
                raise

    def _end_of_file(self) -> None:
        self._readable = False
        self._read_ended = self._deaf = True
        self._hear_end()

    # Writing

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

    def _write_pipe(self, head: bytes, pipe: EnginePipe) -> None:
        """Send a few bytes, and all that a pipe holds behind them. The pipe is given away."""
        if self._ends_writing or self._closing:
            pipe.release()
            return
        if self._left or self._pipe is not None:
            self._left += head + pipe.read()
            return
        if head:
            # A small packet of its own costs less than to hold it back for what follows.
            self._send_ahead(head)
            if self._closing:
                pipe.release()
                return
            if self._left:
                self._left += pipe.read()
                return
        self._pipe = pipe
        if not self._send_pipe() and not self._closing:
            self._throttle()

    def _send_ahead(self, data: Chunk, flags: int = 0) -> None:
        """Send bytes that others follow at once."""
        try:
            sent = self._socket.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken()
            return
        if sent < len(data):
            self._left = bytes(data[sent:])
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

    def _throttle(self) -> None:
        if not self._told_of_room:
            self._told_of_room = True
            self._poller.change(self._fd, WRITABLE)
        if not self._throttled:
            self._throttled = True
            self._hear_full()

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
            self._hear_room()

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
        self._hear_finished()

    def loseConnection(self) -> None:
        """Close after what was written."""
        if not self._closing:
            self._closing = self._deaf = True
            if not (self._left or self._pipe):
                self._poller.soon(lambda: self._lose(connectionDone))

    def abortConnection(self) -> None:
        """Reset the connection."""
        if not self._gone:
            self._closing = self._deaf = True
            self._forget()
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            self._poller.soon(lambda: self._lose(ABORTED))

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
        self._closing = self._deaf = True
        self._poller.soon(lambda: self._lose(LOST))

    def _lose(self, reason: Failure) -> None:
        if self._gone:
            return
        self._gone = self._closing = self._deaf = True
        self._readable = False
        self._poller.remove(self._fd, closing=True)
        self._socket.close()
        if self._left or self._pipe is not None:
            self._forget()
        self._deliver = drop
        self._hear_loss(reason)

    # Pausing

    def pauseProducing(self) -> None:
        """Read nothing for now."""
        self._deaf = True
        if self._more_behind and not self._gone and self._failed():
            # It was told already, and no read will tell either.
            self._broken()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._deaf and not (self._read_ended or self._closing):
            self._deaf = False
            if self._readable:
                self._read_soon()

    # The socket

    def getPeer(self) -> IPv4Address | IPv6Address:
        """Where the other end is."""
        return address_of(self._peer or self._socket.getpeername())

    def getHost(self) -> IPv4Address | IPv6Address:
        """Where this end is."""
        return address_of(self._socket.getsockname())

    def getHandle(self) -> socket.SocketType:
        """The socket, for its options."""
        return self._socket


def _copy(function: FunctionType) -> FunctionType:
    # The interpreter's memory of what it met is in the code.
    code = function.__code__.replace()
    return FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


def drop(data: memoryview) -> None:
    """Take bytes that nobody wants."""


def address_of(name: Any) -> IPv4Address | IPv6Address:
    """Return the address that a socket's name stands for."""
    return IPv4Address("TCP", *name) if len(name) == 2 else IPv6Address("TCP", *name)
