"""Run modes: the plain forwarder, and what mode=0 decides."""

from __future__ import annotations

import contextlib
import socket

import pytest_twisted
from attrs import evolve
from twisted.internet.error import ConnectError

from nodepass.address import Endpoint
from nodepass.service import RoleService, makeService
from tests.ports import HERE, free_port
from tests.scenarios.harness import KEY, QUICK, sleep, until
from tests.scenarios.programs import connect, data_of, echo, listen, standstill

#: No health check within a test: a forwarder's would be one more connection at its target.
TUNING = evolve(QUICK, report_interval=60.0)
#: More bytes than a visitor who reads nothing can be sent: two sockets hold 4 MB on Linux.
FORWARDED = 20_000_000


def started(url: str) -> RoleService:
    """A node of this process."""
    service = makeService(f"{url}&log=none", tuning=TUNING)
    service.startService()
    return service


async def hello(where: Endpoint | None) -> None:
    """A visitor there is taken to an echo."""
    assert where is not None
    visitor = await connect(where)
    visitor.write(b"hello")
    visitor.finish()
    assert await visitor.read_all() == b"hello"
    assert await visitor.end() == "closed"


@pytest_twisted.ensureDeferred
async def test_a_forwarder_carries_both_directions() -> None:
    """A client on its own takes visitors to the target, with each direction's end, and counts the
    visitor's side only."""
    target = listen()
    service = started(f"client://127.0.0.1:0/{target.endpoint}?mode=1")
    await service.whenReady()
    assert service.stats.mode == 1
    assert service.visitor_address is not None
    visitor = await connect(service.visitor_address)
    far = await target.accept()
    up, down = data_of(1, 2_000_000), data_of(2, 3_000_000)
    await visitor.send(up)
    visitor.finish()
    assert await far.read_all() == up
    await far.send(down)
    far.finish()
    assert await visitor.read_all() == down
    assert await visitor.end() == await far.end() == "closed"
    await until(lambda: service.stats.tcps == 0, what="the end")
    assert (service.stats.tcp_rx, service.stats.tcp_tx) == (len(up), len(down))
    await service.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_forwarder_passes_resets_on() -> None:
    """Through a plain forwarder too a reset is a reset, and a refused target resets the visitor."""
    target = listen()
    service = started(f"client://127.0.0.1:0/{target.endpoint}?mode=1")
    await service.whenReady()
    assert service.visitor_address is not None
    for by_visitor in (True, False):
        visitor = await connect(service.visitor_address)
        far = await target.accept()
        first, second = (visitor, far) if by_visitor else (far, visitor)
        first.reset()
        assert await second.end() == "reset"
    await target.stop()
    visitor = await connect(service.visitor_address)
    assert await visitor.end() == "reset"
    await until(lambda: service.stats.tcps == 0, what="the end")
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_forwarder_keeps_its_limits() -> None:
    """`slot` and `read` hold in a plain forwarder."""
    target = listen()
    service = started(f"client://127.0.0.1:0/{target.endpoint}?mode=1&slot=1&read=700ms")
    await service.whenReady()
    assert service.visitor_address is not None
    for _ in range(2):
        inside = await connect(service.visitor_address)
        far = await target.accept()
        with contextlib.suppress(ConnectError):  # reset before this end knew that it was there
            outside = await connect(service.visitor_address)
            assert await outside.end() == "reset"
        assert not inside.gone
        await inside.end()
        await far.end()
        await until(lambda: service.stats.tcps == 0, what="the end")
    await service.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_forwarder_memory_is_bounded() -> None:
    """A target that sends to a visitor who reads nothing is held up by the forwarder, which takes
    no more of it than goes into the visitor's socket."""
    target = listen()
    service = started(f"client://127.0.0.1:0/{target.endpoint}?mode=1")
    await service.whenReady()
    assert service.visitor_address is not None
    visitor = await connect(service.visitor_address)
    visitor.pause()
    far = await target.accept()
    far.flood()
    await until(lambda: service.stats.tcp_tx > 0, what="the first bytes")
    await standstill(lambda: service.stats.tcp_tx, FORWARDED)
    far.stop_flood()
    visitor.keep = False
    visitor.resume()
    await until(lambda: visitor.received == far.sent, what="all bytes")
    visitor.reset()
    assert await far.end() == "reset"
    await service.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_server_decides_for_reverse() -> None:
    """A server that can bind its target address listens there for visitors."""
    target = listen(echo)
    server = started(f"server://{KEY}@127.0.0.1:0/{HERE}:{free_port()}?mode=0")
    client = started(f"client://{KEY}@{server.tunnel_address}/{target.endpoint}?mode=2")
    await client.whenReady()
    assert server.stats.mode == 1
    await hello(server.visitor_address)
    await client.stopService()
    await server.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_server_decides_for_forward() -> None:
    """A server whose target address is taken, by the target itself, dials it for the client."""
    target = listen(echo)
    server = started(f"server://{KEY}@127.0.0.1:0/{target.endpoint}?mode=0")
    assert server.stats.mode == 2
    client = started(f"client://{KEY}@{server.tunnel_address}/127.0.0.1:0?mode=2")
    await client.whenReady()
    await hello(client.visitor_address)
    await client.stopService()
    await server.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_one_port_of_two_is_not_enough() -> None:
    """Where only UDP is taken at the target address the server decides for forward, and leaves TCP
    free."""
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind((HERE, 0))
        port = taken.getsockname()[1]
        server = started(f"server://{KEY}@127.0.0.1:0/{HERE}:{port}?mode=0")
        assert server.stats.mode == 2
        await sleep(0.1)  # a port is closed in the reactor's next turn
        target = listen(echo, port=port)
        client = started(f"client://{KEY}@{server.tunnel_address}/127.0.0.1:0?mode=2")
        await client.whenReady()
        await hello(client.visitor_address)
        await client.stopService()
        await server.stopService()
        await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_client_decides_for_single_end() -> None:
    """A client that can bind its tunnel address forwards on its own."""
    target = listen(echo)
    client = started(f"client://{HERE}:{free_port()}/{target.endpoint}?mode=0")
    await client.whenReady()
    assert client.stats.mode == 1
    await hello(client.visitor_address)
    await client.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_client_decides_for_dual_end() -> None:
    """A client whose tunnel address is taken, by the server, joins it; and still does so when it
    has lost it."""
    target = listen(echo)
    port = free_port()
    server = started(f"server://{KEY}@{HERE}:{port}/127.0.0.1:0?mode=1")
    client = started(f"client://{KEY}@{HERE}:{port}/{target.endpoint}?mode=0")
    await client.whenReady()
    assert client.stats.mode == 2
    await hello(server.visitor_address)
    await server.stopService()
    await until(lambda: client.stats.peers == 0, what="the loss")
    again = started(f"server://{KEY}@{HERE}:{port}/127.0.0.1:0?mode=1")
    await again.whenReady()
    assert client.stats.mode == 2
    await hello(again.visitor_address)
    await client.stopService()
    await again.stopService()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_the_health_check_of_a_forwarder() -> None:
    """At each checkpoint, and not when somebody asks how it is, a forwarder measures how long its
    target takes to accept."""
    target = listen()
    service = makeService(
        f"client://127.0.0.1:0/{target.endpoint}?mode=1&log=none",
        tuning=evolve(QUICK, report_interval=1.0),
    )
    service.startService()
    await service.whenReady()
    for _ in range(5):
        assert service.stats.ping == 0
    await sleep(0.2)
    assert not target.conns
    await until(lambda: service.stats.ping > 0, what="the first measurement")
    assert len(target.conns) == 1
    await target.stop()
    await until(lambda: service.stats.ping == 0, what="the loss of the target")
    await service.stopService()
