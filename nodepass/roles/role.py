"""What servers, clients and forwarders have in common, seen from the service that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from nodepass.address import Address, Endpoint
from nodepass.config import ClientConfig, Mode, ServerConfig
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.meter import Stats
from nodepass.reactor import IReactor
from nodepass.relay.stream import Cause
from nodepass.tuning import Tuning
from nodepass.wire import Peer

from .instance import Instance, Limits
from .register import Change, Register
from .visitors import Destination, VisitorPorts

#: Seconds between two looks whether all has been sent: no system tells of it.
SENT_LOOK = 0.05


class Role:
    """A role from start to stop. Subclasses say what is bound, joined and dialed.

    :ivar register: which nodes are there.
    :param ready: called when the role can serve, and again at later joins.
    :param failed: called once when it never can.
    :param limits: made from the configuration unless given.
    """

    def __init__(
        self,
        config: ServerConfig | ClientConfig,
        tuning: Tuning,
        reactor: IReactor,
        health: Health,
        *,
        ready: Callable[[], None],
        failed: Callable[[FatalError], None],
        limits: Limits | None = None,
    ) -> None:
        self.instance = Instance(config, tuning, reactor, health, limits)
        self.log = health.log
        self.ready = ready
        self.failed = failed
        self._checkpoint: IDelayedCall | None = None
        self._reload_timer: IDelayedCall | None = None
        self.register = Register()
        self._departed: set[Peer] = set()  # peers that left, while something of them lingers

    # For the service.

    mode = Mode.ONE
    #: Worker processes that run the role together, and which of them this is.
    workers = 1
    worker = 0

    def bind(self) -> None:
        """Bind the ports that may need privileges."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to serve."""
        self.instance.start()
        self._schedule_checkpoint()

    async def release(self) -> None:
        """Accept nobody new: when this is over, the ports can be bound by others."""
        if self._reload_timer is not None:
            self._reload_timer.cancel()
            self._reload_timer = None
        await self.stop_accepting()

    async def stop(self) -> None:
        """After `release`: give the sessions their time, then close all."""
        until = self.instance.reactor.seconds() + self.instance.tuning.shutdown_timeout
        if self.instance.slots.tcp:
            self.say_stopping(self.instance.slots.tcp)
        await self._drained()
        await self._sent(until)
        self.instance.sessions.abort(Cause.STOPPED)
        await self.close()
        self.instance.stop()
        if self._checkpoint is not None:
            self._checkpoint.cancel()
            self._checkpoint = None
        self.say_checkpoint()

    def reload(self) -> None:
        """Read certificate files again."""

    @property
    def tunnel_address(self) -> Endpoint | None:
        """Where the tunnel port is bound."""
        return None

    @property
    def visitor_address(self) -> Endpoint | None:
        """Where visitors arrive."""
        return None

    @property
    def peers(self) -> Iterable[Peer]:
        """The nodes that it has joined, those included whose control link is lost for now."""
        return ()

    @property
    def stats(self) -> Stats:
        """How it is now."""
        meter, slots = self.instance.meter, self.instance.slots
        return Stats(
            mode=self.mode.value,
            ping=self.ping(),
            pool=sum(peer.idle for peer in self.peers),
            peers=self.register.count,
            tcps=slots.tcp,
            udps=slots.udp,
            tcp_rx=meter.tcp_rx,
            tcp_tx=meter.tcp_tx,
            udp_rx=meter.udp_rx,
            udp_tx=meter.udp_tx,
            udp_dropped=meter.udp_dropped,
            udp_oversized=meter.udp_oversized,
        )

    # For subclasses.

    async def stop_accepting(self) -> None:
        """Close what brings new sessions, all ports first of all."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close all else."""
        raise NotImplementedError

    def keep_reloading(self) -> None:
        """Read certificate files again each `NP_RELOAD_INTERVAL`, until the role stops."""
        interval = self.instance.tuning.reload_interval
        self._reload_timer = self.instance.reactor.callLater(interval, self._reload_due)

    def note(self, what: str, peer: Peer) -> Change:
        """What has become of a peer: "joined", "returned", "lost" or "left"."""
        return self.register.note(self.worker, peer, what, peer.origin, peer.name)

    def departed(self, peer: Peer) -> None:
        """A peer has left: what lingers of it is cut when this role stops."""
        self._departed.add(peer)
        gone = peer.close(Cause.STOPPED, "", linger=True)
        gone.addCallback(lambda _: self._departed.discard(peer))

    async def part(self, farewell: str) -> None:
        """Take leave of all peers."""
        peers = {*self.peers, *self._departed}
        await closed(*[peer.close(Cause.STOPPED, farewell) for peer in peers])
        # What was aborted is reset in the reactor's next turn, which could be no more.
        await deferLater(self.instance.reactor, 0)

    def ping(self) -> float:
        """Seconds, the slowest peer's."""
        return max((peer.ping for peer in self.peers), default=0.0)

    def warn_proxy(self, why: str) -> None:
        """`proxy=1` has no effect at the end with the visitors."""
        self.log.once("proxy", "parameter proxy: ignored here, as {why}", why=why)

    def visitor_ports(
        self, address: Address, destination: Destination, opened: Callable[[], None]
    ) -> VisitorPorts:
        """The ports for visitors at an address.

        :param opened: called once when they are bound.
        """
        return VisitorPorts(self.instance, address, destination, opened=opened, failed=self.failed)

    def say_stopping(self, sessions: int) -> None:
        """Say that sessions have some time left."""
        self.log.info(
            "stopping: {count} TCP sessions may end by themselves within {timeout:g} s",
            count=sessions,
            timeout=self.instance.tuning.shutdown_timeout,
        )

    def say_checkpoint(self) -> None:
        """Say how it is now."""
        self.report(self.stats)

    def report(self, stats: Stats) -> None:
        """Log the checkpoint line."""
        self.log.event("{line}", line=stats.line())

    def _reload_due(self) -> None:
        self.keep_reloading()
        self.reload()

    def _schedule_checkpoint(self) -> None:
        interval = self.instance.tuning.report_interval
        self._checkpoint = self.instance.reactor.callLater(interval, self._checkpoint_due)

    def _checkpoint_due(self) -> None:
        self._schedule_checkpoint()
        self.say_checkpoint()

    async def _drained(self) -> None:
        """Wait until the last session has ended, for the time that a graceful stop has."""
        instance = self.instance
        idle = instance.idle()
        if idle.called:
            return
        try:
            await idle.addTimeout(instance.tuning.shutdown_timeout, instance.reactor)
        except TimeoutError:
            return
        await deferLater(instance.reactor, 0)  # what ended the last session has to return first

    async def _sent(self, until: float) -> None:
        """Wait until what the sessions have left behind has reached the peers, for the time that is
        left. The systems would bring it there by themselves, but for what peers say meanwhile: to a
        connection that is closed, that takes it back.

        :param until: the reactor's seconds.
        """
        reactor = self.instance.reactor
        await deferLater(reactor, 0)  # what was written in this turn leaves
        while (left := until - reactor.seconds()) > 0 and any(p.sending for p in self.peers):
            await deferLater(reactor, min(SENT_LOOK, left))


async def closed(*closing: Deferred[Any]) -> None:
    """Wait until all of these have fired; failures are not of interest at the end."""
    await DeferredList(closing, consumeErrors=True)
