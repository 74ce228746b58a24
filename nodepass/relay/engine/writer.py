"""How a TCP connection of the engine writes, and how it ends."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ..stream import Chunk
from ..tcp import LINGER_RESET
from .pipes import EnginePipe
from .poller import WRITABLE, Poller

__all__ = ["LOST", "EngineWriter", "address_of"]

#: Why a connection ended that broke. One for all: nobody adds to it.
LOST = Failure(ConnectionLost())
ABORTED = Failure(ConnectionAborted())


class EngineWriter:
    """A connected socket, which is non-blocking.

    Rule 1: what is written leaves at once as far as the system takes it. The rest is kept, and the
    writer asked to pause: it is bounded by what one read brings.

    Rule 2: nobody is told of anything from within a call of theirs, but that they are to pause.
    """

    __slots__ = (
        "_closing",
        "_deaf",
        "_ends_writing",
        "_fd",
        "_gone",
        "_left",
        "_peer",
        "_pipe",
        "_poller",
        "_socket",
        "_throttled",
        "_told_of_room",
    )

    def __init__(
        self, poller: Poller, sock: socket.SocketType, *, left: bytes = b"", peer: Any = None
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
        self._throttled = False  # the writer was asked to pause
        self._pipe: EnginePipe | None = None  # leaves before `_left`
        self._deaf = False  # nothing is to be read: for now, after the end of file, or at the end
        self._told_of_room = False
        self._ends_writing = False
        self._closing = False  # nothing more is read, written or said but the end
        self._gone = False

    # What subclasses tell to whom they are for.

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

    @property
    def has_ended(self) -> bool:
        """Whether all that was written, and the end behind it, is with the system."""
        return self._ends_writing and not (self._left or self._pipe)

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
        self._poller.remove(self._fd, closing=True)
        self._socket.close()
        if self._left or self._pipe is not None:
            self._forget()
        self._hear_loss(reason)

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


def address_of(name: Any) -> IPv4Address | IPv6Address:
    """Return the address that a socket's name stands for."""
    return IPv4Address("TCP", *name) if len(name) == 2 else IPv6Address("TCP", *name)
