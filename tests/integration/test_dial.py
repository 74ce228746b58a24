"""Dialing on this host's own sockets."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from nodepass.racing import connect_tcp, dial_cause
from nodepass.resolver import CachingResolver

SYSTEM: Any = reactor


class DialTests(TestCase):
    """Connections that are made, and refused, by the operating system."""

    def setUp(self) -> None:
        self.resolver = CachingResolver(SYSTEM)
        self.resolver.start()
        self.addCleanup(self.resolver.stop)
        self.port = SYSTEM.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.number = self.port.getHost().port

    def connect(self, *hosts: str) -> Deferred[Any]:
        factory = Factory.forProtocol(Protocol)
        return connect_tcp(SYSTEM, self.resolver, hosts, self.number, factory, 10.0)

    async def test_first_address_fails(self) -> None:
        """Where only one loopback address listens, the dial still gets there, and fast."""
        began = SYSTEM.seconds()
        protocol = await self.connect("::1", "127.0.0.1")
        self.assertLess(SYSTEM.seconds() - began, 0.2)
        self.assertEqual(protocol.transport.getPeer().host, "127.0.0.1")
        closed: Deferred[None] = Deferred()
        protocol.connectionLost = lambda _reason: closed.callback(None)
        protocol.transport.loseConnection()
        await closed

    async def test_refused(self) -> None:
        """A port that nobody listens on is refused."""
        await self.port.stopListening()
        failure = await self.connect("127.0.0.1").addErrback(lambda failure: [failure])
        self.assertEqual(dial_cause(failure[0]), "refused")

    async def test_name_not_found(self) -> None:
        """The system's resolver says no to a name that RFC 6761 keeps from existing."""
        failure = await self.connect("nowhere.invalid").addErrback(lambda failure: [failure])
        self.assertEqual(dial_cause(failure[0]), "name not found")
