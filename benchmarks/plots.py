"""Pictures of what was measured, by matplotlib, which nothing else here needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report
from .peers import OURS, REFERENCE, SPLICE, YARDSTICK, Form
from .steps import LOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Panels side by side.
COLUMNS = 4
#: Inches of a panel.
WIDTH, HEIGHT = 3.0, 2.0
#: Parts of a profile that have a colour of their own.
PARTS = 7

_COLOURS = {OURS: "#c0392b", REFERENCE: "#34495e", YARDSTICK: "#7f8c8d", SPLICE: "#95a5a6"}
_OTHER = "#bdc3c7"


def ready() -> bool:
    """Whether there is a matplotlib; if so it is set up to make the same file of the same data."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text, which is small and can be searched
            "svg.hashsalt": "nodepass",
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    return True


def _grid(rows: int, columns: int) -> tuple[Any, list[Axes]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(columns * WIDTH, rows * HEIGHT)
    )
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def peers(form: Form, samples: report.Samples, path: Path) -> None:
    """A panel for each figure, with a bar for each peer and a line where the goal is."""
    rows = list(report.rows(form, samples))
    figure, axes = _grid(-(-len(rows) // COLUMNS), COLUMNS)
    for axis, row in zip(axes, rows, strict=False):
        there = [(name, of) for name, of in row.cells.items() if of is not None]
        names = [name for name, _ in there]
        axis.barh(
            names,
            [of.middle for _, of in there],
            xerr=[
                [of.middle - of.low for _, of in there],
                [of.high - of.middle for _, of in there],
            ],
            color=[_COLOURS.get(name, _OTHER) for name in names],
            error_kw={"elinewidth": 0.8},
        )
        axis.invert_yaxis()
        axis.set_title(row.figure.name, fontsize=8)
        axis.set_xlabel(f"{row.figure.unit} ({'more' if row.figure.more else 'less'} is better)")
        if (goal := row.figure.goals.get(form)) is not None:
            # Where the reference is not to be had, the yardstick stands for it.
            base = row.cells.get(REFERENCE) or row.cells.get(YARDSTICK)
            if goal.absolute or base is not None:
                at = goal.bound if goal.absolute or base is None else goal.bound * base.middle
                axis.axvline(at, color="#27ae60", linestyle="--", linewidth=1)
    for axis in axes[len(rows) :]:
        axis.axis("off")
    _save(figure, path)


def growth(known: Mapping[str, Any], path: Path) -> None:
    """The cost of each thing, as there are more of them."""
    kinds = [kind for kind in ("sessions", "tunnels") if known[kind]]
    figure, axes = _grid(len(kinds), len(LOADS) + 1)
    for number, kind in enumerate(kinds):
        line = axes[number * (len(LOADS) + 1) : (number + 1) * (len(LOADS) + 1)]
        steps = known[kind]
        held = [step for step in steps if step["memory"] is not None]
        line[0].plot(
            [step["count"] for step in held],
            [step["memory"] / 1e3 for step in held],
            "o-",
            color=_COLOURS[OURS],
        )
        line[0].set_title(f"memory of a {kind[:-1]}, kB")
        for axis, load in zip(line[1:], LOADS, strict=True):
            for name in (OURS, YARDSTICK):
                of = [step["loads"][load.key][name] for step in steps]
                axis.errorbar(
                    [step["count"] for step in steps],
                    [middle for _, middle, _ in of],
                    yerr=[[m - low for low, m, _ in of], [high - m for _, m, high in of]],
                    fmt="o-",
                    color=_COLOURS[name],
                    label=name,
                )
            axis.set_title(f"{load.name}: {load.cost_unit}", fontsize=7)
        line[1].legend(fontsize=7)
        for axis in line:
            axis.set_xscale("log")
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
            axis.set_xlabel(kind)
    _save(figure, path)


def profiles(known: Mapping[str, Any], path: Path) -> None:
    """Where the time goes, as there are more: the modules of both ends."""
    kinds = [kind for kind in ("sessions", "tunnels") if known[kind]]
    figure, axes = _grid(len(kinds), len(LOADS))
    figure.set_size_inches(len(LOADS) * WIDTH * 1.4, len(kinds) * HEIGHT * 1.6)
    names = _busiest(known)
    for number, kind in enumerate(kinds):
        steps = known[kind]
        ticks = [f"{step['count']:,}" for step in steps]
        for axis, load in zip(axes[number * len(LOADS) :], LOADS, strict=False):
            shares = [_shares(step["profiles"][load.key]) for step in steps]
            below = [0.0] * len(steps)
            for name in names:
                part = [share.get(name, 0.0) for share in shares]
                axis.bar(ticks, part, bottom=below, label=name.removeprefix("nodepass."))
                below = [one + other for one, other in zip(below, part, strict=True)]
            axis.bar(ticks, [1 - each for each in below], bottom=below, color="#dddddd",
                     label="all else")  # fmt: skip
            axis.set_title(f"{load.name}, {kind}", fontsize=8)
            axis.set_ylim(0, 1)
    axes[len(LOADS) - 1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _shares(ends: Mapping[str, Any]) -> dict[str, float]:
    """The share of each module in the CPU time of both ends."""
    total = sum(end["user"] + end["system"] for end in ends.values()) or 1.0
    shares: dict[str, float] = {}
    for end in ends.values():
        weight = (end["user"] + end["system"]) / total
        for name, share in end["modules"].items():
            shares[name] = shares.get(name, 0.0) + weight * share
    return shares


def _busiest(known: Mapping[str, Any]) -> list[str]:
    """The modules that take most, of all profiles alike."""
    sums: dict[str, float] = {}
    for step in (*known["sessions"], *known["tunnels"]):
        for load in LOADS:
            for name, share in _shares(step["profiles"][load.key]).items():
                sums[name] = sums.get(name, 0.0) + share
    return sorted(sums, key=lambda name: -sums[name])[:PARTS]
