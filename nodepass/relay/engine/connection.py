"""A TCP connection of the engine, and how it reads. What it is for is its subclasses'."""

from __future__ import annotations

import socket
from collections.abc import Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import Any

from twisted.python.failure import Failure

from ..specialized import have_own
from .pipes import EnginePipe
from .poller import Poller
from .writer import LOST, EngineWriter

__all__ = ["EngineConnection", "drop", "read_buffer"]

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
#: Bytes by pipe before others have their turn, as after so many that are copied: more at a time
#: move no more, and keep small messages beside them waiting.
MOST_PIPED_BYTES = FULL_READS * READ_SIZE

# After these a short read is no sign that nothing is left: a read stops at an urgent byte too.
_MORE_BEHIND = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI
_READ = EPOLLIN | _MORE_BEHIND
# Who is told of room is nearly always told of that as well, when bytes have come.
_USUAL = EPOLLIN | EPOLLOUT


def read_buffer() -> memoryview:
    """Make room for one read; what no read has reached yet takes no memory."""
    return memoryview(mmap(-1, READ_SIZE, MAP_PRIVATE | MAP_ANONYMOUS))


_buffer = read_buffer()


class EngineConnection(EngineWriter):
    """A connected socket.

    Rule 1: the kernel tells once of what there is to read. So reading goes on until nothing is
    left, or until it is paused; then `_readable` remembers that there may be more.

    Rule 2: a hang-up is told once as well. After it a short read is no sign that nothing is left,
    nor is it after an urgent byte, which itself is dropped.
    """

    __slots__ = (
        "_deliver",
        "_more_behind",
        "_much",
        "_read_ended",
        "_readable",
        "_scheduled",
    )

    def __init__(
        self, poller: Poller, sock: socket.SocketType, *, left: bytes = b"", peer: Any = None
    ) -> None:
        super().__init__(poller, sock, left=left, peer=peer)
        #: Takes what was read.
        self._deliver: Callable[[memoryview], None] = drop
        self._much = 0  # reads in a row that filled the buffer
        self._readable = False
        self._more_behind = 0  # of `_MORE_BEHIND`, what was told
        self._scheduled = False  # `read_on` is due
        self._read_ended = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        have_own(cls, "ready", "write")

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

    def _watch_on(self, told: int) -> None:
        """Hear of the socket from now on.

        :param told: the events that another owner was told of, to whom room mattered too.
        """
        self._told_of_room = True
        self._more_behind = told & _MORE_BEHIND
        self._readable = bool(told & _READ)
        self._poller.replace(self._fd, self)

    # Watched

    def ready(self, events: int) -> None:
        # One function, as all that is moved passes here.
        try:
            if (self._left or self._pipe is not None) and events & EPOLLOUT:
                self._flush()
            if not (events == EPOLLIN or events == _USUAL or self._can_read(events)):
                return
            self._readable = True
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
                        self._read_last(size)
                        return
                else:
                    self._much += 1
                deliver = self._deliver
                deliver(_buffer[:size])
                left -= 1
                if not left or self._much >= FULL_READS:
                    self._read_in_turn()
                    return
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

    def _read_last(self, size: int) -> None:
        """All that had come before the end is read."""
        self._hear_ending()
        self._deliver(_buffer[:size])
        if not self._deaf:
            self._end_of_file()

    def _read_much(self) -> None:
        """Read as many bytes as are asked for at a time, and as they are asked for."""
        left = MOST_PIPED_BYTES
        for _ in range(MOST_PIPED_READS):
            if self._deaf:
                return
            most, piped = self._next_bytes()
            if piped:
                size = self._read_pipe(most)
                left -= size
                if not size:
                    self._much = 0
            elif most:
                self._read_few(most)
            else:
                self._much = 0
            if left <= 0 or not (self._much and self._readable):
                break
        if self._readable:
            self._read_in_turn()

    def _read_pipe(self, most: int) -> int:
        """Read by pipe.

        :returns: as how many bytes it counts; 0 when copying must go on instead.
        """
        pipe = self._poller.pipes.take()
        if pipe is None:
            return 0
        try:
            size = pipe.fill(self._fd, most)
        except BlockingIOError:
            pipe.release()
            # No pipe gets past an urgent byte.
            self._readable = bool(self._more_behind)
            return 0 if self._readable else most
        except OSError:
            pipe.release()
            self._lose(LOST)
            return most
        if size == 0:
            # The end; or an urgent byte, with FIN behind it. Copying will tell.
            pipe.release()
            return 0
        self._deliver_pipe(pipe)
        return size if size >= LEAST_PIPED else 0

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
            self._poller.soon(self.read_on)

    def _read_in_turn(self) -> None:
        """There was much to read: go on when others have been heard."""
        if not self._scheduled:
            self._scheduled = True
            self._poller.in_turn(self.read_on)

    def read_on(self) -> None:
        """Read what there is, unless it is not wanted now."""
        self._scheduled = False
        if self._readable and not self._deaf:
            self.ready(EPOLLIN)

    def _end_of_file(self) -> None:
        self._readable = False
        self._read_ended = self._deaf = True
        self._hear_end()

    def _lose(self, reason: Failure) -> None:
        self._readable = False
        self._deliver = drop
        super()._lose(reason)

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


def drop(data: memoryview) -> None:
    """Take bytes that nobody wants."""
