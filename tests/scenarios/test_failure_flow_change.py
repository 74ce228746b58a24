"""A server that comes back with visitors flowing the other way."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionRefusedError

from nodepass.address import Endpoint
from nodepass.service import RoleService, makeService
from tests.ports import HERE, free_port
from tests.scenarios.harness import KEY, QUICK, until
from tests.scenarios.programs import connect, echo, listen
from tests.scenarios.test_tcp_modes import hello


def server(tunnel: int, mode: int, target: Endpoint | str) -> RoleService:
    """A server of this process, started."""
    url = f"server://{KEY}@{HERE}:{tunnel}/{target}?mode={mode}&log=none"
    service = makeService(url, tuning=QUICK)
    service.startService()
    return service


@pytest_twisted.ensureDeferred
async def test_flow_changes_and_changes_back() -> None:
    """In flow "-" the client no longer listens: a visitor at its port is refused rather than left
    to wait, and the server's port serves. Back in flow "+" the client listens again."""
    target = listen(echo)
    tunnel, at_client = free_port(), Endpoint(HERE, free_port())
    one = server(tunnel, 2, target.endpoint)
    client = makeService(
        f"client://{KEY}@{HERE}:{tunnel}/{at_client}?mode=2&log=none", tuning=QUICK
    )
    client.startService()
    await client.whenReady()
    await hello(client.visitor_address)
    await one.stopService()

    one = server(tunnel, 1, f"{HERE}:0")
    await one.whenReady()
    await until(lambda: client.visitor_address is None, what="the end of the client's port")
    with pytest.raises(ConnectionRefusedError):
        await connect(at_client)
    at_client_now = listen(echo, host=HERE, port=at_client.port)
    await hello(one.visitor_address)
    await at_client_now.stop()
    await one.stopService()

    one = server(tunnel, 2, target.endpoint)
    await until(lambda: client.visitor_address is not None, what="the client's port")
    await hello(client.visitor_address)
    await client.stopService()
    await one.stopService()
    await target.stop()
