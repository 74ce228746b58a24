"""The client: joins a server, and dials for its visitors or brings its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, Mode, TLSLevel
from nodepass.errors import ConfigError, FatalError
from nodepass.health import Health
from nodepass.reactor import IReactor
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.tuning import Tuning
from nodepass.wire import Flow, Opening, Peer
from nodepass.wire.client import ClientWires

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
        self.carrier = Carrier(self.instance)
        self.dialer = TargetDialer(self.instance, config.targets)
        self.visitors = self.visitor_ports(config.targets[0], self.carrier, lambda: self.ready())
        self._visiting = False
        self._stopping = False
        self.wires = ClientWires(
            config,
            self.instance,
            self,
            self.dialer.names,
            worker=self.worker,
            workers=self.workers,
            elsewhere=lambda: bool(self.register.count),
        )

    # Role

    @property
    def visitor_address(self) -> Endpoint | None:
        return self.visitors.bound

    @property
    def peers(self) -> Iterable[Peer]:
        return self.wires.peers

    def bind(self) -> None:
        """Nothing yet: which address is bound, if any, is known when the server has answered."""

    def start(self) -> None:
        super().start()
        self.wires.start()
        if self.config.tls is TLSLevel.FILES and self.config.ca:
            self.keep_reloading()

    async def stop_accepting(self) -> None:
        self._stopping = True
        self.wires.stop()
        for peer in self.peers:
            peer.drain()
        self.carrier.stop()
        await closed(self.visitors.stop())

    async def close(self) -> None:
        self.dialer.stop()
        await self.part("the client is stopping")

    def reload(self) -> None:
        try:
            self.wires.reload()
        except ConfigError as error:
            self.log.error("roots not reloaded, the old ones stay in use: {error}", error=error)

    # Host

    def joined(self, peer: Peer) -> None:
        self._here(peer, "")
        if peer.flow is Flow.FORWARD:
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
        if not self._stopping:
            self.wires.joined(peer)

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
        self.wires.lost(peer)

    def left(self, peer: Peer) -> None:
        gone = self.note("left", peer) is Change.LEFT and not self._stopping
        self.carrier.remove(peer)
        self.departed(peer)
        if gone:
            self.say_left(peer)
        self.wires.lost(peer)
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
            words=peer.words,
        )

    def say_restarting(self) -> None:
        """Say that the server is looked for again."""
        self.log.info("restarting: {url}", url=self.config.effective_url())

    def say_left(self, peer: Peer) -> None:
        """Say that the server is gone for good."""
        self.log.info("server {peer} is gone", peer=peer.name)
