"""Strangers who ask for the wrong things, all at once: they get their answers, cost nothing that
lasts, and keep nobody else waiting."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from tests.scenarios.harness import node, sleep, until
from tests.scenarios.programs import descriptors_of, memory_of

#: Requests of the flood.
COUNT = int(os.environ.get("NP_TEST_FLOOD", "1500"))
#: Bytes by which a flood may leave the master larger than a smaller one before it did.
MOST_GROWTH = 12 << 20
#: Bytes by which it may be larger while it lasts.
MOST_PEAK = 32 << 20
#: Seconds in which 99 of 100 requests of somebody else are answered meanwhile. A machine with
#: nothing else to do takes a tenth.
MOST_WAIT = 0.5

ROOT = Path(__file__).parents[2]


class Probe(threading.Thread):
    """Somebody else, who has the right key and a connection for each request."""

    def __init__(self, port: int, key: str, pid: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.peak = 0
        self.over = False
        self._port, self._key, self._pid = port, key, pid

    def run(self) -> None:
        while not self.over:
            start = time.perf_counter()
            conn = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
            conn.request("GET", "/api/v1/instances", headers={"X-API-Key": self._key})
            answer = conn.getresponse()
            answer.read()
            self.waits.append(time.perf_counter() - start)
            assert answer.status == 200
            conn.close()
            self.peak = max(self.peak, memory_of(self._pid))
            time.sleep(0.01)


async def flood(port: int, key: str, count: int) -> dict[str, int]:
    """Send so many requests from a process of its own; how many there were of each kind."""
    out, err, status = await getProcessOutputAndValue(
        sys.executable,
        ["-m", "tests.scenarios.flooder", str(port), str(count)],
        env={**os.environ, "KEY": key, "PYTHONPATH": str(ROOT)},
    )
    assert status == 0, err.decode()
    told = json.loads(out)
    assert not told["wrong"], told["wrong"][:10]
    print(f"{sum(told['done'].values())} requests in {told['seconds']} s: {told['done']}")
    return dict(told["done"])


@pytest_twisted.ensureDeferred
async def test_a_flood_of_wrong_requests(tmp_path: Path) -> None:
    """Wrong keys, broken JSON, bodies and headers that are too large or never end, odd methods,
    paths and noise: each has its right answer; the master is as small as before and has as many
    descriptors; and who has the key is served all the while, at once."""
    environ = {"NP_STATE": str(tmp_path / "nodepass.db"), "NP_MASTER_WORKERS": "1"}
    master = node("master://127.0.0.1:0?log=info", env=environ)
    key = (await master.line("API Key created: ([0-9a-f]{32})"))[1]
    port = int((await master.line(r"API on \S+:(\d+)"))[1])
    # What is allocated once, such as tables and caches, is there after this.
    await flood(port, key, 1000)
    await sleep(1.5)
    memory, descriptors = memory_of(master.pid), descriptors_of(master.pid)
    probe = Probe(port, key, master.pid)
    probe.start()
    try:
        done = await flood(port, key, COUNT)
    finally:
        probe.over = True
        await deferToThread(probe.join)
    assert sum(done.values()) >= COUNT
    waits = sorted(probe.waits)
    p99 = waits[len(waits) * 99 // 100]
    print(f"others: {len(waits)} answers, median {waits[len(waits) // 2] * 1000:.0f} ms, "
          f"p99 {p99 * 1000:.0f} ms, worst {waits[-1] * 1000:.0f} ms")  # fmt: skip
    await until(lambda: descriptors_of(master.pid) <= descriptors, what="descriptors closed")
    growth = memory_of(master.pid) - memory
    print(f"memory {memory >> 20} MiB, {probe.peak - memory >> 10} KiB more at its peak, "
          f"{growth >> 10} KiB more after it; {descriptors} descriptors")  # fmt: skip
    assert growth < MOST_GROWTH
    assert probe.peak - memory < MOST_PEAK
    assert len(waits) > 20 and p99 < MOST_WAIT
    assert not [line for line in master.lines if "ERROR" in line or "unexpectedly" in line]
    # What wrong keys say in the log is bounded as well.
    assert len(master.lines) < 30
    assert await master.stop() == 0
