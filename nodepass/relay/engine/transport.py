"""The engine's connections with the interface that Twisted's transports have."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from .connection import EngineConnection
from .pipes import EnginePipe
from .poller import READABLE, WRITABLE, Poller

__all__ = ["EngineTransport"]


class EngineTransport(EngineConnection):
    """A connection that a protocol has.

    :cvar takes_pipes: `write_pipe` may be called.
    """

    takes_pipes = True

    __slots__ = ("_half_closes", "_producer", "_protocol")

    def __init__(
        self, poller: Poller, sock: socket.SocketType, *, left: bytes = b"", peer: Any = None
    ) -> None:
        super().__init__(poller, sock, left=left, peer=peer)
        self._protocol: Any = None
        self._producer: Any = None
        self._half_closes = False

    def begin(self, protocol: Any) -> None:
        """Let a protocol have the connection."""
        self._take(protocol)
        try:
            self._told_of_room = bool(self._left)
            self._poller.add(self._fd, self, WRITABLE if self._left else READABLE)
        except OSError:
            self._broken()
        protocol.makeConnection(self)

    def _take(self, protocol: Any) -> None:
        self._protocol = protocol
        self._deliver = protocol.dataReceived
        self._half_closes = IHalfCloseableProtocol.providedBy(protocol)

    # EngineConnection

    def _next_bytes(self) -> tuple[int, bool]:
        answer: tuple[int, bool] = self._protocol.next_bytes()
        return answer

    def _deliver_pipe(self, pipe: EnginePipe) -> None:
        self._protocol.piped(pipe)

    def _hear_end(self) -> None:
        if self._half_closes:
            self._protocol.readConnectionLost()
        else:
            self._lose(connectionDone)

    def _hear_finished(self) -> None:
        if self._half_closes:
            self._protocol.writeConnectionLost()

    def _hear_full(self) -> None:
        if self._producer is not None:
            self._producer.pauseProducing()

    def _hear_room(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()

    def _hear_loss(self, reason: Failure) -> None:
        self._producer = None
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(reason)

    # ITransport

    def write_pipe(self, head: bytes, pipe: EnginePipe) -> None:
        """Send a few bytes, and all that a pipe holds behind them. The pipe is given away."""
        self._write_pipe(head, pipe)

    @property
    def last(self) -> Callable[[Callable[[], None]], None]:
        """Calls something when all that is ready now has been read: what was held back until then
        may leave with what follows it."""
        return self._poller.last

    # IConsumer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Ask a push producer to pause whenever what was written waits."""
        assert streaming and self._producer is None
        self._producer = producer
        if self._left or self._pipe is not None:
            self._throttled = True
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Ask it no more."""
        self._producer = None
        self._throttled = False

    # ITCPTransport

    def fileno(self) -> int:
        """None that others may watch: here a reset is noticed even while reading is paused."""
        return -1

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small pieces at once."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Probe a silent connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)
