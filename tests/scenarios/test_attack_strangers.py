"""Connections to the tunnel port from those who are no nodes."""

from __future__ import annotations

import os

import pytest
import pytest_twisted
from OpenSSL import SSL

from nodepass.wire.lobby import LOBBY_SIZE
from nodepass.wire.native.handshake import Secrets
from nodepass.wire.native.proof import CHALLENGE_SIZE, PREFACE_SIZE, PROOF_SIZE, LinkConnector
from tests.scenarios.attackers import (
    CONTROL,
    DATA,
    DataLine,
    Line,
    attack,
    client_hello,
    crowd,
    pause,
    still_open,
)
from tests.scenarios.faults import (
    Cutter,
    begin,
    checkpoint,
    echoing,
    fleet,
    lives,
    said,
    says,
    start_client,
    visit,
)
from tests.scenarios.harness import until
from tests.scenarios.programs import descriptors_of, memory_of

SHORT = {"NP_HANDSHAKE_TIMEOUT": "1s"}
#: A thousand TLS handshakes keep a server from its pings for a second on a busy machine, which must
#: not pass for its end.
CROWDED = {"NP_HANDSHAKE_TIMEOUT": "3s", "NP_REPORT_INTERVAL": "1500ms"}
#: What one connection that has proved nothing may cost, bytes.
UNPROVEN_COST = 32 * 1024

NONSENSE = {
    "a browser or scanner": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "unknown bytes": os.urandom(4096).replace(b"\x16", b"x").replace(b"N", b"x"),
    "a client of NodePass 1.6": b"\0" * 32 + b"\n",
    "half a magic": b"NP2X" + b"x" * 64,
}


