"""Run the benchmarks; see the package."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import loads, peers, report
from .bench import MEMORY, OVERHEAD, START, Bench
from .peers import Form, Peer
from .processes import Failed, as_installed, machine
from .programs import build
from .publish import publish

#: Rounds, whatever the budget: fewer have no median, more add nothing.
LEAST, MOST = 3, 15
#: Seconds of a slice of the quick form.
QUICK_SLICE = 0.3
#: Options that the quick form has no use for: it measures what it has limits for, and writes
#: nothing.
_NOT_QUICK = ("budget", "seconds", "workers", "form", "load", "output")


def main() -> int:
    """Measure, print tables, and write them with all samples; status 1 where a quick form finds
    something far off."""
    options = arguments()
    as_installed()
    if shutil.which("go") is None:
        print("benchmarks: Go is needed, for the yardstick and the load: https://go.dev; skipped")
        return 0 if options.quick else 1
    try:
        with tempfile.TemporaryDirectory() as name:
            bench, rounds = measure(options, Path(name))
    except Failed as failure:
        print(f"benchmarks: {failure}")
        return 1
    for form, samples in bench.samples.items():
        print(f"\n{report.aligned(report.table(form, samples))}")
    print("\nratios are taken within each round; they need not be those of the medians beside them")
    if options.quick:
        wrong = [
            line
            for form in report.FAR_OFF
            for line in report.far_off(form, bench.samples.get(form, {}))
        ]
        print(
            "\nmissed goals are told and fail nothing here: slices are short, and neither peers nor"
        )
        print("machine are those that the goals are for; what fails is a ratio several times off")
        print("\n".join(wrong) or "nothing is far off")
        return int(bool(wrong))
    write(options.output, bench, rounds)
    return 0


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for.

    :param given: its words; those of this process unless given.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help="ours and the yardstick alone, for a minute; "
                             "status 1 where a ratio is far off")  # fmt: skip
    parser.add_argument("--budget", type=float, default=540.0, metavar="SECONDS",
                        help="as many rounds as fit in about this time [%(default)s]")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="this many, whatever it takes")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a slice [%(default)s]")
    parser.add_argument("--workers", type=int, nargs="+", default=[], metavar="N",
                        help="ours also with each end in so many processes")  # fmt: skip
    parser.add_argument("--form", action="append", choices=[form.name.lower() for form in Form])
    parser.add_argument("--load", action="append", choices=[load.key for load in loads.LOADS],
                        help="this one, and no memory; may be given several times")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIRECTORY")
    options = parser.parse_args(given)
    fixed = [name for name in _NOT_QUICK if getattr(options, name) != parser.get_default(name)]
    if options.quick and fixed:
        parser.error(f"--quick always measures the same: leave out --{', --'.join(fixed)}")
    return options


def measure(options: argparse.Namespace, directory: Path) -> tuple[Bench, int]:
    """Do all that was asked for.

    :returns: With the number of rounds.
    """
    generator = loads.Generator(build("load", directory))
    drivers = loads.find(generator, alone=options.quick)
    bench = Bench(directory, drivers, generator, QUICK_SLICE if options.quick else options.seconds)
    chosen = [load for load in loads.LOADS if not options.load or load.key in options.load]
    forms = [form for form in Form if not options.form or form.name.lower() in options.form]
    if options.quick:
        forms = list(report.FAR_OFF)
    relay = build("yardstick", directory)
    fields: list[tuple[Form, list[Peer]]] = []
    for form in forms:
        there, missing = peers.find(form, relay, options.workers, os.environ)
        if options.quick:
            there = [peer for peer in there if peer.name in (peers.OURS, peers.YARDSTICK)]
        else:
            for each in missing:
                bench.note(f"{each} is not on PATH: left out")
        fields.append((form, there))
    rounds = options.rounds or (
        LEAST if options.quick else affordable(options.budget, fields, len(chosen), options.seconds)
    )
    print(f"{rounds} rounds of {bench.seconds:g} s", flush=True)
    for form, there in fields:
        some = chosen
        if options.quick:
            limited = {key.partition(".")[0] for key in report.FAR_OFF[form]}
            some = [load for load in chosen if load.key in limited]
        bench.load(form, there, some, rounds)
        if not options.load:
            bench.memory(form, there[:1] if options.quick else there)
    return bench, rounds


def affordable(
    budget: float, fields: Sequence[tuple[Form, list[Peer]]], loads: int, seconds: float
) -> int:
    """How many rounds fit in so many seconds."""
    chains = sum(len(there) for _, there in fields)
    rounds = (budget - MEMORY * chains) / (chains * (START + loads * (seconds + OVERHEAD)))
    return min(max(int(rounds), LEAST), MOST)


def write(output: Path, bench: Bench, rounds: int) -> None:
    """Write all that is known as JSON, with tables and pictures."""
    output.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {
        "machine": machine(),
        "rounds": rounds,
        "seconds": bench.seconds,
        "notes": bench.notes,
        "samples": {form.name.lower(): samples for form, samples in bench.samples.items()},
    }
    (output / "bench.json").write_text(json.dumps(known, indent=1))
    print()
    publish(output)


if __name__ == "__main__":
    sys.exit(main())
