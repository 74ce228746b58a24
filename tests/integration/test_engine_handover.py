"""Connections that the engine takes over from Twisted, plain and with TLS, under the reactor."""

from __future__ import annotations

import gc
import random
import socket
import sys
import weakref
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from nodepass.logs import Level, Log
from nodepass.relay.engine import relay as module
from nodepass.relay.engine.relay import EngineRelay
from nodepass.relay.engine.tls import EngineTLSTransport
from nodepass.relay.hangup import HangupWatch
from nodepass.resolver import CachingResolver
from tests.certs import Authority, Leaf
from tests.enginerig import SMALL, Plain, descriptors

SYSTEM: Any = reactor
SOME = random.Random(3).randbytes(1 << 19)
BULK = random.Random(2).randbytes(5 << 20)


class First(Protocol):
    """Twisted's protocol on a connection before it changes hands.

    :ivar begin: called with it when it is connected.
    :ivar heard: called with it and what comes.
    """

    transport: Any

    def __init__(self) -> None:
        self.begin: Callable[[Any], None] = lambda first: None
        self.heard: Callable[[Any, bytes], None] = lambda first, data: None
        self.data = b""
        self.reason: Any = None

    def connectionMade(self) -> None:
        self.begin(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.heard(self, data)

    def connectionLost(self, reason: Any = None) -> None:
        self.reason = reason.type


@implementer(IOpenSSLContextFactory)
class _Context:
    """Makes OpenSSL's contexts, without any checks."""

    def __init__(self, leaf: Leaf | None = None) -> None:
        self._context = SSL.Context(SSL.TLS_METHOD)
        if leaf is not None:
            self._context.use_certificate_chain_file(leaf.crt)
            self._context.use_privatekey_file(leaf.key)

    def getContext(self) -> SSL.Context:
        return self._context


class HandoverTestCase(TestCase):
    """A server whose connections are taken over by the engine, and a client of Twisted's.

    :cvar tls: the connection has TLS.
    """

    tls = False

    def setUp(self) -> None:
        self.relay = EngineRelay(
            SYSTEM, CachingResolver(SYSTEM), HangupWatch(SYSTEM), Log(Level.DEBUG)
        )
        self.first, self.second, self.client = First(), Plain(), First()
        self.ready = 0
        self.first.heard = self.go

    def go(self, first: Any, data: bytes) -> None:
        """The connection changes hands on the client's first word."""
        first.heard = None
        self.relay.take_over(first.transport, self.second, self.is_ready)

    def is_ready(self) -> None:
        self.ready += 1

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the reactor run until something is so."""
        end = SYSTEM.seconds() + 10
        while not condition():
            self.assertLess(SYSTEM.seconds(), end, "it did not come to pass")
            await deferLater(SYSTEM, 0.002)

    async def connect(self) -> None:
        """Make the connection; at the end all of it is closed, and no descriptor is left."""
        factory = Factory.forProtocol(lambda: self.first)
        client = Factory.forProtocol(lambda: self.client)
        connected: Deferred[None] = Deferred()
        self.client.begin = lambda _: connected.callback(None)
        if self.tls:
            with TemporaryDirectory() as directory:
                context = _Context(Authority(directory).leaf("127.0.0.1"))
            factory = TLSMemoryBIOFactory(context, False, factory)
            client = TLSMemoryBIOFactory(_Context(), True, client)
        port = SYSTEM.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        endpoint = TCP4ClientEndpoint(SYSTEM, "127.0.0.1", port.getHost().port)
        await endpoint.connect(client)
        await connected

        async def close() -> None:
            if self.client.reason is None:
                self.client.transport.abortConnection()
            await self.until(lambda: self.client.reason and (self.second.reason or not self.taken))

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))

    @property
    def taken(self) -> bool:
        return self.first.heard is None


class PlainTests(HandoverTestCase):
    """Connections without TLS."""

    async def test_bytes_in_flight(self) -> None:
        """What was written and has not left goes first; what comes is heard by the new protocol
        alone, and the old transport is dead."""

        def begin(first: Any) -> None:
            first.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            first.transport.write(SOME)

        self.first.begin = begin
        await self.connect()
        self.client.transport.pauseProducing()
        old = self.first.transport
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.client.transport.write(SOME)
        self.second.transport.write(b"the end")
        old.write(b"not heard")
        old.loseConnection()
        old.abortConnection()
        self.client.transport.resumeProducing()
        await self.until(lambda: len(self.client.data) >= len(SOME) + 7)
        await self.until(lambda: len(self.second.data) >= len(SOME))
        self.assertEqual(self.client.data, SOME + b"the end")
        self.assertEqual(bytes(self.second.data), SOME)
        self.assertEqual(self.first.data, b"go")
        self.client.transport.loseConnection()
        await self.until(lambda: self.second.told)
        self.assertEqual(self.second.told, ["lost"])
        self.assertIsNone(self.first.reason)
        self.assertEqual(self.ready, 1)


class TLSTests(HandoverTestCase):
    """Connections with TLS."""

    tls = True

    async def test_bytes_in_flight(self) -> None:
        """The same as without: unsent, unread, and already deciphered bytes keep their places."""
        self.first.begin = lambda first: (
            first.transport.transport.getHandle().setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL
            ),
            first.transport.write(SOME),
        )
        await self.connect()
        raw = self.client.transport.transport
        raw.pauseProducing()
        await self.until(lambda: True)
        raw.resumeProducing()
        self.client.transport.write(b"go")
        self.client.transport.write(SOME)
        await self.until(lambda: self.ready)
        self.assertIsInstance(self.second.transport, EngineTLSTransport)
        self.second.transport.write(b"the ")
        self.second.transport.writeSequence((b"e", b"nd"))
        await self.until(lambda: len(self.client.data) >= len(SOME) + 7)
        await self.until(lambda: len(self.first.data + self.second.data) >= len(SOME) + 2)
        self.assertEqual(self.client.data, SOME + b"the end")
        self.assertEqual(self.first.data + self.second.data, b"go" + SOME)
        self.assertGreater(len(self.second.data), len(self.first.data))

    async def test_without_what_it_takes(self) -> None:
        """The transport stays Twisted's, and what that costs is said once."""
        self.patch(module, "DIRECT_TLS", False)
        lines: list[str] = []
        self.patch(self.relay._log, "_emit", lambda level, format, fields: lines.append(format))
        await self.connect()
        other = Plain()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.relay.take_over(self.client.transport, other, self.is_ready)
        self.assertIsInstance(self.second.transport, TLSMemoryBIOProtocol)
        self.assertEqual(len(lines), 1)
        self.assertIn("this pyOpenSSL lacks", lines[0])
        other.transport.loseConnection()
        await self.until(lambda: self.second.reason and other.reason)
        self.client.reason = other.reason

    async def test_bulk(self) -> None:
        """Five megabytes each way at once arrive as they were sent, in writes of any size."""
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        sizes = [1, 16383, 16384, 16385, 100000, 700000]
        place = number = 0
        self.second.transport.write(b"")
        while place < len(BULK):
            size = sizes[number % len(sizes)]
            self.second.transport.write(BULK[place : place + size])
            self.client.transport.write(BULK[place : place + size])
            place += size
            number += 1
        await self.until(lambda: len(self.client.data) >= len(BULK))
        await self.until(lambda: len(self.second.data) >= len(BULK))
        self.assertEqual(self.client.data, BULK)
        self.assertEqual(bytes(self.second.data), BULK)

    async def test_pauses(self) -> None:
        """A protocol that pauses at each piece it is given gets all of it, though nothing more
        comes: what TLS has taken from the socket and not given yet is not forgotten."""
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        transport = self.second.transport

        def pause(data: bytes) -> None:
            transport.pauseProducing()
            SYSTEM.callLater(0.001, transport.resumeProducing)

        self.second.on_data = pause
        half = len(SOME) // 2
        self.client.transport.write(SOME[:half])  # in records of the largest size
        for place in range(half, len(SOME), 4000):
            self.client.transport.write(SOME[place : place + 4000])
        await self.until(lambda: len(self.second.data) >= len(SOME))
        self.assertEqual(bytes(self.second.data), SOME)

    async def test_both_ends(self) -> None:
        """Two ends of the engine understand each other."""
        await self.connect()
        other = Plain()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.relay.take_over(self.client.transport, other, self.is_ready)
        await self.until(lambda: self.ready == 2)
        other.transport.write(BULK)
        self.second.transport.write(BULK[::-1])
        await self.until(lambda: len(other.data) + len(self.second.data) >= 2 * len(BULK))
        self.assertEqual(bytes(self.second.data), BULK)
        self.assertEqual(bytes(other.data), BULK[::-1])
        other.transport.loseConnection()
        await self.until(lambda: self.second.reason and other.reason)
        self.assertEqual((self.second.reason, other.reason), (ConnectionDone, ConnectionDone))
        self.client.reason = ConnectionDone

    async def test_end_by_the_other(self) -> None:
        """TLS's own end is a clean one, behind what was sent."""
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.client.transport.write(b"bye")
        self.client.transport.loseConnection()
        await self.until(lambda: self.second.reason)
        self.assertEqual((bytes(self.second.data), self.second.reason), (b"bye", ConnectionDone))

    async def test_end_by_this_one(self) -> None:
        """The other end sees TLS's own end behind all that was written."""
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.second.transport.write(BULK)
        self.second.transport.loseConnection()
        await self.until(lambda: self.client.reason)
        self.assertEqual(self.client.data, BULK)
        self.assertEqual(self.client.reason, ConnectionDone)

    async def test_truncation(self) -> None:
        """An end of the connection without TLS's own is no clean one."""
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.client.transport.transport.loseConnection()
        await self.until(lambda: self.second.reason)
        self.assertEqual(self.second.reason, ConnectionLost)

    async def test_garbage(self) -> None:
        """What no TLS peer sends ends the connection."""
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.client.transport.transport.write(b"x" * 1000)
        await self.until(lambda: self.second.reason)
        self.assertEqual(self.second.reason, ConnectionLost)
        self.assertEqual(self.second.data, b"")

    async def test_closed_while_it_changes_hands(self) -> None:
        """The other end's last word came with the first: the protocol is told, and is never
        ready."""
        await self.connect()
        # In one piece, as the other end reads it.
        raw, pieces = self.client.transport.transport, []
        self.patch(raw, "write", pieces.append)
        self.client.transport.write(b"go")
        self.client.transport.loseConnection()
        del raw.write
        raw.write(b"".join(pieces))
        await self.until(lambda: self.second.reason)
        self.assertEqual(self.ready, 0)
        self.assertIsNone(self.first.reason)

    async def test_aborted_while_it_changes_hands(self) -> None:
        """Who is to get the connection may give it up before it has it."""

        def go(first: Any, data: bytes) -> None:
            self.go(first, data)
            self.second.transport.abortConnection()

        self.first.heard = go
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.second.reason and self.client.reason)
        self.assertEqual(self.ready, 0)

    async def test_reset_while_it_changes_hands(self) -> None:
        """The protocol learns that the connection is gone."""

        def go(first: Any, data: bytes) -> None:
            raw = first.transport.transport
            SYSTEM.callLater(0, raw.connectionLost, Failure(ConnectionLost()))
            self.go(first, data)

        self.first.heard = go
        await self.connect()
        self.client.transport.write(b"go")
        await self.until(lambda: self.second.reason)
        self.assertEqual(self.second.reason, ConnectionLost)
        self.assertEqual(self.ready, 0)


