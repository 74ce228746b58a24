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

from .carrier import Carrier
from .role import Role, closed
from .targets import TargetDialer
from .visitors import VisitorPorts


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
    ) -> None:
        super().__init__(config, tuning, reactor, health, ready=ready, failed=failed)
        self.config = config
        self.tls = ClientTLS(config.tls, config.tunnel.host, config.ca)
        self.carrier = Carrier(self.instance)
        self.dialer = TargetDialer(self.instance, config.targets)
        self.visitors = VisitorPorts(
            self.instance,
            config.targets[0],
            self.carrier,
            opened=lambda: self.ready(),
            failed=self.failed,
        )
        self._visiting = False
        self._stopping = False
        self.connector = NativeConnector(self._terms(), health)

    def _terms(self) -> ClientTerms:
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

    def _settings(self, flow: Flow) -> PeerSettings:
        return peer_settings(
            self,
            takes=flow is Flow.FORWARD,
            dials=self.dialer.names if flow is Flow.REVERSE else "",
            tuning=self.instance.tuning,
            clock=self.instance.reactor,
            log=self.log,
            watch=self.instance.watch,
            take_over=self.instance.relay.take_over,
        )

    # Role

    @property
    def visitor_address(self) -> Endpoint | None:
        return self.visitors.bound

    @property
    def peers(self) -> Iterable[Peer]:
        peer = self.connector.peer
        return () if peer is None or peer.closed else (peer,)

    def bind(self) -> None:
        """Nothing yet: which address is bound, if any, is known when the server has answered."""

    def start(self) -> None:
        super().start()
        self.connector.start()
        if self.config.tls is TLSLevel.FILES and self.config.ca:
            self.keep_reloading()

    async def stop_accepting(self) -> None:
        self._stopping = True
        self.connector.stop()
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
        self.present.add(peer)
        self._tell_joined(peer)
        if self.connector.flow is Flow.FORWARD:
            self.carrier.add(peer)
            if self.config.proxy:
                self.warn_proxy("the server dials the target")
            if not self._visiting:
                self._visiting = True
                self.visitors.start()
        else:
            self._stop_visiting()
            self.ready()

    def _stop_visiting(self) -> None:
        """Close the ports that a server of the other flow had asked for."""
        if self._visiting:
            self._visiting = False
            self.log.info("listening for visitors no more: the server does so now")
            self.carrier.refuse_waiting(Cause.LOST)
            self.visitors.stop()
            self.instance.health.well("visitors' port")

    def returned(self, peer: Peer) -> None:
        self.present.add(peer)
        self._tell_joined(peer, again=" again")
        self.carrier.available()

    def lost(self, peer: Peer) -> None:
        self.present.discard(peer)
        self.log.info("restarting: {url}", url=self.config.effective_url())
        self.connector.control_lost()

    def left(self, peer: Peer) -> None:
        self.present.discard(peer)
        self.carrier.remove(peer)
        self.departed(peer)
        if not self._stopping:
            self.log.info("server {peer} is gone", peer=peer.name)
        self.connector.control_lost()
        if not self._stopping:
            self.say_checkpoint()

    def available(self, peer: Peer) -> None:
        self.carrier.available()

    def dial(self, peer: Peer, opening: Opening, stream: Stream) -> None:
        self.dialer.dial(opening, stream, peer.name)

    def dial_flow(self, peer: Peer, opening: Opening, channel: Channel) -> None:
        self.dialer.dial_flow(opening, channel, peer.name)

    def _tell_joined(self, peer: Peer, again: str = "") -> None:
        flow = self.connector.flow
        self.log.info(
            "tunnel established{again} with {peer}, native wire, flow {flow}, tls={tls}",
            again=again,
            peer=peer.name,
            flow="" if flow is None else flow.value,
            tls=self.connector.link_level.value,
        )
