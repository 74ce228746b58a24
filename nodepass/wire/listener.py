"""The tunnel port of a server: who knocks, told by the first bytes, or by saying nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

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

from nodepass.address import endpoint_of
from nodepass.logs import Log
from nodepass.tls import tls_reason

from . import Peer
from .clienthello import HANDSHAKE, MAX_RECORD, RECORD_HEADER
from .lobby import Guest, Lobby
from .old.firstbytes import Knock, knock


class Acceptor:
    """What the listener asks of a wire's acceptor, and a server of it.

    Of several acceptors the first one that knows a connection has it.
    """

    @property
    def joined(self) -> Collection[Peer]:
        """The clients that have joined."""
        return ()

    def plain(self, guest: Guest, first: bytes) -> Protocol | None:
        """The protocol for a plain connection that began with these bytes, or None."""

    def encrypted(self, guest: Guest, alpn: bytes | None) -> Protocol | None:
        """The protocol for a TLS connection with this ALPN, or None."""

    @property
    def nameless(self) -> bool:
        """Whether TLS connections may be its own whose ALPN nobody knows."""
        return False

    def inside(self, guest: Guest, first: bytes, web: bool) -> Protocol | None:
        """The protocol for a `nameless` connection that began with these bytes, or None.

        :param web: it offered the names that browsers offer.
        """

    def patience(self, guest: Guest, encrypted: bool) -> float | None:
        """Seconds of silence after which a connection from there is taken for one that waits for
        this end to speak first; None: it never is."""

    def silent(self, guest: Guest, encrypted: bool) -> Protocol | None:
        """The protocol for a connection that has said nothing for that long, or None."""

    def guessed(self, host: str) -> None:
        """Somebody at this address has guessed at the key, here or at another worker."""

    def refuse(self) -> None:
        """Admit nobody any more."""

    def stop(self) -> None:
        """End the handshakes under way."""


class TunnelFactory(Factory):
    """Accepts connections to the tunnel port.

    :param context: what TLS connections are shown, asked for each.
    """

    noisy = False

    def __init__(
        self,
        lobby: Lobby,
        acceptors: Sequence[Acceptor],
        context: Callable[[], IOpenSSLServerConnectionCreator],
        log: Log,
    ) -> None:
        self.lobby = lobby
        self.acceptors = acceptors
        self.context = context
        self.log = log

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Knock(self)

    def refuse(self, guest: Guest, who: Knock) -> None:
        """Turn somebody away who speaks no dialect of this node."""
        self.log.limited(
            ("refused", who),
            "access denied to {address}: {what}, which this server does not admit{cure}",
            address=guest.address.host,
            what=who.what,
            cure=f"; {who.cure}" if who.cure else "",
        )
        guest.turn_away()

    def patience(self, guest: Guest, encrypted: bool) -> float | None:
        """The least of what the acceptors say."""
        each = [acceptor.patience(guest, encrypted) for acceptor in self.acceptors]
        return min((seconds for seconds in each if seconds is not None), default=None)

    def first(self, ask: Callable[[Acceptor], Protocol | None]) -> Protocol | None:
        """What the first acceptor answers that does not answer None."""
        for acceptor in self.acceptors:
            protocol = ask(acceptor)
            if protocol is not None:
                return protocol
        return None


class _Silence:
    """Waits for some seconds on a connection that may be waiting for this end to speak first.

    :param then: called when nothing has come.
    """

    def __init__(self, clock: IReactorTime, seconds: float, then: Callable[[], None]) -> None:
        self._clock = clock
        self._then = then
        self._timer: IDelayedCall | None = clock.callLater(seconds, self._look)

    def _look(self) -> None:
        # What came while this process was busy has not been read yet.
        self._timer = self._clock.callLater(0, self._over)

    def _over(self) -> None:
        self._timer = None
        self._then()

    def end(self) -> None:
        """Something has come, or will not."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class _Knock(Protocol):
    """A connection before its first bytes."""

    def __init__(self, owner: TunnelFactory) -> None:
        self._owner = owner
        self._guest: Guest | None = None
        self._hello = b""
        self._silence: _Silence | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        owner = self._owner
        guest = self._guest = owner.lobby.enter(transport, endpoint_of(transport.getPeer()))
        patience = owner.patience(guest, False)
        if patience is not None:
            self._silence = _Silence(owner.lobby.clock, patience, lambda: self._silent(guest))

    def _silent(self, guest: Guest) -> None:
        self._silence = None
        protocol = self._owner.first(lambda each: each.silent(guest, False))
        if protocol is not None:
            self._hand_over(protocol, b"")

    def dataReceived(self, data: bytes) -> None:
        guest = self._guest
        assert guest is not None
        if self._silence is not None:
            self._silence.end()
        owner = self._owner
        data = self._hello + data
        if data[0] != HANDSHAKE:
            protocol = owner.first(lambda each: each.plain(guest, data))
            if protocol is not None:
                self._hand_over(protocol, data)
                return
        elif int.from_bytes(data[3:RECORD_HEADER], "big") > MAX_RECORD:
            owner.refuse(guest, Knock.STRANGER)
            return
        who = knock(data)
        self._hello = data if who is None else b""
        if who is None:
            return
        nameless = any(acceptor.nameless for acceptor in owner.acceptors)
        if data[0] != HANDSHAKE or who is Knock.HTTP2 or (who is Knock.TLS and not nameless):
            owner.refuse(guest, who)
        else:
            guest.begin_tls(lambda: self._hand_over(self._tls(guest, who), data))

    def _tls(self, guest: Guest, who: Knock) -> Protocol:
        owner, transport = self._owner, self.transport
        inner = Factory.forProtocol(lambda: _EncryptedKnock(owner, guest, who))
        inner.noisy = False
        factory = TLSMemoryBIOFactory(owner.context(), False, inner, owner.lobby.clock)
        protocol: Protocol = factory.buildProtocol(cast(Any, transport).getPeer())
        return protocol

    def _hand_over(self, protocol: Protocol, data: bytes) -> None:
        """Let somebody else go on with this connection."""
        transport: Any = self.transport
        transport.protocol = protocol
        protocol.makeConnection(transport)
        if data:
            protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence is not None:
            self._silence.end()
        if self._guest is not None:
            self._guest.admit()


