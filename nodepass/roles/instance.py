"""What the parts of one running role share."""

from __future__ import annotations

from typing import Any

from nodepass.config import ClientConfig, Mode, ServerConfig
from nodepass.logs import Log
from nodepass.meter import Meter
from nodepass.openfiles import open_files
from nodepass.rate import RateLimiter
from nodepass.relay.flow import FlowLimits
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import PortableRelay, Relay
from nodepass.relay.session import Session, SessionContext
from nodepass.relay.stream import Cause
from nodepass.resolver import CachingResolver
from nodepass.slots import Slots
from nodepass.tuning import Tuning

_MEGABIT = 1_000_000


class Instance:
    """One running role: its limits, its counters, its sockets.

    @ivar sessions: the TCP sessions under way.
    """

    def __init__(
        self, config: ServerConfig | ClientConfig, tuning: Tuning, reactor: Any, log: Log
    ) -> None:
        self.config = config
        self.tuning = tuning
        self.reactor = reactor
        self.log = log
        self.meter = Meter()
        self.slots = Slots(config.slot, open_files())
        self.watch = HangupWatch(reactor)
        self.resolver = CachingResolver(reactor)
        self.relay: Relay = PortableRelay(reactor, self.resolver, self.watch, log)
        self._limiters = [RateLimiter(config.rate * _MEGABIT, reactor) for _ in "io" if config.rate]
        inbound, outbound = self._limiters or (None, None)
        self.context = SessionContext(
            clock=reactor,
            log=log,
            meter=self.meter,
            read=config.read,
            inbound=inbound,
            outbound=outbound,
        )
        self.flow_limits = FlowLimits(
            slots=self.slots, idle=config.flow_read or tuning.udp_read_timeout
        )
        self.sessions: set[Session] = set()

    def start(self) -> None:
        """Make ready for sessions."""
        self.resolver.start()

    def stop(self) -> None:
        """Release what the instance holds, after the last session."""
        for session in list(self.sessions):
            session.abort(Cause.STOPPED)
        for limiter in self._limiters:
            limiter.stop()
        self.watch.stop()
        self.resolver.stop()

    def checkpoint(self, mode: Mode, ping: float, pool: int) -> str:
        """The line that tells how the instance is."""
        milliseconds = 0 if ping <= 0 else max(1, round(ping * 1000))
        return self.meter.checkpoint(mode=mode, ping_ms=milliseconds, pool=pool).line()
