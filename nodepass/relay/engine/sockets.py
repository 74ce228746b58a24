"""Sockets for the engine: made to listen or to connect, or taken over from Twisted."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from nodepass.address import Address

from ..binding import listening_sockets
from ..pacing import send_freely
from ..tcp import KEEPALIVE_OPTIONS, LINGER_RESET

__all__ = ["Interim", "detach", "listening", "listening_socket", "release", "stream_socket"]

# Numbers, as the names of the socket module take long to combine.
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_Options = tuple[tuple[int, int, Any], ...]
_LOCAL_OPTIONS: _Options = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # The system closes the sockets of a process that is killed, and a cut stream must not look like
    # a whole one.
    (socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET),
)
_OPTIONS: _Options = (
    *_LOCAL_OPTIONS,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, option, seconds) for option, seconds in KEEPALIVE_OPTIONS),
)


def stream_socket(family: int, *, local: bool) -> socket.SocketType:
    """Make a TCP socket with the options that all connections have.

    It is of the class beneath Python's own, which adds what nobody here needs, and takes time and
    memory for it; as are those that are accepted.

    :param local: the other end will be on this host, which tells of its end in any case: there is
        nothing to probe for, and no line to be spared.
    """
    sock = socket.SocketType(family, _STREAM)
    for level, option, value in _LOCAL_OPTIONS if local else _OPTIONS:
        sock.setsockopt(level, option, value)
    if local:
        send_freely(sock)
    return sock


def listening_socket(family: int) -> socket.socket:
    """Make a TCP socket from which those that are accepted on it inherit these options."""
    sock = socket.socket(family, _STREAM)
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)
    return sock


def listening(address: Address, backlog: int) -> socket.socket:
    """Make a socket that listens on an IP address, or on every interface of both families.

    :raises CannotListenError: it can't be bound.
    """
    return listening_sockets(address, listening_socket, backlog=backlog)[0]


def detach(transport: Any) -> tuple[socket.SocketType, bytes]:
    """Take the socket out of one of the reactor's TCP transports, which is of no use afterwards.

    Twisted has no way to do that in its interface; these attributes have been what they are for
    twenty years.

    :returns: the socket, and what was written to the transport and has not left.
    """
    left = transport.dataBuffer[transport.offset :] + b"".join(transport._tempDataBuffer)
    transport.stopReading()
    transport.stopWriting()
    inner: socket.socket = transport.socket
    sock = socket.SocketType(fileno=inner.detach())
    sock.setblocking(False)
    # For the reactor, and for whoever still has it, it has ended; nobody is told. The reactor may
    # be about to write to it, having read what led here.
    transport.connected, transport.disconnected = 0, 1
    transport.doRead = transport.doWrite = _nothing
    transport.protocol = None
    # Connector and factory know each other: let go of, they would wait for the garbage collector,
    # and each link's leavings with them.
    with suppress(AttributeError):
        transport.connector.factory = None
    for name in ("connector", "server"):
        with suppress(AttributeError):
            delattr(transport, name)
    return sock, left


def _nothing(*_: object) -> None:
    pass


class Interim(Protocol):
    """Keeps what a connection says while it changes hands.

    :ivar lost: why it ended meanwhile.
    """

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


def release(wrapper: Any) -> Any:
    """Take OpenSSL's connection out of Twisted's TLS, whose handshake is complete.

    What was written to it has gone to its transport then.
    """
    aggregator = getattr(wrapper, "_aggregator", None)
    if aggregator is not None:
        aggregator.close()
        # It and the wrapper know each other.
        aggregator._write = _nothing
    tls, wrapper._tlsConnection = wrapper._tlsConnection, None
    wrapper._lostTLSConnection = wrapper._aborted = True
    wrapper.connected = 0
    wrapper.wrappedProtocol = None
    wrapper.factory.unregisterProtocol(wrapper)
    return tls