@implementer(IHandshakeListener)
class _EncryptedKnock(Protocol):
    """A TLS connection before its handshake is complete, and where its ALPN says nothing, before
    its first bytes."""

    def __init__(self, owner: TunnelFactory, guest: Guest, who: Knock) -> None:
        self._owner = owner
        self._guest = guest
        self._who = who
        self._first = b""
        self._refused = False
        self._silence: _Silence | None = None

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        assert isinstance(transport, TLSMemoryBIOProtocol)
        owner, guest = self._owner, self._guest
        alpn = transport.negotiatedProtocol
        protocol = owner.first(lambda each: each.encrypted(guest, alpn))
        if protocol is not None:
            self._hand_over(protocol)
            return
        if alpn is not None or not any(acceptor.nameless for acceptor in owner.acceptors):
            self._refuse(self._who)
            return
        patience = owner.patience(guest, True)
        if patience is not None:
            self._silence = _Silence(owner.lobby.clock, patience, self._silent)

    def _silent(self) -> None:
        self._silence = None
        protocol = self._owner.first(lambda each: each.silent(self._guest, True))
        if protocol is not None:
            self._hand_over(protocol)

    def dataReceived(self, data: bytes) -> None:
        if self._silence is not None:
            self._silence.end()
        if self._refused:
            return
        owner, guest = self._owner, self._guest
        data = self._first = self._first + data
        web = self._who is Knock.HTTPS
        protocol = owner.first(lambda each: each.inside(guest, data, web))
        if protocol is not None:
            self._hand_over(protocol)
            protocol.dataReceived(data)
            return
        who = knock(data)
        if who is not None:
            self._refuse(self._who if who is Knock.HANDSHAKE else who)

    def _refuse(self, who: Knock) -> None:
        self._refused = True  # what it has said already may still come
        self._owner.refuse(self._guest, who)

    def _hand_over(self, protocol: Protocol) -> None:
        transport: Any = self.transport
        transport.wrappedProtocol = protocol
        protocol.makeConnection(transport)
        if IHandshakeListener.providedBy(protocol):
            protocol.handshakeCompleted()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence is not None:
            self._silence.end()
        self._guest.admit()
        if reason.check(ConnectionClosed) is None:
            self._owner.log.limited(
                ("tls", self._guest.address.host),
                "access denied to {address}: TLS handshake failed: {reason}",
                address=self._guest.address.host,
                reason=tls_reason(reason),
            )
