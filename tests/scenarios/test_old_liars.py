"""Old peers that know the key and break the rules all the same."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from nodepass.address import Endpoint
from nodepass.service import RoleService
from nodepass.testing import Dialect
from nodepass.testing.conn import Conn, Gone, dial, listen
from nodepass.testing.tasks import Silence, Tasks
from nodepass.wire import Flow
from nodepass.wire.old import acceptor, awaited, connector, peer
from nodepass.wire.old.cipher import xor
from nodepass.wire.old.handshake import (
    Grant,
    HandshakeError,
    HTTPClientHandshake,
)
from nodepass.wire.old.signals import (
    Flush,
    Launch,
    Ping,
    Pong,
    Signal,
    SignalReader,
    Verify,
    encode,
)
from tests.scenarios.harness import QUICK, sleep, until
from tests.scenarios.oldpairs import (
    KEY,
    Ends,
    ends,
    first_session,
    free_address,
    log_lines,
    old_client,
    old_server,
    our_node,
    sessions,
    side_by_side,
)
from tests.scenarios.programs import connect

V = Dialect.V1_14
SECRET = KEY.encode()
VISITOR = Endpoint("192.0.2.1", 4000)

#: Whence the honest client comes: our server has one client for each address.
HONEST = "127.0.0.9"


class Liar:
    """A client that has been let in, with its control link; what it does then is up to a test."""

    def __init__(self, tunnel: Endpoint, node: RoleService) -> None:
        self.node = node
        self._tunnel = tunnel
        self._conns: list[Conn] = []
        self._reader = SignalReader(V, SECRET)
        self._heard: list[Signal] = []
        self.control: Conn

    async def dial(self) -> Conn:
        """Connect to the tunnel port."""
        conn = await dial(reactor, self._tunnel, 5.0)
        self._conns.append(conn)
        return conn

    async def knock(self) -> Grant:
        """Shake hands."""
        conn = await self.dial()
        handshake = HTTPClientHandshake(SECRET, None)
        conn.send(handshake.request())
        while True:
            grant = handshake.feed(await conn.read(timeout=5.0))
            if grant is not None:
                return grant

    async def join(self, links: int = 0) -> list[tuple[str, Conn]]:
        """Be let in, and make a control link and so many others."""
        await self.knock()
        number, self.control = await self.link()
        assert number == "00000000"
        return [await self.link() for _ in range(links)]

    async def link(self) -> tuple[str, Conn]:
        """Make a link, and wait for its number."""
        conn = await self.dial()
        return (await conn.read_exactly(4, 5.0)).hex(), conn

    def say(self, *signals: Signal) -> None:
        """Say something over the control link."""
        for signal in signals:
            self.control.send(encode(signal, V, SECRET))

    def line(self, text: str | bytes) -> None:
        """Send a line of one's own."""
        data = text.encode() if isinstance(text, str) else text
        self.control.send(base64.b64encode(xor(data, SECRET)) + b"\n")

    async def hear(self, kind: type[Signal], timeout: float = 5.0) -> Signal:
        """The next signal of a kind."""
        while True:
            while self._heard:
                signal = self._heard.pop(0)
                if isinstance(signal, kind):
                    return signal
            data = await self.control.read(timeout=timeout)
            if not data:
                raise Gone("the control link was closed")
            self._heard += self._reader.feed(data)

    def close(self) -> None:
        """Close all connections."""
        for conn in self._conns:
            conn.abort()


@asynccontextmanager
async def attacked(flow: Flow, parameters: str = "") -> AsyncIterator[tuple[Liar, Ends, list[str]]]:
    """A server of ours with a liar, and in the end an honest client, which must be served."""
    async with ends() as between:
        tunnel = free_address()
        mode = 1 if flow is Flow.REVERSE else 2
        here, there = between.sides(flow)
        ours = our_node("server", tunnel, here, f"mode={mode}&wire=1.14&{parameters}")
        with log_lines() as lines:
            async with ours as node:
                await until(lambda: node.tunnel_address is not None)
                liar = Liar(tunnel, node)
                try:
                    yield liar, between, lines
                    async with old_client(V, tunnel, there, source=HONEST) as honest:
                        await honest.ready()
                        if flow is Flow.FORWARD:
                            await first_session(between.visitors)
                            await sessions(between.visitors, 2, 10_000)
                finally:
                    liar.close()
    assert not [line for line in lines if "Traceback" in line or "bug" in line]


