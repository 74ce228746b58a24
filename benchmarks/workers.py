"""What more worker processes bring: ``python -m benchmarks.workers``.

A plain forwarder and a tunnel run with 1, 2, ... workers at each end, up to the cores there are,
and get the same loads in turn. Visitors and target share the cores, so that the rate says little
here once the cores are full; what a request costs, and how the work falls on the workers, says what
more cores bring. From these a model foretells the rate where each worker has a core of its own::

    rate(N) = N / W(N)                   W(N): CPU seconds that a request costs at one end, all its
                                         processes together; measured up to the cores there are,
                                         and taken as constant from there on
    even(N, c) = N / (1 + sqrt(2 (N / c) ln N))
                                         the cores' worth that is reached when each of c
                                         connections offers as much: the kernel deals them out at
                                         random, and the worker with the most is full first
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from attrs import asdict, frozen

from .loads import LOADS, Generator, Load
from .pair import Node, Pair
from .processes import Failed, Process, cpu_of, free_ports, machine, tree
from .programs import build
from .report import aligned

#: What is put on: small messages, and visitors who come and go.
KINDS = tuple(load for load in LOADS if load.key in ("requests", "connections"))
#: For how many workers the model is printed.
FORETOLD = (1, 2, 4, 8, 16, 32)
#: Connections for which an even load is foretold.
CONNECTIONS = (64, 1024)


@frozen(kw_only=True)
class Slice:
    """One load, once.

    :ivar rate: of what the load counts, a second.
    :ivar cost: CPU seconds of each end for one of them, the end that visitors see first.
    :ivar parent: the part of these that the parents took.
    :ivar others: CPU seconds of visitors and target for one.
    :ivar shares: of each worker in its end's CPU time, from 0 to 1.
    """

    rate: float
    cost: list[float]
    parent: float
    others: float
    shares: list[list[float]]


class Way:
    """A way from visitors to the target, of so many workers at each end.

    :param form: "forwarder", "tunnel" or "tunnel tls=1".
    """

    def __init__(self, form: str, workers: int, target: str, directory: Path) -> None:
        self.workers = workers
        name = f"{form} {workers}"
        more = f"workers={workers}"
        self._pair: Pair | None = None
        if form == "forwarder":
            url = f"client://127.0.0.1:0/{target}?mode=1&{more}"
            node = Node(name, [sys.executable, "-m", "nodepass", url], directory)
            self.visit = node.wait_for(r"listening for visitors on (\S+:\d+)")
            self.nodes: Sequence[Node] = [node]
        else:
            tls = int(form.endswith("1"))
            self._pair = Pair(name, directory, target, flow="-", tls=tls, more=more)
            self.visit = ":".join(map(str, self._pair.visit))
            self.nodes = self._pair.nodes

    def cpu(self) -> list[dict[int, float]]:
        """Seconds of CPU time of each process of each end."""
        return [{pid: cpu_of(pid) for pid in tree(node.child.pid)} for node in self.nodes]

    def stop(self) -> None:
        """End it."""
        for node in self.nodes:
            node.stop()


def measure(way: Way, load: Load, generator: Generator, target: Process, seconds: float) -> Slice:
    """Put a load on a way."""
    before, there = way.cpu(), target.cpu()
    here = resource.getrusage(resource.RUSAGE_CHILDREN)
    counted = generator.run(load, way.visit, seconds)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = spent.ru_utime + spent.ru_stime - here.ru_utime - here.ru_stime
    others += target.cpu() - there
    costs, shares, parents = [], [], 0.0
    for node, earlier, later in zip(way.nodes, before, way.cpu(), strict=True):
        took = {pid: cpu - earlier.get(pid, 0.0) for pid, cpu in later.items()}
        whole = sum(took.values())
        costs.append(whole / counted.total)
        if way.workers > 1:
            parents += took[node.child.pid]
        works = [took[pid] for pid in sorted(took) if way.workers == 1 or _works(pid)]
        shares.append([each / max(whole, 1e-9) for each in works])
    return Slice(
        rate=counted.counted / counted.seconds,
        cost=costs,
        parent=parents / counted.total,
        others=others / counted.total,
        shares=shares,
    )


def _works(pid: int) -> bool:
    with suppress(OSError):
        return b"nodepass worker " in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def middle(slices: Sequence[Slice]) -> Slice:
    """The slice whose rate is the median, with the medians of the costs."""
    typical = sorted(slices, key=lambda one: one.rate)[len(slices) // 2]
    ends = range(len(typical.cost))
    return Slice(
        rate=typical.rate,
        cost=[median(one.cost[end] for one in slices) for end in ends],
        parent=median(one.parent for one in slices),
        others=median(one.others for one in slices),
        shares=typical.shares,
    )


def even(workers: int, connections: int) -> float:
    """How many cores' worth is reached when all connections offer as much."""
    return workers / (1 + math.sqrt(2 * workers / connections * math.log(workers)))


