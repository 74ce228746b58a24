"""Visitors' sockets, made by the parent: as many as there are workers, all on one port.

The kernel spreads connections and flows over them by the two addresses, so that a flow stays with
its worker for as long as the sockets stay. They stay open here whatever becomes of a worker: what
waits in one is served by the next worker of its place.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from nodepass.address import Address
from nodepass.relay.engine.sockets import stream_socket
from nodepass.relay.engine.transport import address_of
from nodepass.relay.portable import BACKLOG, Accepted, literal
from nodepass.relay.udp import DatagramPort, DatagramReceiver

__all__ = ["SharedPort", "SharedPorts", "tunnel_socket"]


@implementer(IListeningPort)
class SharedPort:
    """The sockets of one port, as one.

    :ivar sockets: one for each worker.
    """

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.sockets = sockets

    def startListening(self) -> None:
        """Nothing: it was made listening."""

    def stopListening(self) -> Deferred[None]:
        """Close this process's descriptors."""
        for sock in self.sockets:
            sock.close()
        return succeed(None)

    def getHost(self) -> IPv4Address | IPv6Address:
        """The address of all of them."""
        return address_of(self.sockets[0].getsockname())


class SharedPorts:
    """In the place of a `Relay`, for `VisitorPorts`: it listens, and nobody hears.

    :ivar tcp, udp: the ports that are open.
    """

    def __init__(self, reactor: Any, workers: int) -> None:
        self._reactor = reactor
        self._workers = workers
        self.tcp: SharedPort | None = None
        self.udp: SharedPort | None = None

    def listen_tcp(self, address: Address, accepted: Accepted) -> IListeningPort:
        """Open the TCP port; raises CannotListenError."""
        family, name = _name(literal(address))

        def make() -> socket.socket:
            sock = stream_socket(family)
            _prepare(sock, family, name[0])
            return sock

        sockets = _bound(make, name, self._workers)
        _listen(sockets, name)
        self.tcp = SharedPort(sockets)
        return self.tcp

    def listen_udp(self, address: Address, receiver: DatagramReceiver, limit: int) -> SharedPort:
        """Open the UDP port; raises CannotListenError."""
        address = literal(address)
        # Never started: it knows how such a socket is made.
        port = DatagramPort(self._reactor, address, receiver, limit)
        self.udp = SharedPort(_bound(port.createInternetSocket, _name(address)[1], self._workers))
        return self.udp


def tunnel_socket(address: Address) -> socket.socket:
    """A socket that listens for clients.

    :raises CannotListenError: it can't be bound, or its name has no address.
    """
    family, name = _name(literal(address))

    def make() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        _prepare(sock, family, name[0])
        return sock

    sockets = _bound(make, name, 1)
    _listen(sockets, name)
    return sockets[0]


def _listen(sockets: Sequence[socket.socket], name: Any) -> None:
    try:
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError as error:  # another program's socket on the address was quicker
        for sock in sockets:
            sock.close()
        raise CannotListenError(name[0], name[1], error) from error


def _name(address: Address) -> tuple[Any, Any]:
    host = address.host
    if not host:
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    try:
        found = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
    except OSError as error:
        raise CannotListenError(host, address.port, error) from error
    return found[0], found[4]


def _prepare(sock: socket.socket, family: int, host: str) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6 and host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def _bound(make: Any, name: Any, count: int) -> list[socket.socket]:
    """So many sockets bound to one name, which nobody else has.

    The first is bound as if it were alone, so that a port that is in use is refused, even where its
    owner would share it; only then it lets others in.
    """
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = make()
            sockets.append(sock)
            if len(sockets) > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(name)
            if len(sockets) == 1:
                name = sock.getsockname()
                if count > 1:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise CannotListenError(name[0], name[1], error) from error
    return sockets
