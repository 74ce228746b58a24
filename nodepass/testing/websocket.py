"""The links of a server with `type` 2: each a WebSocket, whose messages are what is written.

A read never gives bytes of two messages, but may give part of one. To close is to end both
directions; the programs know no other end.
"""

from __future__ import annotations

from collections import deque

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from nodepass.address import Endpoint

from .conn import READ_SIZE, Conn, Gone

__all__ = ["WebSocketConn", "accept_websocket"]

_NORMAL = 1000


class WebSocketConn:
    """The server's end of a WebSocket, with what `Conn` offers to those who await."""

    half_closes = False

    def __init__(self, conn: Conn, socket: WSConnection) -> None:
        self._conn = conn
        self._socket = socket
        self._messages: deque[bytes] = deque()
        self._ended = False

    @property
    def peer(self) -> Endpoint:
        """The other end's address."""
        return self._conn.peer

    @property
    def pin(self) -> bytes:
        """SHA-256 of the certificate that the other end has shown: a client shows none."""
        return self._conn.pin

    @property
    def gone(self) -> bool:
        """Whether nothing can be written any more."""
        return self._conn.gone

    async def read(self, limit: int = READ_SIZE, timeout: float | None = None) -> bytes:
        """What has come of one message; nothing after the end.

        :raises Silence: it took longer.
        """
        while not (self._messages or self._ended):
            data = await self._conn.read(timeout=timeout)
            self._hear(data)
        if not self._messages:
            return b""
        data = self._messages.popleft()
        if len(data) > limit:
            self._messages.appendleft(data[limit:])
        return data[:limit]

    async def read_exactly(self, size: int, timeout: float | None = None) -> bytes:
        """So many bytes, of as many messages as it takes.

        :raises Gone: when the end came first.
        :raises Silence: it took longer.
        """
        data = b""
        while len(data) < size:
            more = await self.read(size - len(data), timeout)
            if not more:
                raise Gone(f"the WebSocket ended after {len(data)} of {size} bytes")
            data += more
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes as one message; returns when there is room for more.

        :raises Gone: when they can't be sent.
        """
        await self._conn.write(self._encode(BytesMessage(data=data)))

    def send(self, data: bytes) -> None:
        """Send bytes as one message, without waiting for room.

        :raises Gone: when they can't be sent.
        """
        self._conn.send(self._encode(BytesMessage(data=data)))

    def finish(self) -> None:
        """Close it: nothing ends one direction alone."""
        self.close()

    def close(self) -> None:
        """Close it after what was written."""
        if not self._conn.gone:
            try:
                self._conn.send(self._encode(CloseConnection(code=_NORMAL)))
            except Gone:
                pass
            self._ended = True
            self._conn.close()

    def _encode(self, event: Event) -> bytes:
        try:
            return self._socket.send(event)
        except LocalProtocolError:
            raise Gone("the WebSocket is closed") from None

    def _hear(self, data: bytes) -> None:
        try:
            self._socket.receive_data(data or None)
            for event in self._socket.events():
                if isinstance(event, BytesMessage):
                    if event.data:
                        self._messages.append(bytes(event.data))
                elif isinstance(event, (Ping, CloseConnection)):
                    self._conn.send(self._encode(event.response()))
                    self._ended |= isinstance(event, CloseConnection)
        except (RemoteProtocolError, Gone):
            self._ended = True
        self._ended |= not data


async def accept_websocket(conn: Conn) -> WebSocketConn:
    """Wait for a client to ask for a WebSocket.

    :raises Gone: it asks for something else, or goes.
    """
    socket = WSConnection(ConnectionType.SERVER)
    while True:
        data = await conn.read()
        if not data:
            raise Gone("the connection ended before it was a WebSocket")
        try:
            socket.receive_data(data)
            requests = [event for event in socket.events() if isinstance(event, Request)]
        except RemoteProtocolError as error:
            raise Gone(f"not a WebSocket: {error}") from None
        if requests:
            break
    if requests[0].target != "/":
        await conn.write(socket.send(RejectConnection(status_code=404)))
        raise Gone("a WebSocket elsewhere")
    await conn.write(socket.send(AcceptConnection()))
    return WebSocketConn(conn, socket)
