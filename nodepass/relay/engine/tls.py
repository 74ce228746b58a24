"""A TLS connection of the engine, after its handshake.

OpenSSL sees memory alone, as it does under Twisted, so that a connection can be taken over from
there. What is saved is all that lies between: one read of the socket feeds it, and what it makes of
a message leaves with one write.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost

from .poller import Poller
from .transport import EngineTransport

__all__ = ["EngineTLSTransport"]

#: Most payload of a TLS record (RFC 8446 5.1): what one read of OpenSSL gives.
RECORD = 16384
#: What encryption adds to a record: header, content type and tag, with some room.
OVERHEAD = 64
#: Room for what OpenSSL has to say of its own before the payload, such as an answer to an update of
#: keys: what did not fit would wait for the next message.
ROOM = 4096


class EngineTLSTransport(EngineTransport):
    """A connected socket with TLS on it.

    It has no half-close: links, which are all that uses it, have frames for that.
    """

    __slots__ = ("_tls",)

    def __init__(
        self, poller: Poller, sock: socket.socket, tls: SSL.Connection, *, left: bytes = b""
    ) -> None:
        super().__init__(poller, sock, left=left, tuned=True)
        self._tls = tls

    def write(self, data: bytes) -> None:
        size = len(data)
        if size and not (self._closing or self._gone):
            try:
                # A record at a time, as pyOpenSSL has it.
                sent = self._tls.send(data)
                while sent < size:
                    sent += self._tls.send(memoryview(data)[sent:])
            except SSL.Error:
                self._broken()
                return
            super().write(self._encrypted(size))

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        self.write(b"".join(parts))

    def loseConnection(self) -> None:
        if not (self._closing or self._gone):
            with suppress(SSL.Error):
                self._tls.shutdown()
                super().write(self._encrypted(0))
        super().loseConnection()

    def _encrypted(self, size: int) -> bytes:
        """What OpenSSL has to send for so many bytes of payload."""
        return self._tls.bio_read(ROOM + size + OVERHEAD * (size // RECORD))

    def _end_of_file(self) -> None:
        # Without TLS's own end it may be anybody's doing.
        self._lose(ConnectionLost())

    def _deliver(self, data: memoryview) -> None:
        tls = self._tls
        tls.bio_write(data)
        receive = tls.recv
        pieces = []
        try:
            while True:
                pieces.append(receive(RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self._read_ended = True
            self._poller.soon(lambda: self._lose(ConnectionDone()))
        except SSL.Error:
            self._broken()
        if pieces:
            self._protocol.dataReceived(b"".join(pieces) if len(pieces) > 1 else pieces[0])
