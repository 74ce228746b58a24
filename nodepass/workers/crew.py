"""The parent: in the place of a role, it has others run it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, Mode, ServerConfig
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.logs import Level
from nodepass.meter import Stats
from nodepass.reactor import IReactor
from nodepass.relay.stream import Channel, Stream
from nodepass.roles.instance import MEGABIT, Instance
from nodepass.roles.visitors import VisitorPorts, fatal, why
from nodepass.tuning import Tuning
from nodepass.wire import Opening

from .board import Board
from .door import Door
from .member import Member
from .messages import (
    Begin,
    Failed,
    Grant,
    Guess,
    Line,
    Link,
    News,
    Ports,
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
from .ports import SharedPorts, tunnel_socket
from .rates import RateShares
from .slots import SlotPool
from .speaker import Speaker
from .work import Work

__all__ = ["Crew"]

#: Seconds beyond the time for sessions that workers have to take leave before they are killed.
STOP_PATIENCE = 5.0
#: Starts that may fail in a row, while none has ever worked, before it is given up.
MOST_FAILED_STARTS = 3


class _Nobody:
    """The destination of visitors in the parent, where none arrives."""

    def carry(self, stream: Stream, opening: Opening) -> None:
        raise AssertionError("visitors arrive at workers")

    def open_flow(self, opening: Opening) -> Channel | None:
        raise AssertionError("visitors arrive at workers")


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
        self._health = health
        self._ready = ready
        self._failed = failed
        self._count = count
        # For the sake of its ports alone: no session ever comes to it.
        self._instance = Instance(config, tuning, reactor, health)
        self._ports = SharedPorts(reactor, count)
        self._instance.relay = self._ports  # type: ignore[assignment]
        self.visitors = VisitorPorts(
            self._instance,
            config.tunnel if self._forwards else config.targets[0],
            _Nobody(),
            opened=self._visitors_open,
            failed=failed,
        )
        self._mode = config.mode
        self._door: Door | None = None
        self._retry: IDelayedCall | None = None
        self._checkpoint: IDelayedCall | None = None
        self._patience: IDelayedCall | None = None
        self._board: Board | None = None
        self._slots: SlotPool | None = None
        self._rates: list[RateShares] = []
        self._members: list[Member] = []
        self._earlier = Stats()  # what workers that are no more have counted
        self._speaker = Speaker(config, health, reactor, left=self.say_checkpoint)
        self._is_ready: set[int] = set()
        self._wanting: set[int] = set()  # workers that want visitors
        self._unreleased: set[int] = set()
        self._released: Deferred[None] | None = None
        self._over: Deferred[None] | None = None
        self._was_up = False
        self._failed_starts = 0
        self._stopping = False

    @property
    def _serves(self) -> bool:
        return isinstance(self.config, ServerConfig)

    @property
    def _forwards(self) -> bool:
        return not self._serves and self.config.mode is Mode.ONE

    # For the service, as a role.

    def bind(self) -> None:
        """Bind the ports that may need privileges."""
        if self._serves:
            self._decide_flow()
            self._open_door()
        elif self._forwards and self.visitors.bound is None:
            try:
                self.visitors.bind()
            except CannotListenError:
                pass  # tried again by start, which says why it fails

    def start(self) -> None:
        """Start the workers."""
        self._instance.start()
        config = self.config
        self._board = Board(self._count)
        self._slots = SlotPool(config.slot)
        if config.rate:
            self._rates = [
                RateShares(config.rate * MEGABIT, self._reactor, partial(self._grant, way))
                for way in range(2)
            ]
        interval = self._tuning.report_interval
        self._members = [
            Member(self._reactor, self, number, interval) for number in range(self._count)
        ]
        for member in self._members:
            member.start()
        if self._forwards or (self._serves and self._mode is Mode.ONE):
            self.visitors.start()
        self._schedule_checkpoint()

    async def release(self) -> None:
        """Accept nobody new: when this is over, the ports can be bound by others."""
        self._stopping = self._speaker.stopping = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._door is not None:
            self._door.close()
            self._door = None
        closing = self.visitors.stop()
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
        self._instance.stop()
        self.say_checkpoint()

    def reload(self) -> None:
        """Let workers read their certificate files again."""
        for member in self._members:
            member.say(Reload())

    @property
    def tunnel_address(self) -> Endpoint | None:
        """Where the tunnel port is bound."""
        if self._forwards:
            return self.visitors.bound
        return None if self._door is None else Endpoint(*self._door.address[:2])

    @property
    def visitor_address(self) -> Endpoint | None:
        """Where visitors arrive."""
        return self.visitors.bound

    @property
    def stats(self) -> Stats:
        """How all of them are now."""
        rows = [self._row(member.number).read() for member in self._members]
        return attrs.evolve(
            total([self._earlier, *rows]), mode=self._mode.value, peers=self._speaker.nodes
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

    # Ports.

    def _decide_flow(self) -> None:
        bound = self._mode is not Mode.TWO and self._bind_visitors()
        if self._mode is Mode.AUTO:
            self._mode = Mode.ONE if bound else Mode.TWO
            self.log.info(
                "mode=0: {target} {can} be bound here, so this server is mode={mode}",
                target=self.config.targets[0],
                can="can" if bound else "can't",
                mode=self._mode.value,
            )

    def _bind_visitors(self) -> bool:
        try:
            self.visitors.bind()
        except CannotListenError:
            return False
        return True

    def _open_door(self) -> None:
        self._retry = None
        address = self.config.tunnel
        try:
            sock = tunnel_socket(address)
        except CannotListenError as error:
            hopeless = fatal(error, f"tunnel address {address}")
            if hopeless is not None:
                self._health.trouble("tunnel port", "{error}", level=Level.ERROR, error=hopeless)
                self._failed(hopeless)
                return
            self._health.trouble(
                "tunnel port",
                "can't listen for clients on {address}: {reason}; trying on",
                address=address,
                reason=why(error),
            )
            cooldown = self._tuning.service_cooldown
            self._retry = self._reactor.callLater(cooldown, self._open_door)
            return
        self._health.well("tunnel port")
        timeout = self._tuning.handshake_timeout
        self._door = Door(self._reactor, self.log, sock, timeout, self._hand_over)
        self.log.info("listening for clients on {address}", address=self.tunnel_address)

    def _hand_over(self, worker: int, sock: socket.socket, waited: float) -> bool:
        member = self._members[worker % self._count] if self._members else None
        return member is not None and member.offer(Link(waited), [sock.fileno()])

    def _visitors_open(self) -> None:
        for member in self._members:
            if member.number in self._wanting:
                self._send_ports(member)

    def _send_ports(self, member: Member) -> None:
        tcp, udp = self._ports.tcp, self._ports.udp
        if self.visitors.bound is not None and tcp is not None and udp is not None:
            number = member.number
            member.say(Ports(), [tcp.sockets[number].fileno(), udp.sockets[number].fileno()])

    def _visit(self, member: Member, wanted: bool) -> None:
        """A worker wants visitors, or no more. A client's workers learn so from the server."""
        if not wanted:
            self._wanting.discard(member.number)
            if not self._wanting and not self._stopping and not self._serves:
                self.visitors.stop()
                self._health.well("visitors' port")
            return
        first = not self._wanting
        self._wanting.add(member.number)
        if self.visitors.bound is not None:
            self._send_ports(member)
        elif first and not self._serves and not self._forwards:
            self.visitors.start()

    # Members.

    def begin(self, member: Member) -> tuple[bytes, Sequence[int]]:
        assert self._board is not None and self._slots is not None
        work = Work(
            config=attrs.evolve(self.config, mode=self._mode, warnings=()),
            tuning=self._tuning,
            number=member.number,
            count=self._count,
        )
        return encode(Begin(work.encode())), [self._board.file, *self._slots.files]

    def alive(self, member: Member) -> None:
        self._was_up = True
        if self._door is not None:
            self._door.try_again()

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
            self._visit(member, message.wanted)
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
        self._wanting.discard(number)
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
