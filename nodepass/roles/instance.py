"""What the parts of one running role share."""

from __future__ import annotations

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from nodepass.config import ClientConfig, ServerConfig
from nodepass.health import Health
from nodepass.meter import Meter
from nodepass.openfiles import open_files
from nodepass.rate import RateLimiter
from nodepass.reactor import IReactor
from nodepass.relay.choice import choose_relay
from nodepass.relay.flow import FlowLimits
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.session import Session, SessionContext
from nodepass.relay.sessions import Sessions
from nodepass.relay.stream import Cause, Stream
from nodepass.resolver import CachingResolver
from nodepass.slots import Slots
from nodepass.tuning import Tuning

#: Bits in a unit of `rate`.
MEGABIT = 1_000_000


@frozen
class Limits:
    """What a role allows itself.

    :ivar inbound, outbound: the rate of each direction; None for unlimited.
    """

    slots: Slots
    inbound: RateLimiter | None
    outbound: RateLimiter | None

    @classmethod
    def of(cls, config: ServerConfig | ClientConfig, clock: IReactorTime) -> Limits:
        """Those of a role in one process."""
        inbound, outbound = [
            RateLimiter(config.rate * MEGABIT, clock) if config.rate else None for _ in "io"
        ]
        return cls(Slots(config.slot, open_files()), inbound, outbound)


class Instance:
    """One running role: its limits, its counters, its sockets.

    :param limits: made from the configuration unless given.
    :ivar sessions: the TCP sessions under way.
    """

    def __init__(
        self,
        config: ServerConfig | ClientConfig,
        tuning: Tuning,
        reactor: IReactor,
        health: Health,
        limits: Limits | None = None,
    ) -> None:
        self.config = config
        self.tuning = tuning
        self.reactor = reactor
        self.health = health
        self.log = log = health.log
        self.meter = Meter()
        self.limits = limits or Limits.of(config, reactor)
        self.slots = self.limits.slots
        self.watch = HangupWatch(reactor)
        self.resolver = CachingResolver(reactor)
        self.relay = choose_relay(
            reactor, self.resolver, self.watch, log, portable=tuning.portable_relay
        )
        self.context = SessionContext(
            clock=reactor,
            log=log,
            meter=self.meter,
            read=config.read,
            inbound=self.limits.inbound,
            outbound=self.limits.outbound,
        )
        self.flow_limits = FlowLimits(
            slots=self.slots, idle=config.flow_read or tuning.udp_read_timeout
        )
        self.sessions = Sessions(reactor, config.read)
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """Make ready for sessions."""
        self.resolver.start()

    def stop(self) -> None:
        """Release what the instance holds, after the last session."""
        self.sessions.abort(Cause.STOPPED)
        for limiter in (self.limits.inbound, self.limits.outbound):
            if limiter is not None:
                limiter.stop()
        self.watch.stop()
        self.resolver.stop()

    def start_session(self, near: Stream, far: Stream, name: object) -> None:
        """Join two streams in a slot that was taken; it is given back when the session ends.

        :param name: names the session in the log, by its text.
        """
        self.sessions.start(Session(near, far, context=self.context, owner=self, name=name))

    # SessionOwner

    def another(self, cause: Cause) -> None:
        """There is no other way to a target."""

    def session_over(self, session: Session, cause: Cause | None) -> None:
        """A session that was started here has ended."""
        self.sessions.discard(session)
        self.release_tcp()

    def release_tcp(self) -> None:
        """Give back the slot of a TCP session, or of a visitor who waited for one."""
        self.slots.release_tcp()
        if not self.slots.tcp and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)

    def idle(self) -> Deferred[None]:
        """Fires when no TCP session is left; asked for once, when nothing new begins."""
        if not self.slots.tcp:
            return succeed(None)
        self._idle = Deferred()
        return self._idle
