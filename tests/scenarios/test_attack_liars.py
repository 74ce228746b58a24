"""Peers that know the key and break the rules all the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest
import pytest_twisted
from OpenSSL import SSL

from nodepass.relay.stream import Cause
from nodepass.wire.linkmaker import SIDE_BY_SIDE
from nodepass.wire.native.frames import (
    Data,
    Datagrams,
    Done,
    Fin,
    FlowClose,
    FlowOpen,
    Frame,
    Open,
    Reset,
    encode,
)
from nodepass.wire.native.messages import About, Ping, Want, Welcome
from nodepass.wire.native.messages import encode as encode_message
from tests.scenarios.attackers import (
    OPENING,
    Client,
    DataLine,
    Line,
    Server,
    attack,
    pause,
)
from tests.scenarios.faults import (
    Fleet,
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
from tests.scenarios.harness import KEY, sleep
from tests.scenarios.programs import connect, descriptors_of, memory_of


def joined(port: int, links: int = 1) -> tuple[Client, list[DataLine]]:
    """A client that has done all as it should, so far."""
    client = Client(port, KEY)
    assert isinstance(client.join(), Welcome)
    client.say(About(name="liar", targets="nowhere"))
    client.expect(About)
    lines = [client.link(number) for number in range(1, links + 1)]
    assert all(line.ready for line in lines)
    return client, lines


#: What no client may send on a data link, by the flow in which it may not.
BROKEN: list[tuple[str, str, list[Frame] | bytes]] = [
    ("-", "a session towards the server", [Open(1, OPENING)]),
    ("-", "a flow towards the server", [FlowOpen(1, OPENING)]),
    ("-", "bytes outside a session", [Data(b"hello")]),
    ("-", "an end out of turn", [Fin(1)]),
    ("-", "a reset of what never was", [Reset(7, Cause.RESET)]),
    ("-", "the last word on what never was", [Done(1)]),
    ("-", "a datagram on a link that has none", [Datagrams(1, [b"hello"])]),
    ("-", "the end of a flow that never was", [FlowClose(1, None)]),
    ("-", "noise", os.urandom(4096)),
    ("-", "an unknown frame", b"\xff\0\0\0"),
    ("-", "a frame that is too long", b"\3\xff\xff\xff"),
    ("+", "a session out of turn", [Open(5, OPENING)]),
    ("+", "a session within a session", [Open(1, OPENING), Open(2, OPENING)]),
    ("+", "an end of another session", [Open(1, OPENING), Fin(2)]),
    ("+", "the other end's last word", [Open(1, OPENING), Fin(1), Done(1)]),
    ("+", "an opening of a wrong form", b"\1\0\0\x08" + bytes(8)),
]


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_broken_rules_cost_a_link_and_no_more(flow: str) -> None:
    """A data link on which rules are broken is closed; other links of the same client, and other
    clients' sessions, do not notice."""
    target = echoing()
    nodes = await fleet(target.endpoint, flow=flow, client="min=1", server="log=debug")
    session = await begin(nodes.visitor)
    cases = [(what, frames) for here, what, frames in BROKEN if here == flow]

    def lie() -> None:
        client, lines = joined(nodes.tunnel, 1 + len(cases))
        for (what, frames), line in zip(cases, lines[1:], strict=True):
            sent = frames if isinstance(frames, bytes) else b"".join(map(encode, frames))
            line.send(sent)
            assert isinstance(line.drain(), bytes), what
            line.close()
        assert client.expect(Ping) is not None  # the control link is as it was
        lines[0].socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            assert lines[0].socket.recv(1) != b"", "the innocent link was closed"
        for one in (client, lines[0]):
            one.close()

    await attack(lie)
    assert len(said(nodes.server, "data link .* of liar .*: a protocol error")) == len(cases)
    assert len(said(nodes.server, "WARN .*a data link of liar .* is cut: a protocol error")) == 1
    assert await lives(session)
    assert not said(nodes.server, "Traceback|ERROR")
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_garbage_resets_the_visitor_it_was_sent() -> None:
    """A visitor whose link turns to garbage is reset and gets not a byte of it; others go on."""
    target = echoing()
    # Each session has a data link of its own.
    nodes = await fleet(target.endpoint, env={"NP_SHARE_WITHIN": "0"})
    session = await begin(nodes.visitor)  # the honest client has one session, so the liar is next

    def lie() -> bytes:
        client, (line,) = joined(nodes.tunnel)
        frames = line.next_frames()
        assert isinstance(frames[0], Open), frames
        line.send(encode(Data(b"fine so far")))
        pause(0.5)
        line.send(b"\x63garbage")
        rest = line.drain()
        client.close()
        line.close()
        return rest

    lying = attack(lie)
    await says(nodes.server, "clients: 2")
    await sleep(0.3)
    victim = await connect(nodes.visitor)
    victim.write(b"hello")
    assert await victim.read(11) == b"fine so far"
    assert await victim.end() == "reset"
    assert victim.received == 11
    await lying
    assert await lives(session)
    assert await visit(nodes.visitor) == b"1"
    session.reset()
    await nodes.stop()
    await target.stop()


CONTROL_LIES: list[tuple[str, bytes]] = [
    ("an empty message", b"\0\0"),
    ("a message that is too long", b"\xff\xff" + bytes(0xFFFF)),
    ("a field that never ends", b"\0\4\x11\1\0\x08"),
    ("noise", bytes(64) + os.urandom(4096)),
]


