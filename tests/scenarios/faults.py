"""What goes wrong on the way between two nodes, and how to see that a tunnel is well again."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from nodepass.address import Endpoint
from tests.scenarios.harness import KEY, Node, node, sleep
from tests.scenarios.programs import Conn, Script, Target, connect, echo, listen, program

#: Seconds in which a tunnel must serve again, with the harness' quick intervals: the promise is
#: cooldown + three intervals, 1.8 s, and the handshake; the rest is for a busy machine.
SERVES_AGAIN = 8.0


# Nodes


@define
class Fleet:
    """A server and its clients, each a process; all stopped together."""

    server: Node
    clients: list[Node]
    #: Where clients connect, where visitors do.
    tunnel: int
    visitors: int

    @property
    def visitor(self) -> Endpoint:
        """Where visitors connect."""
        return Endpoint("127.0.0.1", self.visitors)

    async def stop(self) -> None:
        """Stop what is still there."""
        for one in [*self.clients, self.server]:
            if not one.ended.called:
                await one.stop()


def start_server(
    target: Endpoint | str,
    flow: str = "-",
    *,
    tunnel: int = 0,
    visitors: int = 0,
    more: str = "",
    key: str = KEY,
    env: dict[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Node:
    """A server; in flow "+" it dials `target`."""
    at = f"{host}:{visitors}" if flow == "-" else str(target)
    mode = 1 if flow == "-" else 2
    user = f"{key}@" if key else ""
    return node(f"server://{user}{host}:{tunnel}/{at}?mode={mode}&{more}", env=env)


def start_client(
    target: Endpoint | str,
    tunnel: int,
    flow: str = "-",
    *,
    visitors: int = 0,
    more: str = "",
    key: str = KEY,
    env: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    netns: str | None = None,
) -> Node:
    """A client; in flow "-" it dials `target`."""
    at = f"127.0.0.1:{visitors}" if flow == "+" else str(target)
    user = f"{key}@" if key else ""
    return node(f"client://{user}{host}:{tunnel}/{at}?mode=2&{more}", env=env, netns=netns)


async def fleet(
    *targets: Endpoint,
    flow: str = "-",
    server: str = "",
    client: str = "",
    env: dict[str, str] | None = None,
    through: Cutter | None = None,
) -> Fleet:
    """A server and a client for each target, ready for visitors.

    @param through: the clients connect to this instead.
    """
    one = start_server(targets[0], flow, more=server, env=env)
    clients: list[Node] = []
    try:
        tunnel = await one.port("clients")
        if through is not None:
            through.onward = tunnel
        at = tunnel if through is None else through.port
        for target in targets:
            clients.append(start_client(target, at, flow, more=client, env=env))
            await clients[-1].line("tunnel established")
            await says(one, f"clients: {len(clients)}$")
        visitors = await (one if flow == "-" else clients[0]).port()
    except BaseException:
        for each in (*clients, one):
            await each.stop()
        raise
    return Fleet(one, clients, tunnel, visitors)


async def exit_status(one: Node, timeout: float = 20.0) -> int:
    """How a node ends that should do so by itself."""
    return await one.ended.addTimeout(timeout, reactor)


def said(one: Node, pattern: str, since: int = 0) -> list[str]:
    """The lines of a node, from line number `since` on, that have `pattern` in them."""
    return [line for line in one.lines[since:] if re.search(pattern, line)]


async def says(one: Node, pattern: str, since: int = 0, timeout: float = 15.0) -> str:
    """The first such line, waited for."""
    deadline = reactor.seconds() + timeout
    while not said(one, pattern, since):
        if reactor.seconds() > deadline or one.ended.called:
            lines = "\n".join(one.lines[-30:])
            raise AssertionError(f"the node did not say {pattern!r} within {timeout} s:\n{lines}")
        await sleep(0.02)
    return said(one, pattern, since)[0]


async def checkpoint(one: Node, expected: str, timeout: float = 15.0) -> str:
    """The next checkpoint line with this in it."""
    return await says(one, f"CHECK_POINT.*{expected}", len(one.lines), timeout)


# Visitors


def named(name: bytes) -> Script:
    """A target that says its name, then echoes."""

    async def script(conn: Conn) -> None:
        conn.write(name)
        await echo(conn)

    return script


async def download(conn: Conn) -> None:
    """A target that sends what `stream_of` tells, slowly, for some seconds, and ends cleanly."""
    for block in range(STREAM_BLOCKS):
        if conn.gone:
            return
        conn.write(bytes([block]) * STREAM_BLOCK)
        await sleep(0.02)
    conn.finish()


STREAM_BLOCKS = 100
STREAM_BLOCK = 20_000
#: All that `download` sends.
STREAM = b"".join(bytes([block]) * STREAM_BLOCK for block in range(STREAM_BLOCKS))


def echoing(name: bytes = b"1") -> Target:
    """A target with a name."""
    return listen(named(name))


async def visit(where: Endpoint, timeout: float = 3.0) -> bytes:
    """One visit to a named target: its name. Raises where it fails in any way."""
    conn = await connect(where)
    timer = reactor.callLater(timeout, conn.reset)
    try:
        conn.write(b"?hello")
        answer = await conn.read(7)
        conn.finish()
        await conn.read_all()
        assert answer[1:] == b"?hello", answer
        return answer[:1]
    finally:
        if timer.active():
            timer.cancel()
        if not conn.gone:
            conn.reset()
            await conn.end()


async def serves(where: Endpoint, name: bytes = b"", timeout: float = SERVES_AGAIN) -> float:
    """Wait until a visit works (and reaches the target of this name): how long that took."""
    began = reactor.seconds()
    while True:
        try:
            if await visit(where) == name or not name:
                return reactor.seconds() - began
        except (OSError, EOFError, ConnectError):
            pass
        if reactor.seconds() - began > timeout:
            raise AssertionError(f"{where} does not serve {name!r} again after {timeout} s")
        await sleep(0.05)


async def begin(where: Endpoint, name: bytes = b"") -> Conn:
    """A session with a named target, that stays."""
    conn = await connect(where)
    got = await conn.read(1)
    assert not name or got == name, got
    assert await lives(conn)
    return conn


async def lives(conn: Conn) -> bool:
    """Whether a session with an echoing target still carries bytes both ways."""
    conn.write(b"alive?")
    return await conn.read(6) == b"alive?"


# The way between


class Cutter:
    """Forwards connections to a port, and breaks those it is told to.

    A client's control link is its first connection.

    @ivar pairs: the connections in the order they came.
    @ivar open: whether new connections are forwarded; otherwise they are reset.
    @ivar silent: whether new connections are accepted and then left without a word.
    @ivar answers: bytes of its answer that a client gets on new connections; the rest is held until
        `release`. None: all.
    """

    def __init__(self) -> None:
        self.pairs: list[_Leg] = []
        self.open = True
        self.silent = False
        self.answers: int | None = None
        self.onward = 0
        factory = Factory.forProtocol(lambda: _Leg(self))
        factory.noisy = False
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    def live(self) -> list[int]:
        """Numbers of the connections that are there."""
        return [number for number, leg in enumerate(self.pairs) if not leg.gone]

    def data_links(self) -> list[int]:
        """Numbers of the data links that are there: what a client says first tells them, plain or
        encrypted."""
        marks = (b"NP2D", b"nodepass2-data")
        return [n for n in self.live() if any(mark in self.pairs[n].recorded for mark in marks)]

    def cut(self, number: int) -> None:
        """Reset a connection, both ways."""
        self.pairs[number].cut()

    def hold(self, number: int, on: bool = True) -> None:
        """Let nothing pass on a connection, or let it pass again."""
        self.pairs[number].hold(on)

    def release(self) -> None:
        """Let the answers pass that were held."""
        self.answers = None
        for number in self.live():
            self.pairs[number].release()

    async def stop(self) -> None:
        """End all."""
        await self._listening.stopListening()
        for leg in self.pairs:
            leg.cut()


class _Leg(Protocol):
    """One end of a forwarded connection."""

    transport: Any

    def __init__(self, owner: Cutter, other: _Leg | None = None) -> None:
        self._owner = owner
        self.other = other
        self.gone = False
        self.recorded = b""
        self._held = b""
        # Of one that answers a client: whether its answers are held, and how much has passed.
        self._stingy = other is not None and owner.answers is not None
        self._passed = 0

    def connectionMade(self) -> None:
        if self.other is not None:
            return
        if not self._owner.open:
            self.transport.abortConnection()
            return
        self._owner.pairs.append(self)
        if not self._owner.silent:
            onward = TCP4ClientEndpoint(reactor, "127.0.0.1", self._owner.onward)
            connecting: Deferred[_Leg] = connectProtocol(onward, _Leg(self._owner, self))
            connecting.addCallbacks(self._connected, lambda _: self.cut())

    def _connected(self, other: _Leg) -> None:
        self.other = other
        if self.gone:
            other.transport.abortConnection()
        elif self._held:
            other.transport.write(self._held)

    def dataReceived(self, data: bytes) -> None:
        if len(self.recorded) < 4096:
            self.recorded += data
        if self.other is None:
            self._held += data
        elif not self.other.gone:
            answers = self._owner.answers
            if self._stingy and answers is not None:
                room = answers - self._passed
                self._held += data[room:]
                data = data[:room]
                self._passed += len(data)
            self.other.transport.write(data)

    def release(self) -> None:
        """Let pass what was held of the answers to this client; there is no more of it."""
        if self.other is not None:
            held, self.other._held = self.other._held, b""
            self.transport.write(held)

    def hold(self, on: bool) -> None:
        for leg in (self, self.other):
            if leg is not None and not leg.gone:
                if on:
                    leg.transport.pauseProducing()
                else:
                    leg.transport.resumeProducing()

    def cut(self) -> None:
        for leg in (self, self.other):
            if leg is not None and not leg.gone:
                leg.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone = True
        if self.other is not None and not self.other.gone:
            if reason.check(type(connectionDone.value)):
                self.other.transport.loseConnection()
            else:
                self.other.transport.abortConnection()


@define
class Network:
    """A network namespace joined to this one by a cable that can be pulled."""

    name: str = field(factory=lambda: f"np{os.getpid() % 100000}")
    here: str = field(factory=lambda: f"10.213.{os.getpid() % 250}.1")
    there: str = field(factory=lambda: f"10.213.{os.getpid() % 250}.2")

    def __attrs_post_init__(self) -> None:
        try:
            self._ip("netns", "add", self.name)
            self._ip("link", "add", self._cable, "type", "veth", "peer", "name", "up0",
                     "netns", self.name)  # fmt: skip
            self._ip("addr", "add", f"{self.here}/24", "dev", self._cable)
            self._ip("link", "set", self._cable, "up")
            self._inside("addr", "add", f"{self.there}/24", "dev", "up0")
            self._inside("link", "set", "up0", "up")
            self._inside("link", "set", "lo", "up")
        except BaseException:
            self.remove()
            raise

    @property
    def _cable(self) -> str:
        return f"{self.name}c"

    def pull(self) -> None:
        """Pull the cable out."""
        self._ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        """Put the cable back."""
        self._ip("link", "set", self._cable, "up")

    def drop_route(self) -> None:
        """Take the way to this side away from those inside."""
        self._inside("addr", "flush", "dev", "up0")

    def give_route(self) -> None:
        """Give it back."""
        self._inside("addr", "add", f"{self.there}/24", "dev", "up0")

    def remove(self) -> None:
        """Take all of it down."""
        subprocess.run([program("ip"), "netns", "del", self.name], check=False)
        subprocess.run([program("ip"), "link", "del", self._cable], check=False,
                       stderr=subprocess.DEVNULL)  # fmt: skip

    def _inside(self, *arguments: str) -> None:
        self._ip("-n", self.name, *arguments)

    def _ip(self, *arguments: str) -> None:
        subprocess.run([program("ip"), *arguments], check=True)
