"""Links that are WebSockets: a client's end, and a server played with the same codec."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
)

from nodepass.errors import PeerError
from nodepass.wire.old.websocket import WHOLE_MESSAGE, WebSocketLink
from tests.loopback import connect, flush


class Link(Protocol):
    """What has the WebSocket for a transport."""

    transport: Any

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.made = 0
        self.encrypted = 0
        self.lost: Any = None

    def connectionMade(self) -> None:
        self.made += 1

    def handshakeCompleted(self) -> None:
        self.encrypted += 1

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason


class Server(Protocol):
    """A server's end."""

    transport: Any

    def __init__(self) -> None:
        self.socket = WSConnection(ConnectionType.SERVER)
        self.heard: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.socket.receive_data(data)
        self.heard += self.socket.events()

    def say(self, event: Any) -> None:
        """Send an event."""
        self.transport.write(self.socket.send(event))


class Case:
    """A link and its server."""

    def __init__(self, accepted: bool = True) -> None:
        self.link, self.server = Link(), Server()
        self.beneath = WebSocketLink("example.org", self.link)
        self.pair = connect(self.beneath, self.server)
        self.flush()
        if accepted:
            self.server.say(AcceptConnection())
            self.flush()

    def flush(self) -> None:
        """Deliver all."""
        flush(self.pair)


def test_a_link_is_made_when_the_server_has_accepted() -> None:
    """Not before; the request names the host, and TLS is told of where it is beneath."""
    case = Case(accepted=False)
    (request,) = case.server.heard
    assert isinstance(request, Request)
    assert (request.host, request.target) == ("example.org", "/")
    assert case.link.made == 0
    case.beneath.handshakeCompleted()
    case.server.say(AcceptConnection())
    case.flush()
    assert case.link.made == case.link.encrypted == 1
    assert Case().link.encrypted == 0


def test_a_refusal_ends_it() -> None:
    """With a reason."""
    case = Case(accepted=False)
    case.server.say(RejectConnection(status_code=503))
    case.flush()
    assert case.link.made == 0 and case.link.lost.check(PeerError)


def test_a_server_that_speaks_no_http_ends_it() -> None:
    """Nothing of it reaches the link."""
    case = Case(accepted=False)
    case.server.transport.write(b"\0\0\0\0 and more\r\n\r\n")
    case.flush()
    assert case.link.lost.check(PeerError) and case.link.got == []


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_messages_come_whole(size: int) -> None:
    """One may be a datagram, however it comes; an empty one is none."""
    case = Case()
    for data in (b"one", b"", b"another"):
        case.server.say(BytesMessage(data=data))
    while case.pair[1].outbox:
        case.pair[1].deliver(size)
    assert case.link.got == [b"one", b"another"]


def test_long_messages_are_not_kept() -> None:
    """They are bytes of a stream."""
    case = Case()
    data = bytes(3 * WHOLE_MESSAGE)
    case.server.say(BytesMessage(data=data, message_finished=False))
    case.pair[1].deliver(2 * WHOLE_MESSAGE)
    assert len(b"".join(case.link.got)) >= WHOLE_MESSAGE
    case.flush()
    assert b"".join(case.link.got) == data


def test_what_is_written_is_a_message() -> None:
    """A view too."""
    case = Case()
    case.beneath.write(memoryview(b"some bytes"))
    case.flush()
    message = case.server.heard[-1]
    assert isinstance(message, BytesMessage) and bytes(message.data) == b"some bytes"


def test_pings_are_answered() -> None:
    """The link does not hear of them."""
    case = Case()
    case.server.say(Ping(payload=b"there?"))
    case.flush()
    assert isinstance(case.server.heard[-1], Pong) and case.link.got == []


def test_the_other_end_closes() -> None:
    """It is answered, and the link ends in order."""
    case = Case()
    case.server.say(CloseConnection(code=1000))
    case.flush()
    assert isinstance(case.server.heard[-1], CloseConnection)
    assert case.link.lost.check(ConnectionDone)


def test_this_end_closes() -> None:
    """What was written goes before, and nothing behind."""
    case = Case()
    case.beneath.write(b"last")
    case.beneath.loseWriteConnection()
    case.beneath.write(b"too late")
    case.flush()
    message, close = case.server.heard[-2:]
    assert bytes(message.data) == b"last" and isinstance(close, CloseConnection)
    assert case.link.lost is None
    case.server.say(close.response())
    case.flush()
    assert case.link.lost.check(ConnectionDone)


def test_a_cut_connection_is_no_end() -> None:
    """Without a word of it nobody can say that all has come."""
    case = Case()
    case.server.transport.loseConnection()
    case.flush()
    assert case.link.lost.check(ConnectionLost)