@pytest_twisted.ensureDeferred
async def test_garbage_on_a_control_link() -> None:
    """A control link that turns to garbage is closed, with one line that says why; the client that
    sent it is given up in time, others do not notice."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    session = await begin(nodes.visitor)

    def lie(what: bytes) -> None:
        client, (line,) = joined(nodes.tunnel)
        with contextlib.suppress(SSL.Error):  # it may be cut off in the middle of it
            client.line.send(what)
        client.line.drain()
        client.close()
        line.close()

    for _, what in CONTROL_LIES:
        mark = len(nodes.server.lines)
        await attack(lie, what)
        await says(nodes.server, "control link to liar .* lost: a protocol error", mark)
    assert await lives(session)
    await says(nodes.server, "client liar .* is gone; clients: 1", len(nodes.server.lines) - 1)
    assert await visit(nodes.visitor) == b"1"
    session.reset()
    await nodes.stop()
    await target.stop()


async def unmoved(nodes: Fleet, name: str, lie: Callable[[], None]) -> None:
    """While this goes on the server stays small and serves."""
    await checkpoint(nodes.server, "TCPS=1")
    memory = memory_of(nodes.server.pid)
    lying = attack(lie)
    await says(nodes.server, "clients: 2")
    for _ in range(10):
        # One may wait for the liar, who has the fewest sessions, until it is given up.
        assert await visit(nodes.visitor, timeout=30) == b"1", name
        await sleep(0.05)
    assert memory_of(nodes.server.pid) - memory < 8 << 20
    await lying


@pytest_twisted.ensureDeferred
async def test_flood_of_pings_stops_itself() -> None:
    """Who asks without reading the answers is read no more: the server's memory does not grow, the
    others are served, and in the end the control link is given up."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    session = await begin(nodes.visitor)

    def lie() -> None:
        client, _ = joined(nodes.tunnel, 0)
        pings = encode_message(Ping(time=1)) * 2000
        with contextlib.suppress(SSL.Error, OSError):
            for _ in range(100_000):
                client.line.send(pings)
        client.close()

    await unmoved(nodes, "pings", lie)
    await says(nodes.server, "control link to liar .* lost")
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_links_nobody_asked_for_are_closed() -> None:
    """A client that makes more links than it was asked for has them closed again."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    session = await begin(nodes.visitor)
    before = descriptors_of(nodes.server.pid)

    def lie() -> None:
        client, lines = joined(nodes.tunnel, 100)
        pause(3)
        client.close()
        for line in lines:
            line.close()

    lying = attack(lie)
    await says(nodes.server, "clients: 2")
    await sleep(2)
    assert descriptors_of(nodes.server.pid) < before + 20
    await lying
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_server_that_wants_too_much() -> None:
    """A server that asks for two billion links gets so many at a time as a client makes side by
    side; the client stays small, and stops when told to."""

    def lies(server: Server, line: Line) -> None:
        line.send(encode_message(About(name="liar")))
        for _ in range(100):
            line.send(encode_message(Want(count=2**31)))
        pause(2)

    server = Server(KEY, lies)
    client = start_client("127.0.0.1:9", server.port, env={"NP_HANDSHAKE_TIMEOUT": "60s"})
    await says(client, "tunnel established with liar")
    memory = memory_of(client.pid)
    await sleep(1.5)
    assert 0 < len(server.links) <= SIDE_BY_SIDE
    assert memory_of(client.pid) - memory < 16 << 20
    assert await client.stop() == 0
    await attack(server.stop)


@pytest_twisted.ensureDeferred
async def test_text_of_a_peer_is_made_harmless() -> None:
    """What a peer says of itself can't write lines of its own into a log, or colour it."""
    target = echoing()
    nodes = await fleet(target.endpoint)

    def lie() -> None:
        client = Client(nodes.tunnel, KEY)
        assert isinstance(client.join(), Welcome)
        client.say(About(name="x\n2026-01-01 00:00:00.000  ERROR  \x1b[31mfake" + "y" * 60))
        client.expect(Ping)
        client.close()

    await attack(lie)
    line = await says(nodes.server, "clients: 2")
    assert r"x\n2026-01-01" in line and r"\x1b[31m" in line
    assert not [each for each in nodes.server.lines if each.startswith("2026-01-01")]
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_dead_client_by_hand_is_forgotten() -> None:
    """A client that joined and then says nothing more is dropped after three intervals, its visitor
    is reset within the promised time."""
    target = echoing()
    nodes = await fleet(target.endpoint, env={"NP_SHARE_WITHIN": "0"})
    session = await begin(nodes.visitor)

    def play_dead() -> None:
        client, (line,) = joined(nodes.tunnel)
        frames = line.next_frames()
        assert isinstance(frames[0], Open)
        client.line.drain()
        line.drain()
        client.close()
        line.close()

    playing = attack(play_dead)
    await says(nodes.server, "clients: 2")
    await sleep(0.2)
    victim = await connect(nodes.visitor)
    victim.write(b"hello")
    assert await victim.end() == "reset"
    await says(nodes.server, "control link to liar .* lost: nothing heard")
    await playing
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await target.stop()
