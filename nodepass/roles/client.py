"""The client: joins a server, and dials for its visitors or brings its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, Mode, TLSLevel
from nodepass.errors import ConfigError, FatalError
from nodepass.health import Health
from nodepass.reactor import IReactor
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.resolver import connect_tcp
from nodepass.tls import ClientTLS
from nodepass.tuning import Tuning
from nodepass.wire import Flow, Opening, Peer
from nodepass.wire.native.connector import ClientTerms, NativeConnector, node_id
from nodepass.wire.native.handshake import key_bytes
from nodepass.wire.native.peer import PeerSettings, peer_settings
from nodepass.wire.native.tags import associations, partners

from .carrier import Carrier
from .instance import Limits
from .register import Change
from .role import Role, closed
from .targets import TargetDialer


class ClientRole(Role):
    """A client of a server. It is the `Host` of its one peer."""

    mode = Mode.TWO

    def __init__(
        self,
        config: ClientConfig,
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
        self.tls = ClientTLS(config.tls, config.tunnel.host, config.ca)
        self.carrier = Carrier(self.instance)
        self.dialer = TargetDialer(self.instance, config.targets)
        self.visitors = self.visitor_ports(config.targets[0], self.carrier, lambda: self.ready())
        self._visiting = False
        self._stopping = False
        # By the worker of the server that each joins. The first one leads: it learns how many there
        # are, and says what is wrong with the server.
        self.connector = NativeConnector(self._terms(self.worker), health)
        self._connectors = {self.worker: self.connector}

    def _terms(self, server_worker: int) -> ClientTerms:
        config, tuning = self.config, self.instance.tuning
        return ClientTerms(
            key=key_bytes(config.key),
            node=node_id(str(config.tunnel), ",".join(map(str, config.targets))),
            level=config.tls,
            minimum=config.min,
            tls=self.tls,
            reactor=self.instance.reactor,
            server=config.tunnel,
            dial=self._dial,
            settings=self._settings,
            handshake_timeout=tuning.handshake_timeout,
            cooldown=tuning.service_cooldown,
            pool_interval=(tuning.min_pool_interval, tuning.max_pool_interval),
            worker=self.worker,
            server_worker=server_worker,
            leads=server_worker == self.worker,
            elsewhere=lambda: bool(self.register.count),
        )

    def _dial(
        self, hosts: Sequence[str], port: int, factory: IProtocolFactory
    ) -> Deferred[IProtocol]:
        return connect_tcp(
            self.instance.reactor,
            self.instance.resolver,
            hosts,
            port,
            factory,
            self.instance.tuning.tcp_dial_timeout,
        )

    def _settings(self, flow: Flow, servers: int) -> PeerSettings:
        return peer_settings(
            self,
            takes=flow is Flow.FORWARD,
            dials=self.dialer.names if flow is Flow.REVERSE else "",
            tuning=self.instance.tuning,
            clock=self.instance.reactor,
            log=self.log,
            watch=self.instance.watch,
            take_over=self.instance.relay.take_over,
            associations=associations(self.workers, servers),
            soon=self.instance.relay.soon,
        )

    # The server's workers.

    def _connector_of(self, peer: Peer) -> NativeConnector:
        for connector in self._connectors.values():
            if connector.peer is peer:
                return connector
        return self.connector

    def _spread(self) -> None:
        """Join the server's other workers that are this process's to join, and leave those that it
        has no more."""
        others = partners(self.worker, self.workers, self.connector.workers)[1:]
        for number in set(self._connectors) - {self.worker, *others}:
            connector = self._connectors[number]
            connector.stop()
            if connector.peer is not None and not connector.peer.closed:
                connector.peer.close(Cause.STOPPED, "the server has fewer workers")
            del self._connectors[number]
        for number in others:
            if number not in self._connectors:
                connector = NativeConnector(self._terms(number), self.instance.health)
                self._connectors[number] = connector
                connector.start()

    # Role

    @property
    def visitor_address(self) -> Endpoint | None:
        return self.visitors.bound

    @property
    def peers(self) -> Iterable[Peer]:
        peers = [connector.peer for connector in self._connectors.values()]
        return [peer for peer in peers if peer is not None and not peer.closed]

    def bind(self) -> None:
        """Nothing yet: which address is bound, if any, is known when the server has answered."""

    def start(self) -> None:
        super().start()
        self.connector.start()
        if self.config.tls is TLSLevel.FILES and self.config.ca:
            self.keep_reloading()

    async def stop_accepting(self) -> None:
        self._stopping = True
        for connector in self._connectors.values():
            connector.stop()
        for peer in self.peers:
            peer.drain()
        self.carrier.stop()
        await closed(self.visitors.stop())

    async def close(self) -> None:
        self.dialer.stop()
        await self.part("the client is stopping")

    def reload(self) -> None:
        try:
            self.tls.reload()
        except ConfigError as error:
            self.log.error("roots not reloaded, the old ones stay in use: {error}", error=error)

    # Host

    def joined(self, peer: Peer) -> None:
        self._here(peer, "")
        if self._connector_of(peer).flow is Flow.FORWARD:
            self.carrier.add(peer)
            if self.config.proxy:
                self.warn_proxy("the server dials the target")
            if not self._visiting:
                self._visiting = True
                self.visitors.start()
        else:
            self._stop_visiting()
            self.ready()

    def _here(self, peer: Peer, again: str) -> None:
        """A worker of the server is there; that is told once, and after each loss that was told."""
        change = self.note("returned" if again else "joined", peer)
        if change is not Change.NOTHING:
            self.say_joined(peer, " again" if change is Change.RETURNED else "")
        if self._connector_of(peer) is self.connector and not self._stopping:
            self._spread()

    def _stop_visiting(self) -> None:
        """Close the ports that a server of the other flow had asked for."""
        if self._visiting:
            self._visiting = False
            self.log.info("listening for visitors no more: the server does so now")
            self.carrier.refuse_waiting(Cause.LOST)
            self.visitors.stop()
            self.instance.health.well("visitors' port")

    def returned(self, peer: Peer) -> None:
        self._here(peer, " again")
        self.carrier.available()

    def lost(self, peer: Peer) -> None:
        if self.note("lost", peer) is Change.LOST:
            self.say_restarting()
        self._connector_of(peer).control_lost()

    def left(self, peer: Peer) -> None:
        gone = self.note("left", peer) is Change.LEFT and not self._stopping
        self.carrier.remove(peer)
        self.departed(peer)
        if gone:
            self.say_left(peer)
        self._connector_of(peer).control_lost()
        if gone:
            self.say_checkpoint()

    def available(self, peer: Peer) -> None:
        self.carrier.available()

    def dial(self, peer: Peer, opening: Opening, stream: Stream) -> None:
        self.dialer.dial(opening, stream, peer.name)

    def dial_flow(self, peer: Peer, opening: Opening, channel: Channel) -> None:
        self.dialer.dial_flow(opening, channel, peer.name)

    def say_joined(self, peer: Peer, again: str = "") -> None:
        """Say that the server is there."""
        self.log.info(
            "tunnel established{again} with {peer}, {words}",
            again=again,
            peer=peer.name,
            words=self.words(peer),
        )

    def words(self, peer: Peer) -> str:
        """How the tunnel is, for log lines."""
        connector = self._connector_of(peer)
        flow = "" if connector.flow is None else connector.flow.value
        return f"native wire, flow {flow}, tls={connector.link_level.value}"

    def say_restarting(self) -> None:
        """Say that the server is looked for again."""
        self.log.info("restarting: {url}", url=self.config.effective_url())

    def say_left(self, peer: Peer) -> None:
        """Say that the server is gone for good."""
        self.log.info("server {peer} is gone", peer=peer.name)