NONSENSE = [
    b"not base64\n",
    b"\n",
    base64.b64encode(b"no JSON") + b"\n",
    b"\xff\xfe\x00" * 30 + b"\n",
]
WRONG = [
    '{"action":"tcp","id":5}',
    '{"action":"tcp"}',
    '{"action":"tcp","id":"short","remote":"1.2.3.4:5"}',
    '{"action":"tcp","id":"../../etc","remote":"x"}',
    '{"action":"reboot"}',
    '{"action":null}',
    '{"action":"ping","more":{"nested":[1,2,3]}}',
    "[]",
    '"ping"',
    "null",
    "{" * 500,
    json.dumps({"action": "verify", "id": "12345678", "fp": "sha256:zz"}),
]


@pytest.mark.parametrize("flow", list(Flow), ids=lambda flow: flow.value)
@pytest_twisted.ensureDeferred
async def test_lines_without_sense_are_skipped(flow: Flow) -> None:
    """Bad lines, unknown actions and values of the wrong kind: the tunnel goes on."""
    async with attacked(flow) as (liar, _, _):
        await liar.join()
        for _ in range(5):
            for line in NONSENSE:
                liar.control.send(line)
            for text in WRONG:
                liar.line(text)
        await liar.hear(Ping)
        liar.say(Ping())
        await liar.hear(Pong)


@pytest_twisted.ensureDeferred
async def test_a_line_without_an_end() -> None:
    """The control link is closed before much of it is held."""
    async with attacked(Flow.FORWARD) as (liar, _, _):
        await liar.join()
        with pytest.raises(Gone):
            for _ in range(100):
                await liar.control.write(b"A" * 10_000)
                await sleep(0.005)
            await liar.hear(Launch)


@pytest_twisted.ensureDeferred
async def test_links_that_do_not_exist() -> None:
    """Thousands of launches of unknown links are held in bounds and cost no one else anything."""
    async with attacked(Flow.FORWARD) as (liar, between, _):
        [(number, link)] = await liar.join(1)
        for wrong in range(1, 4001):
            liar.say(Launch(bool(wrong % 2), VISITOR, f"{wrong:08x}"))
        liar.say(Launch(False, VISITOR, number))
        await link.write(b"hello")
        assert await link.read_exactly(5, 5.0) == b"hello"
        assert len(between.tcp.conns) == 1
        [client] = liar.node._role.peers
        assert len(client.links._awaited._launches) == awaited.MOST_AWAITED


@pytest_twisted.ensureDeferred
async def test_both_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """After launches of links that did not come our node asks for a flush and drops its idle links;
    it obeys one too."""
    monkeypatch.setattr(awaited, "ID_WAIT", 0.2)
    monkeypatch.setattr(peer, "INTERVAL", 0.3)
    async with attacked(Flow.FORWARD) as (liar, _, _):
        [(_, link)] = await liar.join(1)
        liar.say(*[Launch(False, VISITOR, f"{wrong:08x}") for wrong in (1, 2, 3)])
        await liar.hear(Flush)
        assert await link.read(timeout=5.0) == b""
        _, another = await liar.link()
        liar.say(Flush())
        assert await another.read(timeout=5.0) == b""


@pytest_twisted.ensureDeferred
async def test_a_link_that_is_launched_twice() -> None:
    """It has one session. The control link is none that could be launched."""
    async with attacked(Flow.FORWARD) as (liar, between, _):
        [(number, link)] = await liar.join(1)
        launch = Launch(False, VISITOR, number)
        liar.say(launch, launch, Launch(True, VISITOR, number), Launch(False, VISITOR, "0" * 8))
        await link.write(b"hello")
        assert await link.read_exactly(5, 5.0) == b"hello"
        liar.say(launch)
        await link.write(b"again")
        assert await link.read_exactly(5, 5.0) == b"again"
        liar.say(Ping())
        await liar.hear(Pong)
        assert len(between.tcp.conns) == 1


@pytest_twisted.ensureDeferred
async def test_a_flood_of_links() -> None:
    """More idle links than `max` are closed without a number."""
    async with attacked(Flow.FORWARD, "max=8") as (liar, _, _):
        await liar.join()
        numbered = 0
        for _ in range(60):
            try:
                await liar.link()
                numbered += 1
            except Gone:
                pass
        assert numbered == 8


