"""Our nodes with old ones when something goes wrong: restarts, keys, answers that are lost, less
protection than was asked for."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import pytest_twisted

from nodepass.testing import Dialect
from nodepass.wire import Flow
from nodepass.wire.old import link
from tests.scenarios.harness import sleep, until
from tests.scenarios.oldpairs import (
    KEY,
    ends,
    first_session,
    free_address,
    log_lines,
    mixed,
    old_client,
    old_server,
    our_node,
    patient,
    ping_pong,
    session,
    sessions,
    side_by_side,
)
from tests.scenarios.programs import Conn, connect

THREE = [Dialect.V1_14, Dialect.V2_0, Dialect.V1_6]

every_dialect = pytest.mark.parametrize("dialect", THREE, ids=lambda each: each.value)
both_roles = pytest.mark.parametrize("role", ["server", "client"])
both_flows = pytest.mark.parametrize("flow", list(Flow), ids=lambda flow: flow.value)


# Which dialect it is


@every_dialect
@pytest_twisted.ensureDeferred
async def test_a_client_finds_the_dialect(dialect: Dialect) -> None:
    """A client that is given all of them tries until one works, says which, and stays with it."""
    async with ends() as between:
        with log_lines() as lines:
            async with mixed(between, dialect, "client", Flow.REVERSE, ours="wire=any"):
                await sessions(between.visitors, 2)
            assert [line for line in lines if dialect.value in line], lines


@pytest_twisted.ensureDeferred
async def test_one_port_serves_all_dialects() -> None:
    """Clients of three dialects, each at an address of its own, share a server and its visitors."""
    async with ends() as between:
        tunnel = free_address()
        async with our_node("server", tunnel, between.visitors, "mode=1&wire=any") as node:
            async with (
                old_client(THREE[0], tunnel, between.target, source="127.0.0.11"),
                old_client(THREE[1], tunnel, between.target, source="127.0.0.12"),
                old_client(THREE[2], tunnel, between.target, source="127.0.0.13"),
            ):
                await until(lambda: len(list(node._role.peers)) == 3)
                await first_session(between.visitors)
                await sessions(between.visitors, 30, 20_000)


@every_dialect
@pytest_twisted.ensureDeferred
async def test_a_dialect_without_leave_is_named(dialect: Dialect) -> None:
    """A server that speaks native alone says who knocked, with which dialect, and what would let
    it in; once."""
    async with ends() as between:
        tunnel = free_address()
        with log_lines() as lines:
            async with (
                our_node("server", tunnel, between.visitors, "mode=1"),
                old_client(dialect, tunnel, between.target) as client,
            ):
                await until(lambda: len(client.errors) > 2, timeout=20)
                assert not client.tunnels
        told = [line for line in lines if " admits " in line]
        assert len(told) == 1 and f"wire={dialect.value}" in told[0], lines


# Restarts


@pytest_twisted.ensureDeferred
async def test_the_old_node_starts_again() -> None:
    """Another old node in its place is joined, and visitors come through."""
    await side_by_side(
        {
            f"{dialect} {role}": _old_again(dialect, role)
            for dialect, role in product(THREE, ("server", "client"))
        }
    )


async def _old_again(dialect: Dialect, role: str) -> None:
    async with ends() as between:
        tunnel = free_address()
        async with mixed(between, dialect, role, Flow.REVERSE, tunnel=tunnel) as pair:
            pair.old.stop()
            await sleep(0.2)
            if role == "server":
                again = old_client(dialect, tunnel, between.target)
            else:
                again = old_server(dialect, tunnel, between.visitors)
            async with again as second:
                await second.ready()
                await first_session(between.visitors)
                await sessions(between.visitors, 3, 50_000)
                await ping_pong(between, 1, 1)


@pytest_twisted.ensureDeferred
async def test_our_node_starts_again() -> None:
    """The old node finds the new one of ours after its pause."""
    await side_by_side(
        {
            f"{dialect} {role}": _ours_again(dialect, role)
            for dialect, role in product(THREE, ("server", "client"))
        }
    )


async def _ours_again(dialect: Dialect, role: str) -> None:
    async with ends() as between:
        tunnel = free_address()
        wire = f"wire={dialect.value}&mode=2"
        if role == "server":
            old = old_client(dialect, tunnel, between.visitors)
            other = between.target
        else:
            old = old_server(dialect, tunnel, between.target, flow=Flow.FORWARD)
            other = between.visitors
        async with old as peer:
            async with our_node(role, tunnel, other, wire):
                await peer.ready()
                await first_session(between.visitors)
            before = peer.tunnels
            async with our_node(role, tunnel, other, wire):
                await until(lambda: peer.tunnels > before, what="the second tunnel")
                await first_session(between.visitors)
                await sessions(between.visitors, 3, 50_000)


@both_roles
@pytest_twisted.ensureDeferred
async def test_sessions_outlive_the_control_link(role: str) -> None:
    """As with two old nodes: a lost control link costs no TCP session."""
    async with ends() as between:
        async with mixed(between, Dialect.V1_14, role, Flow.REVERSE) as pair:
            visitor = await connect(between.visitors)
            visitor.write(b"before")
            assert await visitor.read(6) == b"before"
            assert pair.old._tunnel is not None
            pair.old._tunnel.end("for the test")
            await until(lambda: pair.old.tunnels == 2)
            visitor.write(b"after")
            assert await visitor.read(5) == b"after"
            await first_session(between.visitors)
            visitor.finish()
            await until(lambda: pair.ours.stats.tcps == 0)


@pytest_twisted.ensureDeferred
async def test_a_lost_answer() -> None:
    """Our client rides it out, though the server takes its next knock for a link."""
    await side_by_side(
        {
            f"{dialect} {lost}": _answer_lost(dialect, lost)
            for dialect, lost in product(THREE[:2], (1, 2))
        }
    )


async def _answer_lost(dialect: Dialect, lost: int) -> None:
    async with ends() as between:
        async with mixed(
            between, dialect, "client", Flow.REVERSE, lost_answers=lost, absence=0.2
        ) as pair:
            assert pair.old.granted == lost + 1
            await sessions(between.visitors, 2)


# Keys


@both_roles
@pytest.mark.parametrize("dialect", THREE[:2], ids=lambda each: each.value)
@pytest_twisted.ensureDeferred
async def test_a_wrong_key(dialect: Dialect, role: str) -> None:
    """Nobody joins, and both ends say what is wrong."""
    async with ends() as between:
        tunnel = free_address()
        wire = f"wire={dialect.value}"
        with log_lines() as lines:
            if role == "server":
                ours = our_node("server", tunnel, between.visitors, f"mode=1&{wire}")
                old = old_client(dialect, tunnel, between.target, key="another key")
            else:
                ours = our_node("client", tunnel, between.target, f"mode=2&{wire}")
                old = old_server(dialect, tunnel, between.visitors, key="another key")
            async with old as peer, ours:
                await until(lambda: any("key" in line or "401" in line for line in lines))
                await sleep(0.5)
                assert not peer.tunnels
    assert KEY not in "".join(lines)


@pytest_twisted.ensureDeferred
async def test_a_wrong_key_of_1_6() -> None:
    """Its length is seen; another key of the same length makes no sense of the other's lines."""
    async with ends() as between:
        for wrong in ("short", "x" * len(KEY)):
            tunnel = free_address()
            with log_lines() as lines:
                async with (
                    our_node("server", tunnel, between.visitors, "mode=1&wire=1.6"),
                    old_client(Dialect.V1_6, tunnel, between.target, key=wrong) as client,
                ):
                    await until(lambda client=client: client.errors)
                    await sleep(0.3)
                    assert not client.tunnels
            assert len(lines) < 20


