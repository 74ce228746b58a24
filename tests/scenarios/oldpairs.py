"""What goes through a tunnel of which one end or both are simulated old nodes."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle
from typing import Any

from attrs import define, evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from nodepass.address import Endpoint
from nodepass.config import parse_url
from nodepass.identity import load_identity
from nodepass.service import RoleService, makeService
from nodepass.testing import Dialect, OldClient, OldServer, OldTiming
from nodepass.tuning import Tuning
from nodepass.wire import Flow
from tests.ports import HERE
from tests.scenarios.datagrams import Programs
from tests.scenarios.datagrams import Target as UDPTarget
from tests.scenarios.harness import QUICK, sleep, until
from tests.scenarios.programs import Conn, Script, Target, connect, data_of, echo, listen

#: No byte of it makes a line feed of a character that lines of 1.6 are made of.
KEY = "AN-HONEST-KEY-OF-GOOD-LENGTH".replace("-", "_")

_PORTS = cycle(range(12000, 30000))

DIALECTS = [Dialect.V1_14, Dialect.V2_0, Dialect.V1_6, Dialect.V1_6_RAW]


def timing(dialect: Dialect) -> OldTiming:
    """The times of simulated nodes in scenarios: short where each run waits for them, and as long
    as a busy machine needs where they end something."""
    return evolve(OldTiming.of(dialect), report=1.5, handshake=1.5, cooldown=0.3, udp_silence=3.0)


def patient(dialect: Dialect) -> OldTiming:
    """The same for many tunnels or links at once: a busy machine needs more than the five seconds
    that an old node waits for a link."""
    return evolve(timing(dialect), pool_get=30.0)


def free_address() -> Endpoint:
    """An address that nobody listens at, for TCP and UDP alike. The system gives no such port to
    connections, which would take it for minutes."""
    while True:
        where = Endpoint(HERE, next(_PORTS))
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(tuple(where))
                udp.bind(tuple(where))
            except OSError:
                continue
            return where


@define
class Ends:
    """Where visitors go and what they meet: a target that sends back what it gets."""

    visitors: Endpoint
    target: Endpoint
    tcp: Target
    udp: UDPTarget
    programs: Programs

    async def replace(self, script: Script) -> None:
        """Another target, at the same address."""
        await self.tcp.stop()
        self.tcp = listen(script, host=self.target.host, port=self.target.port)

    def sides(self, flow: Flow) -> tuple[Endpoint, Endpoint]:
        """The address of the server's end and of the client's, behind the tunnel."""
        if flow is Flow.REVERSE:
            return self.visitors, self.target
        return self.target, self.visitors


@asynccontextmanager
async def ends(script: Script = echo) -> AsyncIterator[Ends]:
    """Addresses for the two ends of a tunnel, with a target at one of them."""
    async with Programs() as programs:
        where = free_address()
        udp = programs.target(at=where)
        tcp = listen(script, host=where.host, port=where.port)
        between = Ends(free_address(), where, tcp, udp, programs)
        try:
            yield between
        finally:
            await between.tcp.stop()


async def first_session(where: Endpoint, patience: float = 15.0) -> None:
    """Try sessions until one gets through: early ones may meet a node that is not ready."""
    deadline = reactor.seconds() + patience
    while True:
        try:
            conn = await connect(where)
        except Exception:
            assert reactor.seconds() < deadline, "nobody listens for visitors"
            await sleep(0.05)
            continue
        try:
            conn.write(b"?")
            waiting = Deferred.fromCoroutine(conn.read(1))
            assert await waiting.addTimeout(1.0, reactor) == b"?"
            return
        except Exception:
            assert reactor.seconds() < deadline, "no session gets through"
            await sleep(0.05)
        finally:
            if not conn.gone:
                conn.reset()


async def session(where: Endpoint, seed: int, size: int) -> Conn:
    """Send bytes to the target until all have come back."""
    data = data_of(seed, size)
    conn = await connect(where)
    sending = Deferred.fromCoroutine(conn.send(data))
    assert await conn.read(size) == data
    await sending
    return conn


async def sessions(where: Endpoint, count: int = 6, size: int = 100_000) -> None:
    """Some of them at once."""
    conns = await gatherResults(
        [Deferred.fromCoroutine(session(where, seed, size)) for seed in range(count)],
        consumeErrors=True,
    )
    for conn in conns:
        conn.finish()


async def ping_pong(between: Ends, visitors: int = 3, rounds: int = 5) -> None:
    """Datagrams there and back, one at a time for each visitor; a lost one is said again."""
    talkers = [between.programs.visitor(between.visitors) for _ in range(visitors)]
    for number in range(rounds):
        for talker in talkers:
            data = b"%d " % number + data_of(number, 900)
            for _ in range(20):
                talker.say(data)
                try:
                    await until(lambda t=talker, d=data: d in t.heard, timeout=0.5)
                    break
                except AssertionError:
                    continue
            else:
                raise AssertionError(f"datagram {number} did not come back")


async def side_by_side(cases: Mapping[str, Awaitable[None]]) -> None:
    """Try cases at the same time: most of what they do is to wait.

    :raises AssertionError: one failed; says which.
    """

    async def one(name: str, case: Awaitable[None]) -> str:
        try:
            await case
        except Exception as error:
            traceback.print_exception(error)
            return f"{name}: {type(error).__name__}: {error}"
        return ""

    tried = [Deferred.fromCoroutine(one(name, case)) for name, case in cases.items()]
    failed = list(filter(None, await gatherResults(tried)))
    assert not failed, "\n".join(failed)


@asynccontextmanager
async def old_server(
    dialect: Dialect, tunnel: Endpoint, other: Endpoint, **options: Any
) -> AsyncIterator[OldServer]:
    """A simulated server for as long as the block lasts."""
    options = {"key": KEY, "timing": timing(dialect), **options}
    server = OldServer(reactor, dialect, tunnel, other, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def old_client(
    dialect: Dialect, tunnel: Endpoint, other: Endpoint, **options: Any
) -> AsyncIterator[OldClient]:
    """A simulated client for as long as the block lasts."""
    options = {"key": KEY, "timing": timing(dialect), "least": 16, **options}
    client = OldClient(reactor, dialect, tunnel, other, **options)
    client.start()
    try:
        yield client
    finally:
        client.stop()


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """What nodes of this process log in the block."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if not event["log_namespace"].startswith("nodepass"):
            return
        text = formatEvent(event)
        lines.append(text)
        if "SCENARIO_LOG" in os.environ:
            print(text)

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


