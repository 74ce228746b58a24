"""One TCP connection that the reactor makes, as a Deferred.

Twisted's endpoints do the same, for 1 MB of memory: their module brings parsers of descriptions,
TLS by file names, programs as peers and more, of which a tunnel has no use.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IConnector, IProtocol, IProtocolFactory
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure

from nodepass.relay.pacing import send_freely_on, stays_here
from nodepass.relay.tcp import LINGER_RESET

__all__ = ["connect"]


def connect(
    reactor: Any,
    address: str,
    port: int,
    factory: IProtocolFactory,
    timeout: float,
    *,
    resets: bool = False,
) -> Deferred[IProtocol]:
    """Connect to one IP address.

    :param reactor: provides ``IReactorTCP``.
    :param timeout: seconds.
    :param resets: the other end must not take an attempt that is cancelled for one who came, had
        nothing to say and went: the system may have connected it before the reactor hears of that.
    :returns: fires with the protocol that ``factory`` built, connected; fails with a
        ``ConnectError``. Cancelling it ends the attempt.
    """
    return _Connecting(factory, resets).start(reactor, address, port, timeout)


class _Connecting(ClientFactory):
    noisy = False

    def __init__(self, factory: IProtocolFactory, resets: bool) -> None:
        self._factory = factory
        self._resets = resets
        self._connector: IConnector | None = None
        self._connected: Deferred[IProtocol] | None = None

    def start(self, reactor: Any, address: str, port: int, timeout: float) -> Deferred[IProtocol]:
        connected = self._connected = Deferred(lambda _: self._cancelled())
        connector = reactor.connectTCP(address, port, self, timeout)
        if self._connected is not None:
            self._connector = connector
        return connected

    def built(self, address: IAddress | None) -> IProtocol:
        protocol = self._factory.buildProtocol(cast(Any, address))
        assert protocol is not None
        return protocol

    def succeeded(self, protocol: IProtocol) -> None:
        connected = self._taken()
        if connected is not None:
            connected.callback(protocol)

    def _taken(self) -> Deferred[IProtocol] | None:
        """Whom to tell, once. The connector holds this factory, and must not be held by it."""
        connected, self._connected = self._connected, None
        self._connector = None
        return connected

    def _cancelled(self) -> None:
        connector = self._connector
        self._taken()
        if connector is not None:
            if self._resets:
                _reset_on_close(getattr(connector, "transport", None))
            connector.stopConnecting()

    # ClientFactory

    def startedConnecting(self, connector: Any) -> None:
        # The socket is there, not yet connected; in memory there is none, nor a host.
        transport = getattr(connector, "transport", None)
        if transport is not None and stays_here(connector.host):
            send_freely_on(transport)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Usher(self, addr)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        connected = self._taken()
        if connected is not None:
            connected.errback(reason)

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        # They hold each other, and would wait for the garbage collector.
        connector.transport = None


class _Usher(Protocol):
    """Lets the protocol in when it can be connected, and tells of it after that."""

    def __init__(self, connecting: _Connecting, address: IAddress | None) -> None:
        self._connecting = connecting
        self._address = address

    def connectionMade(self) -> None:
        transport: Any = self.transport
        protocol = transport.protocol = self._connecting.built(self._address)
        protocol.makeConnection(transport)
        self._connecting.succeeded(protocol)


def _reset_on_close(transport: Any) -> None:
    """Let one of Twisted's transports that is not connected yet reset whom it has reached when it
    is closed; one in memory has no socket."""
    sock = getattr(transport, "socket", None)
    if sock is not None:
        with suppress(OSError):  # macOS refuses where the other end has gone
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        # Shutting it down before would tell of an end; Twisted's interface has no way to say so.
        transport._shouldShutdown = False
