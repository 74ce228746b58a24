"""The roles as a worker runs them: sockets come from the parent, and news of peers go to it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall

from nodepass.address import Address
from nodepass.config import Mode, ServerConfig
from nodepass.meter import Stats
from nodepass.roles.client import ClientRole
from nodepass.roles.forward import ForwardRole
from nodepass.roles.register import Change
from nodepass.roles.role import Role
from nodepass.roles.server import ServerRole
from nodepass.roles.visitors import Destination, VisitorPorts
from nodepass.wire import Peer

from .board import Row
from .messages import Guess, News, ToParent, Visit

if TYPE_CHECKING:
    from nodepass.roles.instance import Instance

__all__ = ["Desk", "WorkerRole", "role_class"]

#: Seconds between two looks at the counters: what a worker that is killed has counted since the
#: last one is lost. Without sessions too, as pings and idle links change then.
COUNT_INTERVAL = 0.1

# What is known of a connection that was reset on its way here, as anybody may do.
_RESET = (errno.ENOTCONN, errno.EINVAL)


class _Visitors(VisitorPorts):
    """The ports for visitors, on sockets that the parent has bound.

    :param wanted: tells the parent whether they are wanted.
    """

    def __init__(
        self,
        instance: Instance,
        address: Address,
        destination: Destination,
        *,
        opened: Callable[[], None],
        wanted: Callable[[bool], None],
    ) -> None:
        super().__init__(instance, address, destination, opened=opened, failed=lambda error: None)
        self._wanted = wanted
        self._asked = False

    def bind(self) -> None:
        """Nothing: the parent does so."""

    def start(self) -> None:
        """Ask for the sockets."""
        if not self._asked:
            self._asked = True
            self._wanted(True)

    def stop(self) -> Any:
        if self._asked:
            self._asked = False
            self._wanted(False)
        return super().stop()

    def take(self, tcp: socket.socket, udp: socket.socket) -> None:
        """The sockets have come."""
        if not self._asked or self._tcp is not None:
            tcp.close()
            udp.close()
            return
        relay, buffer = self._instance.relay, self._instance.tuning.udp_buffer
        self._tcp = relay.accept_on(tcp, self._accepted)
        self._udp = relay.receive_on(udp, self, buffer)
        self._opened()


@frozen
class Desk:
    """A worker's place among the others.

    :ivar number: which one it is, from 0.
    :ivar count: how many there are.
    :ivar row: its row of the board.
    :ivar tell: says something to the parent.
    """

    number: int
    count: int
    row: Row
    tell: Callable[[ToParent], None]


class WorkerRole(Role):
    """What the roles of workers have in common; mixed into each."""

    visitors: VisitorPorts

    def __init__(self, desk: Desk, *arguments: Any, **more: Any) -> None:
        # Before all else: the role's own constructor asks for them.
        self.worker, self.workers = desk.number, desk.count
        self.tell, self.row = desk.tell, desk.row
        self._numbers: dict[Peer, int] = {}  # what the parent knows peers by
        self._last_number = 0
        self._counting: IDelayedCall | None = None
        super().__init__(*arguments, **more)

    def take_visitors(self, tcp: socket.socket, udp: socket.socket) -> None:
        """The parent has sent the sockets for visitors."""
        cast(_Visitors, self.visitors).take(tcp, udp)

    def take_link(self, sock: socket.socket) -> None:
        """The parent has sent a connection to the tunnel port."""
        sock.close()

    def lose_link(self, reason: str) -> None:
        """A connection to the tunnel port can't be taken, and is closed."""
        self.log.limited("take link", "can't take a client's connection: {reason}", reason=reason)

    def guess(self, host: str) -> None:
        """Another worker has met a wrong guess at the key."""

    def keep_counting(self) -> None:
        """Write the counters down again and again, until the role has stopped."""
        self.row.write(self.stats)
        self._counting = self.instance.reactor.callLater(COUNT_INTERVAL, self.keep_counting)

    async def stop(self) -> None:
        await super().stop()
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None

    def visitor_ports(
        self, address: Address, destination: Destination, opened: Callable[[], None]
    ) -> VisitorPorts:
        return _Visitors(
            self.instance,
            address,
            destination,
            opened=opened,
            wanted=lambda wanted: self.tell(Visit(wanted)),
        )

    def report(self, stats: Stats) -> None:
        self.row.write(stats)

    def say_stopping(self, sessions: int) -> None:
        """Nothing: the parent says it of all workers."""

    def note(self, what: str, peer: Peer) -> Change:
        change = super().note(what, peer)
        number = self._numbers.get(peer)
        if number is None:
            self._last_number += 1
            number = self._numbers[peer] = self._last_number
        self.tell(News(what, number, *peer.origin, peer.name, peer.words))
        if what == "left":
            del self._numbers[peer]
        self.row.write(self.stats)
        return change


class WorkerForward(WorkerRole, ForwardRole):
    """A plain forwarder's worker."""

    def say_checkpoint(self) -> None:
        if self.worker == 0:
            super().say_checkpoint()  # it measures how far the target is: once is enough
        else:
            self.report(self.stats)


class WorkerServer(WorkerRole, ServerRole):
    """A server's worker."""

    def take_link(self, sock: socket.socket) -> None:
        with sock:
            if self._stopping:
                return
            try:
                self.instance.reactor.adoptStreamConnection(  # type: ignore[attr-defined]
                    sock.fileno(), sock.family, self.wires.factory()
                )
            except OSError as error:
                if error.errno not in _RESET:
                    self.lose_link(error.strerror or str(error))

    def guess(self, host: str) -> None:
        self.wires.guess(host)

    def guessed(self, host: str) -> None:
        self.tell(Guess(host))

    def _bind_tunnel(self) -> None:
        """Nothing: the parent does so."""

    def say_joined(self, peer: Peer, again: str = "") -> None:
        """Nothing: the parent says it of all workers."""

    def say_left(self, peer: Peer) -> None:
        """Nothing, likewise."""


class WorkerClient(WorkerRole, ClientRole):
    """A client's worker."""

    def say_joined(self, peer: Peer, again: str = "") -> None:
        """Nothing: the parent says it of all workers."""

    def say_restarting(self) -> None:
        """Nothing, likewise."""

    def say_left(self, peer: Peer) -> None:
        """Nothing, likewise."""


def role_class(config: Any) -> type[Any]:
    """The class that runs a configuration, whose mode is decided."""
    if isinstance(config, ServerConfig):
        return WorkerServer
    return WorkerClient if config.mode is Mode.TWO else WorkerForward