@pytest_twisted.ensureDeferred
async def test_nonsense_is_turned_away() -> None:
    """Who sends what no node sends is dropped without an answer and named once in the log, however
    often it comes; sessions do not notice."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    session = await begin(nodes.visitor)

    def shout(what: bytes) -> bytes:
        line = Line(nodes.tunnel)
        line.send(what)
        try:
            return line.drain()
        finally:
            line.close()

    for what in NONSENSE.values():
        for _ in range(3):
            assert await attack(shout, what) == b""
    told = said(nodes.server, "access denied")
    assert len(told) == 3, told
    for name in ("a browser or scanner", "unknown bytes", "a client of NodePass 1.6"):
        assert sum(name in line for line in told) == 1
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_tls_without_the_right_alpn(tls: int) -> None:
    """A TLS client that asks for no protocol, or another one, is dropped before the handshake, an
    encrypted data link on a plain tunnel after it; the log says so once for each."""
    target = echoing()
    nodes = await fleet(target.endpoint, server=f"tls={tls}")

    def knock(alpn: bytes | None) -> bytes:
        line = Line(nodes.tunnel)
        try:
            line.encrypt(alpn)
            if alpn == DATA:
                line.send(b"NP2D" + bytes(200))
            return line.drain()
        except SSL.Error:
            assert alpn != DATA
            return b""
        finally:
            line.close()

    for alpn in (None, b"h2", DATA) * 2:
        assert await attack(knock, alpn) == b""
    for words in ("a client of NodePass 2.0", "HTTP/2", "data link"):
        await says(nodes.server, f"access denied to .*{words}")
    assert len(said(nodes.server, "access denied")) == 3
    assert await visit(nodes.visitor) == b"1"
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize(
    "kind", ["silent", "half a ClientHello", "half a TLS handshake", "half a link"]
)
@pytest_twisted.ensureDeferred
async def test_crowd_is_bounded(kind: str) -> None:
    """Of a thousand connections that prove nothing only so many are kept, at little cost each; a
    client joins and visitors are served meanwhile; all are gone after the handshake's time."""
    target, other = echoing(b"1"), echoing(b"2")
    nodes = await fleet(target.endpoint, env=CROWDED)
    session = await begin(nodes.visitor)
    await checkpoint(nodes.server, "TCPS=1")
    memory, descriptors = memory_of(nodes.server.pid), descriptors_of(nodes.server.pid)
    hello = client_hello()
    say = {
        "silent": b"",
        "half a ClientHello": hello[: len(hello) // 2],
        "half a TLS handshake": hello,
        "half a link": b"NP2D",
    }[kind]
    with crowd(nodes.tunnel, 1000, say) as there:
        await until(lambda: still_open(there) <= LOBBY_SIZE, what="the bound")
        grown = memory_of(nodes.server.pid) - memory
        assert grown < UNPROVEN_COST * LOBBY_SIZE, f"{grown // LOBBY_SIZE} bytes each"
        assert descriptors_of(nodes.server.pid) <= descriptors + LOBBY_SIZE
        nodes.clients.append(start_client(other.endpoint, nodes.tunnel))
        await says(nodes.server, "clients: 2")
        assert await visit(nodes.visitor) == b"2"
        assert await lives(session)
        await says(nodes.server, "access denied to 127.0.0.1: handshake timed out")
        await until(lambda: still_open(there) == 0, what="the end of all")
    told = said(nodes.server, "WARN")
    assert len(told) == 2 and "lobby" not in told, told
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await target.stop()
    await other.stop()


@pytest.mark.parametrize("where", [None, CONTROL, DATA])
@pytest_twisted.ensureDeferred
async def test_slow_handshakes_end(where: bytes | None) -> None:
    """Who stops in the middle, a byte at a time or not at all, is dropped after the handshake's
    time wherever that is."""
    target = echoing()
    nodes = await fleet(target.endpoint, server="tls=1" if where else "", env=SHORT)

    def dawdle() -> bytes:
        line = Line(nodes.tunnel)
        if where is not None:
            line.encrypt(where)
        try:
            for byte in b"\0\x80\1NP2D" if where == CONTROL else b"NP2D\1\0\0":
                line.send(bytes([byte]))
                pause(0.05)
        except (OSError, SSL.Error):
            pass
        return line.drain()

    assert await attack(dawdle) == b""
    await says(nodes.server, "access denied to 127.0.0.1: handshake timed out")
    assert len(said(nodes.server, "access denied to 127.0.0.1: handshake timed out")) == 1
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_recorded_link_opening_is_of_no_use() -> None:
    """The bytes with which a plain data link proved that it belongs prove nothing a second time:
    the server asks anew and drops who has no answer."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, through=cutter)
    session = await begin(nodes.visitor)
    await checkpoint(nodes.server, "TCPS=1")
    openings = [leg.recorded[: PREFACE_SIZE + PROOF_SIZE] for leg in cutter.pairs[1:4]]
    assert all(each.startswith(b"NP2D") for each in openings)

    def replay(opening: bytes) -> bytes:
        line = Line(nodes.tunnel)
        line.send(opening)
        return line.drain()

    for opening in openings:
        answer = await attack(replay, opening)
        assert len(answer) <= CHALLENGE_SIZE  # the question, and not `ready`
    told = said(nodes.server, "access denied")
    assert len(told) == 1 and "did not prove that it belongs" in told[0]
    assert not said(nodes.server, "lost")
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_link_without_the_secret(tls: int) -> None:
    """A data link that names a real association, or none that exists, but does not know the secret
    is dropped, and both look the same from outside."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, server=f"tls={tls}", through=cutter)
    await checkpoint(nodes.server, "POOL=8")
    association = cutter.pairs[1].recorded[7:23] if not tls else b"\7" * 16

    def guess(name: bytes) -> tuple[bool, bytes]:
        line = DataLine(nodes.tunnel)
        line.prove(name, Secrets(b"\1" * 32, b"\2" * 32), 77, bool(tls))
        return line.ready, line.drain()

    assert LinkConnector(association, Secrets(b"", b""), 1, None).start()[7:23] == association
    assert await attack(guess, association) == (False, b"")
    assert await attack(guess, b"\0" * 16) == (False, b"")
    assert len(said(nodes.server, "did not prove that it belongs")) == 1
    assert await visit(nodes.visitor) == b"1"
    await nodes.stop()
    await cutter.stop()
    await target.stop()
