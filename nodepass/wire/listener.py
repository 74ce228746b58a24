"""The tunnel port of a server: who knocks, told by the first bytes, or by saying nothing.

Connections that have not proved anything yet are few, small and short-lived: the lobby holds so
many of them at most, each for the handshake's time. A TLS object is made only when a whole
ClientHello is there and one of a smaller number of places is free, so that all of them together
take less than 32 kB times the size of the lobby.
"""

from __future__ import annotations

from collections import OrderedDict
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

from nodepass.address import Endpoint, endpoint_of
from nodepass.logs import Log
from nodepass.tls import tls_reason

from . import Peer
from .clienthello import HANDSHAKE
from .old.firstbytes import Knock, knock

#: Unproven connections held at once; the oldest goes when one more comes.
LOBBY_SIZE = 512
#: Of these, TLS handshakes under way at once. One takes 50 to 80 kB (OpenSSL's buffers for a
#: handshake, Python's objects around them) and the others 13 kB, so that the lobby has its 16 MB.
TLS_PLACES = 96
#: Seconds that a TLS handshake keeps its place while others wait for one: several round trips of a
#: slow line. Who takes longer makes room.
TLS_PLACE_TIME = 2.0
#: Seconds of silence after which a connection is taken for one on which this end speaks first. Who
#: speaks first himself does so at once; a round trip is over when a connection is accepted.
SILENCE = 0.03
#: Largest first TLS record, bytes: what RFC 8446 5.1 allows. A ClientHello takes 200 to 2,000.
MAX_HELLO_RECORD = 16384

_RECORD_HEADER = 5


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
        self._leave()
        self._lobby.tls_over(self)

    def begin_tls(self, begin: Callable[[], None]) -> None:
        """It sent a whole ClientHello: read no more of it until it has a place for TLS.

        :param begin: called when it has one; never when it is gone by then.
        """
        self._transport.pauseProducing()

        def go_on() -> None:
            begin()
            self._transport.resumeProducing()

        self._lobby.queue(self, go_on)

    def turn_away(self) -> None:
        """Drop the connection. A place for TLS is free when it is gone, not before."""
        self._leave()
        self._transport.abortConnection()

    def _leave(self) -> None:
        if self._lobby.remove(self) and self._timer.active():
            self._timer.cancel()


