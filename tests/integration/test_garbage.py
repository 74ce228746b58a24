"""Sessions are freed when they end, by their reference counts: none waits for the collector."""

from __future__ import annotations

import gc
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from nodepass.connection import connect
from nodepass.service import RoleService, makeService

SYSTEM: Any = reactor
KEY = "k" * 32
#: Sessions of each kind, after a few that fill caches.
SESSIONS, FIRST = 5, 3


class Echo(Protocol):
    """The target: sends everything back, then does what the test is about."""

    transport: Any
    then = "wait"

    def dataReceived(self, data: bytes) -> None:
        if self.then == "reset":
            self.transport.abortConnection()
            return
        self.transport.write(data)
        if self.then == "close":
            self.transport.loseConnection()


class EchoDatagrams(DatagramProtocol):
    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)


class Visitor(Protocol):
    """Sends a word, and when it comes back does what the test is about."""

    transport: Any
    then = "close"

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(b"word")

    def dataReceived(self, data: bytes) -> None:
        if self.then == "close":
            self.transport.loseConnection()
        elif self.then == "reset":
            self.transport.abortConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.over.callback(None)


def pause(seconds: float) -> Deferred[None]:
    return deferLater(SYSTEM, seconds, lambda: None)


class GarbageTests(TestCase):
    """A server and a client in one process, with the collector switched off."""

    timeout = 30

    async def run_pair(self, visit: Callable[[int], Awaitable[None]], port: int) -> Counter[str]:
        """What of ours the collector has to free after some visits, by class."""
        self.server = self.service(f"server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1&log=none")
        assert self.server.tunnel_address is not None
        tunnel = self.server.tunnel_address.port
        self.client = self.service(
            f"client://{KEY}@127.0.0.1:{tunnel}/127.0.0.1:{port}?mode=2&log=none"
        )
        await self.server.whenReady()
        await self.client.whenReady()
        assert self.server.visitor_address is not None
        at = self.server.visitor_address.port
        for _ in range(FIRST):
            await visit(at)
        await self.quiet()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        gc.set_debug(gc.DEBUG_SAVEALL)
        self.addCleanup(gc.set_debug, 0)
        try:
            for _ in range(SESSIONS):
                await visit(at)
            await self.quiet()
            gc.collect()
            kinds = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.garbage)
        finally:
            gc.garbage.clear()
        return Counter({kind: n for kind, n in kinds.items() if kind.startswith("nodepass.")})

    def service(self, url: str) -> RoleService:
        made = makeService(url, reactor=SYSTEM)
        assert isinstance(made, RoleService)
        made.startService()
        self.addCleanup(lambda: maybeDeferred(made.stopService))
        return made

    async def quiet(self) -> None:
        """All sessions are over at both ends."""
        while self.server.stats.tcps or self.client.stats.tcps:
            await pause(0.01)
        await pause(0.05)

    async def tcp(self, *, visitor: str = "wait", target: str = "wait") -> Counter[str]:
        factory = Factory.forProtocol(type("Target", (Echo,), {"then": target}))
        listening = SYSTEM.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        visitors = Factory.forProtocol(type("Visiting", (Visitor,), {"then": visitor}))

        async def visit(port: int) -> None:
            protocol: Any = await connect(SYSTEM, "127.0.0.1", port, visitors, 5.0)
            await protocol.over

        return await self.run_pair(visit, listening.getHost().port)

    async def test_an_orderly_end(self) -> None:
        """The visitor closes."""
        self.assertEqual(await self.tcp(visitor="close"), {})

    async def test_the_target_closes(self) -> None:
        """The target closes first."""
        self.assertEqual(await self.tcp(target="close"), {})

    async def test_a_reset(self) -> None:
        """The visitor resets."""
        self.assertEqual(await self.tcp(visitor="reset"), {})

    async def test_a_reset_by_the_target(self) -> None:
        """The target resets."""
        self.assertEqual(await self.tcp(target="reset"), {})

    async def test_flows(self) -> None:
        """UDP flows that have had an answer, and are still open or have ended."""
        target = SYSTEM.listenUDP(0, EchoDatagrams(), interface="127.0.0.1")
        self.addCleanup(target.stopListening)

        async def visit(port: int) -> None:
            with socket.socket(type=socket.SOCK_DGRAM) as visitor:
                visitor.setblocking(False)
                visitor.sendto(b"word", ("127.0.0.1", port))
                while True:
                    try:
                        visitor.recv(16)
                        return
                    except OSError:
                        await pause(0.005)

        self.assertEqual(await self.run_pair(visit, target.getHost().port), {})
