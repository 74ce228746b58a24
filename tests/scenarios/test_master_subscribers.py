"""Hundreds of subscribers of a whole master, some of whom never read."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.scenarios.harness import KEY, Node, node, sleep, until
from tests.scenarios.masters import Caller
from tests.scenarios.programs import descriptors_of, memory_of

READERS = 290
SILENT = 10
#: Changes of an instance, and its tags, which make an event of 31 kB: together more than what is
#: kept for those who do not read, a queue of 2 MiB and 2.5 MB that the kernel holds.
CHANGES = 170
TAGS = 62
#: Bytes by which the master may grow.
MOST_GROWTH = 48 << 20
#: Seconds after which an event may arrive. A machine with nothing else to do takes a tenth.
MOST_LATE = 1.0

URL = f"server://{KEY}@127.0.0.1:0/127.0.0.1:9?mode=2&log=none"
ROOT = Path(__file__).parents[2]


def silent_subscriber(port: int, key: str) -> socket.socket:
    """A subscriber that reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(
        b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\n\r\n" % key.encode()
    )
    return client


@pytest_twisted.ensureDeferred
async def test_silent_subscribers_among_hundreds(tmp_path: Path) -> None:
    """While instances are made, changed and deleted, 290 subscribers get the very same stream with
    every change in its order, each within a second; ten others, who read nothing, are cut off by a
    reset, and get everything anew when they return; the master's memory stays bounded."""
    environ = {"NP_STATE": str(tmp_path / "nodepass.db"), "NP_MASTER_WORKERS": "1",
               "NP_REPORT_INTERVAL": "2s"}  # fmt: skip
    master = node("master://127.0.0.1:0?log=info", env=environ)
    key = (await master.line("API Key created: ([0-9a-f]{32})"))[1]
    port = int((await master.line(r"API on \S+:(\d+)"))[1])
    api = Caller(port, key)
    id = (await api.create(URL))["id"]
    await api.becomes(id, "running")
    await sleep(0.2)
    idle = descriptors_of(master.pid)
    silent = [silent_subscriber(port, key) for _ in range(SILENT)]
    readers = Node()
    reactor.spawnProcess(
        readers,
        sys.executable,
        [sys.executable, "-m", "tests.scenarios.subscribers", *map(str, (port, READERS, CHANGES))],
        env={**os.environ, "KEY": key, "PYTHONPATH": str(ROOT)},
    )
    await readers.line("^subscribed$")
    assert descriptors_of(master.pid) >= idle + READERS + SILENT
    before, most = memory_of(master.pid), 0
    others: list[str] = []
    for number in range(CHANGES + 1):
        tags = {f"{index:0>250}": "x" * 250 for index in range(TAGS)}
        tags["change"] = f"{number} at {time.monotonic()}"
        answer = await api.call("PATCH", f"/instances/{id}", {"meta": {"tags": tags}})
        assert answer.status == 200
        if number % 10 == 0:
            others.append((await api.create(URL))["id"])
        elif number % 10 == 5:
            assert (await api.call("DELETE", f"/instances/{others.pop()}")).status == 204
        most = max(most, memory_of(master.pid) - before)
        await sleep(0.03)
    told = json.loads((await readers.line("^told (.*)"))[1])
    most = max(most, memory_of(master.pid) - before)
    print(f"{told}; memory {before >> 20} MiB and {most >> 10} KiB more")
    assert told["streams"] == 1
    assert told["events"] > CHANGES
    assert told["late"] < MOST_LATE
    assert most < MOST_GROWTH
    await readers.ended
    # The history of traffic has been opened since: a file and its log.
    await until(lambda: descriptors_of(master.pid) <= idle + 2, what="the silent cut off")
    for client in silent:
        client.settimeout(5)
        data = b""
        with pytest.raises(ConnectionResetError):
            while True:
                data = (data + client.recv(65536))[-20:]
                assert data
        assert not data.endswith(b"0\r\n\r\n")
        client.close()
    again = await api.events()
    await again.sees(lambda events: len(events) > 1)
    assert [event["type"] for event in again.events[:2]] == ["initial", "initial"]
    assert again.events[1]["instance"]["meta"]["tags"] == tags
    await again.close()
    assert not [line for line in master.lines if "ERROR" in line or "unexpectedly" in line]
    assert await master.stop() == 0
