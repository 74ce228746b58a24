"""The plain forwarder: a client on its own, with neither server nor pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, Mode
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.racing import connect_tcp
from nodepass.reactor import IReactor
from nodepass.relay.stream import Channel, Stream
from nodepass.tuning import Tuning
from nodepass.wire import Opening

from .instance import Limits
from .role import Role, closed
from .targets import TargetDialer, Way


class ForwardRole(Role):
    """Visitors come to the tunnel address and are taken straight to the target.

    It is the `Destination` of its own visitors.
    """

    mode = Mode.ONE

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
        self.dialer = TargetDialer(self.instance, config.targets)
        self.visitors = self.visitor_ports(config.tunnel, self, self.ready)
        self._ping = 0.0
        self._pinging: Deferred[None] | None = None

    # Role

    @property
    def tunnel_address(self) -> Endpoint | None:
        return self.visitors.bound

    @property
    def visitor_address(self) -> Endpoint | None:
        return self.visitors.bound

    def bind(self) -> None:
        if self.visitors.bound is None:
            try:
                self.visitors.bind()
            except CannotListenError:
                pass  # tried again by start, which says why it fails

    def start(self) -> None:
        super().start()
        self.visitors.start()

    async def stop_accepting(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
        await closed(self.visitors.stop())

    async def close(self) -> None:
        self.dialer.stop()
        self._ping = 0.0  # the last checkpoint shows what is then: nothing

    def ping(self) -> float:
        """The target's connect time, as it was at the last checkpoint."""
        return self._ping

    def say_checkpoint(self) -> None:
        super().say_checkpoint()
        if self._pinging is None and self.visitors.bound is not None:
            # For the next checkpoint.
            self._pinging = Deferred.fromCoroutine(self._measure())
            self._pinging.addBoth(self._measured)

    async def _measure(self) -> None:
        instance = self.instance
        target = instance.config.targets[0]
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        began = time.perf_counter()
        try:
            protocol: Any = await connect_tcp(
                instance.reactor,
                instance.resolver,
                target.dial_hosts(),
                target.port,
                factory,
                instance.tuning.report_interval,
            )
        except CancelledError:
            return  # stopping: sessions may go on for a while, and what was measured stands
        except Exception:
            self._ping = 0.0  # a target for UDP alone, or none that answers
            return
        self._ping = time.perf_counter() - began
        protocol.transport.abortConnection()

    def _measured(self, _: object) -> None:
        self._pinging = None

    # Destination

    def carry(self, stream: Stream, opening: Opening) -> None:
        near, far = stream, self.dialer.connect(opening)
        self.instance.start_session(near, far, Way(opening.visitor, "", self.dialer.names))

    def open_flow(self, opening: Opening) -> Channel | None:
        return self.dialer.connect_flow()
