"""The PROXY header, as real programs read it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from nodepass.address import Endpoint
from nodepass.service import makeService
from tests.ports import free_port
from tests.scenarios.harness import QUICK, either_link, no_links, sleep, tunnel
from tests.scenarios.programs import connect, listen, program

pytestmark = either_link

#: What each way of carrying needs: proxy counts on the node that dials.
WAYS = {"-": {"client": "proxy=1"}, "+": {"server": "proxy=1"}}

flows = pytest.mark.parametrize("flow", ["-", "+"])
families = pytest.mark.parametrize(
    ("host", "at"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("127.0.0.1", "::1"),
        ("::1", "127.0.0.1"),
    ],
)


async def listening(where: Endpoint) -> None:
    """Wait until somebody listens there."""
    for _ in range(1000):
        try:
            (await connect(where)).reset()
            return
        except Exception:
            await sleep(0.02)
    raise AssertionError(f"nobody listens on {where}")


class Daemon:
    """A program in the foreground, ended with the test."""

    def __init__(self, where: Endpoint, output: Path, *command: str) -> None:
        self.where = where
        with open(output, "wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)


def nginx(directory: Path, host: str) -> Daemon:
    """nginx that reads PROXY and answers with what it says."""
    where = Endpoint(host, free_port(host))
    says = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr"
    config = directory / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {directory}/nginx.pid;
        error_log {directory}/error.log;
        events {{ worker_connections 64; }}
        http {{
            access_log off;
            client_body_temp_path {directory}; proxy_temp_path {directory};
            fastcgi_temp_path {directory}; uwsgi_temp_path {directory};
            scgi_temp_path {directory};
            server {{
                listen {where} proxy_protocol;
                location / {{ return 200 "{says} $proxy_protocol_server_port"; }}
            }}
        }}
        """
    )
    return Daemon(where, directory / "nginx.log", program("nginx"), "-c", str(config),
                  "-p", str(directory), "-e", str(directory / "error.log"))  # fmt: skip


def haproxy(directory: Path, host: str) -> Daemon:
    """haproxy that reads PROXY and answers with what it says."""
    where = Endpoint(host, free_port(host))
    says = "%[src] %[src_port] %[dst] %[dst_port]"
    config = directory / "haproxy.cfg"
    config.write_text(
        f"""defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 10s
frontend web
    bind {where.host}:{where.port} accept-proxy
    http-request return status 200 content-type text/plain lf-string "{says}"
"""
    )
    return Daemon(where, directory / "haproxy.log", program("haproxy"), "-db", "-f", str(config))


KINDS = {"nginx": nginx, "haproxy": haproxy}


@flows
@families
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest_twisted.ensureDeferred
async def test_as_programs_read_it(
    flow: str, host: str, at: str, kind: str, tmp_path: Path
) -> None:
    """nginx and haproxy learn the visitor's address and port, and the address that it wanted: the
    target's where that is of the visitor's family, else the one it had connected to."""
    daemon = KINDS[kind](tmp_path, at)
    try:
        await listening(daemon.where)
        pair = await tunnel(daemon.where, flow=flow, host=host, **WAYS[flow])
        visitor = await connect(pair.visitor)
        own = visitor.transport.getHost()
        visitor.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = (await visitor.read_all()).decode()
        visitor.finish()
        await visitor.end()
        wanted = daemon.where if host == at else pair.visitor
        assert answer.endswith(f"{own.host} {own.port} {wanted.host} {wanted.port}"), answer
        await pair.stop()
    finally:
        daemon.stop()


def _header(visitor: Any, target: Endpoint) -> bytes:
    """What a target should get."""
    return f"PROXY TCP4 127.0.0.1 {target.host} {visitor.port} {target.port}\r\n".encode()


@flows
@pytest_twisted.ensureDeferred
async def test_before_all_else(flow: str) -> None:
    """The header is the first that a target gets, once, and before it has said anything."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, **WAYS[flow])
    visitor = await connect(pair.visitor)
    own = visitor.transport.getHost()
    far = await target.accept()
    header = _header(own, target.endpoint)
    assert await far.read(len(header)) == header
    visitor.write(b"first")
    visitor.finish()
    assert await far.read_all() == b"first"
    far.finish()
    await visitor.end()
    await pair.stop()
    await target.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_not_asked_for_where_it_counts(flow: str) -> None:
    """The node that does not dial writes no header."""
    target = listen()
    elsewhere = WAYS["+" if flow == "-" else "-"]
    pair = await tunnel(target.endpoint, flow=flow, **elsewhere)
    visitor = await connect(pair.visitor)
    visitor.write(b"first")
    visitor.finish()
    assert await (await target.accept()).read_all() == b"first"
    visitor.reset()
    await pair.stop()
    await target.stop()


@no_links
@pytest_twisted.ensureDeferred
async def test_a_mapped_visitor() -> None:
    """A visitor that arrives by IPv4 on a port of both families is written as IPv4, also by a plain
    forwarder."""
    target = listen()
    service = makeService(f"client://:0/{target.endpoint}?log=none&mode=1&proxy=1", tuning=QUICK)
    service.startService()
    await service.whenReady()
    assert service.tunnel_address is not None
    visitor = await connect(Endpoint("127.0.0.1", service.tunnel_address.port))
    far = await target.accept()
    own = visitor.transport.getHost()
    header = _header(own, target.endpoint)
    assert await far.read(len(header)) == header
    visitor.reset()
    await far.end()
    await service.stopService()
    await target.stop()
