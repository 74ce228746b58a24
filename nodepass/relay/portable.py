"""The relay on Twisted's transports: runs wherever Twisted does.

What a role needs of a relay is in `Relay`; another implementation of it can take this one's place.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast
from typing import Protocol as Interface

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from nodepass.address import Address, Endpoint, endpoint_of
from nodepass.connection import connect
from nodepass.logs import Log
from nodepass.racing import Attempt, connect_tcp, dial_cause
from nodepass.resolver import CachingResolver

from .binding import BACKLOG, every_interface, literal
from .dialed import Connected, Header, dialed
from .hangup import HangupWatch
from .pacing import send_freely_on, stays_here
from .stream import Channel, Stream
from .targetchannel import Held, TargetChannel
from .tcp import TcpStream
from .udp import DatagramPort, DatagramReceiver, listen_udp
from .udptarget import TargetReceiver, TargetSocket, connect_udp

#: Told of each visitor: its stream, its address, and the address that it had connected to.
Accepted = Callable[[Stream, Endpoint, Endpoint], None]
#: As `Relay.soon`.
Soon = Callable[[Callable[[], None]], None]
#: As `Relay.take_over`.
TakeOver = Callable[[Any, Any, Callable[[], None]], None]


class Relay(Interface):
    """What a role needs of the sockets beneath it."""

    # Names are for the caller to look up: whoever listens again and again must not wait for one.

    def listen_tcp(self, address: Address, accepted: Accepted) -> IListeningPort:
        """Accept visitors on an IP address or every interface; raises CannotListenError."""

    def accept_on(self, sock: socket.socket, accepted: Accepted) -> IListeningPort:
        """Accept visitors on a socket that listens already, which becomes the relay's."""

    def dial_tcp(self, targets: Sequence[Address], timeout: float, header: Header | None) -> Stream:
        """A stream to the first of the targets that answers, at once, while they are dialed.

        :param timeout: seconds, for each target. The stream is closed with the last one's cause
            when none of them answered.
        :param header: makes the first bytes to the target, such as a PROXY line, from its address.
        """

    def listen_udp(self, address: Address, receiver: DatagramReceiver, limit: int) -> DatagramPort:
        """Receive visitors' datagrams likewise; raises CannotListenError.

        :param limit: bytes of a datagram; longer ones are told of and dropped.
        """

    def receive_on(
        self, sock: socket.socket, receiver: DatagramReceiver, limit: int
    ) -> DatagramPort:
        """Receive visitors' datagrams on a socket that is bound already, as `accept_on` does."""

    def take_over(self, transport: Any, protocol: Any, ready: Callable[[], None]) -> None:
        """Let a protocol go on with a connection that the reactor made, with TLS or without.

        :param ready: called when it has it; never when the connection was lost before.
        """

    def dial_udp(
        self, target: Address, timeout: float, limit: int, oversized: Callable[[], None]
    ) -> Channel:
        """A channel to a target.

        :param timeout: seconds for its name to be found; else the channel is closed.
        :param limit: bytes of a datagram; `oversized` is called for each that is longer.
        """

    def soon(self, call: Callable[[], None]) -> None:
        """Call something when all that has come by now has been passed on."""


