"""The tunnel port of a server: who knocks, told by the first bytes.

Connections that have not proved anything yet are few, small and short-lived: the lobby holds so
many of them at most, each for the handshake's time, and no TLS object is made before the first byte
asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from typing import Protocol as Interface

from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLServerConnectionCreator,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.address import Endpoint, endpoint_of
from nodepass.logs import Log
from nodepass.tls import tls_reason

#: Unproven connections held at once; the oldest goes when one more comes.
LOBBY_SIZE = 512

_TLS_HANDSHAKE = 0x16


class Guest:
    """A connection in the lobby.

    :ivar address: where it comes from.
    """

    __slots__ = ("_lobby", "_timer", "_transport", "address")

    def __init__(
        self, lobby: Lobby, transport: Any, address: Endpoint, timer: IDelayedCall
    ) -> None:
        self.address = address
        self._lobby = lobby
        self._transport = transport
        self._timer = timer

    def admit(self) -> None:
        """It has proved itself, or is gone: it no longer counts."""
        if self._lobby.remove(self) and self._timer.active():
            self._timer.cancel()

    def turn_away(self) -> None:
        """Drop the connection."""
        self.admit()
        self._transport.abortConnection()


class Lobby:
    """All unproven connections of a listener."""

    def __init__(self, clock: IReactorTime, log: Log, timeout: float) -> None:
        self.clock = clock
        self._log = log
        self._timeout = timeout
        self._guests: OrderedDict[Guest, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, transport: Any, address: Endpoint) -> Guest:
        """A connection was accepted."""
        timer = self.clock.callLater(self._timeout, lambda: self._timed_out(guest))
        guest = Guest(self, transport, address, timer)
        self._guests[guest] = None
        if len(self._guests) > LOBBY_SIZE:
            oldest = next(iter(self._guests))
            self._log.limited(
                "lobby is full",
                "access denied: more than {limit} connections that prove nothing, the latest "
                "from {address}; the oldest are dropped",
                limit=LOBBY_SIZE,
                address=address.host,
            )
            oldest.turn_away()
        return guest

    def remove(self, guest: Guest) -> bool:
        """Forget a connection; whether it was there."""
        if guest in self._guests:
            del self._guests[guest]
            return True
        return False

    def clear(self) -> None:
        """Drop all of them."""
        for guest in list(self._guests):
            guest.turn_away()

    def _timed_out(self, guest: Guest) -> None:
        self._log.limited(
            ("handshake timed out", guest.address.host),
            "access denied to {address}: handshake timed out after {timeout:g} s",
            address=guest.address.host,
            timeout=self._timeout,
        )
        guest.turn_away()


class Dialect(Interface):
    """What the listener asks of a wire's acceptor."""

    def plain(self, guest: Guest, first: bytes) -> Protocol | None:
        """The protocol for a plain connection that began with these bytes, or None."""

    def encrypted(self, guest: Guest, alpn: bytes | None) -> Protocol | None:
        """The protocol for a TLS connection with this ALPN, or None."""


class TunnelFactory(Factory):
    """Accepts connections to the tunnel port.

    :param context: what TLS connections are shown, asked for each.
    """

    noisy = False

    def __init__(
        self,
        lobby: Lobby,
        dialect: Dialect,
        context: Callable[[], IOpenSSLServerConnectionCreator],
        log: Log,
    ) -> None:
        self.lobby = lobby
        self.dialect = dialect
        self.context = context
        self.log = log

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Knock(self)

    def refuse(self, guest: Guest, what: str) -> None:
        """Turn somebody away who speaks no dialect of this node."""
        self.log.limited(
            ("refused", what, guest.address.host),
            "access denied to {address}: it sent {what}, which is not the native wire; "
            "nodes that speak it connect with wire=native",
            address=guest.address.host,
            what=what,
        )
        guest.turn_away()


class _Knock(Protocol):
    """A connection before its first bytes."""

    def __init__(self, owner: TunnelFactory) -> None:
        self._owner = owner
        self._guest: Guest | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._guest = self._owner.lobby.enter(transport, endpoint_of(transport.getPeer()))

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        guest = self._guest
        assert guest is not None
        protocol: Protocol | None
        if data[0] == _TLS_HANDSHAKE:
            inner = Factory.forProtocol(lambda: _EncryptedKnock(self._owner, guest))
            inner.noisy = False
            factory = TLSMemoryBIOFactory(
                self._owner.context(), False, inner, self._owner.lobby.clock
            )
            protocol = factory.buildProtocol(transport.getPeer())
        else:
            protocol = self._owner.dialect.plain(guest, data)
        if protocol is None:
            self._owner.refuse(guest, _what_is(data))
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._guest is not None:
            self._guest.admit()


@implementer(IHandshakeListener)
class _EncryptedKnock(Protocol):
    """A TLS connection before its handshake is complete."""

    def __init__(self, owner: TunnelFactory, guest: Guest) -> None:
        self._owner = owner
        self._guest = guest

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        assert isinstance(transport, TLSMemoryBIOProtocol)
        alpn = transport.negotiatedProtocol
        protocol = self._owner.dialect.encrypted(self._guest, alpn)
        if protocol is None:
            self._owner.refuse(self._guest, "TLS without ALPN of the native wire")
            return
        transport.wrappedProtocol = protocol
        protocol.makeConnection(transport)
        if IHandshakeListener.providedBy(protocol):
            protocol.handshakeCompleted()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._guest.admit()
        if reason.check(ConnectionClosed) is None:
            self._owner.log.limited(
                ("tls", self._guest.address.host),
                "access denied to {address}: TLS handshake failed: {reason}",
                address=self._guest.address.host,
                reason=tls_reason(reason),
            )


def _what_is(first: bytes) -> str:
    """A name for what somebody sent, for the log."""
    method = first.partition(b" ")[0]
    if method in (b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT"):
        return "an HTTP request (NodePass 1.14 begins like that)"
    if first.rstrip(b"\n") == b"\0" * len(first.rstrip(b"\n")):
        return "a handshake of NodePass 1.6"
    return "unknown bytes"
