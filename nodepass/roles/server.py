"""The server: clients connect to it, visitors come to it or leave through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort

from nodepass.address import Endpoint
from nodepass.config import Mode, ServerConfig, TLSLevel
from nodepass.errors import ConfigError, FatalError
from nodepass.health import Health
from nodepass.logs import Level
from nodepass.reactor import IReactor
from nodepass.relay.portable import listen_tcp
from nodepass.relay.stream import Channel, Stream
from nodepass.tls import Identity, ServerTLS
from nodepass.tuning import Tuning
from nodepass.wire import Flow, Opening, Peer
from nodepass.wire.listener import Lobby, TunnelFactory
from nodepass.wire.native import ALPN_CONTROL, ALPN_DATA
from nodepass.wire.native.acceptor import NativeAcceptor, ServerTerms
from nodepass.wire.native.handshake import key_bytes
from nodepass.wire.native.peer import peer_settings

from .carrier import Carrier
from .instance import Limits
from .register import Change
from .role import Role, closed
from .targets import TargetDialer
from .visitors import fatal, why

#: Seconds between telling clients of the next certificate and showing it.
PIN_NOTICE = 2.0


class ServerRole(Role):
    """A server. It is the `Host` of its peers."""

    def __init__(
        self,
        config: ServerConfig,
        tuning: Tuning,
        reactor: IReactor,
        health: Health,
        *,
        ready: Callable[[], None],
        failed: Callable[[FatalError], None],
        limits: Limits | None = None,
    ) -> None:
        super().__init__(config, tuning, reactor, health, ready=ready, failed=failed, limits=limits)
        self.config = config
        level = config.tls if config.tls is TLSLevel.FILES else TLSLevel.SELF_SIGNED
        self.tls = ServerTLS(
            level, [ALPN_CONTROL, ALPN_DATA], crt=config.crt, key_file=config.key_file
        )
        self.carrier = Carrier(self.instance)
        self.dialer = TargetDialer(self.instance, config.targets)
        self.visitors = self.visitor_ports(
            config.targets[0], self.carrier, lambda: self._check_ready()
        )
        self.flow = Flow.REVERSE
        self.acceptor: NativeAcceptor | None = None
        self._lobby = Lobby(
            self.instance.reactor,
            self.log,
            self.instance.tuning.handshake_timeout,
            self.workers,
        )
        self._port: IListeningPort | None = None
        self._retry: IDelayedCall | None = None
        self._commit_timer: IDelayedCall | None = None
        self._next: Identity | None = None  # announced to clients, not yet shown
        self._stopping = False

    # Role

    @property
    def mode(self) -> Mode:  # type: ignore[override]
        """The mode in effect."""
        return Mode.ONE if self.flow is Flow.REVERSE else Mode.TWO

    @property
    def tunnel_address(self) -> Endpoint | None:
        if self._port is None:
            return None
        host: Any = self._port.getHost()
        return Endpoint(host.host, host.port)

    @property
    def visitor_address(self) -> Endpoint | None:
        return self.visitors.bound

    @property
    def peers(self) -> Iterable[Peer]:
        return () if self.acceptor is None else self.acceptor.peers.values()

    def bind(self) -> None:
        self._decide_flow()
        self._make_acceptor()
        self._bind_tunnel()

    def start(self) -> None:
        super().start()
        if self._port is None and self._retry is None:
            self._bind_tunnel()
        if self.flow is Flow.REVERSE:
            if self.config.proxy:
                self.warn_proxy("clients dial the target")
            self.visitors.start()
        if self.config.tls is TLSLevel.FILES:
            self._warn_expired()
            self.keep_reloading()

    async def stop_accepting(self) -> None:
        self._stopping = True
        if self.acceptor is not None:
            self.acceptor.stopping = True
        for timer in (self._retry, self._commit_timer):
            if timer is not None and timer.active():
                timer.cancel()
        for peer in self.peers:
            peer.drain()
        self.carrier.stop()
        closing = [self.visitors.stop()]
        port, self._port = self._port, None
        if port is not None:
            closing.append(maybeDeferred(port.stopListening))
        await closed(*closing)

    async def close(self) -> None:
        self.dialer.stop()
        await self.part("the server is stopping")
        if self.acceptor is not None:
            self.acceptor.stop()
        self._lobby.clear()

    # Which way visitors flow.

    def _decide_flow(self) -> None:
        config = self.config
        if config.mode is Mode.TWO:
            self.flow = Flow.FORWARD
        elif config.mode is Mode.ONE:
            self._bind_visitors()
        else:
            self.flow = Flow.REVERSE if self._bind_visitors() else Flow.FORWARD
            self.log.info(
                "mode=0: {target} {can} be bound here, so this server is mode={mode}",
                target=config.targets[0],
                can="can" if self.flow is Flow.REVERSE else "can't",
                mode=self.mode.value,
            )

    def _bind_visitors(self) -> bool:
        """Try to bind the visitors' ports; what fails is tried again by `VisitorPorts.start`."""
        try:
            self.visitors.bind()
        except CannotListenError:
            return False
        return True

    # The tunnel port.

    def _make_acceptor(self) -> None:
        config = self.config
        settings = peer_settings(
            self,
            takes=self.flow is Flow.REVERSE,
            dials=self._dials(),
            tuning=self.instance.tuning,
            clock=self.instance.reactor,
            log=self.log,
            watch=self.instance.watch,
            take_over=self.instance.relay.take_over,
            soon=self.instance.relay.soon,
        )
        terms = ServerTerms(
            key=key_bytes(config.key),
            flow=self.flow,
            tls=config.tls,
            maximum=config.max,
            pin=lambda: self.tls.identity.pin,
            workers=self.workers,
            guessed=self.guessed,
        )
        self.acceptor = NativeAcceptor(terms, settings, self.log)

    def guessed(self, host: str) -> None:
        """Somebody has guessed at the key, wrongly; the acceptor has noted it."""

    def _dials(self) -> str:
        return self.dialer.names if self.flow is Flow.FORWARD else ""

    def tunnel_factory(self) -> TunnelFactory:
        """What serves connections to the tunnel port."""
        assert self.acceptor is not None
        return TunnelFactory(self._lobby, self.acceptor, self.tls.context_factory, self.log)

    def _bind_tunnel(self) -> None:
        self._retry = None
        try:
            self._port = listen_tcp(
                self.instance.reactor, self.config.tunnel, self.tunnel_factory()
            )
        except CannotListenError as error:
            hopeless = fatal(error, f"tunnel address {self.config.tunnel}")
            if hopeless is not None:
                self.instance.health.trouble(
                    "tunnel port", "{error}", level=Level.ERROR, error=hopeless
                )
                self.failed(hopeless)
                return
            self.instance.health.trouble(
                "tunnel port",
                "can't listen for clients on {address}: {reason}; trying on",
                address=self.config.tunnel,
                reason=why(error),
            )
            cooldown = self.instance.tuning.service_cooldown
            self._retry = self.instance.reactor.callLater(cooldown, self._bind_tunnel)
            return
        self.instance.health.well("tunnel port")
        self.log.info("listening for clients on {address}", address=self.tunnel_address)

    # Certificates.

    def reload(self) -> None:
        try:
            fresh = self.tls.prepare()
        except ConfigError as error:
            self.log.error(
                "certificate not reloaded, the old one stays in use: {error}", error=error
            )
            return
        if fresh == self._next:
            return  # announced already, and soon to be shown
        if self._commit_timer is not None and self._commit_timer.active():
            self._commit_timer.cancel()
        self._next = None
        assert self.acceptor is not None
        self.acceptor.announce(None)
        if fresh is self.tls.identity:
            self.log.info("certificate unchanged")
            self._warn_expired()
            return
        self._next = fresh
        self.acceptor.announce(fresh.pin)
        self._commit_timer = self.instance.reactor.callLater(PIN_NOTICE, self._commit, fresh)

    def _commit(self, fresh: Identity) -> None:
        self._next = None
        assert self.acceptor is not None
        self.tls.commit(fresh)
        self.acceptor.announce(None)
        self.log.info("certificate reloaded, valid until {until:%Y-%m-%d}", until=fresh.not_after)
        self._warn_expired()

    def _warn_expired(self) -> None:
        identity = self.tls.identity
        if identity.expired:
            self.log.warn(
                "certificate {crt} expired on {day:%Y-%m-%d}: clients with tls=2 refuse it",
                crt=self.config.crt,
                day=identity.not_after,
            )

    # Host

    def joined(self, peer: Peer) -> None:
        self.carrier.add(peer)
        change = self.note("joined", peer)
        if change is not Change.NOTHING:
            self.say_joined(peer, again=" again" if change is Change.RETURNED else "")
        self._check_ready()

    def returned(self, peer: Peer) -> None:
        if self.note("returned", peer) is Change.RETURNED:
            self.say_joined(peer, again=" again")
        self.carrier.available()

    def lost(self, peer: Peer) -> None:
        self.note("lost", peer)  # its sessions live on; the peer has logged it

    def left(self, peer: Peer) -> None:
        assert self.acceptor is not None
        change = self.note("left", peer)
        self.carrier.remove(peer)
        self.departed(peer)
        if change is Change.LEFT and not self._stopping:
            self.say_left(peer)
        if not self.acceptor.peers and not self._stopping:
            self.say_checkpoint()

    def available(self, peer: Peer) -> None:
        self.carrier.available()

    def dial(self, peer: Peer, opening: Opening, stream: Stream) -> None:
        self.dialer.dial(opening, stream, peer.name)

    def dial_flow(self, peer: Peer, opening: Opening, channel: Channel) -> None:
        self.dialer.dial_flow(opening, channel, peer.name)

    def _check_ready(self) -> None:
        """Ready is a server that has a client, and a port for visitors where they come here."""
        if self.carrier.peers and (self.flow is Flow.FORWARD or self.visitors.bound is not None):
            self.ready()

    def say_left(self, peer: Peer) -> None:
        """Say that a client is gone for good."""
        self.log.info(
            "client {peer} is gone; clients: {count}", peer=peer.name, count=self.register.count
        )

    def say_joined(self, peer: Peer, again: str = "") -> None:
        """Say that a client is there."""
        self.log.info(
            "tunnel established{again} with {peer}, {words}; clients: {count}",
            again=again,
            peer=peer.name,
            words=self.words,
            count=self.register.count,
        )

    @property
    def words(self) -> str:
        """How the tunnel is, for log lines."""
        return f"native wire, flow {self.flow.value}, tls={self.config.tls.value}"
