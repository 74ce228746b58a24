"""The client's side of the old dialects: is let in by a server, and makes links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from nodepass.address import Address, is_literal
from nodepass.config import ClientConfig
from nodepass.errors import PeerError
from nodepass.parameters import TLSLevel
from nodepass.relay.portable import take_over
from nodepass.relay.stream import Cause
from nodepass.tls import ClientTLS
from nodepass.wire import Host
from nodepass.wire.linkmaker import MAX_IDLE, LinkTerms, most_links
from nodepass.wire.search import Pauses
from nodepass.wire.surroundings import Surroundings

from .cipher import key_for
from .comeback import Comeback
from .dialect import JOIN_TIMEOUT, Dialect
from .handshake import (
    GRANTED,
    UNAUTHORIZED,
    Grant,
    GrantReader,
    HandshakeError,
    HTTPClientHandshake,
    hello_line,
)
from .linkmaker import OldLinkMaker
from .peer import OldPeer, old_settings

__all__ = ["OldConnector"]

#: Seconds that a link waits for its number, as long as in old nodes: their server does one
#: handshake after the other.
ID_TIMEOUT = 60.0
#: Tries to make a link that fail before it is worth a word: an old server's port is closed for
#: a moment after each handshake, and while it starts anew.
PATIENCE = 4
#: Seconds for which a server of 1.14 or 2.0 is of no use after a grant that came to nothing: it
#: waits for the first link, at most 10 s, and then rests. Who asks before that gets no answer, and
#: would say that instead of what was wrong.
UNUSED_GRANT = 15.0
#: The `type` of a pool of WebSockets.
WEBSOCKET = 2
#: The port at which clients of 1.14 expect a web server with TLS.
HTTPS = 443

_UNSPOKEN = {1: "QUIC", 3: "HTTP/2"}

#: Connects to the first of some hosts that answers.
Dial = Callable[[Sequence[str], int, IProtocolFactory], Deferred[IProtocol]]


class OldConnector:
    """A client's way to a server by one old dialect.

    :param name: the dialect's.
    :param host: told of the server.
    :param tls: what asks a server's certificate for as much as a level says.
    :ivar peer: the server; None before the first join.
    :cvar trusted: what an old dialect proves is no proof.
    """

    trusted = False

    def __init__(
        self,
        name: str,
        config: ClientConfig,
        around: Surroundings,
        host: Host,
        dial: Dial,
        tls: Callable[[TLSLevel], ClientTLS],
    ) -> None:
        self._dialect = Dialect(name)
        self.peer: OldPeer | None = None
        self._settings = old_settings(around, host, key_for(config.key_for_old, config.tunnel.port))
        self._server = config.tunnel
        self._level = config.tls  # the least that is accepted
        self._minimum = config.old_min
        self._health = around.health
        self._reactor = around.reactor
        self._tuning = around.tuning
        self._dial = dial
        self._tls = tls
        self._maker: OldLinkMaker | None = None
        self._pauses = Pauses(around.tuning.service_cooldown)
        self._comeback = Comeback(around.tuning.service_cooldown)

    # Way

    @property
    def dialect(self) -> str:
        return self._dialect.value

    @property
    def joined(self) -> bool:
        return self.peer is not None and self.peer.joined

    def failed(self, error: Exception) -> float:
        status = error.status if isinstance(error, HandshakeError) else 0
        hopeless = status in (GRANTED, UNAUTHORIZED)
        pause = self._pauses.after(hopeless)
        if not hopeless:
            return self._comeback.failed(self._reactor.seconds(), error)
        waits = status == GRANTED and self._dialect.traits.http
        return max(pause, UNUSED_GRANT) if waits else pause

    def lost(self) -> float:
        return self._comeback.lost()

    def stop(self) -> None:
        if self._maker is not None:
            self._maker.stop()

    async def join(self) -> None:
        asking = await self._ask()
        grant = asking.grant
        assert grant is not None
        self._check(grant)
        peer = self._new_peer(grant, asking)
        timer = self._reactor.callLater(JOIN_TIMEOUT, self._too_late, peer)
        try:
            await peer.ready
        except BaseException:
            peer.close(Cause.LOST, "it was not joined")
            raise
        finally:
            if timer.active():
                timer.cancel()
        self._pauses.worked()
        self._comeback.worked()

    def _too_late(self, peer: OldPeer) -> None:
        if not peer.controlled:
            peer.close(Cause.LOST, "it gave no control link")

    async def _ask(self) -> _Asking:
        """Shake hands."""
        traits = self._dialect.traits
        factory: Any = Factory.forProtocol(
            lambda: _Asking(self._dialect, self._settings.key, self._host())
        )
        factory.noisy = False
        creator = None
        if traits.handshake_tls:
            creator = self._tls(self._level or TLSLevel.PLAIN).creator([])
        elif traits.http and self._server.port == HTTPS:
            creator = self._tls(TLSLevel.FILES).creator([b"http/1.1"])
        if creator is not None:
            factory = TLSMemoryBIOFactory(creator, True, factory, self._reactor)
        protocol: Any = await self._dial(self._server.dial_hosts(), self._server.port, factory)
        asking: _Asking = protocol if creator is None else protocol.wrappedProtocol
        asking.timer = self._reactor.callLater(self._tuning.handshake_timeout, asking.time_out)
        await asking.answered
        return asking

    def _host(self) -> str | None:
        host = self._server.host
        return None if self._server.wildcard or is_literal(host) else host

    def _check(self, grant: Grant) -> None:
        level = self._level
        if level is not None and grant.tls < level:
            raise HandshakeError(
                f"it offers tls={grant.tls.value}, below the tls={level.value} of this node's URL; "
                f"set tls={level.value} at the server, or take tls out of this URL",
                GRANTED,
            )
        kind = _UNSPOKEN.get(grant.pool)
        if kind is not None:
            raise HandshakeError(
                f"type={grant.pool}: this node does not speak {kind}; set type=0 at the server",
                GRANTED,
            )

    def _new_peer(self, grant: Grant, asking: _Asking) -> OldPeer:
        address = asking.address
        web = self._server.host if grant.pool == WEBSOCKET else None
        terms = self._link_terms(grant)
        maker = self._maker = OldLinkMaker(terms, address.host, address.port, web)
        settings = self._settings
        if web is not None:
            settings = evolve(settings, take_over=take_over)  # what is beneath stays there
        maximum = min(max(1, grant.max), MAX_IDLE)
        peer = self.peer = OldPeer(
            settings,
            self._dialect,
            flow=grant.flow,
            tls=grant.tls,
            server=False,
            address=str(Address(address.host, address.port)),
            minimum=min(self._minimum, maximum),
            maximum=maximum,
            make_links=maker.make,
            gone=lambda peer: maker.close(),
        )
        if self._dialect.traits.http:
            peer.need_links(1)  # the first of all is the control link
        else:
            peer.attach(asking.transport, "", asking.rest)
        peer.fill()
        return peer

    def _link_terms(self, grant: Grant) -> LinkTerms:
        tuning = self._tuning
        creator: Callable[[], IOpenSSLClientConnectionCreator] | None = None
        level = grant.tls
        if level is TLSLevel.PLAIN and grant.pool == WEBSOCKET and self._server.port == HTTPS:
            level = TLSLevel.FILES
        if level is not TLSLevel.PLAIN:
            made = self._tls(level).creator([])
            creator = lambda: made  # noqa: E731
        return LinkTerms(
            reactor=self._reactor,
            health=self._health,
            most=most_links(),
            creator=creator,
            dial=lambda host, port, factory: self._dial((host,), port, factory),
            handshake_timeout=ID_TIMEOUT,
            interval=(tuning.min_pool_interval, tuning.max_pool_interval),
            patience=PATIENCE,
        )


class _Asking(Protocol):
    """The connection on which the client asks to be let in.

    :ivar grant: what it was granted.
    :ivar answered: fires when that is there, or with what is in its way.
    :ivar rest: what came behind it, in 1.6.
    :ivar timer: until the connection is gone, or, in 1.6, becomes the control link.
    """

    transport: Any

    def __init__(self, dialect: Dialect, key: bytes, host: str | None) -> None:
        self.timer: IDelayedCall | None = None
        self.grant: Grant | None = None
        self.answered: Deferred[None] = Deferred(lambda _: self.transport.abortConnection())
        self.rest = b""
        self.address: Any = None
        self._timed_out = False
        self._http = HTTPClientHandshake(key, host) if dialect.traits.http else None
        self._lines = GrantReader(key)
        self._hello = hello_line(key)

    def connectionMade(self) -> None:
        self.address = self.transport.getPeer()
        self.transport.write(self._hello if self._http is None else self._http.request())

    def time_out(self) -> None:
        """The server took too long."""
        self._timed_out = True
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if not self.answered.called:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            grant = (self._lines if self._http is None else self._http).feed(data)
        except PeerError:
            self.transport.abortConnection()
            self.answered.errback(Failure())
            return
        if grant is None:
            return
        self.grant = grant
        if self._http is None:
            self._stop_timer()
            self.rest = self._lines.rest
        else:
            self.transport.loseConnection()
        self.answered.callback(None)

    def _stop_timer(self) -> None:
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        if self.answered.called:
            return
        if self._timed_out:
            self.answered.errback(PeerError("handshake timed out"))
            return
        if self._http is not None and reason.check(ConnectionClosed) is not None:
            self._feed(b"")
        if not self.answered.called:
            self.answered.errback(reason)
