"""What goes through a tunnel of which one end or both are simulated old nodes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

from attrs import define
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from nodepass.address import Endpoint
from nodepass.testing import Dialect, OldClient, OldServer, OldTiming
from nodepass.wire import Flow
from tests.scenarios.datagrams import Programs
from tests.scenarios.datagrams import Target as UDPTarget
from tests.scenarios.harness import sleep, until
from tests.scenarios.programs import HERE, Conn, Target, connect, data_of, echo, listen

#: No byte of it makes a line feed of a character that lines of 1.6 are made of.
KEY = "AN-HONEST-KEY-OF-GOOD-LENGTH".replace("-", "_")

#: All that the old programs wait for, ten times as fast.
FASTER = 10

_PORTS = cycle(range(12000, 30000))

DIALECTS = [Dialect.V1_14, Dialect.V2_0, Dialect.V1_6, Dialect.V1_6_RAW]


def timing(dialect: Dialect) -> OldTiming:
    """The times of simulated nodes in scenarios."""
    return OldTiming.of(dialect).faster(FASTER)


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

    def sides(self, flow: Flow) -> tuple[Endpoint, Endpoint]:
        """The address of the server's end and of the client's, behind the tunnel."""
        if flow is Flow.REVERSE:
            return self.visitors, self.target
        return self.target, self.visitors


@asynccontextmanager
async def ends(script: Any = echo) -> AsyncIterator[Ends]:
    """Addresses for the two ends of a tunnel, with a target at one of them."""
    async with Programs() as programs:
        where = free_address()
        udp = programs.target(at=where)
        tcp = listen(script, host=where.host, port=where.port)
        try:
            yield Ends(free_address(), tcp.endpoint, tcp, udp, programs)
        finally:
            await tcp.stop()


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


async def sessions(where: Endpoint, count: int = 10, size: int = 200_000) -> None:
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