def foretell(cost: float, workers: int) -> float:
    """The rate at one end, with a core for each worker."""
    return workers / cost


def run(
    forms: Sequence[str], counts: Sequence[int], rounds: int, seconds: float
) -> dict[tuple[str, str, int], Slice]:
    """All loads on all ways, in turn.

    :returns: the medians, by form, load and workers.
    """
    taken: dict[tuple[str, str, int], list[Slice]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        generator = Generator(build("load", directory))
        (port,) = free_ports(1)
        target = Process(generator.target(directory, port), directory / "target.log")
        ways: list[tuple[str, Way]] = []
        try:
            target.wait_for_port(port)
            for form in forms:
                for count in counts:
                    ways.append((form, Way(form, count, f"127.0.0.1:{port}", directory)))
            for number in range(rounds + 1):
                for load in KINDS:
                    for form, way in ways:
                        one = measure(way, load, generator, target, seconds)
                        if number:  # the first is the warm-up
                            taken.setdefault((form, load.key, way.workers), []).append(one)
        finally:
            for _, way in ways:
                way.stop()
            target.stop()
    return {key: middle(slices) for key, slices in taken.items()}


def lines(medians: dict[tuple[str, str, int], Slice]) -> Iterator[str]:
    """The report."""
    cells = [["way", "load", "workers", "per s", "CPU us/one", "parents", "visitors+target",
              "shares of the workers"]]  # fmt: skip
    for (form, key, workers), one in medians.items():
        shares = " | ".join("/".join(f"{each:.0%}" for each in end) for end in one.shares)
        cells.append([form, key, str(workers), f"{one.rate:.0f}", f"{sum(one.cost) * 1e6:.0f}",
                      f"{one.parent * 1e6:.1f}", f"{one.others * 1e6:.0f}", shares])  # fmt: skip
    yield aligned(cells)
    yield ""
    yield "foretold with a core for each worker, thousands a second: N / W(N), W of the dearer end"
    cells = [["way", "load", "W(N) us", *(f"N={count}" for count in FORETOLD)]]
    for form, key in dict.fromkeys((form, key) for form, key, _ in medians):
        costs = {n: max(one.cost) for (a, b, n), one in medians.items() if (a, b) == (form, key)}
        most = max(costs)
        row = [form, key, " ".join(f"{cost * 1e6:.0f}" for cost in costs.values())]
        for count in FORETOLD:
            cost = costs.get(count, costs[most])
            row.append(f"{foretell(cost, count) / 1e3:.1f}")
        cells.append(row)
    yield aligned(cells)
    yield ""
    yield "the part of it that c connections reach which all offer as much, in cores: even(N, c)"
    cells = [["c", *(f"N={count}" for count in FORETOLD)]]
    for count in CONNECTIONS:
        cells.append([str(count), *(f"{even(workers, count):.1f}" for workers in FORETOLD)])
    yield aligned(cells)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="slices of each [%(default)s]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a slice [%(default)s]")
    parser.add_argument("--most", type=int, default=len(os.sched_getaffinity(0)),
                        help="workers [%(default)s]")  # fmt: skip
    parser.add_argument("--form", action="append", help="forwarder, tunnel or tunnel tls=1")
    parser.add_argument("--output", type=Path, metavar="FILE", help="for all figures, as JSON")
    options = parser.parse_args()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= options.most]
    forms = options.form or ["forwarder", "tunnel", "tunnel tls=1"]
    try:
        medians = run(forms, counts, options.rounds, options.seconds)
    except Failed as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    print("\n".join(lines(medians)))
    if options.output is not None:
        figures = [
            {"form": form, "load": key, "workers": workers, **asdict(one)}
            for (form, key, workers), one in medians.items()
        ]
        options.output.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
