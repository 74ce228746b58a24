"""What a tunnel takes at start, and what it adds: ``python -m benchmarks.memory``.

A server and a client of ours, plain and with ``tls=1``: how long they take to come up and to join,
what they have in memory then, what each warm link adds, and what each idle session does; sessions
share a link here. Interpreters of their own show how far down it could go: a bare Python, one that
has imported Twisted's reactor and pyOpenSSL as they are, and one that has them, and the PAKE,
without what a tunnel can do without.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from nodepass.openfiles import raise_open_files

from .chains import SETTLE
from .pair import Pair
from .processes import Memory, Process, as_installed, memory

#: Links and sessions that are added.
MANY = 1_000
#: Starts, of which the median counts.
STARTS = 5
#: What is asked for: MB at start without TLS, kB per idle session plain and with TLS.
START, PLAIN, ENCRYPTED = 50.0, 4.0, 70.0

_REACTOR = "from twisted.internet import epollreactor; from OpenSSL import SSL"
_LEAN = (
    "from nodepass.loading import load_lean; load_lean(); "
    "from nodepass.lean import import_pake, import_twisted; import_twisted(); import_pake(); "
    f"{_REACTOR}; connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)"
)


def main() -> int:
    """Measure and print; status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--count", type=int, default=MANY, help="links and sessions to add")
    count = parser.parse_args().count
    as_installed()
    raise_open_files()
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for title, code in (
            ("bare Python", ""),
            ("reactor and pyOpenSSL as they are", _REACTOR),
            ("what a node needs of its libraries", _LEAN),
        ):
            floor = interpreters(code, directory)
            print(f"two of {title}: {floor.total / 1e6:.1f} MB, {floor.own / 1e6:.1f} their own")
        for tls, limit in ((0, PLAIN), (1, ENCRYPTED)):
            there, seconds, cpu = start(tls, directory)
            print(f"tls={tls}: joined after {seconds:.2f} s, {cpu:.2f} s of CPU time of both ends")
            missed += verdict("memory at start", there.total / 1e6, "MB", None if tls else START)
            print(f"    of it their own: {there.own / 1e6:.1f} MB")
            link = (with_links(tls, directory, count) - there.own) / count
            print(f"  warm link: {link / 1e3:.2f} kB")
            session = (with_sessions(tls, directory, count) - there.own) / count
            missed += verdict("idle session", session / 1e3, "kB", limit)
    return min(missed, 1)


def verdict(what: str, value: float, unit: str, goal: float | None) -> int:
    """Print a figure, beside its goal if it has one; returns 1 where that is missed."""
    missed = goal is not None and value > goal
    beside = "" if goal is None else f" (goal {goal:g}: {'missed' if missed else 'met'})"
    print(f"  {what}: {value:.2f} {unit}{beside}")
    return int(missed)


def interpreters(code: str, directory: Path) -> Memory:
    """Two processes that import something and wait."""
    code += "\nprint('there', flush=True)\nimport time\ntime.sleep(60)"
    command = [sys.executable, "-c", code]
    both = [Process(command, directory / f"bare{number}.log") for number in range(2)]
    try:
        for process in both:
            for _ in process.attempts():
                if process.log.read_text():
                    break
        return memory(both)
    finally:
        for process in both:
            process.stop()


def start(tls: int, directory: Path) -> tuple[Memory, float, float]:
    """What both ends have when they have joined, and how long that takes: seconds, CPU seconds."""
    took, cpu = [], []
    for number in range(STARTS):
        began = time.monotonic()
        pair = Pair(f"start {tls} {number}", directory, "127.0.0.1:9", flow="-", tls=tls)
        try:
            took.append(time.monotonic() - began)
            cpu.append(sum(node.cpu() for node in pair.nodes))
            if number == STARTS - 1:
                time.sleep(SETTLE)
                return memory(pair.nodes), median(took), median(cpu)
        finally:
            pair.stop()
    raise AssertionError


def with_links(tls: int, directory: Path, count: int) -> int:
    """What both ends have of their own with so many warm links; they have a few in any case."""
    pair = Pair(f"links {tls}", directory, "127.0.0.1:9", flow="-", tls=tls, more=f"min={count}")
    try:
        server = Path(f"/proc/{pair.nodes[0].child.pid}/fd")
        for _ in pair.nodes[0].attempts():
            if len(list(server.iterdir())) >= count:
                break
        time.sleep(SETTLE)
        return memory(pair.nodes).own
    finally:
        pair.stop()


def with_sessions(tls: int, directory: Path, count: int) -> int:
    """What both ends have of their own with so many sessions that are silent."""
    with ExitStack() as stack:
        target = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=count))
        address = f"127.0.0.1:{target.getsockname()[1]}"
        pair = Pair(f"sessions {tls}", directory, address, flow="-", tls=tls)
        stack.callback(pair.stop)
        for _ in range(count):
            visitor = stack.enter_context(socket.create_connection(pair.visit))
            served = stack.enter_context(target.accept()[0])
            # Both ways, so that it has all that a session ever has.
            visitor.sendall(b"?")
            served.recv(1)
            served.sendall(b"!")
            visitor.recv(1)
        time.sleep(SETTLE)
        return memory(pair.nodes).own


if __name__ == "__main__":
    sys.exit(main())
