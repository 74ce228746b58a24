"""From samples to a table: medians, spread, ratios, and which goals they meet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median, quantiles

from attrs import field, frozen

from .loads import LOADS, Counted, Load
from .peers import OURS, REFERENCE, YARDSTICK, Form

#: What one peer did in each round, None where it did nothing: its rate in the load's unit, say.
Series = Sequence["float | None"]


@frozen
class Goal:
    """What ours should reach.

    :param bound: the figure's ratio to the reference, or the figure itself if `absolute`.
    :param firm: a bound that is easier, which has to be kept even where `bound` is missed.
    """

    bound: float
    firm: float | None = None
    absolute: bool = False


@frozen(kw_only=True)
class Figure:
    """A row of the table.

    :param key: a load's key and a metric's, as ``bulk1.rate``.
    :param unit: of what is shown, which is what was measured divided by `scale`.
    :param more: whether more of it is better.
    """

    key: str
    name: str
    unit: str
    scale: float = 1.0
    more: bool = False
    goals: Mapping[Form, Goal] = field(factory=dict)


def _timed(
    load: Load, rate: Mapping[Form, Goal], cost: Mapping[Form, Goal]
) -> tuple[Figure, Figure]:
    return (
        Figure(key=f"{load.key}.rate", name=load.name, unit=load.unit, more=True, goals=rate),
        Figure(key=f"{load.key}.cost", name=load.name, unit=load.cost_unit, goals=cost),
    )


_LOADS = {load.key: load for load in LOADS}
_P, _E, _S = Form.PLAIN, Form.ENCRYPTED, Form.SINGLE
#: A hop of ours beside a hop of the yardstick's: as fast at least, for as little.
_EVEN = {_S: Goal(1.0)}

FIGURES = (
    *_timed(
        _LOADS["requests"],
        {_P: Goal(0.95, firm=0.85), _E: Goal(0.9), **_EVEN},
        {_P: Goal(1.05), _E: Goal(1.15), **_EVEN},
    ),
    *_timed(
        _LOADS["connections"],
        {_P: Goal(1.2), _E: Goal(2.5, firm=2.0), **_EVEN},
        {_P: Goal(0.8), _E: Goal(0.4), **_EVEN},
    ),
    *_timed(
        _LOADS["bulk1"],
        {_P: Goal(1.8), _E: Goal(1.4, firm=1.1), _S: Goal(1.4)},
        {_P: Goal(0.4), _E: Goal(0.65), _S: Goal(0.35, absolute=True)},
    ),
    *_timed(
        _LOADS["bulk8"], {_P: Goal(1.5), _S: Goal(1.4)}, {_P: Goal(0.45), _S: Goal(1.0)}
    ),
    *_timed(_LOADS["udp"], {_P: Goal(1.2), **_EVEN}, {**_EVEN}),
    Figure(key="latency.p50", name="latency, light load, 4 connections", unit="p50 us", scale=1e-6,
           goals={_P: Goal(1.15, firm=1.3), **_EVEN}),
    Figure(key="latency.p99", name="latency, light load, 4 connections", unit="p99 us", scale=1e-6,
           goals={_P: Goal(1.0), **_EVEN}),
    Figure(key="idle.memory", name="memory per idle session", unit="kB", scale=1e3,
           goals={_P: Goal(4.0, absolute=True), _E: Goal(70.0, absolute=True)}),
    Figure(key="start.memory", name="memory at start", unit="MB", scale=1e6,
           goals={_P: Goal(50.0, absolute=True)}),
)  # fmt: skip

#: What is no noise any more: ratios to the yardstick, and memory, three times worse than they are,
#: and latency six times, which a busy machine may double. The quick form fails on them.
FAR_OFF: Mapping[Form, Mapping[str, Goal]] = {
    _P: {
        "requests.cost": Goal(1.3),
        "connections.cost": Goal(1.2),
        "bulk1.cost": Goal(1.2),
        "bulk8.cost": Goal(1.0),
        "udp.cost": Goal(1.2),
        "latency.p50": Goal(5.0),
        "idle.memory": Goal(9.0, absolute=True),
        "start.memory": Goal(150.0, absolute=True),
    },
    _E: {
        "requests.cost": Goal(1.4),
        "connections.cost": Goal(0.6),
        "bulk1.cost": Goal(2.0),
        "bulk8.cost": Goal(2.2),
        "latency.p50": Goal(6.0),
        "idle.memory": Goal(9.0, absolute=True),
        "start.memory": Goal(150.0, absolute=True),
    },
}


def metrics(load: Load, counted: Counted, cpu: float) -> dict[str, float]:
    """The figures of one measurement, by their keys.

    :param cpu: seconds of CPU time that the tunnel took for all of it, 0 where that isn't known.
    """
    found = {f"{load.key}.rate": counted.counted / counted.seconds / load.scale}
    if cpu:
        each = cpu / counted.total
        # Bytes are too small to have a cost each.
        found[f"{load.key}.cost"] = each * load.cost_scale if load.scale > 1 else each / 1e-6
    for share in ("p50", "p99"):
        value = getattr(counted, share)
        if value is not None:
            found[f"{load.key}.{share}"] = value
    return found


@frozen
class Spread:
    """Where the values of some rounds lie: the median and the quartiles."""

    low: float
    middle: float
    high: float


def spread(values: Series) -> Spread | None:
    """Of the values that there are; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return Spread(known[0], known[0], known[0])
    low, _, high = quantiles(known, n=4, method="inclusive")
    return Spread(low, median(known), high)


