"""What a session, a byte and a tunnel cost when there are many: ``python -m benchmarks.growth``.

Two processes of ours, a server and a client, hold 10 to 10,000 idle sessions in one tunnel, then 1
to 1,000 tunnels. With each of them held, other visitors put load on them, and a profile of both
processes tells where the time goes. A Go relay of two hops, with nothing to hold, gets the same
load in turn, so that the machine's own ups and downs can be told from ours.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import report, steps
from .chains import SETTLE, Chain
from .loads import Generator, Load
from .peers import KEY, OURS, YARDSTICK, Form, yardstick
from .processes import Failed, Process, as_installed, free_ports, machine, memory
from .programs import build
from .publish import publish

SESSIONS = (10, 100, 1_000, 10_000)
TUNNELS = (1, 10, 100, 1_000)
#: Descriptors that a node needs beside the two of each session.
SPARE = 500
#: Seconds for all tunnels to join.
JOINING = 240.0
#: Seconds over which the cost of doing nothing is measured.
REST = 4.0
#: Tunnels that get a few visitors each in a second of warming up.
VISITED = 250
#: Slices of each load, and seconds of one.
ROUNDS, SLICE = 3, 1.0

CONNECTIONS = next(load for load in steps.LOADS if load.key == "connections")


class Node:
    """A process of ours with some tunnels; see `benchmarks.node`."""

    def __init__(self, name: str, urls: Iterable[str], directory: Path) -> None:
        listed = directory / f"{name}.urls"
        listed.write_text("\n".join(urls))
        command = [sys.executable, "-m", "benchmarks.node", str(listed)]
        self.name = name
        self.process = Process(command, directory / f"{name}.log")
        self._read = 0
        self.ports: list[list[int]] = json.loads(self.said("["))

    def said(self, start: str, patience: float = 20.0) -> str:
        """The next line that it prints and that begins so."""
        for _ in self.process.attempts(patience):
            lines = self.process.log.read_text().splitlines(keepends=True)
            for number, line in enumerate(lines[self._read :], self._read + 1):
                if line.startswith(start) and line.endswith("\n"):
                    self._read = number
                    return line
        raise self.process.failure()

    def profile(self) -> dict[str, Any]:
        """What it has done since it was asked the last time."""
        self.process.child.send_signal(signal.SIGUSR1)
        taken: dict[str, Any] = json.loads(self.said("{"))
        return taken


class Pair:
    """A server with so many tunnels, and their client."""

    def __init__(self, tunnels: int, target: int, directory: Path) -> None:
        began = time.monotonic()
        there = f"server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1&log=warn"
        self.server = Node("server", [there] * tunnels, directory)
        self.nodes = [self.server]
        # Of many tunnels each is small: what is to be seen is the tunnel, not its warm links.
        least = 8 if tunnels == 1 else 1
        try:
            self.client = Node(
                "client",
                (
                    f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:{target}"
                    f"?mode=2&min={least}&log=warn"
                    for port, _ in self.server.ports
                ),
                directory,
            )
            self.nodes.append(self.client)
            for node in self.nodes:
                node.said("ready", JOINING)
        except Failed:
            self.stop()
            raise
        self.joining = time.monotonic() - began
        self.start = self.profiles()

    @property
    def visits(self) -> str:
        """Where visitors may go, for the load program."""
        return ",".join(f"127.0.0.1:{visit}" for _, visit in self.server.ports)

    def profiles(self) -> dict[str, Any]:
        """What each end has done since it was asked the last time."""
        return {node.name: steps.shares(node.profile()) for node in self.nodes}

    def cpu(self) -> float:
        """Seconds of CPU time that both have taken so far."""
        return sum(node.process.cpu() for node in self.nodes)

    def memory(self) -> int:
        """Bytes that no other process has."""
        return memory(node.process for node in self.nodes).own

    def stop(self) -> None:
        """End both."""
        for node in reversed(self.nodes):
            node.process.stop()


class Growth:
    """Measures pairs, one after the other.

    :param beside: the yardstick.
    """

    def __init__(self, generator: Generator, beside: Chain, directory: Path) -> None:
        self.generator = generator
        self.beside = beside
        self.directory = directory

    def run(self, kind: str, counts: Iterable[int], known: dict[str, Any]) -> None:
        """Go through steps, and add to what is known what came of each; one that fails is noted."""
        for count in counts:
            print(f"{count} {kind} ...", flush=True)
            try:
                if kind == "sessions":
                    step = self._sessions(count)
                else:
                    first = known[kind][0]["total"] if known[kind] else None
                    step = self._tunnels(count, first)
            except Failed as failure:
                known["notes"].append(f"{count} {kind}: {failure}")
                print(f"note: {known['notes'][-1]}", flush=True)
            else:
                known[kind].append(step)

    def _sessions(self, count: int) -> dict[str, Any]:
        """One tunnel that holds so many."""
        with self._pair(1) as pair:
            time.sleep(SETTLE)
            before = pair.memory()
            with self._held(pair, count):
                time.sleep(SETTLE)
                each = (pair.memory() - before) / count
                return {"count": count, "memory": each, **self._cost(pair)}

    def _tunnels(self, count: int, one: float | None) -> dict[str, Any]:
        """So many tunnels.

        :param one: the memory of a single one, None if this is it.
        """
        with self._pair(count) as pair:
            time.sleep(SETTLE)
            total = pair.memory()
            each = None if one is None else (total - one) / (count - 1)
            # The first visitor of a tunnel makes its pool grow.
            self.generator.run(CONNECTIONS, pair.visits, SLICE + count / VISITED)
            return {"count": count, "total": total, "memory": each, "joining": pair.joining,
                    **self._cost(pair)}  # fmt: skip

    @contextmanager
    def _pair(self, tunnels: int) -> Iterator[Pair]:
        pair = Pair(tunnels, self.beside.ports.target, self.directory)
        try:
            yield pair
        finally:
            pair.stop()

    @contextmanager
    def _held(self, pair: Pair, count: int) -> Iterator[None]:
        """So many idle sessions."""
        command = self.generator.idle(pair.visits, count)
        visitors = Process(command, self.directory / "idle.log")
        try:
            for _ in visitors.attempts(60.0):
                if "idle" in visitors.log.read_text():
                    break
            else:
                raise visitors.failure()
            yield
        finally:
            visitors.stop()

    def _cost(self, pair: Pair) -> dict[str, Any]:
        """Of doing nothing, and of each load on top."""
        before = pair.cpu()
        time.sleep(REST)
        found: dict[str, Any] = {
            "rest": (pair.cpu() - before) / REST,
            "loads": {},
            "profiles": {"start": pair.start},
        }
        for load in steps.LOADS:
            pair.profiles()
            found["loads"][load.key] = {
                name: [of.low, of.middle, of.high] if of else None
                for name, of in self._alternate(pair, load).items()
            }
            found["profiles"][load.key] = pair.profiles()
        return found

    def _alternate(self, pair: Pair, load: Load) -> dict[str, report.Spread | None]:
        costs: dict[str, list[float]] = {OURS: [], YARDSTICK: []}
        for _ in range(ROUNDS):
            for name, one, visits in (
                (OURS, pair, pair.visits), (YARDSTICK, self.beside, self.beside.visit)
            ):  # fmt: skip
                before = one.cpu()
                counted = self.generator.run(load, visits, SLICE)
                figures = report.metrics(load, counted, one.cpu() - before)
                costs[name].append(figures[f"{load.key}.cost"])
        return {
            **{name: report.spread(values) for name, values in costs.items()},
            "ratio": report.spread(report.ratios(costs[OURS], costs[YARDSTICK])),
        }


def main() -> int:
    """Measure, print tables, and write all as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="*", default=SESSIONS, metavar="N")
    parser.add_argument("--tunnels", type=int, nargs="*", default=TUNNELS, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIRECTORY")
    options = parser.parse_args()
    as_installed()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = (hard - SPARE) // 2
    known: dict[str, Any] = {"machine": machine(), "notes": [], "sessions": [], "tunnels": []}
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            generator = Generator(build("load", directory))
            beside = yardstick(Form.PLAIN, build("yardstick", directory))
            (port,) = free_ports(1)
            target = Process(generator.target(directory, port), directory / "target.log")
            stack.callback(target.stop)
            chain = Chain(beside, directory / "beside", port)
            stack.callback(chain.stop)
            chain.start()
            growth = Growth(generator, chain, directory)
            growth.run("sessions", (min(count, most) for count in options.sessions), known)
            growth.run("tunnels", options.tunnels, known)
    except Failed as failure:
        print(f"benchmarks: {failure}")
        return 1
    for kind in ("sessions", "tunnels"):
        if not known[kind]:
            continue
        print(f"\n{report.aligned(steps.table(kind, known[kind]))}")
        print(f"\n{report.aligned(steps.profiles(kind, known[kind]), left=range(5))}")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "growth.json").write_text(json.dumps(known, indent=1))
    publish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
