"""TCP connections for code that awaits: read, write, end.

A connection is read from only while somebody awaits its bytes, so one that lies idle does not
notice that the other end has gone, as those of the simulated programs don't.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    connectProtocol,
)
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.address import Endpoint, endpoint_of, is_literal
from nodepass.tls import peer_pin

from .tasks import Changes

__all__ = ["Conn", "Gone", "Link", "Reactor", "dial", "listen", "port_of"]

#: What is needed of a reactor: time, TCP and UDP.
Reactor = Any

#: Bytes that one read gives at most, unless told otherwise.
READ_SIZE = 16384


class Gone(Exception):
    """The connection is no longer there, or not as far as was asked for."""


class Link(typing.Protocol):
    """A link of a pool: a connection, or a WebSocket on one.

    :ivar half_closes: whether one direction can end before the other.
    """

    @property
    def half_closes(self) -> bool: ...

    @property
    def peer(self) -> Endpoint: ...

    @property
    def pin(self) -> bytes: ...

    @property
    def gone(self) -> bool: ...

    async def read(self, limit: int = READ_SIZE, timeout: float | None = None) -> bytes: ...

    async def read_exactly(self, size: int, timeout: float | None = None) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    def send(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


@implementer(IPushProducer)
class _Room:
    """Hears from a transport whether it has room."""

    def __init__(self, changes: Changes) -> None:
        self.full = False
        self._changes = changes

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        self.full = False
        self._changes.fire()

    def stopProducing(self) -> None:
        self.resumeProducing()


@implementer(IHandshakeListener)
class _UnderTLS(Protocol):
    """Tells a connection what comes out of its TLS.

    Not the connection itself: Twisted's endpoints take a protocol that listens for handshakes for
    one that knows no half-close.
    """

    def __init__(self, conn: Conn) -> None:
        self.dataReceived = conn.dataReceived  # type: ignore[method-assign]
        self.connectionLost = conn.connectionLost  # type: ignore[method-assign]
        self.handshakeCompleted = conn.shaken


@implementer(IHalfCloseableProtocol)
class Conn(Protocol):
    """One end of a connection, plain or under TLS.

    :ivar peer: the other end's address.
    :ivar secure: whether it is under TLS.
    :ivar pin: SHA-256 of the certificate that the other end has shown; empty where it has not.
    :ivar gone: whether nothing can be written any more.
    """

    transport: Any

    def __init__(self, reactor: Reactor, accepted: Callable[[Conn], None] | None = None) -> None:
        """
        :param accepted: called as soon as there is a connection.
        """
        self.peer = Endpoint("", 0)
        self.secure = False
        self.pin = b""
        self.gone = False
        self._accepted = accepted
        self._reactor = reactor
        self._buffer = bytearray()
        self._ended = False
        self._shaken = False
        self._changes = Changes(reactor)
        self._room = _Room(Changes(reactor))
        self._space = self._room._changes
        self._plain: Any = None

    # For those who await.

    @property
    def half_closes(self) -> bool:
        """Whether one direction can end before the other: not under TLS."""
        return not self.secure

    async def read(self, limit: int = READ_SIZE, timeout: float | None = None) -> bytes:
        """What has come, as soon as there is something; nothing after the end, whatever ended it.

        :param timeout: seconds to wait; None for ever.
        :raises Silence: when it is over.
        """
        while not (self._buffer or self._ended or self.gone):
            await self._more(timeout)
        data = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return data

    async def read_exactly(self, size: int, timeout: float | None = None) -> bytes:
        """So many bytes.

        :raises Gone: when the end came first.
        :raises Silence: when they are not there in time.
        """
        deadline = None if timeout is None else self._reactor.seconds() + timeout
        while len(self._buffer) < size:
            if self._ended or self.gone:
                raise Gone(f"the connection ended after {len(self._buffer)} of {size} bytes")
            await self._more(None if deadline is None else deadline - self._reactor.seconds())
        return await self.read(size)

    async def write(self, data: bytes) -> None:
        """Send bytes; returns when there is room for more.

        :raises Gone: when they can't be sent.
        """
        self.send(data)
        while self._room.full and not self.gone:
            await self._space.wait()

    def send(self, data: bytes) -> None:
        """Send bytes without waiting for room.

        :raises Gone: when they can't be sent.
        """
        if self.gone:
            raise Gone("the connection is closed")
        self.transport.write(data)

    def finish(self) -> None:
        """Send FIN and go on reading. Not under TLS."""
        if not self.gone:
            self._plain.loseWriteConnection()

    def close(self) -> None:
        """Close both directions, after what was written. Waits for nothing."""
        if self.gone:
            return
        self.gone = True
        self.transport.unregisterProducer()
        if self.secure:
            # Says that it closes; the transport below does not wait for the answer.
            self.transport.loseConnection()
        self._plain.loseConnection()
        self._wake()

    def abort(self) -> None:
        """Reset the connection."""
        if not self.gone:
            self.gone = True
            self.transport.unregisterProducer()
            self._plain.abortConnection()
            self._wake()

    async def start_tls(
        self,
        creator: IOpenSSLClientConnectionCreator | IOpenSSLServerConnectionCreator,
        is_client: bool,
        timeout: float | None = None,
    ) -> None:
        """Do a TLS handshake; all that follows is under it.

        :raises Gone: when it fails.
        :raises Silence: when it takes longer.
        """
        if self.gone:
            raise Gone("the connection is closed")
        factory = TLSMemoryBIOFactory(creator, is_client, Factory(), self._reactor)
        tls = TLSMemoryBIOProtocol(factory, _UnderTLS(self), False)
        self.transport.unregisterProducer()
        self._plain.protocol = tls
        self.transport = tls
        self.secure = True
        tls.makeConnection(self._plain)
        early, self._buffer = bytes(self._buffer), bytearray()
        if early:
            tls.dataReceived(early)
        self._plain.resumeProducing()
        while not (self._shaken or self.gone):
            await self._changes.wait(timeout)
        if self.gone:
            raise Gone("the TLS handshake failed")
        if is_client:
            self.pin = peer_pin(self.transport)
        self.transport.registerProducer(self._room, True)

    def unread(self, data: bytes) -> None:
        """Give bytes back: the next read has them first."""
        self._buffer[:0] = data

    async def _more(self, timeout: float | None) -> None:
        self._plain.resumeProducing()
        try:
            await self._changes.wait(timeout)
        finally:
            if not self.gone:
                self._plain.pauseProducing()

    def _wake(self) -> None:
        self._changes.fire()
        self._space.fire()

    # Protocol

    def connectionMade(self) -> None:
        self._plain = self.transport
        self.peer = endpoint_of(self._plain.getPeer())
        self._plain.setTcpNoDelay(True)
        self._plain.pauseProducing()
        self._plain.registerProducer(self._room, True)
        if self._accepted is not None:
            self._accepted(self)

    def shaken(self) -> None:
        """The TLS handshake is done."""
        self._shaken = True
        self._plain.pauseProducing()
        self._changes.fire()

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        self._changes.fire()

    def readConnectionLost(self) -> None:
        self._ended = True
        self._changes.fire()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = self.gone = True
        self._wake()


def listen(
    reactor: Reactor, where: Endpoint, accepted: Callable[[Conn], None], backlog: int = 1024
) -> IListeningPort:
    """Listen for connections; each is given to `accepted`.

    :raises CannotListenError: the port is taken.
    """
    factory = Factory.forProtocol(partial(Conn, reactor, accepted))
    factory.noisy = False
    port = reactor.listenTCP(where.port, factory, backlog=backlog, interface=where.host)
    return cast(IListeningPort, port)


def port_of(port: IListeningPort) -> int:
    """The number of a port that one listens on."""
    return int(cast(Any, port.getHost()).port)


async def dial(reactor: Reactor, where: Endpoint, timeout: float, source: str = "") -> Conn:
    """Connect.

    :param timeout: seconds.
    :param source: the address to connect from; empty for the system's choice.
    :raises Gone: when that fails.
    """
    host, port = where
    bind = (source, 0) if source else None
    kind: Any = HostnameEndpoint
    if is_literal(host):
        kind = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
    endpoint = kind(reactor, host, port, timeout=timeout, bindAddress=bind)
    attempt: Deferred[Conn] = connectProtocol(endpoint, Conn(reactor))
    try:
        return await attempt
    except ConnectingCancelledError:
        raise CancelledError from None
    except (ConnectError, DNSLookupError) as error:
        raise Gone(f"could not connect to {where}: {error}") from error
