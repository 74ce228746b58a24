"""TCP connections in memory, delivered when and as far as a test says so."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

#: Bytes that a transport holds before its producer is asked to wait, as Twisted's do.
HIGH_WATER = 65536


class _NoSocket:
    """A handle without options."""


@implementer(ITCPTransport, IConsumer)
class MemoryTransport:
    """One end of a connection in memory.

    @ivar reading: bytes may be delivered to this end's protocol.
    @ivar outbox: what was written and not yet delivered to the other end.
    @ivar ending: this end writes no more.
    """

    def __init__(self, protocol: Protocol, host: str, port: int, high_water: int) -> None:
        self.protocol: Any = protocol
        self.address = IPv4Address("TCP", host, port)
        self.other: MemoryTransport
        self.high_water = high_water
        self.reading = True
        self.connected = True
        self.outbox = b""
        self.disconnecting = False
        self.ending = False
        self.aborting = False
        self._producer: Any = None
        self._told_to_wait = False

    # ITCPTransport, as far as it is used

    def getPeer(self) -> IPv4Address:
        return self.other.address

    def getHost(self) -> IPv4Address:
        return self.address

    def getHandle(self) -> _NoSocket:
        return _NoSocket()

    def fileno(self) -> int:
        return -1

    def setTcpNoDelay(self, on: bool) -> None:
        pass

    def setTcpKeepAlive(self, on: bool) -> None:
        pass

    def write(self, data: bytes) -> None:
        if not self.connected or self.disconnecting or self.ending or self.aborting:
            return
        self.outbox += data
        if self._producer is not None and len(self.outbox) > self.high_water:
            self._told_to_wait = True
            self._producer.pauseProducing()

    def writeSequence(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming and self._producer is None
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = True

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self, *_: object) -> None:
        self.disconnecting = True

    def loseWriteConnection(self) -> None:
        self.ending = True

    @property
    def has_ended(self) -> bool:
        return self.ending and not self.outbox

    def abortConnection(self) -> None:
        self.aborting = True

    # For the test

    def deliver(self, size: int = 1 << 30) -> bool:
        """Let up to so many bytes arrive at the other end; whether anything happened."""
        if not self.connected:
            return False
        if self.aborting:
            self._end(ConnectionAborted(), ConnectionLost())
            return True
        if self.outbox and self.other.disconnecting:
            # What it has sent, and this end has not read, is thrown away.
            self.other._end(ConnectionDone(), ConnectionLost())
            return True
        if self.outbox and self.other.reading:
            chunk, self.outbox = self.outbox[:size], self.outbox[size:]
            self.other.protocol.dataReceived(chunk)
            self._drained()
            return True
        if self.disconnecting and not self.outbox and self._producer is None:
            self._end(ConnectionDone(), ConnectionDone())
            return True
        if self.ending and not self.outbox and self.other.reading:
            # Who is told that nothing more comes closes its end.
            self._end(ConnectionDone(), ConnectionDone())
            return True
        return False

    def lose(self) -> None:
        """The connection breaks."""
        self._end(ConnectionLost(), ConnectionLost())

    def _drained(self) -> None:
        if not self.outbox and self._told_to_wait and self._producer is not None:
            self._told_to_wait = False
            self._producer.resumeProducing()

    def _end(self, here: Exception, there: Exception) -> None:
        ends = [(self, here), (self.other, there)]
        for transport, _ in ends:
            transport.connected = transport.reading = False
        for transport, reason in ends:
            transport.protocol.connectionLost(Failure(reason))


def connect(
    client: Protocol,
    server: Protocol,
    *,
    host: str = "192.0.2.1",
    high_water: int = HIGH_WATER,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Join two protocols; the client's transport first."""
    one = MemoryTransport(client, host, 40000, high_water)
    two = MemoryTransport(server, "192.0.2.254", 10101, high_water)
    one.other, two.other = two, one
    server.makeConnection(two)
    client.makeConnection(one)
    return one, two


def flush(*pairs: tuple[MemoryTransport, MemoryTransport]) -> None:
    """Deliver until nothing moves any more."""
    moved = True
    while moved:
        moved = False
        for pair in pairs:
            for transport in pair:
                moved = transport.deliver() or moved
