"""Messages between a parent and a worker, with descriptors: whole ones, in order, never waited for.

It is a Unix socket that keeps the bounds of messages (``SOCK_SEQPACKET``).
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Conversation"]

#: Longest message, bytes: the largest is a configuration, whose 255 targets take half of it.
LONGEST = 128 * 1024
#: Descriptors that one message may bring; none of ours brings more than the first, with three.
MOST_FILES = 4
#: Messages heard before other sockets have their turn.
BATCH = 64
#: Bytes asked of the system for messages under way: enough for the log lines of a busy moment.
BUFFER = 1024 * 1024
#: Seconds before a message is tried again that the system had no means for. It does not say when it
#: has them again, and where there is room in the socket all the time it would be asked without end.
SHORT_PAUSE = 0.05

# The other end is gone, which reading tells.
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED)
# No memory, or too many descriptors of this user's are on their way.
_SHORT = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """What `socket.recv_fds` does, which loses its flags on the way."""
    files = array("i")
    room = socket.CMSG_LEN(MOST_FILES * files.itemsize)
    message, ancillary, _, _ = sock.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(data[: len(data) - len(data) % files.itemsize])
    return message, list(files)


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


@implementer(IReadWriteDescriptor)
class Conversation:
    """One end of it.

    :param heard: called with each message and its descriptors, which are the listener's to close.
    :param lost: called once when the other end is gone.
    """

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        heard: Callable[[bytes, list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._socket: socket.socket | None = sock
        self._heard = heard
        self._lost = lost
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        #: Bytes that wait to be sent.
        self.backlog = 0
        self._pause: IDelayedCall | None = None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        reactor.addReader(self)

    def send(self, message: bytes, files: Sequence[int] = ()) -> None:
        """Send a message, now or when there is room. One that waits has its descriptors twice:
        those that were given may be closed at once."""
        if self._socket is None or (not self._waiting and self._put(message, files)):
            return
        self._waiting.append((message, tuple(map(os.dup, files))))
        self.backlog += len(message)
        if len(self._waiting) == 1 and self._pause is None:
            self._reactor.addWriter(self)

    def offer(self, message: bytes, files: Sequence[int]) -> bool:
        """Send a message if there is room now; whether it was sent."""
        return self._socket is not None and not self._waiting and self._put(message, files)

    def close(self) -> None:
        """End it; nobody is told."""
        sock, self._socket = self._socket, None
        if sock is not None:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            if self._pause is not None:
                self._pause.cancel()
            for _, files in self._waiting:
                _close(files)
            self._waiting.clear()
            sock.close()

    def _put(self, message: bytes, files: Sequence[int]) -> bool:
        """Send a message; False: it can't be sent now."""
        assert self._socket is not None
        try:
            if files:
                socket.send_fds(self._socket, [message], files)
            else:
                self._socket.send(message)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _SHORT:
                self._rest()
                return False
            if error.errno not in _GONE:
                raise
        return True

    def _rest(self) -> None:
        self._reactor.removeWriter(self)
        if self._pause is None:
            self._pause = self._reactor.callLater(SHORT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if self._waiting:
            self._reactor.addWriter(self)

    # IReadWriteDescriptor

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def doRead(self) -> None:
        for _ in range(BATCH):
            if self._socket is None:
                return
            try:
                message, files = _receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                message, files = b"", []
            if not message:
                self.close()
                self._lost()
                return
            self._heard(message, files)

    def doWrite(self) -> None:
        while self._waiting:
            message, files = self._waiting[0]
            if not self._put(message, files):
                return
            self._waiting.popleft()
            _close(files)
            self.backlog -= len(message)
        self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up."""
        if self._socket is not None:
            self.close()
            self._lost()

    def logPrefix(self) -> str:
        return "workers"
