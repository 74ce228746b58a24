"""Connections within this host are not paced, and all others as the system has it."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SkipTest, TestCase

from nodepass.address import Address
from nodepass.connection import connect
from nodepass.relay import pacing
from nodepass.relay.engine.sockets import listening, stream_socket
from nodepass.relay.pacing import UNPACED, send_freely, stays_here
from nodepass.relay.portable import listen_tcp

SYSTEM: Any = reactor


def control(sock: Any) -> bytes:
    """How congestion is controlled on a socket."""
    name: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0")


class FakeSocket(socket.socket):
    """Of a system whose default is BBR."""

    def getsockopt(self, *_: Any) -> Any:
        return b"bbr\0"


class Kept(Protocol):
    """A connection that tells of its beginning and its end."""

    def __init__(self) -> None:
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class PacingTests(TestCase):
    """On a system that would pace."""

    timeout = 30

    def setUp(self) -> None:
        if not hasattr(socket, "TCP_CONGESTION"):
            raise SkipTest("this system has one way to control congestion")
        self.patch(pacing, "_paces", lambda: True)
        with socket.socket() as sock:
            self.default = control(sock)
        if self.default == UNPACED:
            raise SkipTest("here nothing is paced, and nothing to be told apart")

    def test_local_addresses(self) -> None:
        """What stays on this host is known by its address alone."""
        for host, stays in (
            ("127.0.0.1", True),
            ("127.9.8.7", True),
            ("::1", True),
            ("0.0.0.0", False),
            ("::", False),
            ("192.0.2.1", False),
            ("fe80::1%1", False),
            ("localhost", False),
            ("", False),
        ):
            self.assertEqual(stays_here(host), stays, host)

    def test_targets(self) -> None:
        """A socket to a target on this host is not paced, one to a target elsewhere as ever."""
        for local, expected in ((True, UNPACED), (False, self.default)):
            sock = stream_socket(socket.AF_INET, local=local)
            self.addCleanup(sock.close)
            self.assertEqual(control(sock), expected)

    def test_visitors(self) -> None:
        """Who comes to a port for this host alone is not paced; on a port for everybody all are as
        ever."""
        for host, expected in (("127.0.0.1", UNPACED), ("0.0.0.0", self.default)):
            with listening(Address(host, 0), 5) as port, socket.socket() as visitor:
                visitor.connect(("127.0.0.1", port.getsockname()[1]))
                port.setblocking(True)
                accepted, _ = port.accept()
                with accepted:
                    self.assertEqual(control(accepted), expected)

    async def test_links(self) -> None:
        """Nor is either end of what the reactor connects within this host."""
        here = Kept()
        port: Any = listen_tcp(SYSTEM, Address("127.0.0.1", 0), Factory.forProtocol(lambda: here))
        self.addCleanup(port.stopListening)
        there: Any = await connect(
            SYSTEM, "127.0.0.1", port.getHost().port, Factory.forProtocol(Kept), 10.0
        )
        await here.made
        for end in (here, there):
            transport: Any = end.transport
            self.assertEqual(control(transport.getHandle()), UNPACED)
        there.transport.loseConnection()
        await here.lost
        await there.lost

    def test_system_that_does_not_pace(self) -> None:
        """Where nothing is paced nothing is changed."""
        self.patch(pacing, "_paces", lambda: False)
        with socket.socket() as sock:
            send_freely(sock)
            self.assertEqual(control(sock), self.default)


class SystemTests(TestCase):
    """Whether the system paces."""

    def setUp(self) -> None:
        pacing._paces.cache_clear()
        self.addCleanup(pacing._paces.cache_clear)

    def test_bbr(self) -> None:
        """BBR does."""
        if not hasattr(socket, "TCP_CONGESTION"):
            raise SkipTest("this system has one way to control congestion")
        self.patch(socket, "socket", FakeSocket)
        self.assertTrue(pacing._paces())

    def test_unknown(self) -> None:
        """A system that does not say is left alone."""
        if hasattr(socket, "TCP_CONGESTION"):
            self.patch(socket, "TCP_CONGESTION", 9999)
        with socket.socket() as sock:
            pacing.send_freely(sock)
