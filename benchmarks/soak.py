"""An hour of mixed load on real nodes: `python -m benchmarks.soak --minutes 60`.

Tunnels of both flows, with TLS and without, carry bulk, short and long connections, half-closes,
resets, visitors that vanish, readers that stop or dawdle, targets that refuse, and UDP. Every byte
is compared at both ends, every visit has a bound, and what each node holds is looked at every few
seconds. At the end it must be what it was: status 1 where anything was wrong, hung or grew. The
first minutes of a pool are growth: of a run of less than ten, memory says little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from attrs import define, field

from .flows import Datagrams, Echo, flow
from .pair import Node, Pair
from .processes import free_ports, machine
from .visits import BOUND, KINDS, Refused, Target, Visit
from .watch import AT_REST, Held, held, record, trends

#: Seconds between looks at the nodes.
LOOK = 5.0
#: UDP flows begun a second under a load of 1, and datagrams of one.
FLOWS, DATAGRAMS = 1.0, 40
#: Share of datagrams that may be lost: the machine may be busy with something else.
LOSS = 0.005
#: Seconds at the end until nothing is under way any more.
REST = 60.0
#: And until the last UDP flow is forgotten: two minutes after its last datagram, and some.
FORGOTTEN = 150.0
#: Seconds in which a node ends when it is told to.
END = 15.0

# In a log these mean that something was not foreseen.
_BAD_WORDS = re.compile(r"Traceback|Unhandled|unexpectedly| ERROR ")


class Watched(NamedTuple):
    """A node and what was seen of it."""

    node: Node
    samples: list[Held]

    def look(self) -> Held:
        """See what it holds."""
        return held(self.node)


@define
class Kind:
    """What has become of the visits of one kind."""

    begun: int = 0
    good: int = 0
    bytes: int = 0
    longest: float = 0.0
    held_back: int = 0
    active: dict[int, float] = field(factory=dict)


class Load:
    """Begins visits and flows, and keeps account of them.

    :param factor: of all rates.
    """

    def __init__(self, factor: float, pairs: list[Pair], refusing: Pair, target: Target) -> None:
        self.kinds: dict[type[Visit], Kind] = {kind: Kind() for kind in (*KINDS, Refused)}
        self.datagrams = Datagrams()
        self.failures: list[str] = []
        self.bad = Counter[str]()
        self._factor = factor
        self._pairs = pairs
        self._refusing = refusing
        self._target = target
        self._number = 0
        self._lock = threading.Lock()
        self._flows = 0
        self._last: float | None = None

    def turn(self) -> None:
        """Begin what is due, and notice visits that don't end."""
        now = time.monotonic()
        passed, self._last = now - (self._last or now), now
        for kind, account in self.kinds.items():
            for _ in range(self._due(kind.rate * passed)):
                if len(account.active) < kind.most:
                    self._begin(kind)
                else:
                    account.held_back += 1
            for number, began in list(account.active.items()):
                if now - began > kind.longest + 2 * BOUND:
                    account.active.pop(number, None)
                    self._failed(kind.__name__, "a visit hangs")
        for _ in range(self._due(FLOWS * passed)):
            self._number += 1
            where = random.choice(self._pairs).visit
            threading.Thread(target=self._flow, args=(where, self._number), daemon=True).start()

    def _due(self, mean: float) -> int:
        """How many begin in a time for which so many are expected."""
        mean *= self._factor
        return int(mean) + (random.random() < mean % 1)

    def _begin(self, kind: type[Visit]) -> None:
        self._number += 1
        pair = self._refusing if kind is Refused else random.choice(self._pairs)
        visit = kind(self._number)
        self.kinds[kind].begun += 1
        self.kinds[kind].active[visit.number] = time.monotonic()
        self._target.visits[visit.number] = visit
        threading.Thread(target=self._visit, args=(visit, pair), daemon=True).start()

    def _visit(self, visit: Visit, pair: Pair) -> None:
        account = self.kinds[type(visit)]
        trouble: Exception | None = None
        try:
            visit.run(pair.visit)
        except Exception as error:
            trouble = error
        del self._target.visits[visit.number]
        with self._lock:
            began = account.active.pop(visit.number, None)
            if began is None:
                return  # taken for lost already
            account.longest = max(account.longest, time.monotonic() - began)
            account.bytes += visit.up.received + visit.down.received
            account.good += trouble is None
        if trouble is not None:
            self._failed(type(visit).__name__, f"{pair.name}, {visit.number}: {trouble}")

    def _flow(self, where: tuple[str, int], number: int) -> None:
        with self._lock:
            self._flows += 1
        try:
            flow(where, number, DATAGRAMS, self.datagrams)
        except Exception as error:
            self._failed("udp", f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._flows -= 1

    def _failed(self, kind: str, why: str) -> None:
        with self._lock:
            self.bad[kind] += 1
            if len(self.failures) < 100:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {kind}: {why}")
                print(self.failures[-1], flush=True)

    @property
    def active(self) -> int:
        """Visits and flows under way."""
        return self._flows + sum(len(account.active) for account in self.kinds.values())


def main() -> int:
    """Run the load, print what came of it, and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="[%(default)s]")
    parser.add_argument("--load", type=float, default=1.0, metavar="FACTOR",
                        help="1, the default, takes about half a core for all")  # fmt: skip
    parser.add_argument("--workers", default="1", help="of each node [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"), metavar="FILE")
    options = parser.parse_args()
    threading.stack_size(256 * 1024)
    target = Target()
    Echo(target.port)
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        more = f"workers={options.workers}"
        (closed,) = free_ports(1)
        try:
            for name, to, flow_, tls in (
                ("- tls=0", target.port, "-", 0),
                ("- tls=1", target.port, "-", 1),
                ("+ tls=0", target.port, "+", 0),
                ("+ tls=1", target.port, "+", 1),
                ("refusing", closed, "-", 0),
            ):
                host = f"127.0.0.1:{to}"
                pairs.append(Pair(name, directory, host, flow=flow_, tls=tls, more=more))
            nodes = [Watched(node, []) for pair in pairs for node in pair.nodes]
            load = Load(options.load, pairs[:-1], pairs[-1], target)
            problems, before = run(load, nodes, 60 * options.minutes)
            if all(node.alive for node, _ in nodes):
                problems += at_the_end(nodes, before)
        finally:
            for pair in pairs:
                pair.stop()
        problems += [f"{node.name} says: {line}" for node, _ in nodes for line in bad_lines(node)]
    summary = judge(load, nodes, problems) | machine()
    summary |= {
        "relay": os.environ.get("NP_RELAY", "auto"),
        "minutes": options.minutes,
        "workers": options.workers,
        "load": options.load,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=1))
    print(f"all figures: {options.output}")
    return int(not summary["good"])


def run(load: Load, nodes: list[Watched], seconds: float) -> tuple[list[str], list[Held]]:
    """Put the load on for so long, and let it end.

    :returns: what was wrong, and what the nodes held before.
    """
    time.sleep(2 * LOOK)  # a pool comes up, and nodes say how they are
    before = [node.look() for node in nodes]
    began = looked = told = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        if ended := [node for node, _ in nodes if not node.alive]:
            return [how_it_ended(node) for node in ended], before
        load.turn()
        if now - looked >= LOOK:
            looked = now
            for watched in nodes:
                watched.samples.append(watched.look())
        if now - told >= 60:
            told = now
            tell(load, nodes, now - began)
        time.sleep(0.05)
    end = time.monotonic() + REST
    while load.active and time.monotonic() < end:
        time.sleep(0.2)
    return ([f"{load.active} visits have not ended"] if load.active else []), before


def how_it_ended(node: Node) -> str:
    """What is known of the end of a node that nobody here has ended."""
    last = node.log.read_text(errors="replace").strip().splitlines()[-1:]
    status = node.child.returncode  # below zero: a signal did it
    return f"{node.name} ended in the middle of it, status {status}, saying last: {last}"


def at_the_end(nodes: list[Watched], before: list[Held]) -> list[str]:
    """Wait until the nodes are at rest and end them; what was wrong."""
    problems = []
    end = time.monotonic() + FORGOTTEN
    for watched, was in zip(nodes, before, strict=True):
        name, most = watched.node.name, was.others + AT_REST
        while True:
            now = watched.look()
            if not now.sessions and not now.flows and now.others <= most:
                break
            if time.monotonic() > end:
                problems.append(
                    f"{name} is not at rest: {now.sessions} sessions, {now.flows} flows, "
                    f"{now.others} descriptors beside the pool, {most} at most"
                )
                break
            time.sleep(1)
    for node, _ in reversed(nodes):
        node.child.terminate()
        try:
            status = node.child.wait(END)
        except subprocess.TimeoutExpired:
            problems.append(f"{node.name} did not end in {END:g} s")
        else:
            if status:
                problems.append(f"{node.name} ended with status {status}")
    return problems


def bad_lines(node: Node) -> list[str]:
    """The first lines of its log that should not be there."""
    lines = node.log.read_text(errors="replace").splitlines()
    return [line for line in lines if _BAD_WORDS.search(line)][:5]


def tell(load: Load, nodes: list[Watched], seconds: float) -> None:
    """Say how it goes."""
    visits = sum(account.good for account in load.kinds.values())
    carried = sum(account.bytes for account in load.kinds.values()) / 1e9
    memory = sum(samples[-1].pss for _, samples in nodes) / 1e6
    files = sum(samples[-1].descriptors for _, samples in nodes)
    print(f"{seconds / 60:3.0f} min: {visits} visits, {carried:.2f} GB, {load.active} under way, "
          f"{sum(load.bad.values())} wrong; nodes: {memory:.0f} MB, {files} descriptors",
          flush=True)  # fmt: skip


def judge(load: Load, nodes: list[Watched], problems: list[str]) -> dict[str, Any]:
    """Print the summary, and return it for the JSON."""
    print("\nvisits          begun     good    GB both ways  longest, s")
    for kind, account in load.kinds.items():
        print(f"  {kind.__name__:<11}{account.begun:8}{account.good:9}{account.bytes / 1e9:12.3f}"
              f"{account.longest:14.2f}" + (f"   {account.held_back} held back"
                                            if account.held_back else ""))  # fmt: skip
    udp = load.datagrams
    print(f"  udp: {udp.flows} flows, {udp.sent} datagrams, "
          f"{udp.sent - udp.answered} not answered, {udp.wrong} wrong")  # fmt: skip
    if udp.wrong or udp.sent - udp.answered > LOSS * udp.sent:
        problems.append("UDP: answers that are wrong, or too many missing")
    print(f"\nheld: median of the second and of the last quarter{'':16}CPU, s")
    figures = {}
    for node, samples in nodes:
        cells = []
        figures[node.name] = trends(samples)
        for trend in figures[node.name]:
            scale, unit = (1e6, " MB") if trend.what == "rss" else (1, "")
            cells.append(
                f"{trend.what} {trend.second / scale:.4g} -> {trend.last / scale:.4g}{unit}"
            )
            if not trend.flat:
                problems.append(f"{node.name} grew: {cells[-1]}")
        print(f"  {node.name:<22}{', '.join(cells)}   {samples[-1].cpu:.1f}")
    problems += [f"{count} x {kind}" for kind, count in load.bad.items()]
    for problem in problems:
        print(f"WRONG: {problem}")
    print("all good" if not problems else f"{len(problems)} problems")
    return {
        "good": not problems,
        "problems": problems,
        "failures": load.failures,
        "visits": {
            kind.__name__: {
                "begun": account.begun,
                "good": account.good,
                "bytes": account.bytes,
                "longest": account.longest,
                "held back": account.held_back,
            }
            for kind, account in load.kinds.items()
        },
        "udp": {
            "flows": udp.flows,
            "sent": udp.sent,
            "answered": udp.answered,
            "wrong": udp.wrong,
            "bytes": udp.bytes,
        },
        "trends": {
            name: {trend.what: [trend.second, trend.last, trend.flat] for trend in some}
            for name, some in figures.items()
        },
        "samples": {node.name: record(samples) for node, samples in nodes},
    }


if __name__ == "__main__":
    sys.exit(main())
