"""From the JSON of a run to the tables and pictures of the manual.

    python -m benchmarks.publish DIRECTORY

The directory has ``bench.json``, ``growth.json`` or both; what is made of them is put beside them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import plots, report, steps
from .peers import Form

#: A space where a cell of a table does not wrap.
NO_BREAK = "\u00a0"


def publish(directory: Path) -> None:
    """Make all that can be made: tables as CSV and, where matplotlib is there, pictures as SVG."""
    drawing = plots.ready()
    if (path := directory / "bench.json").exists():
        known = json.loads(path.read_text())
        _write(directory / "machine.csv", _about(known))
        for form in Form:
            if samples := known["samples"].get(form.name.lower()):
                stem = form.name.lower()
                _write(directory / f"{stem}.csv", _narrow(report.table(form, samples)))
                if drawing:
                    plots.peers(form, samples, directory / f"{stem}.svg")
    if (path := directory / "growth.json").exists():
        known = json.loads(path.read_text())
        for kind in ("sessions", "tunnels"):
            _write(directory / f"{kind}.csv", steps.table(kind, known[kind]))
            _write(directory / f"{kind}-profile.csv", steps.profiles(kind, known[kind]))
        if drawing:
            plots.growth(known, directory / "growth.svg")
            plots.profiles(known, directory / "profiles.svg")
    print(f"tables{' and pictures' if drawing else ''}: {directory}")
    if not drawing:
        print("no matplotlib here, so no pictures: pip install 'nodepass[dev]'")


def _about(known: dict[str, Any]) -> list[list[str]]:
    """What it was measured on."""
    rows = [[name, str(value)] for name, value in known["machine"].items() if value]
    rows.append(["slices", f"{known['rounds']} of {known['seconds']:g} s"])
    return [*rows, *(["note", note] for note in known["notes"])]


def _narrow(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same for a page: medians without their spread, which pictures show, except for ratios,
    and goals without what the page says of them."""
    heading, *body = rows
    first, _, *others = heading

    def shorter(head: str, text: str) -> str:
        if head == "goal":
            text = text.partition(" x ")[0]
        elif head and not head.startswith("x "):
            text = text.partition(" ±")[0]
        return text.replace(" ", NO_BREAK)

    return [
        [first, *others],
        *([f"{name}, {unit}", *map(shorter, others, cells)] for name, unit, *cells in body),
    ]


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