class Lobby:
    """All unproven connections of a listener.

    :param parts: worker processes that share the bounds, each with a lobby of its own.
    """

    def __init__(self, clock: IReactorTime, log: Log, timeout: float, parts: int = 1) -> None:
        self.clock = clock
        self._log = log
        self._timeout = timeout
        self._size = max(1, LOBBY_SIZE // parts)
        self._places = max(1, TLS_PLACES // parts)
        self._guests: OrderedDict[Guest, None] = OrderedDict()
        # Those with a place for TLS, by the time they got it, and those who wait for one.
        self._in_tls: OrderedDict[Guest, float] = OrderedDict()
        self._waiting: OrderedDict[Guest, Callable[[], None]] = OrderedDict()
        self._overdue: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, transport: Any, address: Endpoint) -> Guest:
        """A connection was accepted."""
        timer = self.clock.callLater(self._timeout, lambda: self._timed_out(guest))
        guest = Guest(self, transport, address, timer)
        self._guests[guest] = None
        if len(self._guests) > self._size:
            oldest = next(iter(self._guests))
            self._log.limited(
                "lobby is full",
                "access denied: more than {limit} connections that prove nothing, the latest "
                "from {address}; the oldest are dropped",
                limit=self._size,
                address=address.host,
            )
            oldest.turn_away()
        return guest

    def remove(self, guest: Guest) -> bool:
        """Forget a connection; whether it was there."""
        if guest not in self._guests:
            return False
        del self._guests[guest]
        if self._waiting.pop(guest, None) is not None:
            self._seat()
        return True

    def queue(self, guest: Guest, begin: Callable[[], None]) -> None:
        """Call ``begin`` when there is a place for one more TLS handshake."""
        self._waiting[guest] = begin
        self._seat()

    def tls_over(self, guest: Guest) -> None:
        """A guest has proved itself or is gone: its place, if it had one, is free."""
        if self._in_tls.pop(guest, None) is not None:
            self._seat()

    def _seat(self) -> None:
        """Give free places to those who wait, and see that places become free."""
        while self._waiting and len(self._in_tls) < self._places:
            guest, begin = self._waiting.popitem(last=False)
            self._in_tls[guest] = self.clock.seconds()
            begin()
        if self._waiting and self._overdue is None:
            since = next(iter(self._in_tls.values()))
            wait = max(0.0, since + TLS_PLACE_TIME - self.clock.seconds())
            self._overdue = self.clock.callLater(wait, self._make_room)
        elif not self._waiting and self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _make_room(self) -> None:
        self._overdue = None
        limit = self.clock.seconds() - TLS_PLACE_TIME
        late = [guest for guest, since in self._in_tls.items() if since <= limit]
        for guest in late[: len(self._waiting)]:
            self._too_slow(guest, TLS_PLACE_TIME)

    def clear(self) -> None:
        """Drop all of them."""
        for guest in [*self._waiting, *self._guests]:
            guest.turn_away()

    def _timed_out(self, guest: Guest) -> None:
        self._too_slow(guest, self._timeout)

    def _too_slow(self, guest: Guest, timeout: float) -> None:
        self._log.limited(
            ("handshake timed out", guest.address.host),
            "access denied to {address}: handshake timed out after {timeout:g} s",
            address=guest.address.host,
            timeout=timeout,
        )
        guest.turn_away()


class Dialect:
    """What the listener asks of a wire's acceptor, and a server of it.

    Of several dialects the first one that knows a connection has it.
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

    def waits(self, guest: Guest, encrypted: bool) -> bool:
        """Whether a connection from there may be waiting for this end to speak first."""
        return False

    def silent(self, guest: Guest, encrypted: bool) -> Protocol | None:
        """The protocol for a connection that `waits`, and has said nothing for `SILENCE`, or
        None."""

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
        dialects: Sequence[Dialect],
        context: Callable[[], IOpenSSLServerConnectionCreator],
        log: Log,
    ) -> None:
        self.lobby = lobby
        self.dialects = dialects
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

    def first(self, ask: Callable[[Dialect], Protocol | None]) -> Protocol | None:
        """What the first dialect answers that does not answer None."""
        for dialect in self.dialects:
            protocol = ask(dialect)
            if protocol is not None:
                return protocol
        return None


class _Silence:
    """Waits for `SILENCE` on a connection that may be waiting for this end to speak first.

    :param then: called when nothing has come.
    """

    def __init__(self, clock: IReactorTime, then: Callable[[], None]) -> None:
        self._clock = clock
        self._then = then
        self._timer: IDelayedCall | None = clock.callLater(SILENCE, self._look)

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
        if any(dialect.waits(guest, False) for dialect in owner.dialects):
            self._silence = _Silence(owner.lobby.clock, lambda: self._silent(guest))

    def _silent(self, guest: Guest) -> None:
        self._silence = None
        protocol = self._owner.first(lambda dialect: dialect.silent(guest, False))
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
        elif int.from_bytes(data[3:_RECORD_HEADER], "big") > MAX_HELLO_RECORD:
            owner.refuse(guest, Knock.STRANGER)
            return
        who = knock(data)
        self._hello = data if who is None else b""
        if who is None:
            return
        nameless = any(dialect.nameless for dialect in owner.dialects)
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
        self._silence: _Silence | None = None

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        assert isinstance(transport, TLSMemoryBIOProtocol)
        owner, guest = self._owner, self._guest
        alpn = transport.negotiatedProtocol
        protocol = owner.first(lambda dialect: dialect.encrypted(guest, alpn))
        if protocol is not None:
            self._hand_over(protocol)
        elif alpn is not None or not any(dialect.nameless for dialect in owner.dialects):
            owner.refuse(guest, self._who)
        elif any(dialect.waits(guest, True) for dialect in owner.dialects):
            self._silence = _Silence(owner.lobby.clock, self._silent)

    def _silent(self) -> None:
        self._silence = None
        protocol = self._owner.first(lambda dialect: dialect.silent(self._guest, True))
        if protocol is not None:
            self._hand_over(protocol)

    def dataReceived(self, data: bytes) -> None:
        if self._silence is not None:
            self._silence.end()
        owner, guest = self._owner, self._guest
        data = self._first = self._first + data
        web = self._who is Knock.HTTPS
        protocol = owner.first(lambda dialect: dialect.inside(guest, data, web))
        if protocol is not None:
            self._hand_over(protocol)
            protocol.dataReceived(data)
            return
        who = knock(data)
        if who is not None:
            owner.refuse(guest, self._who if who is Knock.HANDSHAKE else who)

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
