"""The server: clients connect to it, visitors come to it or leave through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort

from nodepass.address import Endpoint
from nodepass.config import Mode, ServerConfig, TLSLevel
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.reactor import IReactor
from nodepass.relay.portable import listen_tcp
from nodepass.relay.stream import Channel, Stream
from nodepass.tuning import Tuning
from nodepass.wire import Flow, Opening, Peer
from nodepass.wire.server import ServerWires

from .carrier import Carrier
from .instance import Limits
from .register import Change
from .role import Role, closed
from .targets import TargetDialer
from .tunnelport import TunnelPort
from .visitors import server_mode


def _where(port: IListeningPort) -> Endpoint:
    host: Any = port.getHost()
    return Endpoint(host.host, host.port)


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
        self.wires = ServerWires(
            config,
            self.instance,
            self,
            workers=self.workers,
            guessed=lambda host: self.guessed(host),
        )
        self.carrier = Carrier(self.instance)
        self.dialer = TargetDialer(self.instance, config.targets)
        self.visitors = self.visitor_ports(
            config.targets[0], self.carrier, lambda: self._check_ready()
        )
        self.flow = Flow.REVERSE
        self._tunnel: TunnelPort[IListeningPort] = TunnelPort(
            reactor,
            config.tunnel,
            tuning,
            health,
            listen=lambda: listen_tcp(reactor, config.tunnel, self.wires.factory()),
            where=_where,
            failed=failed,
        )
        self._stopping = False

    # Role

    @property
    def mode(self) -> Mode:  # type: ignore[override]
        """The mode in effect."""
        return Mode.ONE if self.flow is Flow.REVERSE else Mode.TWO

    @property
    def tunnel_address(self) -> Endpoint | None:
        return self._tunnel.address

    @property
    def visitor_address(self) -> Endpoint | None:
        return self.visitors.bound

    @property
    def peers(self) -> Iterable[Peer]:
        return self.wires.peers

    def bind(self) -> None:
        self._decide_flow()
        self.wires.begin(self.flow, self.dialer.names if self.flow is Flow.FORWARD else "")
        self._bind_tunnel()

    def start(self) -> None:
        super().start()
        self._bind_tunnel()
        if self.flow is Flow.REVERSE:
            if self.config.proxy:
                self.warn_proxy("clients dial the target")
            self.visitors.start()
        if self.config.tls is TLSLevel.FILES:
            self.wires.warn_expired()
            self.keep_reloading()

    async def stop_accepting(self) -> None:
        self._stopping = True
        self.wires.refuse()
        for peer in self.peers:
            peer.drain()
        self.carrier.stop()
        closing = [self.visitors.stop()]
        port = self._tunnel.stop()
        if port is not None:
            closing.append(maybeDeferred(port.stopListening))
        await closed(*closing)

    async def close(self) -> None:
        self.dialer.stop()
        await self.part("the server is stopping")
        self.wires.stop()

    # Which way visitors flow.

    def _decide_flow(self) -> None:
        mode = server_mode(self.config, self.visitors, self.log)
        self.flow = Flow.REVERSE if mode is Mode.ONE else Flow.FORWARD

    def guessed(self, host: str) -> None:
        """Somebody has guessed at the key, wrongly, which was noted."""

    def _bind_tunnel(self) -> None:
        self._tunnel.bind()

    def reload(self) -> None:
        self.wires.reload()

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
        change = self.note("left", peer)
        self.carrier.remove(peer)
        self.departed(peer)
        if change is Change.LEFT and not self._stopping:
            self.say_left(peer)
        if self.register.empty and not self._stopping:
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
            words=peer.words,
            count=self.register.count,
        )
