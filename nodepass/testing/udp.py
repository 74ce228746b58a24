"""UDP sockets for code that awaits."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.protocol import DatagramProtocol

from nodepass.address import Endpoint

from .conn import Gone, Reactor
from .tasks import Changes

__all__ = ["Socket"]

#: Datagrams that wait to be read, as a socket's buffer holds some before it drops.
WAITING = 256


class Socket(DatagramProtocol):
    """A socket for datagrams; what is not read waits in it, or is dropped."""

    noisy = False
    transport: Any

    def __init__(self, reactor: Reactor, where: Endpoint, to: Endpoint | None = None) -> None:
        """
        :param where: the address to bind.
        :param to: the only other end; None for any.
        :raises CannotListenError: the port is taken.
        """
        self._reactor = reactor
        self._changes = Changes(reactor)
        self._waiting: deque[tuple[bytes, Endpoint]] = deque()
        self._gone = False
        self._to = to
        self._port: Any = reactor.listenUDP(
            where.port, self, interface=where.host, maxPacketSize=65535
        )
        if to is not None:
            self.transport.connect(to.host, to.port)

    @property
    def endpoint(self) -> Endpoint:
        """The address that it is bound to."""
        host = self._port.getHost()
        return Endpoint(host.host, host.port)

    async def receive(self, limit: int, timeout: float | None = None) -> tuple[bytes, Endpoint]:
        """The next datagram, cut off at so many bytes, and who sent it.

        :raises Silence: none came in so many seconds.
        :raises Gone: the socket is closed, or nobody listens at the other end.
        """
        while not self._waiting:
            if self._gone:
                raise Gone("the socket is closed")
            await self._changes.wait(timeout)
        data, sender = self._waiting.popleft()
        return data[:limit], sender

    def send(self, data: bytes, to: Endpoint | None = None) -> None:
        """Send a datagram; whether it arrives is unknown."""
        if not self._gone:
            try:
                self.transport.write(data, None if to is None else tuple(to))
            except OSError:
                pass  # too long, or the other end said that nobody listens

    def close(self) -> None:
        """Close it."""
        if not self._gone:
            self._gone = True
            self._port.stopListening()
            self._changes.fire()

    # DatagramProtocol

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.append((datagram, Endpoint(*addr[:2])))
        self._changes.fire()

    def connectionRefused(self) -> None:
        self.close()
