"""Visitors and targets that do as they are told: send, end, reset, or read nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.address import Endpoint
from tests.ports import HERE
from tests.scenarios.harness import sleep

#: Seconds after which a script that waits for the other end gives up.
PATIENCE = 30.0

#: Bytes: more than all sockets on the way to who reads nothing, and the pipes between them, hold.
HELD_UP = 100_000_000


def data_of(seed: int, size: int) -> bytes:
    """Bytes that no other seed has, and that do not repeat."""
    return Random(seed).randbytes(size)


@implementer(IPullProducer)
class _Supply:
    """Writes as fast as the socket takes it: a list of blocks, or one of them for ever."""

    def __init__(self, conn: Conn, blocks: list[bytes], forever: bool) -> None:
        self._conn = conn
        self._blocks = blocks
        self._forever = forever
        self._next = 0
        self.done: Deferred[None] = Deferred()

    def resumeProducing(self) -> None:
        if self._next == len(self._blocks):
            self.stopProducing()
            return
        block = self._blocks[self._next]
        self._next += not self._forever
        self._conn.sent += len(block)
        self._conn.transport.write(block)

    def stopProducing(self) -> None:
        self._conn.transport.unregisterProducer()
        if not self.done.called:
            self.done.callback(None)


@implementer(IHalfCloseableProtocol)
class Conn(Protocol):
    """One end of a TCP connection, for a script to act on.

    @ivar received: bytes that came so far.
    @ivar sent: bytes that were given to the socket by `send` and `flood`.
    @ivar ended: the other end has sent its FIN.
    @ivar gone: how the connection ended: "closed" or "reset"; empty while it is there.
    @ivar gone_at: when, in the reactor's seconds.
    """

    transport: Any

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.ended = False
        self.gone = ""
        self.gone_at = 0.0
        self.keep = True  # False: count what comes and forget it
        self._buffer = bytearray()
        self._finished = False
        self._waiting: list[Deferred[None]] = []

    # What a script does.

    def write(self, data: bytes) -> None:
        """Send bytes; to nobody, when it is reset already."""
        if not self.gone:
            self.transport.write(data)

    async def send(self, data: bytes) -> None:
        """Send many bytes, as fast as the socket takes them; returns when it has taken them."""
        blocks = [data[at : at + 65536] for at in range(0, len(data), 65536)]
        supply = _Supply(self, blocks, False)
        self.transport.registerProducer(supply, False)
        await supply.done

    def flood(self) -> None:
        """Send for ever, as fast as the socket takes it."""
        self.transport.registerProducer(_Supply(self, [bytes(65536)], True), False)

    def stop_flood(self) -> None:
        """Send no more of that."""
        self.transport.unregisterProducer()

    def finish(self) -> None:
        """Send FIN, and go on reading."""
        self._finished = True
        if self.ended:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def reset(self) -> None:
        """Send RST."""
        self.transport.abortConnection()

    def pause(self) -> None:
        """Read nothing for now."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self.transport.resumeProducing()

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._buffer) < size:
            if self.gone == "reset":
                raise ConnectionResetError(f"reset after {self.received} bytes")
            if self.ended:
                raise EOFError(f"ended after {self.received} bytes")
            await self.change()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def read_all(self) -> bytes:
        """All that comes before the other end's FIN.

        @raise ConnectionResetError: it reset the connection instead.
        """
        while not self.ended:
            if self.gone:
                raise ConnectionResetError(f"reset after {self.received} bytes")
            await self.change()
        return self.take()

    async def end(self) -> str:
        """How the connection ends: "closed" or "reset"."""
        while not self.gone:
            await self.change()
        return self.gone

    def take(self) -> bytes:
        """What has come and was not taken yet."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def change(self, patience: float | None = PATIENCE) -> None:
        """Wait until something happens on the connection."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if patience is not None:
            waiting.addTimeout(patience, reactor)
        await waiting

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:
                one.callback(None)

    # Protocol

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        if self.keep:
            self._buffer += data
        self._changed()

    def readConnectionLost(self) -> None:
        self.ended = True
        if self._finished:
            self.transport.loseConnection()
        self._changed()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        clean = reason.check(ConnectionDone) is not None and self.ended
        self.gone = "closed" if clean else "reset"
        self.gone_at = reactor.seconds()
        self._changed()


async def connect(where: Endpoint) -> Conn:
    """A visitor's connection. It may be reset already: the system tells that in place of the
    connection when it came first."""
    kind = TCP6ClientEndpoint if ":" in where.host else TCP4ClientEndpoint
    result = Conn()
    try:
        await connectProtocol(kind(reactor, where.host, where.port), result)
    except ConnectError as error:
        if error.osError != errno.ECONNRESET:
            raise
        result.gone, result.gone_at = "reset", reactor.seconds()
    return result


Script = Callable[[Conn], Awaitable[None]]


class Target:
    """Listens, and keeps who connects; each is given to a script where there is one."""

    def __init__(self, script: Script | None, host: str, port: int, paused: bool) -> None:
        self.conns: list[Conn] = []
        self.errors: list[BaseException] = []
        self._script = script
        self._paused = paused
        self._taken = 0
        self._waiting: list[Deferred[None]] = []
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda address: _Accepted(self)  # type: ignore[method-assign]
        self._port = reactor.listenTCP(port, factory, backlog=4096, interface=host)
        bound = self._port.getHost()
        self.endpoint = Endpoint(bound.host, bound.port)

    async def accept(self) -> Conn:
        """The next connection."""
        while self._taken == len(self.conns):
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting.addTimeout(PATIENCE, reactor)
        self._taken += 1
        return self.conns[self._taken - 1]

    def accepted(self, conn: Conn) -> None:
        """A connection is there."""
        self.conns.append(conn)
        if self._paused:
            conn.pause()
        if self._script is not None:
            Deferred.fromCoroutine(_awaited(self._script(conn))).addErrback(
                lambda failure: self.errors.append(failure.value)
            )
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    async def stop(self) -> None:
        """Close all; fails with what went wrong in a script."""
        await maybeDeferred(self._port.stopListening)  # it may be closed already
        for conn in self.conns:
            if not conn.gone:
                conn.reset()
        if self.errors:
            raise self.errors[0]


class _Accepted(Conn):
    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    def connectionMade(self) -> None:
        self._target.accepted(self)


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable


def listen(
    script: Script | None = None, host: str = HERE, port: int = 0, paused: bool = False
) -> Target:
    """A target. `paused`: it reads nothing until told to."""
    return Target(script, host, port, paused)


async def echo(conn: Conn) -> None:
    """Send back what comes, FIN for FIN."""
    while not conn.gone:
        data = conn.take()
        if data:
            conn.write(data)
        if conn.ended:
            conn.finish()
            return
        await conn.change(None)


async def standstill(moved: Callable[[], int], most: int = HELD_UP) -> None:
    """Wait until a count of bytes stands still; fails as soon as there are so many."""
    deadline = reactor.seconds() + PATIENCE
    before, looks = -1, 0
    while looks < 10:
        now = moved()
        assert now < most, f"nothing holds it up: {now} bytes"
        assert reactor.seconds() < deadline, f"it does not stand still: {now} bytes"
        looks = looks + 1 if now == before else 0
        before = now
        await sleep(0.05)


def program(name: str) -> str:
    """The path of a program that a scenario needs."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    assert path is not None, f"this scenario needs {name}; please install it"
    return path


def memory_of(pid: int) -> int:
    """Resident memory of a process, bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors_of(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
