"""Visitors' sockets, made by the parent: as many as there are workers, all on one port.

The kernel spreads connections and flows over them by the two addresses, so that a flow stays with
its worker for as long as the sockets stay. They stay open here whatever becomes of a worker: what
waits in one is served by the next worker of its place.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from nodepass.address import Address
from nodepass.relay.binding import bound, listening_sockets, literal, numeric
from nodepass.relay.engine.sockets import listening_socket
from nodepass.relay.engine.writer import address_of
from nodepass.relay.portable import Accepted
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
        sockets = listening_sockets(literal(address), listening_socket, self._workers)
        self.tcp = SharedPort(sockets)
        return self.tcp

    def listen_udp(self, address: Address, receiver: DatagramReceiver, limit: int) -> SharedPort:
        """Open the UDP port; raises CannotListenError."""
        address = literal(address)
        # Never started: it knows how such a socket is made.
        port = DatagramPort(self._reactor, address, receiver, limit)
        self.udp = SharedPort(bound(port.createInternetSocket, numeric(address)[1], self._workers))
        return self.udp


def tunnel_socket(address: Address) -> socket.socket:
    """A socket that listens for clients.

    :raises CannotListenError: it can't be bound, or its name has no address.
    """

    def make(family: int) -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    return listening_sockets(literal(address), make)[0]
