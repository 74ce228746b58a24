"""A tunnel over a line with a round trip of 100 ms, between network namespaces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.latency import Target, Way, tunnel
from benchmarks.line import RTT, Line, lacking
from nodepass.relay.tcpinfo import slowed

missing = lacking()
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    """Two namespaces, and nothing lost between them."""
    with Line(loss=0) as line:
        yield line


@pytest.mark.parametrize(
    ("kind", "flow", "tls"), [("asks", "-", 0), ("asks", "+", 1), ("greeted", "-", 1)]
)
def test_a_first_byte_takes_one_round_trip(
    line: Line, kind: str, flow: str, tls: int, tmp_path: Path
) -> None:
    """A new visitor has the target's first byte after one round trip, whether it asks for it or the
    target speaks first: neither the session nor the target's connection takes one of its own."""
    target = Target(line.far)
    port = target.port if kind == "asks" else target.greeting_port
    pair = tunnel(line, kind, tmp_path, port, tls=tls, flow=flow)
    try:
        way = Way("tunnel", line.near, pair.visit, pair.visit)
        # The machine may be slow now and then; a round trip more would be there each time.
        quickest = min(way.first_byte(kind) for _ in range(5))
    finally:
        pair.stop()
    assert RTT <= quickest < 1.5 * RTT


def test_what_loss_does_to_a_connection() -> None:
    """It is seen at the end that sends, where TCP takes loss for a full line, and by nobody before
    there is any."""
    with Line(rtt=0.01, loss=0.02) as line:
        with line.far.socket() as listener, line.near.socket() as near:
            listener.bind((line.far.address, 0))
            listener.listen()
            near.connect(listener.getsockname())
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            far, _ = listener.accept()
            with far:
                assert not slowed(near)
                near.settimeout(20)
                sending = threading.Thread(target=near.sendall, args=(bytes(1 << 20),))
                sending.start()
                far.settimeout(20)
                left = 1 << 20
                while left:
                    left -= len(far.recv(65536))
                sending.join()
                assert slowed(near)
                assert not slowed(far)
        assert not slowed(near), "a socket that is closed"