@pytest_twisted.ensureDeferred
async def test_pings_that_are_not_listened_to() -> None:
    """Whoever asks without reading the answers is no longer read from."""
    async with attacked(Flow.FORWARD) as (liar, _, _):
        await liar.join()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            liar.control._plain.socket.setsockopt(socket.SOL_SOCKET, option, 4096)
        block = encode(Ping(), V, SECRET) * 3_000
        for _ in range(300):
            writing = Deferred.fromCoroutine(liar.control.write(block))
            for _ in range(20):
                if writing.called:
                    break
                await sleep(0.05)
            else:
                writing.addErrback(lambda _: None)
                return
        raise AssertionError("a million pings were taken, and their answers are held")


@pytest_twisted.ensureDeferred
async def test_a_client_that_makes_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is forgotten, and another one of its address can join."""
    monkeypatch.setattr(acceptor, "JOIN_TIMEOUT", 0.5)
    async with attacked(Flow.FORWARD) as (liar, _, lines):
        await liar.knock()
        await until(lambda: any("no control link" in line for line in lines))
        await liar.join()


@pytest_twisted.ensureDeferred
async def test_a_second_client_of_an_address() -> None:
    """While the first one answers, the second is told so, and is not taken for a link; when the
    first no longer does, the second takes its place."""
    async with attacked(Flow.FORWARD) as (liar, _, _):
        [(number, link)] = await liar.join(1)
        liar.say(Launch(False, VISITOR, number))
        second = Liar(liar._tunnel, liar.node)
        try:
            liar.say(Ping())
            await liar.hear(Pong)  # and all pings before it
            refused = Deferred.fromCoroutine(second.knock())
            await liar.hear(Ping)
            liar.say(Pong())
            with pytest.raises(HandshakeError) as caught:
                await refused
            assert caught.value.status == 503
            await link.write(b"hello")
            assert await link.read_exactly(5, 5.0) == b"hello"
            # Now the first one is silent.
            await second.join()
        finally:
            second.close()


@pytest_twisted.ensureDeferred
async def test_bytes_on_an_idle_link_reach_no_visitor() -> None:
    """A link that speaks before it is launched is not given to a visitor."""
    async with attacked(Flow.REVERSE) as (liar, between, _):
        [(_, first), (_, second)] = await liar.join(2)
        await first.write(b"EVIL")
        await second.write(b"EVIL")
        await sleep(0.2)
        number, good = await liar.link()
        visitor = await connect(between.visitors)
        visitor.write(b"hello")
        launch = await liar.hear(Launch)
        assert isinstance(launch, Launch) and launch.id == number
        assert await good.read_exactly(5, 5.0) == b"hello"
        await good.write(b"world")
        assert await visitor.read(5) == b"world"
        visitor.finish()


@pytest_twisted.ensureDeferred
async def test_links_that_close_when_they_are_launched() -> None:
    """Their visitors are turned away, and nobody waits."""
    async with attacked(Flow.REVERSE) as (liar, between, _):
        for number, link in await liar.join(3):
            visitor = await connect(between.visitors)
            visitor.write(b"hello")
            await liar.hear(Launch)
            for each in liar._conns[2:]:
                each.abort()
            await until(lambda visitor=visitor: visitor.ended or visitor.gone != "")
            visitor.reset()
            liar._conns[2:] = []
            await liar.link()
            assert number and link


@pytest_twisted.ensureDeferred
async def test_another_certificate_is_found_out() -> None:
    """A verify that names another certificate than the links have ends the tunnel, and the log
    says that somebody may be in between."""
    async with ends() as between:
        tunnel = free_address()
        with log_lines() as lines:
            async with (
                old_server(V, tunnel, between.visitors, tls=1) as server,
                our_node("client", tunnel, between.target, "mode=2&wire=1.14"),
            ):
                await server.ready()
                assert server._tunnel is not None
                fingerprint = "sha256:" + bytes(32).hex(":").upper()
                server._tunnel._send(Verify("12345678", fingerprint))
                await until(lambda: any("another certificate" in line for line in lines))
                await until(lambda: server.errors)


# Servers

Script = Callable[[Conn], Awaitable[None]]


def _answers(grant: dict[str, object] | bytes, status: str = "200 OK") -> Script:
    body = grant if isinstance(grant, bytes) else json.dumps(grant).encode()

    async def script(conn: Conn) -> None:
        await conn.read(timeout=5.0)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await conn.write(head + body)

    return script


async def _says_nothing(conn: Conn) -> None:
    await conn.read(timeout=5.0)
    await conn.read(timeout=60.0)


async def _closes(conn: Conn) -> None:
    conn.close()


async def _is_no_web_server(conn: Conn) -> None:
    await conn.read(timeout=5.0)
    await conn.write(b"SSH-2.0-OpenSSH_9.9\r\n")


async def _drips(conn: Conn) -> None:
    await conn.read(timeout=5.0)
    while True:
        await conn.write(b"H")
        await sleep(0.05)


async def _never_ends_its_head(conn: Conn) -> None:
    await conn.read(timeout=5.0)
    await conn.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await conn.write(b"X-More: " + b"x" * 1000 + b"\r\n")
        await sleep(0.001)


GRANT = {"flow": "-", "max": 4, "tls": "0", "type": "0"}


def _grants_and_numbers(*numbers: bytes) -> Script:
    """A server that lets a client in, and gives its links these numbers."""
    left = list(numbers)
    state = {"granted": False}

    async def script(conn: Conn) -> None:
        if not state["granted"]:
            state["granted"] = True
            await _answers(GRANT)(conn)
            return
        if left:
            await conn.write(left.pop(0))
        await conn.read(timeout=60.0)

    return script


SERVERS: dict[str, Script] = {
    "no such flow": _answers({**GRANT, "flow": "x"}),
    "no such tls": _answers({**GRANT, "tls": "7"}),
    "no such type": _answers({**GRANT, "type": "9"}),
    "WebSocket or none": _answers({**GRANT, "type": "1"}),
    "max is negative": _answers({**GRANT, "max": -5}),
    "max is text": _answers({**GRANT, "max": "many"}),
    "no JSON": _answers(b"welcome"),
    "a long answer": _answers(b"x" * 1_000_000),
    "elsewhere": _answers(b"", "302 Found"),
    "another key": _answers(b"Unauthorized", "401 Unauthorized"),
    "silence": _says_nothing,
    "a closed door": _closes,
    "no web server": _is_no_web_server,
    "drips": _drips,
    "endless head": _never_ends_its_head,
    "no control link": _grants_and_numbers(b"\1\2\3\4", b"\1\2\3\5"),
    "two control links": _grants_and_numbers(bytes(4), bytes(4), bytes(4)),
    "one number for all": _grants_and_numbers(bytes(4), *[b"\7\7\7\7"] * 20),
    "no numbers": _grants_and_numbers(),
    "half a number": _grants_and_numbers(bytes(4), b"\1\2"),
}


@asynccontextmanager
async def _server(where: Endpoint, script: Script) -> AsyncIterator[list[Conn]]:
    tasks = Tasks(reactor)
    conns: list[Conn] = []

    async def serve(conn: Conn) -> None:
        try:
            await script(conn)
        except (Gone, Silence):
            pass
        finally:
            conn.close()

    def accepted(conn: Conn) -> None:
        conns.append(conn)
        tasks.start(serve(conn))

    port = listen(reactor, where, accepted)
    try:
        yield conns
    finally:
        await port.stopListening()  # type: ignore[misc]
        tasks.stop()


@pytest_twisted.ensureDeferred
async def test_servers_that_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our client gives them up, does not hammer at them, and finds an honest one in their place."""
    monkeypatch.setattr(connector, "JOIN_TIMEOUT", 0.7)
    monkeypatch.setattr(connector, "ID_TIMEOUT", 0.5)
    monkeypatch.setattr(connector, "UNUSED_GRANT", 1.0)
    with log_lines() as lines:
        await side_by_side({name: _lied_to(script) for name, script in SERVERS.items()})
    assert len(lines) < 40 * len(SERVERS)
    assert not [line for line in lines if "Traceback" in line]


async def _lied_to(script: Script) -> None:
    tuning = evolve(QUICK, handshake_timeout=0.5)
    async with ends() as between:
        tunnel = free_address()
        ours = our_node("client", tunnel, between.target, "mode=2&wire=1.14&min=4", tuning=tuning)
        async with ours:
            async with _server(tunnel, script) as conns:
                await until(lambda: conns)
                await sleep(1.2)
                assert len(conns) < 60
            async with old_server(V, tunnel, between.visitors) as honest:
                await honest.ready()
                await first_session(between.visitors)
