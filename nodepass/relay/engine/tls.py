"""A TLS connection of the engine, after its handshake.

OpenSSL reads and writes the socket itself, into and from the engine's buffers: nothing is kept
in between, so that an idle link holds little more than its keys.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import connectionDone

from ..stream import Chunk
from .connection import MOST_READS, READ_SIZE, read_buffer
from .openssl import (
    WANT_READ,
    WANT_WRITE,
    ZERO_RETURN,
    address_of_buffer,
    clear_errors,
    go_on_with_socket,
    outcome_of,
    ssl_read,
    ssl_shutdown,
    ssl_write,
)
from .poller import Poller
from .transport import EngineTransport
from .writer import LOST

__all__ = ["EngineTLSTransport"]

#: Most payload of a TLS record (RFC 8446 5.1): what one read of OpenSSL gives.
RECORD = 16384
#: Payload of a record below which it is taken for the last that is there: looking for another one
#: that is not there takes as long as reading a small one. If it was not, the kernel says so again.
SMALL_RECORD = 4096

_buffer = read_buffer()
_start = address_of_buffer(_buffer)

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_BROKEN = select.EPOLLERR | select.EPOLLHUP


class EngineTLSTransport(EngineTransport):
    """A connected socket with TLS on it.

    Its half-close is TLS's own end, for protocols that want to hear of one: links of old dialects.
    Those of the native wire have frames for that.

    It is level-triggered, unlike others, and the rules of `EngineConnection` are not for it, but
    these:

    Rule 1: OpenSSL is always offered room for a whole record. So it keeps nothing that was
    deciphered and not taken, which no event would tell of. What waits is in the socket, and the
    kernel tells of it until it is read.

    Rule 2: `_watched` is what the kernel tells of now. Bytes that must wait are struck off when it
    tells of them, not before: most pauses are over by then. Room to write is there while something
    is to be written.

    :param tls: has been read until it wanted more.
    :param left: what it had to send and was not sent yet.
    """

    takes_pipes = False

    __slots__ = ("_before", "_connection", "_ending", "_tls", "_watched")

    def __init__(
        self, poller: Poller, sock: socket.SocketType, tls: SSL.Connection, *, left: bytes = b""
    ) -> None:
        super().__init__(poller, sock)
        self._told_of_room = True  # it sees to that itself
        self._tls = tls  # frees what the next one points to
        self._connection = go_on_with_socket(tls, self._fd)
        self._before = left
        self._ending = False  # TLS's own end is to be sent behind what was written
        self._watched = _IN | _OUT if left else _IN

    def begin(self, protocol: Any) -> None:
        self._take(protocol)
        try:
            self._poller.add(self._fd, self, self._watched)
        except OSError:
            self._broken()
        protocol.makeConnection(self)

    def ready(self, events: int) -> None:
        try:
            if events & _OUT:
                self._writable()
            if events & ~_OUT:
                if not (self._deaf or self._before):
                    self._read()
                elif events & _BROKEN:
                    # No read will tell.
                    self._broken()
                else:
                    self._watch(self._watched & ~_IN)
        except Exception:
            self.abortConnection()
            raise

    def _watch(self, events: int) -> None:
        if events != self._watched and not self._gone:
            self._watched = events
            self._poller.change(self._fd, events)

    # Reading

    def _read(self) -> None:
        connection = self._connection
        for _ in range(MOST_READS):
            size = 0
            count = ssl_read(connection, _start, RECORD)
            while count > 0:
                size += count
                if count < SMALL_RECORD or size > READ_SIZE - RECORD:
                    break
                count = ssl_read(connection, _start + size, RECORD)
            else:
                outcome = outcome_of(connection, count)
                if outcome != WANT_READ:
                    clear_errors()
            if size:
                self._deliver(_buffer[:size])
            if count <= 0:
                if outcome != WANT_READ and not self._gone:
                    self._no_more(outcome)
                return
            if count < SMALL_RECORD or self._deaf:
                return

    def _no_more(self, outcome: int) -> None:
        """TLS's own end has come, or an error."""
        # At once: what else is told of in this round may ask for a link, and must not get this one.
        if outcome != ZERO_RETURN:
            # The other end's FIN too: without TLS's own end it may be anybody's doing.
            self._lose(LOST)
        elif self._half_closes:
            self._read_ended = self._deaf = True
            self._watch(self._watched & ~_IN)
            self._hear_end()
        else:
            self._lose(connectionDone)

    def resumeProducing(self) -> None:
        if not (self._closing or self._read_ended):
            self._deaf = False
            self._watch(self._watched | _IN)

    # Writing

    def write(self, data: Chunk) -> None:
        if self._closing or self._ends_writing or self._gone or not data:
            return
        if self._left:
            self._left += data
        else:
            sent = self._encrypt(data)
            if sent < len(data):
                self._keep(bytes(data[sent:]))

    def writeSequence(self, parts: Sequence[Chunk]) -> None:
        self.write(b"".join(parts))

    def _encrypt(self, data: Chunk) -> int:
        """Send what the socket takes.

        :returns: how many bytes are dealt with. OpenSSL may have a part of the next ones already:
            they must be offered again.
        """
        if self._before:
            return 0
        connection, size = self._connection, len(data)
        start = address_of_buffer(data)
        count = ssl_write(connection, start, size)
        if count == size:
            return size
        sent = 0
        while count > 0:
            sent += count
            if sent == size:
                return size
            count = ssl_write(connection, start + sent, size - sent)
        if outcome_of(connection, count) == WANT_WRITE:
            return sent
        clear_errors()
        self._ending = False
        self._broken()
        return size

    def _keep(self, rest: bytes) -> None:
        self._watch(self._watched | _OUT)
        self._left = rest
        self._throttle()

    def _writable(self) -> None:
        if self._before:
            self._send_before()
        elif self._left:
            self._flush()
        elif self._ending:
            self._end()
        if not (self._before or self._left or self._ending):
            self._watch(self._watched & ~_OUT)

    def _send_before(self) -> None:
        """Send what was there before; nothing may overtake it, not even OpenSSL's own words."""
        try:
            sent = self._socket.send(self._before)
        except BlockingIOError:
            return
        except OSError:
            self._before = b""
            self._broken()
            return
        self._before = self._before[sent:]
        if not self._before:
            self._watch(self._watched | _IN)

    def _flush(self) -> None:
        self._left = self._left[self._encrypt(self._left) :]
        if self._left or self._gone or (self._closing and not self._ending):
            return
        if self._ending:
            self._end()
        elif self._throttled:
            self._throttled = False
            self._hear_room()

    # The end

    def loseWriteConnection(self) -> None:
        """Send TLS's own end behind what was written, and read on."""
        if not (self._ends_writing or self._closing or self._gone):
            self._ends_writing = self._ending = True
            if not self._left:
                self._poller.soon(self._end)

    @property
    def has_ended(self) -> bool:
        return self._ends_writing and not (self._left or self._ending)

    def loseConnection(self) -> None:
        if not (self._closing or self._gone):
            self._closing = self._ending = self._deaf = True
            if not self._left:
                self._poller.soon(self._end)

    def _end(self) -> None:
        """Send TLS's own end behind all that was written, and close if that was asked for."""
        if self._gone or not self._ending:
            return
        if self._before or not self._said_end():
            self._watch(self._watched | _OUT)
        elif self._closing:
            self._lose(connectionDone)
        else:
            self._ending = False
            self._hear_finished()

    def _said_end(self) -> bool:
        count = ssl_shutdown(self._connection)
        if count < 0:
            if outcome_of(self._connection, count) == WANT_WRITE:
                return False
            clear_errors()
        return True
