"""A link of a WebSocket pool, at the client: binary messages, taken together, are the bytes.

It stands between a connection, with TLS or without, and the link's protocol, as Twisted's TLS does:
the protocol has it for a transport.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.relay.stream import Chunk

__all__ = ["WebSocketLink"]

#: Bytes of a message that are kept until it is whole, as one may be a datagram. What is longer is
#: no datagram, and is passed on as it comes.
WHOLE_MESSAGE = 65536

_NORMAL = 1000


@implementer(IHandshakeListener)
class WebSocketLink(Protocol):
    """A WebSocket connection as a transport.

    :param host: the server's name, for the request.
    :ivar protocol: who has it for a transport.
    :cvar half_closes: whether one direction can end before the other.
    """

    transport: Any

    half_closes = False

    def __init__(self, host: str, protocol: Protocol) -> None:
        self.protocol: Any = protocol
        self._host = host
        self._socket = WSConnection(ConnectionType.CLIENT)
        self._encrypted = False
        self._open = False
        self._said_end = False
        self._heard_end = False
        self._message: list[bytes] = []
        self._size = 0

    # Protocol

    def connectionMade(self) -> None:
        self._send(Request(host=self._host, target="/"))

    def handshakeCompleted(self) -> None:
        """TLS is up beneath; the protocol hears of that when it has this."""
        self._encrypted = True

    def dataReceived(self, data: bytes) -> None:
        try:
            self._socket.receive_data(data)
            for event in self._socket.events():
                self._hear(event)
        except RemoteProtocolError:
            self._fail()

    def _hear(self, event: Any) -> None:
        if isinstance(event, AcceptConnection):
            self._open = True
            self.protocol.makeConnection(self)
            if self._encrypted:
                self.protocol.handshakeCompleted()
        elif isinstance(event, BytesMessage):
            self._receive(bytes(event.data), event.message_finished)
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._heard_end = True
            if not self._said_end:
                self._said_end = True
                self._send(event.response())
            self.transport.loseConnection()
        elif isinstance(event, RejectConnection):
            self._fail()

    def _receive(self, data: bytes, finished: bool) -> None:
        self._message.append(data)
        self._size += len(data)
        if finished or self._size >= WHOLE_MESSAGE:
            data = b"".join(self._message)
            self._message.clear()
            self._size = 0
            if data:
                self.protocol.dataReceived(data)

    def _fail(self) -> None:
        """The other end does not speak as it should."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._open:
            reason = Failure(PeerError("the server did not open a WebSocket"))
        elif self._heard_end or self._said_end:
            reason = connectionDone
        else:
            reason = Failure(ConnectionLost())
        self.protocol.connectionLost(reason)

    def _send(self, event: Any) -> None:
        try:
            self.transport.write(self._socket.send(event))
        except LocalProtocolError:
            pass  # it has ended

    # Transport

    def write(self, data: Chunk) -> None:
        """Send bytes, as one message."""
        if not self._said_end:
            self._send(BytesMessage(data=bytes(data)))

    def loseWriteConnection(self) -> None:
        """Say that no more follows. The other end answers with the same, and sends no more either:
        there is no half-close."""
        if not self._said_end:
            self._said_end = True
            self._send(CloseConnection(code=_NORMAL))

    def loseConnection(self) -> None:
        """Close after what was written."""
        self.loseWriteConnection()
        self.transport.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Ask a push producer to pause whenever what was written waits."""
        self.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Ask it no more."""
        self.transport.unregisterProducer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
