"""The parent's ports: where clients and visitors come in, and how each gets to a worker."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, Mode, ServerConfig
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.reactor import IReactor
from nodepass.relay.stream import Channel, Stream
from nodepass.roles.instance import Instance
from nodepass.roles.tunnelport import TunnelPort
from nodepass.roles.visitors import VisitorPorts, server_mode
from nodepass.tuning import Tuning
from nodepass.wire import Opening

from .door import Door
from .member import Member
from .messages import Link, Ports
from .ports import SharedPorts, tunnel_socket

__all__ = ["Entrance"]


class _Nobody:
    """The destination of visitors in the parent, where none arrives."""

    def carry(self, stream: Stream, opening: Opening) -> None:
        raise AssertionError("visitors arrive at workers")

    def open_flow(self, opening: Opening) -> Channel | None:
        raise AssertionError("visitors arrive at workers")


class Entrance:
    """A server's tunnel port, and the ports for visitors, in whichever node they are.

    :ivar mode: the mode in effect, known after `bind`.
    :ivar visitors: the ports for visitors.
    :param config: a client's with a mode that is decided.
    :param members: the workers, once there are any.
    :param count: how many there will be.
    :param failed: hears of a port that never can be bound.
    """

    def __init__(
        self,
        config: ServerConfig | ClientConfig,
        tuning: Tuning,
        reactor: IReactor,
        health: Health,
        *,
        members: Sequence[Member],
        count: int,
        failed: Callable[[FatalError], None],
    ) -> None:
        self._config = config
        self._health = health
        self._members = members
        self._count = count
        # For the sake of its ports alone: no session ever comes to it.
        self._instance = Instance(config, tuning, reactor, health)
        self._ports = SharedPorts(reactor, count)
        self._instance.relay = self._ports  # type: ignore[assignment]
        self.mode = config.mode
        self.visitors = VisitorPorts(
            self._instance,
            config.tunnel if self.forwards else config.targets[0],
            _Nobody(),
            opened=self._visitors_open,
            failed=failed,
        )
        self._tunnel: TunnelPort[Door] = TunnelPort(
            reactor,
            config.tunnel,
            tuning,
            health,
            listen=lambda: Door(
                reactor,
                health.log,
                tunnel_socket(config.tunnel),
                tuning.handshake_timeout,
                self._hand_over,
            ),
            where=lambda door: Endpoint(*door.address[:2]),
            failed=failed,
        )
        self._wanting: set[int] = set()  # workers that want visitors
        self._stopping = False

    @property
    def _serves(self) -> bool:
        return isinstance(self._config, ServerConfig)

    @property
    def forwards(self) -> bool:
        """Whether this is a plain forwarder, whose tunnel address is for visitors."""
        return not self._serves and self._config.mode is Mode.ONE

    @property
    def tunnel_address(self) -> Endpoint | None:
        """Where the tunnel port is bound."""
        return self.visitors.bound if self.forwards else self._tunnel.address

    def bind(self) -> None:
        """Bind the ports that may need privileges."""
        if isinstance(self._config, ServerConfig):
            self.mode = server_mode(self._config, self.visitors, self._health.log)
            self._tunnel.bind()
        elif self.forwards and self.visitors.bound is None:
            try:
                self.visitors.bind()
            except CannotListenError:
                pass  # tried again by start, which says why it fails

    def start(self) -> None:
        """Begin; ports that could not be bound are tried again."""
        self._instance.start()
        if self.forwards or (self._serves and self.mode is Mode.ONE):
            self.visitors.start()

    def close(self) -> Deferred[Any]:
        """Let nobody in; fires when others can bind the ports."""
        self._stopping = True
        door = self._tunnel.stop()
        if door is not None:
            door.close()
        return self.visitors.stop()

    def stop(self) -> None:
        """After `close`: end what is left."""
        self._instance.stop()

    # Workers.

    def try_again(self) -> None:
        """A worker may take connections again."""
        if self._tunnel.port is not None:
            self._tunnel.port.try_again()

    def want(self, member: Member, wanted: bool) -> None:
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
        elif first and not self._serves and not self.forwards:
            self.visitors.start()

    def forget(self, number: int) -> None:
        """A worker is no more; what waits in its sockets is for the next one in its place."""
        self._wanting.discard(number)

    def _hand_over(self, worker: int, sock: socket.SocketType, waited: float) -> bool:
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
