"""Event streams on real sockets: clients that never read among many that do, and how curl sees the
two ways in which a stream ends."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from klein import Klein
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.python.failure import Failure

from nodepass.logs import Level, Log
from nodepass.master.hub import EventHub
from nodepass.master.models import MASTER_ID, Instance
from nodepass.master.request import MasterRequest
from nodepass.master.site import MasterSite
from nodepass.master.stream import FINISH_TIMEOUT, QUEUE_BYTES, Streams
from tests.certs import Authority
from tests.scenarios.harness import until
from tests.scenarios.programs import memory_of, program

ONE = Instance(id="00000001")

READERS = 90
SILENT = 10


class Master:
    """A site with nothing but events."""

    app = Klein()

    def __init__(self) -> None:
        self.hub = EventHub(lambda: [Instance(id=MASTER_ID), ONE])
        log = Log(Level.NONE)
        self.streams = Streams(reactor, log)
        self.site = MasterSite(self.app.resource(), reactor, log)

    @app.route("/events")
    def events(self, request: MasterRequest) -> Deferred[None]:
        return self.streams.events(request, self.hub)


@asynccontextmanager
async def serving(tls: Authority | None = None) -> AsyncIterator[tuple[Master, int]]:
    """A master and its port, as long as it is needed."""
    master = Master()
    if tls is None:
        port = reactor.listenTCP(0, master.site, interface="127.0.0.1")
    else:
        leaf = tls.leaf("127.0.0.1")
        context = DefaultOpenSSLContextFactory(leaf.key, leaf.crt)
        port = reactor.listenSSL(0, master.site, context, interface="127.0.0.1")
    try:
        yield master, port.getHost().port
    finally:
        await port.stopListening()
        for connection in list(master.site._connections):
            connection.abort()


class Reader(Protocol):
    """Reads a stream and counts: each event is to be the one after that before it."""

    def __init__(self) -> None:
        self.expected = 0
        self.late = 0.0
        self.ended = False
        self.rest = b""
        self.sent: list[float] = []

    def connectionMade(self) -> None:
        self.transport.write(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            match = re.search(rb'"logs":"([0-9]+) x', line)
            if match:
                assert int(match[1]) == self.expected
                self.late = max(self.late, reactor.seconds() - self.sent[self.expected])
                self.expected += 1

    def connectionLost(self, reason: Failure = ...) -> None:  # type: ignore[assignment]
        self.ended = True


@pytest_twisted.ensureDeferred
async def test_silent_subscribers_among_many() -> None:
    """Ten subscribers never read: they are cut off and get everything anew when they return; ninety
    others get each event within a second and in order, and memory stays bounded."""
    async with serving() as (master, port):
        sent: list[float] = []
        silent = []
        for _ in range(SILENT):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")
            silent.append(client)
        readers = []
        for _ in range(READERS):
            reader = Reader()
            reader.sent = sent
            await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), reader)
            readers.append(reader)
        await until(lambda: len(master.streams) == READERS + SILENT)
        before = memory_of(os.getpid())
        most = 0
        text = "x" * 20_000
        while len(master.streams) > READERS:
            assert len(sent) * len(text) < 6 * QUEUE_BYTES, "silent subscribers are still there"
            for _ in range(3):
                master.hub.publish("log", ONE, f"{len(sent)} {text}")
                sent.append(reactor.seconds())
            # As fast as this process, which has both ends of all, gets it across.
            await until(lambda: min(reader.expected for reader in readers) >= len(sent) - 6)
            most = max(most, memory_of(os.getpid()) - before)
        await until(lambda: all(reader.expected == len(sent) for reader in readers))
        assert not any(reader.ended for reader in readers)
        assert max(reader.late for reader in readers) < 1.0
        # One queue's worth is shared by all who lag; each has what its transport holds, and the
        # journal its own.
        assert most < 3 * QUEUE_BYTES + SILENT * 200_000 + (8 << 20)
        for client in silent:
            data = b""
            with pytest.raises(ConnectionResetError):
                client.settimeout(5)
                while True:
                    data = (data + client.recv(65536))[-20:]
            assert not data.endswith(b"0\r\n\r\n")
            client.close()
        again = Reader()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), again)
        await until(lambda: len(master.streams) == READERS + 1)
        for reader in [*readers, again]:
            reader.transport.abortConnection()  # type: ignore[union-attr]
        await until(lambda: len(master.streams) == master.hub.subscribers == 0)


class Curl(ProcessProtocol):
    """curl, what it printed, and its exit status."""

    def __init__(self, *arguments: str) -> None:
        self.output = b""
        self.ended: Deferred[int] = Deferred()
        path = program("curl")
        reactor.spawnProcess(self, path, [path, "-sSkN", "-m", "20", *arguments], env=None)

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        ended: Any = reason.value
        self.ended.callback(ended.exitCode if isinstance(ended, ProcessTerminated) else 0)


async def overflow(master: Master) -> None:
    """Cut all streams off."""
    for stream in list(master.streams._open):
        stream.abort()


async def shut_down(master: Master) -> None:
    """Say that the master ends, and end the streams."""
    master.hub.publish("shutdown", None)
    start = reactor.seconds()
    await master.streams.finish()
    assert reactor.seconds() - start < FINISH_TIMEOUT / 2


async def vanish(master: Master) -> None:
    """Break the connections as if the master had been killed."""
    for connection in list(master.site._connections):
        connection.abort()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
@pytest.mark.parametrize(
    ("end", "statuses"), [(overflow, {18, 56}), (vanish, {18, 56}), (shut_down, {0})]
)
@pytest_twisted.ensureDeferred
async def test_how_curl_sees_the_end(
    end: Callable[[Master], Awaitable[None]], statuses: set[int], version: str, tls: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    """curl prints events as they happen; it takes only the end after `shutdown` for success."""
    async with serving(Authority(tmp_path) if tls else None) as (master, port):
        curl = Curl(version, f"{'https' if tls else 'http'}://127.0.0.1:{port}//events")
        await until(lambda: curl.output.count(b'"initial"') == 2)
        assert curl.output.startswith(b"retry: 3000\n\nevent: instance\ndata: {")
        master.hub.publish("log", ONE, "a <line>")
        await until(lambda: curl.output.endswith(b'"logs":"a \\u003cline\\u003e"}\n\n'))
        await end(master)
        assert await curl.ended in statuses
        assert (b'"type":"shutdown"' in curl.output) == (statuses == {0})
        assert len(master.streams) == 0