class DescriptorTests(HandoverTestCase):
    """What taking over leaves behind."""

    tls = True

    async def test_no_memory(self) -> None:
        """Twisted's transports go at once, both ends' and without the garbage collector: there are
        many links, and most are idle."""
        await self.connect()
        other = Plain()
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.relay.take_over(self.client.transport, other, self.is_ready)
        await self.until(lambda: self.ready == 2)
        await self.until(lambda: True)
        gc.collect()  # what tests before this one left
        gc.disable()
        self.addCleanup(gc.enable)
        left = [
            weakref.ref(transport)
            for first in (self.first, self.client)
            for transport in (first.transport, first.transport.transport)
        ]
        self.first.transport = self.client.transport = None
        self.assertEqual([each() for each in left], [None] * 4)
        other.transport.loseConnection()
        await self.until(lambda: self.second.reason and other.reason)
        self.client.reason = ConnectionDone

    async def test_none_left(self) -> None:
        """After the end there are as many descriptors as before."""
        await self.connect()
        gc.collect()  # what tests before this one left
        before = descriptors()  # with both ends
        self.client.transport.write(b"go")
        await self.until(lambda: self.ready)
        self.client.transport.loseConnection()
        await self.until(lambda: self.second.reason and self.client.reason)
        await self.until(lambda: descriptors() == before - 2)
