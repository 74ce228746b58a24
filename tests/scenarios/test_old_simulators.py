"""Simulated old nodes, one with another: they carry what the programs carry, and err alike."""

from __future__ import annotations

import pytest
import pytest_twisted

from nodepass.testing import Dialect, OldTiming
from nodepass.wire import Flow
from tests.scenarios.harness import sleep, until
from tests.scenarios.oldpairs import (
    DIALECTS,
    KEY,
    ends,
    first_session,
    free_address,
    old_client,
    old_server,
    ping_pong,
    sessions,
)
from tests.scenarios.programs import Conn, connect

both_flows = pytest.mark.parametrize("flow", list(Flow))
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@every_dialect
@both_flows
@pytest_twisted.ensureDeferred
async def test_they_carry_sessions_and_datagrams(dialect: Dialect, flow: Flow) -> None:
    """TCP sessions side by side, and UDP, over plain links."""
    async with ends() as between:
        tunnel = free_address()
        here, there = between.sides(flow)
        async with (
            old_server(dialect, tunnel, here, flow=flow) as server,
            old_client(dialect, tunnel, there) as client,
        ):
            await client.ready()
            await sleep(0.2)  # 1.6 loses visitors that come before links have their numbers
            await first_session(between.visitors)
            await sessions(between.visitors)
            await ping_pong(between)
            assert server.established and not server.errors and not client.errors


@pytest_twisted.ensureDeferred
async def test_a_wrong_key_is_refused() -> None:
    """By the token in 1.14; the server waits on, and the right client finds it."""
    async with ends() as between:
        tunnel = free_address()
        async with old_server(Dialect.V1_14, tunnel, between.visitors) as server:
            async with old_client(Dialect.V1_14, tunnel, between.target, key="wrong") as client:
                await until(lambda: client.errors)
                assert "wrong key" in client.errors[0]
            assert server.refused and not server.granted
            async with old_client(Dialect.V1_14, tunnel, between.target) as client:
                await client.ready()


@pytest_twisted.ensureDeferred
async def test_1_6_knows_a_key_by_its_length_alone() -> None:
    """Another key of the same length passes the hello, and then nobody understands the other."""
    async with ends() as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V1_6, tunnel, between.visitors) as server,
            old_client(Dialect.V1_6, tunnel, between.target, key="X" * len(KEY)) as client,
        ):
            await until(lambda: client.errors)
            assert server.granted and not client.tunnels


@pytest_twisted.ensureDeferred
async def test_a_lost_answer_costs_two_pauses() -> None:
    """The server takes the client's next knock for its first link, and both start again."""
    async with ends() as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V1_14, tunnel, between.visitors, lost_answers=1) as server,
            old_client(Dialect.V1_14, tunnel, between.target) as client,
        ):
            await client.ready()
            assert server.granted == 2
            assert "before it had answered" in client.errors[0] and server.errors
            await sessions(between.visitors, 1)


@pytest_twisted.ensureDeferred
async def test_the_port_is_away_after_a_handshake() -> None:
    """Links that are made at once meet a closed port, and come a little later."""
    async with ends() as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V2_0, tunnel, between.visitors, absence=0.3),
            old_client(Dialect.V2_0, tunnel, between.target) as client,
        ):
            await client.ready()
            assert not client.errors
            await sessions(between.visitors, 1)


@pytest_twisted.ensureDeferred
async def test_a_second_client_is_not_served() -> None:
    """While a tunnel is up a second client's knock is taken for a link."""
    async with ends() as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V1_14, tunnel, between.visitors) as server,
            old_client(Dialect.V1_14, tunnel, between.target) as first,
        ):
            await first.ready()
            async with old_client(Dialect.V1_14, tunnel, between.target) as second:
                await sleep(1.0)
                assert not second.tunnels
            assert server.granted == 1 and first.established


@pytest.mark.parametrize("lost", ["server", "client"])
@pytest_twisted.ensureDeferred
async def test_either_end_may_start_again(lost: str) -> None:
    """The other waits three seconds and joins again."""
    async with ends() as between:
        tunnel = free_address()
        server = old_server(Dialect.V1_14, tunnel, between.visitors)
        client = old_client(Dialect.V1_14, tunnel, between.target)
        if lost == "server":
            async with client as stays:
                async with server:
                    await stays.ready()
                async with old_server(Dialect.V1_14, tunnel, between.visitors):
                    await until(lambda: stays.tunnels == 2)
                    await sessions(between.visitors, 1)
        else:
            async with server as stayed:
                async with client:
                    await stayed.ready()
                async with old_client(Dialect.V1_14, tunnel, between.target):
                    await until(lambda: stayed.tunnels == 2)
                    await sessions(between.visitors, 1)


async def _answers_the_end(conn: Conn) -> None:
    await conn.read_all()
    conn.write(b"answer")
    conn.finish()


@pytest.mark.parametrize(("tls", "read"), [(0, 0.0), (0, 0.5), (1, 0.0)])
@pytest_twisted.ensureDeferred
async def test_an_end_of_file_from_the_visitor(tls: int, read: float) -> None:
    """The end of the visitor's bytes never reaches the target as such: the dialing end closes the
    target's socket whole. With `read` it does not even hear of it."""
    async with ends(_answers_the_end) as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V2_0, tunnel, between.visitors, tls=tls, read=read) as server,
            old_client(Dialect.V2_0, tunnel, between.target, read=read),
        ):
            await server.ready()
            await sleep(2.0 if tls else 0.1)  # until the certificate has been compared
            visitor = await connect(between.visitors)
            visitor.write(b"question")
            visitor.finish()
            await visitor.end()
            assert visitor.received == 0


@pytest_twisted.ensureDeferred
async def test_sessions_outlive_their_tunnel() -> None:
    """TCP sessions go on when the control link is lost."""
    async with ends() as between:
        tunnel = free_address()
        async with (
            old_server(Dialect.V1_14, tunnel, between.visitors) as server,
            old_client(Dialect.V1_14, tunnel, between.target) as client,
        ):
            await client.ready()
            visitor = await connect(between.visitors)
            visitor.write(b"before")
            assert await visitor.read(6) == b"before"
            assert server._tunnel is not None
            server._tunnel.end("for the test")
            await until(lambda: client.tunnels == 2)
            visitor.write(b"after")
            assert await visitor.read(5) == b"after"
            visitor.finish()


@pytest_twisted.ensureDeferred
async def test_both_may_verify_the_same_link() -> None:
    """Each end picks the first of its idle links: where that is the same one at the same time,
    neither finds it, and the tunnel ends. Otherwise visitors are let in."""
    async with ends() as between:
        tunnel = free_address()
        quick = OldTiming.of(Dialect.V1_14).faster(10)
        async with (
            old_server(Dialect.V1_14, tunnel, between.visitors, tls=1, timing=quick) as server,
            old_client(Dialect.V1_14, tunnel, between.target, least=4, timing=quick) as client,
        ):
            await client.ready()
            await sleep(1.8)
            if not (server.errors or client.errors):
                await sessions(between.visitors, 1)
            else:
                assert "the link to verify did not come" in server.errors + client.errors
