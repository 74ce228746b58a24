"""Visitors and targets that speak UDP, and what lies between them: a tunnel or a forwarder."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from attrs import define
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import DatagramProtocol

from nodepass.address import Endpoint
from nodepass.config import parse_url
from nodepass.meter import Meter
from nodepass.relay.udptarget import TargetSocket
from nodepass.service import RoleService, makeService
from nodepass.wire.native.datalink import DataLink
from nodepass.wire.native.linkpool import LinkPool
from tests.ports import HERE
from tests.scenarios.harness import PATIENT, tunnel

#: The largest datagram that IPv4 carries.
LARGEST = 65507

#: The ways from visitors to a target: a tunnel of either flow, and a forwarder without a peer.
WAYS = ["-", "+", "single"]

#: Room for a burst in the sockets of visitors and targets, so that only nodes can lose something.
_BUFFER = 4 * 1024 * 1024


class _Program(DatagramProtocol):
    """A UDP socket and all that it heard."""

    noisy = False

    def __init__(self) -> None:
        self.port: Any = None
        self.heard: list[bytes] = []
        self.sources: list[Endpoint] = []

    def startProtocol(self) -> None:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.transport.socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)

    @property
    def address(self) -> Endpoint:
        """Where it is bound."""
        host = self.port.getHost()
        return Endpoint(host.host, host.port)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.heard.append(datagram)
        self.sources.append(Endpoint(*addr[:2]))


class Target(_Program):
    """Answers each datagram with what `answers` makes of it; with itself unless told otherwise."""

    def __init__(self, answers: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        super().__init__()
        self.answers = answers

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        super().datagramReceived(datagram, addr)
        for answer in self.answers(datagram):
            self.transport.write(answer, addr)


class Visitor(_Program):
    """Writes to one address."""

    def __init__(self, to: Endpoint) -> None:
        super().__init__()
        self.to = to

    def say(self, data: bytes) -> None:
        """Send a datagram."""
        self.transport.write(data, tuple(self.to))


class Programs:
    """Visitors and targets that end with the block they are in."""

    def __init__(self) -> None:
        self._ports: list[Any] = []

    async def __aenter__(self) -> Programs:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)

    def target(
        self, answers: Callable[[bytes], list[bytes]] | None = None, at: Endpoint | None = None
    ) -> Target:
        """A target; on a free port of `HERE` unless told otherwise."""
        target = Target() if answers is None else Target(answers)
        self._listen(target, at or Endpoint(HERE, 0))
        return target

    def silent(self, at: Endpoint | None = None) -> Target:
        """A target that never answers."""
        return self.target(lambda data: [], at)

    def visitor(self, to: Endpoint) -> Visitor:
        """A visitor on a port of its own."""
        visitor = Visitor(to)
        self._listen(visitor, Endpoint("::1" if ":" in to.host else "127.0.0.1", 0))
        return visitor

    def _listen(self, program: _Program, at: Endpoint) -> None:
        program.port = reactor.listenUDP(at.port, program, interface=at.host, maxPacketSize=65535)
        self._ports.append(program.port)


@define
class Way:
    """What lies between visitors and a target.

    @ivar entry: the node that has the visitors.
    @ivar exit: the node that has the target; the same one where there is no tunnel.
    """

    entry: RoleService
    exit: RoleService

    @property
    def visitors(self) -> Endpoint:
        """Where visitors write to."""
        address = self.entry.visitor_address
        assert address is not None
        return address

    @property
    def flows(self) -> int:
        """Flows under way at the node that has the most."""
        return max(self.entry.stats.udps, self.exit.stats.udps)

    @property
    def links(self) -> list[DataLink]:
        """The data links that carry flows, at the end with the visitors."""
        return [link for pool in _pools(self.entry) for link in pool._flows._links.values()]

    @property
    def held(self) -> int:
        """What the nodes hold of flows, in whatever form; 0 when all has been given back."""
        held = 0
        for node in {id(node): node for node in (self.entry, self.exit)}.values():
            role = node._role
            held += role.instance.slots.udp
            held += len(role.visitors.flows) + len(role.dialer.flows) + len(role.visitors._channels)
            for pool in _pools(node):
                held += pool._flows._carrier.waiting + pool._flows._carrier.held.cost
                held += sum(len(link.flows) for link in pool._flows._links)
        return held + target_sockets()

    def meter(self, node: RoleService) -> Meter:
        """A node's counters."""
        return node._role.instance.meter

    @property
    def dropped(self) -> int:
        """Datagrams that the nodes have counted as dropped."""
        return self.meter(self.entry).udp_dropped + (
            0 if self.exit is self.entry else self.meter(self.exit).udp_dropped
        )


def _pools(node: RoleService) -> list[LinkPool]:
    return [peer.links for peer in node._role.peers]


def target_sockets() -> int:
    """The UDP sockets that nodes in this process have open to targets."""
    readers = reactor.getReaders()
    for pollers in [getattr(reader, "_watched", {}) for reader in readers]:  # those of engines
        readers += [getattr(owner, "__self__", owner) for owner in pollers.values()]
    return sum(isinstance(reader, TargetSocket) for reader in readers)


@asynccontextmanager
async def way(
    kind: str,
    target: Endpoint | str,
    *,
    tls: int = 0,
    entry: str = "",
    exit: str = "",
    host: str = "127.0.0.1",
    tuning: Any = PATIENT,
) -> AsyncIterator[Way]:
    """One of `WAYS` to a target, for as long as the block lasts.

    `entry` and `exit` are more parameters for the node with the visitors and the one with the
    target, such as "slot=3"; a forwarder takes both.
    """
    if kind == "single":
        at = f"[{host}]:0" if ":" in host else f"{host}:0"
        node = makeService(
            parse_url(f"client://{at}/{target}?mode=1&log=none&{entry}&{exit}"), tuning=tuning
        )
        node.startService()
        await node.whenReady()
        try:
            yield Way(node, node)
        finally:
            await node.stopService()
        return
    reverse = kind == "-"
    pair = await tunnel(
        target,
        flow=kind,
        tls=tls,
        server=entry if reverse else exit,
        client=exit if reverse else entry,
        host=host,
        tuning=tuning,
    )
    try:
        nodes = (pair.server, pair.client)
        yield Way(*(nodes if reverse else reversed(nodes)))
    finally:
        await pair.stop()