@pytest_twisted.ensureDeferred
async def test_a_key_of_its_own_for_old_dialects() -> None:
    """With `oldkey` the native key opens nothing there, and the old one does."""
    async with ends() as between:
        tunnel = free_address()
        parameters = "mode=1&wire=native,1.14&oldkey=THE_OLD_KEY"
        async with our_node("server", tunnel, between.visitors, parameters):
            async with old_client(Dialect.V1_14, tunnel, between.target) as wrong:
                await until(lambda: wrong.errors)
            async with old_client(
                Dialect.V1_14, tunnel, between.target, key="THE_OLD_KEY", source="127.0.0.2"
            ) as right:
                await right.ready()
                await first_session(between.visitors)


@pytest_twisted.ensureDeferred
async def test_no_key() -> None:
    """Without a key both take the one that comes from the port."""
    async with ends() as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V2_0, tunnel, between.visitors, key="") as server,
            our_node("client", tunnel, between.target, "mode=2&wire=2.0", key=""),
        ):
            await server.ready()
            await first_session(between.visitors)


# Protection


@pytest.mark.parametrize(
    ("ours", "theirs", "named"),
    [
        ("tls=1", {"tls": 0}, "tls"),
        ("tls=2", {"tls": 1}, "tls"),
        ("", {"kind": 1}, "QUIC"),
        ("", {"kind": 3}, "HTTP/2"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_less_than_was_asked_for(ours: str, theirs: dict[str, int], named: str) -> None:
    """A server that offers links with less protection than the client's URL says, or of a kind that
    we don't speak, is refused, and the log says which."""
    async with ends() as between:
        tunnel = free_address()
        with log_lines() as lines:
            async with (
                old_server(Dialect.V1_14, tunnel, between.visitors, **theirs) as server,
                our_node("client", tunnel, between.target, f"mode=2&wire=1.14&{ours}"),
            ):
                await until(lambda: server.granted)
                await until(lambda: any(named in line for line in lines))
                await sleep(0.5)
            assert not any("tunnel established" in line for line in lines)


# How sessions end


async def _answers_the_end(conn: Conn) -> None:
    question = await conn.read_all()
    conn.write(b"answer to " + question)
    conn.finish()


@pytest.mark.parametrize("dialect", THREE[:2], ids=lambda each: each.value)
@both_roles
@pytest_twisted.ensureDeferred
async def test_an_end_of_file_passes_where_the_old_node_passes_it(
    dialect: Dialect, role: str
) -> None:
    """From an old node's visitor over a plain link our node gets FIN: the target answers after it,
    and all of the answer arrives."""
    flow = Flow.FORWARD if role == "server" else Flow.REVERSE
    async with ends() as between:
        async with mixed(between, dialect, role, flow):
            await between.replace(_answers_the_end)
            visitor = await connect(between.visitors)
            visitor.write(b"question")
            visitor.finish()
            assert await visitor.read_all() == b"answer to question"


#: Where it is known when a visitor has gone: a 1.6 node tells nobody of its own.
KNOWN_ENDS = [
    (dialect, role, flow, tls)
    for dialect, role, flow, tls in product(THREE, ("server", "client"), Flow, (0, 1))
    if dialect is not Dialect.V1_6 or (flow is Flow.REVERSE) == (role == "server")
]


@pytest_twisted.ensureDeferred
async def test_sessions_give_back_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """When visitors go, by FIN or by reset, nothing is left of their sessions soon at our end."""
    monkeypatch.setattr(link, "FINISHED_PATIENCE", 1.0)
    await side_by_side({str(case): _given_back(*case) for case in KNOWN_ENDS})


async def _given_back(dialect: Dialect, role: str, flow: Flow, tls: int) -> None:
    async with ends() as between:
        async with mixed(between, dialect, role, flow, tls) as pair:
            for number in range(4):
                visitor = await session(between.visitors, number, 5_000)
                visitor.reset() if number % 2 else visitor.finish()
            await until(lambda: pair.ours.stats.tcps == 0, timeout=4.0, what="the sessions' end")


@pytest_twisted.ensureDeferred
async def test_a_target_that_ends() -> None:
    """All that a target has sent before it closed arrives, and the visitor's connection ends, where
    the old node passes an end on."""
    await side_by_side(
        {str(case): _target_ends(*case) for case in product(THREE, ("server", "client"), Flow)}
    )


async def _target_ends(dialect: Dialect, role: str, flow: Flow) -> None:
    async def says_and_goes(conn: Conn) -> None:
        await conn.read(1)
        await conn.send(bytes(300_000))
        conn.finish()

    async with ends() as between:
        async with mixed(between, dialect, role, flow) as pair:
            await between.replace(says_and_goes)
            visitor = await connect(between.visitors)
            visitor.write(b"?")
            assert await visitor.read(300_000) == bytes(300_000)
            if dialect is not Dialect.V1_6:
                await until(lambda: visitor.ended or visitor.gone != "", timeout=4.0)
            visitor.reset()
            await until(lambda: pair.ours.stats.tcps == 0, timeout=4.0, what="the session's end")


@both_roles
@both_flows
@pytest_twisted.ensureDeferred
async def test_a_target_that_refuses(role: str, flow: Flow) -> None:
    """The visitor is turned away; nothing is left."""
    async with ends() as between:
        async with mixed(between, Dialect.V1_14, role, flow) as pair:
            await between.tcp.stop()
            visitor = await connect(between.visitors)
            visitor.write(b"?")
            await until(lambda: visitor.ended or visitor.gone != "", what="the visitor's end")
            if not visitor.gone:
                visitor.finish()
            await until(lambda: pair.ours.stats.tcps == 0, timeout=4.0, what="the session's end")


# Datagrams


@both_roles
@both_flows
@pytest_twisted.ensureDeferred
async def test_datagrams_of_2_0_keep_their_boundaries(role: str, flow: Flow) -> None:
    """Many at once arrive whole, the empty one too; one too long for the old node is dropped and
    ends nothing."""
    async with ends() as between:
        async with mixed(between, Dialect.V2_0, role, flow):
            visitor = between.programs.visitor(between.visitors)
            visitor.say(b"first")
            await until(lambda: b"first" in visitor.heard)
            said = [bytes([number]) * (number * 100) for number in range(60)]
            for data in said:
                visitor.say(data)
                await sleep(0.002)
            visitor.say(bytes(20_000))
            await sleep(0.2)
            visitor.say(b"last")
            await until(lambda: b"last" in visitor.heard)
            heard = [data for data in visitor.heard if data not in (b"first", b"last")]
            assert set(said) <= set(heard)
            assert len(set(between.udp.sources)) == 1  # of one flow, that nothing has ended
            assert all(len(data) in {len(each) for each in said} | {16384} for data in heard)


@pytest_twisted.ensureDeferred
async def test_flows_end() -> None:
    """By the old node's silence, or by ours where it is shorter; then nothing is left of them."""
    await side_by_side(
        {str(case): _flow_ends(*case) for case in product(THREE, ("server", "client"), ("", "1s"))}
    )


async def _flow_ends(dialect: Dialect, role: str, read: str) -> None:
    if not read and dialect is Dialect.V1_6:
        return  # no silence ends a flow there, unless it was told to
    async with ends() as between:
        ours = f"read={read}" if read else ""
        async with mixed(between, dialect, role, Flow.REVERSE, ours=ours) as pair:
            await ping_pong(between, 2, 2)
            assert pair.ours.stats.udps == 2
            await until(lambda: pair.ours.stats.udps == 0, what="the end of the flows")
            await ping_pong(between, 1, 1)


@pytest_twisted.ensureDeferred
async def test_visitors_that_come_before_their_links() -> None:
    """More visitors at once than there are idle links: all are served in the end."""
    await side_by_side(
        {str(case): _crowded(*case) for case in product(THREE, ("server", "client"))}
    )


async def _crowded(dialect: Dialect, role: str) -> None:
    async with ends() as between:
        options: dict[str, Any] = {"timing": patient(dialect)}
        if role == "server":
            options["least"] = 2
        ours = "" if role == "server" else "min=2"
        async with mixed(between, dialect, role, Flow.REVERSE, ours=ours, **options):
            await sessions(between.visitors, 40, 10_000)