class PortableRelay:
    """A `Relay` on the reactor's own transports.

    :param attempt: connects to one IP address; by the reactor unless given.
    """

    def __init__(
        self,
        reactor: Any,
        resolver: CachingResolver,
        watch: HangupWatch,
        log: Log,
        *,
        attempt: Attempt | None = None,
    ) -> None:
        self._attempt = attempt or partial(connect, reactor, resets=True)
        self._reactor = reactor
        self._resolver = resolver
        self._watch = watch
        self._log = log
        self._held = Held()

    def listen_tcp(self, address: Address, accepted: Accepted) -> IListeningPort:
        factory = _VisitorFactory(self._watch, accepted)
        return listen_tcp(self._reactor, address, factory)

    def accept_on(self, sock: socket.socket, accepted: Accepted) -> IListeningPort:
        factory = _VisitorFactory(self._watch, accepted)
        with sock:
            port = self._reactor.adoptStreamPort(sock.fileno(), sock.family, factory)
        return cast(IListeningPort, port)

    def dial_tcp(self, targets: Sequence[Address], timeout: float, header: Header | None) -> Stream:
        return dialed(self._connect(targets, timeout), header)

    def _connect(self, targets: Sequence[Address], timeout: float) -> Deferred[Connected]:
        return Deferred.fromCoroutine(self._dial(targets, timeout))

    async def _dial(self, targets: Sequence[Address], timeout: float) -> Connected:
        factory = Factory.forProtocol(lambda: TcpStream(self._watch))
        factory.noisy = False
        for number, target in enumerate(targets, 1):
            try:
                stream = await connect_tcp(
                    self._reactor,
                    self._resolver,
                    target.dial_hosts(),
                    target.port,
                    factory,
                    timeout,
                    self._attempt,
                )
                return cast(Connected, stream)
            except CancelledError:
                raise
            except Exception as error:
                self._not_reached(target, Failure(error))
                if number == len(targets):
                    raise
        raise AssertionError("there is at least one target")

    def _not_reached(self, target: Address, failure: Failure) -> None:
        self._log.limited(
            ("dial", target, failure.type),
            "target {target}: {cause}",
            target=target,
            cause=dial_cause(failure),
        )

    def take_over(self, transport: Any, protocol: Any, ready: Callable[[], None]) -> None:
        take_over(transport, protocol, ready)

    def listen_udp(self, address: Address, receiver: DatagramReceiver, limit: int) -> DatagramPort:
        return listen_udp(self._reactor, address, receiver, limit)

    def receive_on(
        self, sock: socket.socket, receiver: DatagramReceiver, limit: int
    ) -> DatagramPort:
        address = Address(*sock.getsockname()[:2])
        return listen_udp(self._reactor, address, receiver, limit, sock)

    def soon(self, call: Callable[[], None]) -> None:
        self._reactor.callLater(0, call)

    def connect_udp(self, target: Endpoint, receiver: TargetReceiver, limit: int) -> TargetSocket:
        """A socket for one flow; raises OSError."""
        return connect_udp(self._reactor, target.host, target.port, receiver, limit)

    def dial_udp(
        self, target: Address, timeout: float, limit: int, oversized: Callable[[], None]
    ) -> Channel:
        return TargetChannel(
            self._reactor,
            self._resolver,
            self.connect_udp,
            target,
            timeout,
            limit,
            oversized,
            self._log,
            self._held,
        )


def take_over(transport: Any, protocol: Any, ready: Callable[[], None]) -> None:
    """Let a protocol go on with a transport of the reactor's, or with Twisted's TLS on one."""
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol
    protocol.makeConnection(transport)
    ready()


def end_writing(transport: Any) -> None:
    """Send the end behind all that was written, and read on until the other end's has come.

    :param transport: the engine's or the reactor's, or Twisted's TLS on one of these.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport.loseConnection()  # which is just that
    else:
        transport.loseWriteConnection()


def has_ended(transport: Any) -> bool:
    """Whether the end that `end_writing` sends is with the system, so that `loseConnection` closes
    the connection at once, and nothing is taken back. Twisted's TLS would wait for the other end's.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        return False
    ended = getattr(transport, "has_ended", None)
    if ended is None:  # one of the reactor's, of which nothing public says so
        ended = getattr(transport, "_writeDisconnected", False)
    return bool(ended)


def socket_beneath(transport: Any) -> Any:
    """What stands for the socket of a connection, also of one with Twisted's TLS on it."""
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    return transport.getHandle()


def listen_tcp(reactor: Any, address: Address, factory: Factory) -> IListeningPort:
    """Listen on an address, every interface of both families where the host is empty.

    :raises CannotListenError: it can't be bound, or its name has no address.
    """
    host = literal(address).host or every_interface()
    port = reactor.listenTCP(address.port, factory, backlog=BACKLOG, interface=host)
    if stays_here(host):
        send_freely_on(port)  # those accepted on it have it from there
    return cast(IListeningPort, port)


class _VisitorFactory(Factory):
    noisy = False

    def __init__(self, watch: HangupWatch, accepted: Accepted) -> None:
        self._watch = watch
        self._accepted = accepted

    def buildProtocol(self, addr: IAddress | None) -> TcpStream:
        return _VisitorStream(self._watch, self._accepted)


class _VisitorStream(TcpStream):
    """A visitor's connection: told of as soon as it is there."""

    def __init__(self, watch: HangupWatch, accepted: Accepted) -> None:
        super().__init__(watch)
        self._accepted = accepted

    def connectionMade(self) -> None:
        super().connectionMade()
        transport: Any = self.transport
        self._accepted(self, endpoint_of(transport.getPeer()), endpoint_of(transport.getHost()))