@asynccontextmanager
async def our_node(
    role: str,
    tunnel: Endpoint,
    other: Endpoint,
    parameters: str,
    *,
    key: str = KEY,
    tuning: Tuning = QUICK,
) -> AsyncIterator[RoleService]:
    """A node of ours for as long as the block lasts; it need not be ready."""
    log = os.environ.get("SCENARIO_LOG", "info")
    url = parse_url(f"{role}://{key}@{tunnel}/{other}?log={log}&{parameters}")
    node = makeService(url, tuning=tuning)
    node.startService()
    try:
        yield node
    finally:
        await node.stopService()


@define
class Files:
    """PEM paths: a certificate, its key, and the roots."""

    crt: str
    key: str
    ca: str


@define
class Mixed:
    """A tunnel between a node of ours and an old one."""

    ours: RoleService
    old: OldServer | OldClient


@asynccontextmanager
async def mixed(
    between: Ends,
    dialect: Dialect,
    role: str,
    flow: Flow,
    tls: int = 0,
    *,
    files: Files | None = None,
    tunnel: Endpoint | None = None,
    ours: str = "",
    **options: Any,
) -> AsyncIterator[Mixed]:
    """A tunnel in which ours has a role, up and carrying sessions.

    :param files: certificate, key and roots, with `tls` 2.
    :param ours: more parameters for our node.
    :param options: more for the old one.
    """
    tunnel = tunnel or free_address()
    here, there = between.sides(flow)
    mode = 1 if flow is Flow.REVERSE else 2
    wire = f"wire={dialect.value}"
    if role == "server":
        shown = "" if files is None else f"&crt={files.crt}&key={files.key}"
        node = our_node("server", tunnel, here, f"{wire}&mode={mode}&tls={tls}{shown}&{ours}")
        if files is not None:
            options = {"ca": files.ca, "name": "localhost", **options}
        old: Any = old_client(dialect, tunnel, there, **options)
    else:
        shown = "" if files is None else f"&tls=2&ca={files.ca}"
        node = our_node("client", tunnel, there, f"{wire}&mode=2{shown}&{ours}")
        if files is not None:
            options = {"identity": load_identity(files.crt, files.key), **options}
        old = old_server(dialect, tunnel, here, flow=flow, tls=tls, **options)
    async with old as peer, node as mine:
        await peer.ready(timeout=30.0)
        await first_session(between.visitors)
        yield Mixed(mine, peer)
