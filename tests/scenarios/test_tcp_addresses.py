"""Visitors and targets of both families, by address, by name, and on every interface."""

from __future__ import annotations

import pytest
import pytest_twisted

from nodepass.address import Endpoint
from nodepass.service import makeService
from tests.scenarios.harness import KEY, QUICK, tunnel
from tests.scenarios.programs import connect, echo, listen

flows = pytest.mark.parametrize("flow", ["-", "+"])


async def says_hello(where: Endpoint) -> None:
    """A visitor's word goes to the target and comes back."""
    visitor = await connect(where)
    visitor.write(b"hello")
    visitor.finish()
    assert await visitor.read_all() == b"hello"
    assert await visitor.end() == "closed"


@flows
@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_ipv6(flow: str, tls: int) -> None:
    """Visitors, tunnel and target on IPv6."""
    target = listen(echo, "::1")
    pair = await tunnel(target.endpoint, flow=flow, tls=tls, host="::1")
    assert pair.visitor.host == "::1"
    await says_hello(pair.visitor)
    await pair.stop()
    await target.stop()


@flows
@pytest.mark.parametrize(("here", "there"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
@pytest_twisted.ensureDeferred
async def test_one_family_to_the_other(flow: str, here: str, there: str) -> None:
    """A visitor of one family reaches a target of the other."""
    target = listen(echo, there)
    pair = await tunnel(target.endpoint, flow=flow, host=here)
    await says_hello(pair.visitor)
    await pair.stop()
    await target.stop()


@flows
@pytest.mark.parametrize("at", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["localhost", ""])
@pytest_twisted.ensureDeferred
async def test_a_target_on_this_host(flow: str, host: str, at: str) -> None:
    """A target by name, and one without a host, is found on whichever loopback it listens."""
    target = listen(echo, at)
    pair = await tunnel(f"{host}:{target.endpoint.port}", flow=flow)
    await says_hello(pair.visitor)
    await pair.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_every_interface() -> None:
    """An address without a host takes visitors and clients of both families."""
    target = listen(echo)
    server = makeService(f"server://{KEY}@:0/:0?log=none&mode=1", tuning=QUICK)
    server.startService()
    assert server.tunnel_address is not None
    port = server.tunnel_address.port
    for host in ("127.0.0.1", "[::1]", "localhost"):
        client = makeService(
            f"client://{KEY}@{host}:{port}/{target.endpoint}?log=none&mode=2", tuning=QUICK
        )
        client.startService()
        await client.whenReady()
        assert server.visitor_address is not None
        for visiting in ("127.0.0.1", "::1"):
            await says_hello(Endpoint(visiting, server.visitor_address.port))
        await client.stopService()
    await server.stopService()
    await target.stop()
