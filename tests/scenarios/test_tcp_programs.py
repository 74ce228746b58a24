"""A tunnel between real nodes, used by programs that everybody knows."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.web.server import Site
from twisted.web.static import File

from tests.ports import HERE
from tests.scenarios.harness import until
from tests.scenarios.pairs import node_pair
from tests.scenarios.programs import data_of, program

everywhere = pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("+", 0), ("-", 1), ("+", 1)])


class Run(ProcessProtocol):
    """A program, its output, and its end."""

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[int] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        ended = reason.value
        self.ended.callback((ended.exitCode or -1) if isinstance(ended, ProcessTerminated) else 0)


def run(name: str, *arguments: str) -> Run:
    """Start a program."""
    result = Run()
    path = program(name)
    reactor.spawnProcess(result, path, [path, *arguments], env=None)
    return result


@everywhere
@pytest_twisted.ensureDeferred
async def test_curl(flow: str, tls: int, tmp_path: Path) -> None:
    """curl fetches a large file and many small ones, twenty at a time, from a web server behind the
    tunnel, whole."""
    big = data_of(1, 20_000_000)
    (tmp_path / "big").write_bytes(big)
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(data_of(number, 3000))
    web = reactor.listenTCP(0, Site(File(str(tmp_path))), interface=HERE)
    nodes, where = await node_pair(f"{HERE}:{web.getHost().port}", flow=flow, tls=tls)
    got = tmp_path / "got"
    got.mkdir()
    fetching = run(
        "curl", "-sSf", "--no-keepalive", "-Z", "--parallel-max", "20",
        "-o", f"{got}/#1", f"http://{where}/[0-99]",
        "-o", f"{got}/big", f"http://{where}/big",
    )  # fmt: skip
    assert await fetching.ended == 0, fetching.output
    assert hashlib.sha256((got / "big").read_bytes()).digest() == hashlib.sha256(big).digest()
    for number in range(100):
        assert (got / str(number)).read_bytes() == data_of(number, 3000)
    for node in reversed(nodes):
        assert await node.stop() == 0
    await web.stopListening()


@pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("+", 1)])
@pytest_twisted.ensureDeferred
async def test_iperf3(flow: str, tls: int) -> None:
    """iperf3 measures both directions with four streams, and ends in order."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        port = probe.getsockname()[1]
    server = run("iperf3", "-s", "-B", HERE, "-p", str(port), "--forceflush")
    nodes, where = await node_pair(f"{HERE}:{port}", flow=flow, tls=tls)
    for number, direction in enumerate([[], ["-R"]], 1):
        # Its server says so each time that it is ready.
        await until(lambda n=number: server.output.count(b"listening") == n, what="iperf3 -s")
        measuring = run(
            "iperf3", "-c", where.host, "-p", str(where.port), "-t", "1", "-P", "4", "-J",
            *direction,
        )  # fmt: skip
        assert await measuring.ended == 0, measuring.output
        report = json.loads(measuring.output)
        assert "error" not in report
        assert report["end"]["sum_received"]["bytes"] > 1_000_000
    server.transport.signalProcess("TERM")
    await server.ended
    for node in reversed(nodes):
        assert await node.stop() == 0
