"""The fast relay: sessions on the engine's own sockets, all else as the portable one has it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from nodepass.address import Address, Endpoint
from nodepass.logs import Log
from nodepass.resolver import LOCALHOST, CachingResolver

from ..binding import BACKLOG, literal
from ..dialed import Header, dialed
from ..hangup import HangupWatch
from ..portable import Accepted, PortableRelay
from ..stream import Stream
from ..udp import DatagramPort, DatagramReceiver
from ..udptarget import TargetReceiver, TargetSocket
from .dialer import Dialer
from .poller import Poller
from .port import EnginePort
from .sockets import Interim, detach, listening, release
from .stream import EngineStream
from .transport import EngineTransport
from .udp import connect_udp, listen_udp

try:
    # This alone may be missing; a fault in what is built on it is to be seen.
    from . import openssl as _openssl  # noqa: F401
except (ImportError, AttributeError):
    DIRECT_TLS = False
else:
    from .tls import EngineTLSTransport

    DIRECT_TLS = True

__all__ = ["EngineRelay"]


class EngineRelay(PortableRelay):
    """A `Relay` that has its own sockets for visitors, targets and data links.

    Handshakes are the reactor's.
    """

    def __init__(
        self, reactor: Any, resolver: CachingResolver, watch: HangupWatch, log: Log
    ) -> None:
        self._poller = Poller.of(reactor)
        self._dialer = Dialer(reactor, self._poller)
        super().__init__(reactor, resolver, watch, log, attempt=self._attempt_one)

    def listen_tcp(self, address: Address, accepted: Accepted) -> IListeningPort:
        return self.accept_on(listening(literal(address), BACKLOG), accepted)

    def accept_on(self, sock: socket.socket, accepted: Accepted) -> IListeningPort:
        port = EnginePort(self._reactor, self._poller, self._log, sock, accepted)
        port.startListening()
        return port

    def _attempt_one(
        self, host: str, port: int, factory: object, timeout: float
    ) -> Deferred[EngineStream]:
        return self._dialer.connect(host, port, timeout)

    def dial_tcp(self, targets: Sequence[Address], timeout: float, header: Header | None) -> Stream:
        """Nearly always a target has one address that is known, or is this host, and is reached:
        nothing needs to be looked up or run beside it; on this host, nor waited for."""
        target = targets[0]
        hosts = target.dial_hosts()
        known = self._resolver.known(hosts[0])
        alone = len(hosts) == 1 and len(known) == 1
        if not (alone or known[:1] == LOCALHOST[:1]):
            return super().dial_tcp(targets, timeout, header)
        outcome = self._dialer.dial(known[0], target.port, timeout)
        if isinstance(outcome, EngineStream):
            if header is not None:
                outcome.write(header(Endpoint(known[0], target.port)))
            return outcome
        # What comes next has the time of a dial of its own.
        rest = targets[1:] if alone else targets
        connecting: Deferred[Any] = outcome
        connecting.addErrback(self._go_on, target if alone else None, rest, timeout)
        return dialed(connecting, header)

    def _go_on(
        self, failure: Failure, failed: Address | None, rest: Sequence[Address], timeout: float
    ) -> Any:
        if failure.check(CancelledError) is not None:
            return failure
        if failed is not None:
            self._not_reached(failed, failure)
        return self._connect(rest, timeout) if rest else failure

    def listen_udp(self, address: Address, receiver: DatagramReceiver, limit: int) -> DatagramPort:
        return listen_udp(self._reactor, self._poller, address, receiver, limit)

    def receive_on(
        self, sock: socket.socket, receiver: DatagramReceiver, limit: int
    ) -> DatagramPort:
        address = Address(*sock.getsockname()[:2])
        return listen_udp(self._reactor, self._poller, address, receiver, limit, sock)

    def connect_udp(self, target: Endpoint, receiver: TargetReceiver, limit: int) -> TargetSocket:
        return connect_udp(self._reactor, self._poller, target.host, target.port, receiver, limit)

    def soon(self, call: Callable[[], None]) -> None:
        self._poller.soon(call)

    def take_over(self, transport: Any, protocol: Any, ready: Callable[[], None]) -> None:
        if not isinstance(transport, TLSMemoryBIOProtocol):
            sock, left = detach(transport)
            EngineTransport(self._poller, sock, left=left).begin(protocol)
            ready()
        elif not DIRECT_TLS:
            # See `openssl`. Not said at the start: a tunnel may have no such link.
            self._log.once(
                "direct TLS",
                "data links with TLS cost more time: this pyOpenSSL lacks what the fast way needs",
            )
            super().take_over(transport, protocol, ready)
        else:
            interim = Interim()
            transport.wrappedProtocol = interim
            # For its end, should that come first.
            protocol.transport = transport
            raw: Any = transport.transport
            raw.pauseProducing()
            # Not at once: Twisted's TLS is about to look for more of what it has read.
            self._poller.soon(lambda: self._take_tls(transport, interim, protocol, ready))

    def _take_tls(
        self, wrapper: Any, interim: Interim, protocol: Any, ready: Callable[[], None]
    ) -> None:
        if interim.lost is not None:
            protocol.connectionLost(interim.lost)
            return
        raw = wrapper.transport
        if wrapper.disconnecting or raw.disconnecting:
            # One end has closed it: Twisted sees to that, and tells the protocol.
            wrapper.wrappedProtocol = protocol
            raw.resumeProducing()
            return
        tls = release(wrapper)
        sock, left = detach(raw)
        EngineTLSTransport(self._poller, sock, tls, left=left).begin(protocol)
        ready()
        if interim.received:
            protocol.dataReceived(interim.received)
