"""Addresses that can't be bound: for good, or for now."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from nodepass.address import Endpoint
from nodepass.config import parse_url
from nodepass.errors import FatalError
from nodepass.service import makeService
from tests.scenarios.faults import echoing, exit_status, fleet, said, says, serves, start_client
from tests.scenarios.harness import KEY, QUICK, Node, node, sleep, until
from tests.scenarios.programs import Target, listen, program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: Not this host's: TEST-NET-1, RFC 5737.
ELSEWHERE = "192.0.2.1"


def without_privileges(url: str) -> Node:
    """A node that may not bind ports below 1024, whoever runs the tests."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        assert int(file.read()) > 900, "on this system every port may be bound by anybody"
    protocol = Node()
    setpriv = program("setpriv")
    command = [setpriv, "--bounding-set=-net_bind_service", sys.executable, "-m", "nodepass", url]
    reactor.spawnProcess(protocol, setpriv, command, env={**os.environ, "PYTHONPATH": ROOT})
    return protocol


HOPELESS = {
    "server's tunnel port": f"server://{KEY}@127.0.0.1:801/127.0.0.1:0?mode=1",
    "server's port for visitors": f"server://{KEY}@127.0.0.1:0/127.0.0.1:801?mode=1",
    "forwarder's port": "client://127.0.0.1:801/127.0.0.1:9?mode=1",
}


@pytest.mark.parametrize("what", HOPELESS)
@pytest_twisted.ensureDeferred
async def test_privileged_port(what: str) -> None:
    """A port that the program may not bind ends it at once with status 1 and one line that names
    the address, the cause and what helps."""
    one = without_privileges(HOPELESS[what])
    assert await exit_status(one) == 1
    lines = said(one, "Permission denied")
    assert lines and all("127.0.0.1:801" in line and "above 1023" in line for line in lines)
    assert not said(one, "Traceback")


@pytest.mark.parametrize("what", HOPELESS)
@pytest_twisted.ensureDeferred
async def test_address_of_another_host(what: str) -> None:
    """An address that is not this host's ends the program with status 1 likewise."""
    one = node(HOPELESS[what].replace("127.0.0.1:801", f"{ELSEWHERE}:8801"))
    assert await exit_status(one) == 1
    lines = said(one, "annot assign requested address")
    assert lines and all(f"{ELSEWHERE}:8801" in line for line in lines)
    assert not said(one, "Traceback")


@pytest_twisted.ensureDeferred
async def test_forward_client_without_a_port() -> None:
    """In flow "+" the client learns only from the server that it must listen: a port that it may
    not bind ends it then, and the server stays."""
    target = echoing()
    nodes = await fleet(target.endpoint, flow="+")
    doomed = node(f"client://{KEY}@127.0.0.1:{nodes.tunnel}/{ELSEWHERE}:8801?mode=2")
    assert await exit_status(doomed) == 1
    assert said(doomed, "annot assign requested address")
    await says(nodes.server, "clients: 1$", len(nodes.server.lines) - 2)
    await serves(nodes.visitor)
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_when_failed_tells_a_program() -> None:
    """A program that runs a tunnel learns of such an error from whenFailed and whenReady, and may
    stop the service."""
    url = HOPELESS["server's port for visitors"].replace("127.0.0.1:801", f"{ELSEWHERE}:8801")
    service = makeService(parse_url(f"{url}&log=none"), tuning=QUICK)
    ready = service.whenReady()
    service.startService()
    assert isinstance(await service.whenFailed(), FatalError)
    with pytest.raises(FatalError):
        await ready
    with pytest.raises(FatalError):
        await service.whenReady()
    await service.stopService()


@pytest.mark.parametrize("kind", ["tunnel", "visitors"])
@pytest_twisted.ensureDeferred
async def test_address_in_use_is_awaited(kind: str) -> None:
    """An address that is in use is tried again with one warning, and served once it is free."""
    target, squatter = echoing(), listen(host="127.0.0.1")
    taken = squatter.endpoint.port
    ports = (taken, 0) if kind == "tunnel" else (0, taken)
    server = node(f"server://{KEY}@127.0.0.1:{ports[0]}/127.0.0.1:{ports[1]}?mode=1")
    line = await says(server, "can't listen for")
    assert f"127.0.0.1:{taken}" in line and "in use" in line
    await sleep(1)
    assert len(said(server, "can't listen for")) == 1
    await squatter.stop()
    client = start_client(target.endpoint, await server.port("clients"))
    await serves(Endpoint("127.0.0.1", await server.port()))
    for one in (client, server):
        assert await one.stop() == 0
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_stop_while_an_address_is_in_use() -> None:
    """A node that waits for an address stops when it is told to."""
    squatters = [listen(host="127.0.0.1") for _ in "tv"]
    tunnel, visitors = (squatter.endpoint for squatter in squatters)
    server = node(f"server://{KEY}@{tunnel}/{visitors}?mode=1")
    await says(server, "can't listen for")
    assert await server.stop(signal.SIGINT) == 0
    for squatter in squatters:
        await squatter.stop()


@pytest_twisted.ensureDeferred
async def test_udp_port_in_use_counts() -> None:
    """The visitors' address is bound for TCP and UDP or not at all, and nothing of a failed try
    stays behind."""
    tcp = listen(host="127.0.0.1")
    taken = tcp.endpoint.port
    squatter = reactor.listenUDP(taken, DatagramProtocol(), interface="127.0.0.1")
    await tcp.stop()
    server = node(f"server://{KEY}@127.0.0.1:0/127.0.0.1:{taken}?mode=1")
    await says(server, "can't listen for visitors")
    probes: list[Target] = []

    def free() -> bool:
        try:
            probes.append(listen(host="127.0.0.1", port=taken))
        except CannotListenError:  # the node closes its half of the address a moment later
            return False
        return True

    await until(free, what="TCP port free")
    await probes[0].stop()
    await squatter.stopListening()
    await server.port()
    assert await server.stop() == 0
