"""The figures of `benchmarks.growth` as tables: a step is a number of sessions or tunnels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import loads
from .peers import OURS, YARDSTICK
from .report import number

#: What is put on top at each step.
LOADS = tuple(load for load in loads.LOADS if load.key in ("bulk1", "connections", "requests"))
#: Functions kept of a profile, and modules of it that a table shows.
FUNCTIONS, MODULES = 40, 5


def shares(profile: Mapping[str, Any]) -> dict[str, Any]:
    """A profile as `benchmarks.node` prints it, with the shares of modules and functions instead
    of ticks."""
    functions = Counter[str](profile["ticks"])
    all_ = functions.total() or 1
    modules: Counter[str] = Counter()
    for function, ticks in functions.items():
        modules[function.partition(":")[0]] += ticks
    return {
        "user": profile["user"],
        "system": profile["system"],
        "modules": {name: ticks / all_ for name, ticks in modules.most_common()},
        "functions": {name: ticks / all_ for name, ticks in functions.most_common(FUNCTIONS)},
    }


def table(kind: str, steps: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each step, the heading first."""
    units = [load.cost_unit for load in LOADS]
    heading = [kind, "kB each", "CPU % at rest"]
    for unit in units:
        heading += [unit, f"x {YARDSTICK}"]
    rows = [heading]
    for step in steps:
        memory = step["memory"]
        row = [str(step["count"]), "-" if memory is None else number(memory / 1e3),
               number(100 * step["rest"])]  # fmt: skip
        for load in LOADS:
            of = step["loads"][load.key]
            row += [number(of[OURS][1]), number(of["ratio"][1])]
        rows.append(row)
    if kind == "tunnels":
        rows[0] += ["s to join", "CPU s"]
        for row, step in zip(rows[1:], steps, strict=True):
            cpu = sum(end["user"] + end["system"] for end in step["profiles"]["start"].values())
            row += [number(step["joining"]), number(cpu)]
    return rows


def profiles(kind: str, steps: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Where the time goes: a row for each step, load and end. The load ``start`` is what
    was done until all had joined."""
    rows = [[kind, "load", "end", "system", "modules, by the calls that they make"]]
    for step in steps:
        for part in ("start", *(load.key for load in LOADS)):
            if part == "start" and kind == "sessions":
                continue  # it is that of one tunnel, at each step
            for end, profile in step["profiles"][part].items():
                total = profile["user"] + profile["system"] or 1.0
                first = list(profile["modules"].items())[:MODULES]
                shares = ", ".join(
                    f"{name.removeprefix('nodepass.')} {share:.0%}" for name, share in first
                )
                rows.append([str(step["count"]), part, end,
                             f"{profile['system'] / total:.0%}", shares])  # fmt: skip
    return rows