def ratios(ours: Series, theirs: Series) -> list[float]:
    """Round by round, as what disturbs a round disturbs both."""
    return [
        one / other
        for one, other in zip(ours, theirs, strict=False)
        if one is not None and other  # a cost of nothing is one below the clock's tick
    ]


def verdict(figure: Figure, goal: Goal, reached: float) -> str:
    """How a goal fares: ``met``, ``firm`` (the easier bound alone) or ``missed``."""

    def holds(bound: float) -> bool:
        return reached >= bound if figure.more else reached <= bound

    if holds(goal.bound):
        return "met"
    return "firm" if goal.firm is not None and holds(goal.firm) else "missed"


@frozen(kw_only=True)
class Row:
    """A figure in one form.

    :param cells: by peer; None where it has no such figure.
    :param ratios: ours to the others that ratios are wanted to, by their names.
    :param goal: in words, and `verdict` what became of it; both empty where there is none.
    """

    figure: Figure
    cells: Mapping[str, Spread | None]
    ratios: Mapping[str, Spread | None]
    goal: str
    verdict: str


#: By figure's key, by peer: one value for each round.
Samples = Mapping[str, Mapping[str, Series]]


def rows(form: Form, samples: Samples) -> Iterator[Row]:
    """What there is to say about one form."""
    for figure in FIGURES:
        series = samples.get(figure.key, {})
        if OURS not in series:
            continue
        against = {
            other: spread(ratios(series[OURS], series[other]))
            for other in (YARDSTICK, REFERENCE)
            if other in series
        }
        cells = {peer: _scaled(spread(values), figure.scale) for peer, values in series.items()}
        goal = figure.goals.get(form)
        words = judged = ""
        if goal is not None:
            # Where the reference is not to be had, the yardstick stands for it.
            base = REFERENCE if against.get(REFERENCE) else YARDSTICK
            reached = cells[OURS] if goal.absolute else against.get(base)
            words = _words(figure, goal, "" if goal.absolute else base)
            judged = verdict(figure, goal, reached.middle) if reached else "unknown"
        yield Row(figure=figure, cells=cells, ratios=against, goal=words, verdict=judged)


def far_off(form: Form, samples: Samples) -> list[str]:
    """What is missing, or so much worse than it was that something must have broken, in words."""
    found = []
    known = {row.figure.key: row for row in rows(form, samples)}
    for key, limit in FAR_OFF.get(form, {}).items():
        row = known.get(key)
        if row is None:
            found.append(f"{form.value}: {key} could not be measured")
            continue
        of = row.cells[OURS] if limit.absolute else row.ratios.get(YARDSTICK)
        if of is not None and verdict(row.figure, limit, of.middle) == "missed":
            words = _words(row.figure, limit, "" if limit.absolute else YARDSTICK)
            found.append(
                f"{form.value}: {row.figure.name}, {row.figure.unit}: "
                f"{number(of.middle)} should be {words}"
            )
    return found


def _scaled(of: Spread | None, scale: float) -> Spread | None:
    return of and Spread(of.low / scale, of.middle / scale, of.high / scale)


def _words(figure: Figure, goal: Goal, base: str) -> str:
    sign = ">=" if figure.more else "<="
    firm = "" if goal.firm is None else f" (firm {goal.firm:g})"
    return f"{sign} {goal.bound:g}{firm} {f'x {base}' if base else figure.unit}"


def table(form: Form, samples: Samples) -> list[list[str]]:
    """Rows of cells, the heading first."""
    there = list(rows(form, samples))
    peers = list(dict.fromkeys(peer for row in there for peer in row.cells))
    bases = [each for each in (YARDSTICK, REFERENCE) if each in peers]
    body = [
        [
            row.figure.name,
            row.figure.unit,
            *(cell(row.cells.get(peer)) for peer in peers),
            *(cell(row.ratios.get(base)) for base in bases),
            row.goal,
            row.verdict,
        ]
        for row in there
    ]
    heading = [form.value, "unit", *peers, *(f"x {base}" for base in bases), "goal", ""]
    return [heading, *body]


def cell(of: Spread | None) -> str:
    """The median and, in per cent of it, the quartiles' distance."""
    if of is None:
        return "-"
    if of.low == of.high:
        return number(of.middle)
    return f"{number(of.middle)} ±{50 * (of.high - of.low) / of.middle:.0f}%"


def number(value: float) -> str:
    """Three digits that count, at least."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def aligned(cells: Sequence[Sequence[str]], left: Collection[int] = (0, 1)) -> str:
    """A table as text, figures to the right and the columns `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if number in left else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
