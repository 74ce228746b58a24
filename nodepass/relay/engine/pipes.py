"""Pipes of the kernel, through which bytes go from socket to socket without being copied to us."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

__all__ = ["MOST_PIPED", "PIPE_SIZE", "EnginePipe", "Pipes"]

#: Bytes that a pipe holds: what a socket has ready of a fast stream, and as many as a DATA frame
#: may have.
PIPE_SIZE = 1 << 20
#: Bytes asked for at a time: what fits in the pipe of the other node as well. A piece that lies
#: across two pages takes the room of two there, as one in sixteen does, and the rest of a frame
#: that did not fit would cost as many calls as all of it.
MOST_PIPED = PIPE_SIZE // 16 * 15
#: Pipes of a process at most. One is in use only while a receiver is slower than its sender, or
#: within a read; an unprivileged user may have 64 of this size altogether (pipe-user-pages-soft),
#: which are for several processes and other programs too.
MOST_PIPES = 24
#: Seconds until more are asked for after the system refused one: others may have had them all.
REFUSED_PAUSE = 10.0
#: Pipes kept for the next ones: most need one at a time. An empty one counts like a full one.
MOST_IDLE = 2


class EnginePipe:
    """A pipe, and how much it holds.

    Who is given one with bytes in it owns it, and has it until they have left it.
    """

    __slots__ = ("_pipes", "held", "reading", "writing")

    def __init__(self, pipes: Pipes, reading: int, writing: int) -> None:
        self._pipes = pipes
        self.reading = reading
        self.writing = writing
        self.held = 0

    def __len__(self) -> int:
        return self.held

    def fill(self, fd: int, most: int) -> int:
        """Take bytes from a socket; the pipe must be empty, so that EAGAIN is the socket's.

        :returns: how many; 0 at the end of file.
        :raises OSError: as of `os.splice`.
        """
        self.held = os.splice(fd, self.writing, most, flags=_FLAGS)
        return self.held

    def drain(self, fd: int) -> bool:
        """Give bytes to a socket; whether that was all of them.

        :raises OSError: as of `os.splice`, but for a socket that is full.
        """
        try:
            while self.held:
                self.held -= os.splice(self.reading, fd, self.held, flags=_FLAGS)
        except BlockingIOError:
            return False
        return True

    def read(self) -> bytes:
        """Take all out of it, and let go of it."""
        parts = []
        while self.held:
            parts.append(os.read(self.reading, self.held))
            self.held -= len(parts[-1])
        self.release()
        return b"".join(parts)

    def release(self) -> None:
        """Let go of it, with what may still be in it."""
        self._pipes.take_back(self)


class Pipes:
    """The pipes of a process: made when needed, and used again when they are empty."""

    def __init__(self) -> None:
        self._idle: list[EnginePipe] = []
        self._made = 0
        self._most = MOST_PIPES
        self._again_at = 0.0

    def take(self) -> EnginePipe | None:
        """An empty pipe; None when there can be no more of them."""
        if self._idle:
            return self._idle.pop()
        if self._made >= self._most:
            if self._most == MOST_PIPES or time.monotonic() < self._again_at:
                return None
            self._most = MOST_PIPES
        try:
            reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # Beyond what a user may have the kernel refuses, or makes tiny ones.
            size = fcntl.fcntl(writing, _SET_SIZE, PIPE_SIZE)
        except OSError:
            size = 0
        self._made += 1
        pipe = EnginePipe(self, reading, writing)
        if size < PIPE_SIZE:
            self._most = self._made - 1
            self._again_at = time.monotonic() + REFUSED_PAUSE
            self._close(pipe)
            return None
        return pipe

    def take_back(self, pipe: EnginePipe) -> None:
        """Keep a pipe for the next, unless something is left in it or enough are kept."""
        if pipe.held or len(self._idle) >= MOST_IDLE:
            self._close(pipe)
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close those that are not in use, and forget how many the system allowed."""
        for pipe in self._idle:
            self._close(pipe)
        self._idle.clear()
        self._most = MOST_PIPES

    def _close(self, pipe: EnginePipe) -> None:
        self._made -= 1
        for fd in (pipe.reading, pipe.writing):
            with suppress(OSError):
                os.close(fd)


# SPLICE_F_MOVE | SPLICE_F_NONBLOCK of fcntl.h, and F_SETPIPE_SZ; the names are of Python 3.10.
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_SET_SIZE = fcntl.F_SETPIPE_SZ
