"""A master with 200 instances, half of them carrying traffic: `python -m benchmarks.master`.

Fifty servers with a client each carry a visitor's bytes from the moment that they can; a hundred
forwarders beside them are idle. Measured are the time from the first request to all running, what
the list of instances takes meanwhile, and the memory of master and workers once all is quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PAIRS, FORWARDERS = 50, 100
#: What is asked of it: seconds, milliseconds, MB.
START, LATENCY, MEMORY = 10.0, 50.0, 120.0
#: Seconds until a pool that has grown under visitors is small again, and connections are gone.
QUIET = 75.0
KEY = "benchmark-" * 4


class Api:
    """Calls a master."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._key = key

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Ask for something, and return what the JSON says."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, f"/api/v1{path}", data, {"X-API-Key": self._key})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else None

    def running(self) -> int:
        """How many instances run."""
        return sum(each["status"] == "running" for each in self.call("GET", "/instances"))


class Echo:
    """A target that sends everything back."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                connection.sendall(data)


def visit(port: int, stop: threading.Event, counts: list[int]) -> None:
    """Send a kilobyte and read it back, ten times a second, on one connection."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as line:
            while not stop.wait(0.1):
                line.sendall(bytes(1024))
                left = 1024
                while left:
                    left -= len(line.recv(left)) or left + 1
                counts.append(1024)
        stop.wait(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [pid, *(other for line in found.stdout.split() for other in tree(int(line)))]


def memory(pid: int) -> list[float]:
    """The proportional share of each process of a tree, MB (10^6 bytes)."""
    shares = []
    for each in tree(pid):
        text = Path(f"/proc/{each}/smaps_rollup").read_text()
        shares.append(int(re.findall(r"^Pss:\s+(\d+)", text, re.M)[0]) * 1024 / 1e6)
    return shares


def start_master(state: str) -> tuple[subprocess.Popen[str], int, str]:
    """Start a master; returns its process, port and key."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nodepass", "master://127.0.0.1:0"],
        env={**os.environ, "NP_STATE": f"{state}/nodepass.db"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    key = port = ""
    for line in process.stdout:
        key = key or "".join(re.findall("API Key created: (\\w+)", line))
        port = "".join(re.findall(r"API on 127\.0\.0\.1:(\d+)", line))
        if port:
            break
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, int(port), key


def main() -> int:
    """Measure and print; status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.master", description=__doc__)
    parser.add_argument("--quiet", type=float, default=QUIET, help="seconds of rest [%(default)s]")
    options = parser.parse_args()
    target = Echo()
    stop, counts, latencies = threading.Event(), list[int](), list[float]()
    with tempfile.TemporaryDirectory() as state:
        process, port, key = start_master(state)
        api, watcher = Api(port, key), Api(port, key)
        empty = memory(process.pid)
        ports = free_ports(2 * PAIRS + FORWARDERS)
        tunnels, visitors, forwarders = ports[:PAIRS], ports[PAIRS : 2 * PAIRS], ports[2 * PAIRS :]

        def watch() -> None:
            while not stop.wait(0.02):
                began = time.perf_counter()
                watcher.call("GET", "/instances")
                latencies.append((time.perf_counter() - began) * 1000)

        threads = [threading.Thread(target=watch)]
        threads += [threading.Thread(target=visit, args=(p, stop, counts)) for p in visitors]
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        urls = []
        for tunnel, visitor in zip(tunnels, visitors, strict=True):
            urls.append(f"server://{KEY}@127.0.0.1:{tunnel}/127.0.0.1:{visitor}?mode=1")
            urls.append(f"client://{KEY}@127.0.0.1:{tunnel}/127.0.0.1:{target.port}?mode=2")
        urls += [f"client://127.0.0.1:{p}/127.0.0.1:{target.port}?mode=1" for p in forwarders]
        for url in urls:
            api.call("POST", "/instances", {"url": url})
        while api.running() < len(urls) and time.perf_counter() - began < 6 * START:
            time.sleep(0.05)
        took = time.perf_counter() - began
        running = api.running()
        time.sleep(5)
        busy = memory(process.pid)
        stop.set()
        for thread in threads:
            thread.join()
        time.sleep(options.quiet)
        idle = memory(process.pid)
        process.terminate()
        process.wait()
    latencies.sort()
    slowest = latencies[int(len(latencies) * 0.99)]
    print(f"{running} of {len(urls)} instances running after {took:.1f} s (goal {START:g})")
    print(f"traffic meanwhile: {sum(counts) / 1e6:.1f} MB through {PAIRS} tunnels")
    print(f"GET /instances: p99 {slowest:.1f} ms of {len(latencies)} (goal {LATENCY:g})")
    for name, shares in (("empty", empty), ("busy", busy), ("idle", idle)):
        each = " + ".join(f"{share:.1f}" for share in shares)
        print(f"memory {name}: {sum(shares):.1f} MB = {each}")
    print(f"goal for memory idle: {MEMORY:g} MB")
    return int(took > START or slowest > LATENCY or sum(idle) > MEMORY)


if __name__ == "__main__":
    sys.exit(main())
