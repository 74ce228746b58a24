"""The socket for datagrams that visitors write to.

It moves whole datagrams and holds no policy. What has come is read in bounded batches, and passed
on as a list for each visitor, so that all that is not a system call is done once a batch. What
can't be sent at once is dropped, as any router does; datagrams larger than the limit are told of
instead of being cut short.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.udp import Port
from twisted.logger import Logger

from nodepass.address import Address, Endpoint, mapped, unmapped

from . import pktinfo
from .binding import every_interface, socket_address
from .pktinfo import Ancillary

#: Asked of the system for the visitors' socket, in bytes, so that a burst survives while TCP has
#: its turn; the system may grant less.
VISITOR_BUFFER = 4 * 1024 * 1024

#: Most datagrams that one socket gives before others have their turn. More would cost them latency,
#: fewer the datagrams throughput.
BATCH = 256

#: Most bytes likewise; the datagram that goes beyond it is the last one.
BATCH_BYTES = 256 * 1024

#: Addresses whose form for programs is remembered; as many visitors may be heard in turn.
_CACHED_VISITORS = 4096

# What Windows says where others cut short; elsewhere EMSGSIZE tells of a datagram that was sent.
CUT_SHORT: int | None = getattr(errno, "WSAEMSGSIZE", None)


class DatagramReceiver(Protocol):
    """Who hears what visitors send."""

    def datagrams(self, batch: list[bytes], visitor: Endpoint, local: Endpoint | None) -> None:
        """Datagrams came, at least one, in this order.

        :param batch: the receiver's to keep.
        :param visitor: their sender; an IPv4 address never appears as IPv6, and a link-local one
            has its scope (``fe80::1%2``).
        :param local: where they were written to, to be given to :meth:`DatagramPort.send`; None
            where the platform can't tell.
        """

    def oversized(self, visitor: Endpoint | None) -> None:
        """A datagram over the limit came and was dropped; ``visitor`` where it is known."""


class DatagramPort(Port):
    """The UDP socket that visitors write to: an ``IListeningPort`` made by :func:`listen_udp`.

    Bound to every interface, it notes which address each datagram was written to and answers from
    there, on platforms that can.
    """

    _log = Logger()
    _stopping = False

    def __init__(
        self,
        reactor: IReactorFDSet,
        address: Address,
        receiver: DatagramReceiver,
        limit: int,
        bound: socket.socket | None = None,
    ) -> None:
        interface = address.host or every_interface()
        self._wildcard = address.wildcard
        # The port wants a protocol to start and stop; datagrams go straight to the receiver.
        protocol = DatagramProtocol()
        protocol.noisy = False
        super().__init__(  # type: ignore[no-untyped-call]
            address.port, protocol, interface, maxPacketSize=limit + 1, reactor=reactor
        )
        self._receiver = receiver
        self._limit = limit
        self._tells_local = False
        self._control_space = 0
        self._local: Endpoint | None = None
        self._bound = bound

    def createInternetSocket(self) -> socket.socket:
        """Prepare a socket to be bound."""
        skt = super().createInternetSocket()
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            # Windows lets another program share the port otherwise.
            skt.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        if self._wildcard:
            if self.addressFamily == socket.AF_INET6 and socket.has_dualstack_ipv6():
                skt.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._ask_local(skt)
        enlarge_buffers(skt, VISITOR_BUFFER)
        return skt

    def _ask_local(self, skt: socket.socket) -> None:
        self._tells_local = pktinfo.enable(skt)
        if self._tells_local:
            self._control_space = pktinfo.space()

    def startListening(self) -> None:
        """Bind, and begin to read.

        :raises CannotListenError: the address is in use, not this host's, or not permitted.
        """
        # Binding is done here: the base class loses the scope of a link-local address, and leaves
        # a socket that could not be bound to the garbage collector.
        skt = self._bound
        try:
            if skt is None:
                skt = self.createInternetSocket()
                skt.bind(socket_address(self.interface, self.port)[1])
            elif self._wildcard:
                self._ask_local(skt)
        except OSError as error:
            if skt is not None:
                skt.close()
            raise CannotListenError(self.interface, self.port, error) from error
        self._preexistingSocket = skt  # type: ignore[assignment]
        super().startListening()  # type: ignore[no-untyped-call]
        if not self._wildcard:
            self._local = Endpoint(*self.socket.getsockname()[:2])

    def stopListening(self) -> Deferred[None] | None:
        """Close the socket; no datagram is delivered from now on. Fires with None when closed."""
        self._stopping = True
        return cast("Deferred[None] | None", super().stopListening())  # type: ignore[no-untyped-call]

    def getHost(self) -> IPv4Address | IPv6Address:
        """The address that the socket is bound to."""
        return cast("IPv4Address | IPv6Address", super().getHost())  # type: ignore[no-untyped-call]

    def doRead(self) -> None:
        """Deliver what has come, a bounded batch of it."""
        for sender, batch in self._read().items():
            if self._stopping:
                return
            try:
                self._receiver.datagrams(batch, *self._names(sender))
            except Exception:
                # Let out, it would make the reactor drop the socket, and with it every flow.
                self._log.failure("a datagram's receiver failed")

    def _read(self) -> dict[Any, list[bytes]]:
        """Read what has come, by its sender as `_names` takes it."""
        came: dict[Any, list[bytes]] = {}
        batch: list[bytes] = []
        last: Any = None
        size = self._limit + 1  # one byte more, to notice what is larger
        room = BATCH_BYTES
        receive = self._receive_telling if self._tells_local else self.socket.recvfrom
        for _ in range(BATCH):
            try:
                data, sender = receive(size)
            except OSError as error:
                # An answer that was refused shows here on Windows; it concerns nobody any more.
                if isinstance(error, ConnectionError):
                    continue
                if error.errno is not None and error.errno == CUT_SHORT:
                    self._deliver_oversized(None)
                    continue
                # Nothing more to read; or an error that reading has cleared.
                break
            length = len(data)
            room -= length
            if length == size:
                self._deliver_oversized(self._names(sender)[0])
            else:
                if sender != last:
                    last = sender
                    batch = came.setdefault(sender, [])
                batch.append(data)
            if room <= 0:
                break
        return came

    def _receive_telling(self, size: int) -> tuple[bytes, Any]:
        """As `recvfrom`, with what the system tells of where it was sent beside the sender."""
        data, messages, _, peer = self.socket.recvmsg(size, self._control_space)
        return data, (peer, tuple(messages))

    def _names(self, sender: Any) -> tuple[Endpoint, Endpoint | None]:
        """The visitor that is a sender, and the address that it wrote to."""
        if self._tells_local:
            peer, messages = sender
            for message in messages:
                host = pktinfo.decode(*message)
                if host is not None:
                    return _visitor(peer), Endpoint(host, cast(int, self._realPortNumber))
            return _visitor(peer), None
        return _visitor(sender), self._local

    def send(
        self, batch: list[bytes], visitor: Endpoint, local: Endpoint | None
    ) -> Sequence[bytes]:
        """Send datagrams to a visitor.

        :param visitor: as :meth:`DatagramReceiver.datagrams` gave it.
        :param local: likewise: the address to send from; None leaves it to the system.
        :returns: those that were dropped: no room in the socket, no route, or not listening.
        """
        if not self.connected:
            return batch
        destination: Any = visitor
        if self.addressFamily == socket.AF_INET6:
            destination = _destination(visitor)
        source: tuple[Ancillary, ...] = ()
        if local is not None and self._tells_local:
            source = pktinfo.encode(local.host, self.addressFamily)
        return self._send(batch, destination, source)

    def _send(
        self, batch: list[bytes], destination: Any, source: tuple[Ancillary, ...]
    ) -> Sequence[bytes]:
        return [data for data in batch if not self._send_one(data, destination, source)]

    def _send_one(self, data: bytes, destination: Any, source: tuple[Ancillary, ...]) -> bool:
        if source:
            try:
                self.socket.sendmsg([data], source, 0, destination)
            except OSError as error:
                # A broadcast address can be written to and not sent from.
                if error.errno != errno.EINVAL:
                    return False
            else:
                return True
        try:
            self.socket.sendto(data, destination)
        except OSError:
            return False
        return True

    def _deliver_oversized(self, visitor: Endpoint | None) -> None:
        try:
            self._receiver.oversized(visitor)
        except Exception:
            self._log.failure("a datagram's receiver failed")


def listen_udp(
    reactor: IReactorFDSet,
    address: Address,
    receiver: DatagramReceiver,
    limit: int,
    bound: socket.socket | None = None,
) -> DatagramPort:
    """Open the socket that visitors write to, for this process alone.

    :param address: the host an IP address, or "" or "::" for every interface, IPv4 and IPv6, or
        "0.0.0.0" for every interface of IPv4. Port 0 takes a free one.
    :param limit: the largest datagram delivered, in bytes.
    :param bound: a socket that has the address already.
    :raises CannotListenError: the address is in use, not this host's, or not permitted.
    :raises twisted.internet.error.InvalidAddressError: the host is a name.
    """
    port = DatagramPort(reactor, address, receiver, limit, bound)
    port.startListening()
    return port


@lru_cache(_CACHED_VISITORS)
def _visitor(peer: tuple[Any, ...]) -> Endpoint:
    """A sender as the system names it."""
    if len(peer) == 2:
        return Endpoint(*peer)
    host, port, _, scope = peer
    return Endpoint(f"{host}%{scope}" if scope else unmapped(host), port)


@lru_cache(_CACHED_VISITORS)
def _destination(visitor: Endpoint) -> tuple[str, int, int, int]:
    """A visitor as a socket of IPv6 takes it."""
    host, _, scope = mapped(visitor.host).partition("%")
    return host, visitor.port, 0, int(scope or 0)


def enlarge_buffers(skt: socket.socket, size: int) -> None:
    """Ask for buffers of so many bytes."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        try:
            skt.setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:
            # BSD and macOS refuse more than their maximum instead of granting that.
            pass
