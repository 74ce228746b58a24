"""The parent: in the place of a role, it has others run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, ServerConfig
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.meter import Stats
from nodepass.reactor import IReactor
from nodepass.roles.instance import MEGABIT
from nodepass.roles.visitors import VisitorPorts
from nodepass.tuning import Tuning

from .board import Board
from .entrance import Entrance
from .member import Member
from .messages import (
    Begin,
    Failed,
    Grant,
    Guess,
    Line,
    News,
    Ready,
    Released,
    Reload,
    Stop,
    ToParent,
    Trouble,
    Visit,
    Want,
    Well,
    encode,
)
from .rates import RateShares
from .slots import SlotPool
from .speaker import Speaker
from .work import Work

__all__ = ["Crew"]

#: Seconds beyond the time for sessions that workers have to take leave before they are killed.
STOP_PATIENCE = 5.0
#: Starts that may fail in a row, while none has ever worked, before it is given up.
MOST_FAILED_STARTS = 3


class Crew:
    """Workers that run a role together, for `RoleService` what a `Role` is.

    :param config: a client's with a mode that is decided.
    :param count: how many.
    :param ready: called when each of them can serve.
    :param failed: called once when they never can.
    """

    def __init__(
        self,
        config: ServerConfig | ClientConfig,
        tuning: Tuning,
        reactor: IReactor,
        health: Health,
        *,
        count: int,
        ready: Callable[[], None],
        failed: Callable[[FatalError], None],
    ) -> None:
        self.config = config
        self.log = health.log
        self._tuning = tuning
        self._reactor: Any = reactor
        self._ready = ready
        self._failed = failed
        self._count = count
        self._members: list[Member] = []
        self._entrance = Entrance(
            config,
            tuning,
            reactor,
            health,
            members=self._members,
            count=count,
            failed=failed,
        )
        self._checkpoint: IDelayedCall | None = None
        self._patience: IDelayedCall | None = None
        self._board: Board | None = None
        self._slots: SlotPool | None = None
        self._rates: list[RateShares] = []
        self._earlier = Stats()  # what workers that are no more have counted
        self._speaker = Speaker(config, health, reactor, left=self.say_checkpoint)
        self._is_ready: set[int] = set()
        self._unreleased: set[int] = set()
        self._released: Deferred[None] | None = None
        self._over: Deferred[None] | None = None
        self._was_up = False
        self._failed_starts = 0
        self._stopping = False

    @property
    def visitors(self) -> VisitorPorts:
        """The ports for visitors."""
        return self._entrance.visitors

    # For the service, as a role.

    def bind(self) -> None:
        """Bind the ports that may need privileges."""
        self._entrance.bind()

    def start(self) -> None:
        """Start the workers."""
        config = self.config
        self._board = Board(self._count)
        self._slots = SlotPool(config.slot)
        if config.rate:
            self._rates = [
                RateShares(config.rate * MEGABIT, self._reactor, partial(self._grant, way))
                for way in range(2)
            ]
        interval = self._tuning.report_interval
        for number in range(self._count):
            self._members.append(Member(self._reactor, self, number, interval))
        for member in self._members:
            member.start()
        self._entrance.start()
        self._schedule_checkpoint()

    async def release(self) -> None:
        """Accept nobody new: when this is over, the ports can be bound by others."""
        self._stopping = self._speaker.stopping = True
        closing = self._entrance.close()
        self._unreleased = {member.number for member in self._members if member.here}
        for member in self._members:
            member.stop()
            member.say(Stop())
        patience = self._tuning.shutdown_timeout + STOP_PATIENCE
        self._patience = self._reactor.callLater(patience, self._kill_all)
        await closing
        if self._unreleased:
            self._released = Deferred()
            await self._released

    async def stop(self) -> None:
        """After `release`: workers give their sessions time, and end."""
        sessions = self.stats.tcps
        if sessions:
            self.log.info(
                "stopping: {count} TCP sessions may end by themselves within {timeout:g} s",
                count=sessions,
                timeout=self._tuning.shutdown_timeout,
            )
        if any(member.here for member in self._members):
            self._over = Deferred()
            await self._over
        for timer in (self._patience, self._checkpoint):
            if timer is not None and timer.active():
                timer.cancel()
        for rate in self._rates:
            rate.stop()
        if self._slots is not None:
            self._slots.close()
        if self._board is not None:
            self._board.close()
        self._entrance.stop()
        self.say_checkpoint()

    def reload(self) -> None:
        """Let workers read their certificate files again."""
        for member in self._members:
            member.say(Reload())

    @property
    def tunnel_address(self) -> Endpoint | None:
        """Where the tunnel port is bound."""
        return self._entrance.tunnel_address

    @property
    def visitor_address(self) -> Endpoint | None:
        """Where visitors arrive."""
        return self.visitors.bound

    @property
    def stats(self) -> Stats:
        """How all of them are now."""
        rows = [self._row(member.number).read() for member in self._members]
        return attrs.evolve(
            total([self._earlier, *rows]), mode=self._entrance.mode.value, peers=self._speaker.nodes
        )

    def say_checkpoint(self) -> None:
        """Log the checkpoint line."""
        self.log.event("{line}", line=self.stats.line())

    def _schedule_checkpoint(self) -> None:
        interval = self._tuning.report_interval
        self._checkpoint = self._reactor.callLater(interval, self._checkpoint_due)

    def _checkpoint_due(self) -> None:
        self._schedule_checkpoint()
        self.say_checkpoint()

    def _row(self, number: int) -> Any:
        assert self._board is not None
        return self._board.row(number)

    def _kill_all(self) -> None:
        for member in self._members:
            member.kill("it took too long to stop")

    # Members.

    def begin(self, member: Member) -> tuple[bytes, Sequence[int]]:
        assert self._board is not None and self._slots is not None
        work = Work(
            config=attrs.evolve(self.config, mode=self._entrance.mode, warnings=()),
            tuning=self._tuning,
            number=member.number,
            count=self._count,
        )
        return encode(Begin(work.encode())), [self._board.file, *self._slots.files]

    def alive(self, member: Member) -> None:
        self._was_up = True
        self._entrance.try_again()

    def heard(self, member: Member, message: ToParent) -> None:
        number = member.number
        if isinstance(message, Line):
            self._speaker.line(number, message)
        elif isinstance(message, Want):
            self._rates[message.way].want(number, message.size, message.sessions)
        elif isinstance(message, News):
            self._speaker.news(number, message)
        elif isinstance(message, Trouble):
            self._speaker.trouble(number, message)
        elif isinstance(message, Well):
            self._speaker.well(number, message.cause)
        elif isinstance(message, Visit):
            self._entrance.want(member, message.wanted)
        elif isinstance(message, Guess):
            for other in self._members:
                if other is not member:
                    other.say(message)
        elif isinstance(message, Ready):
            self._is_ready.add(number)
            if len(self._is_ready) == self._count:
                self._ready()
        elif isinstance(message, Released):
            self._has_released(number)
        elif isinstance(message, Failed):
            self._failed(FatalError(message.reason))

    def gone(self, member: Member, why: str, pause: float) -> None:
        number = member.number
        row = self._row(number)
        counted = row.read()
        assert self._slots is not None
        self._slots.take_back(row)
        row.clear()
        self._earlier = attrs.evolve(
            total([self._earlier, counted]), ping=0.0, pool=0, tcps=0, udps=0
        )
        self._entrance.forget(number)
        self._is_ready.discard(number)
        for rate in self._rates:
            rate.forget(number)
        self._speaker.forget(number)
        self._has_released(number)
        if self._over is not None and not any(one.here for one in self._members):
            over, self._over = self._over, None
            over.callback(None)
        if self._stopping:
            return
        self.log.error(
            "worker {number} of {count} ended ({why}): its sessions are over, another takes its "
            "place in {pause:g} s",
            number=number + 1,
            count=self._count,
            why=why,
            pause=pause,
        )
        if not self._was_up:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                self._failed(FatalError(f"worker processes can't be started: {why}"))

    def _has_released(self, number: int) -> None:
        self._unreleased.discard(number)
        if self._released is not None and not self._unreleased:
            released, self._released = self._released, None
            released.callback(None)

    def _grant(self, way: int, worker: int, size: float) -> None:
        self._members[worker].say(Grant(way, size))


def total(parts: Sequence[Stats]) -> Stats:
    """The sum of what several have counted; of pings the longest."""
    sums = {
        field.name: sum(getattr(part, field.name) for part in parts)
        for field in attrs.fields(Stats)
        if field.name not in ("mode", "ping")
    }
    return Stats(ping=max(part.ping for part in parts), **sums)
