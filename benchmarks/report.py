"""From measurements to a table: medians, and ratios to the yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from attrs import frozen


@frozen(kw_only=True)
class Load:
    """One kind of load.

    Attributes:
        name: for the table.
        kind: as the load program knows it.
        parallel: visitors at a time.
        unit, scale: what is counted, and how many of the program's counts make one of it.
        cost_unit, cost_scale: the same for what CPU time is given of.
    """

    name: str
    kind: str
    parallel: int
    unit: str
    scale: float
    cost_unit: str
    cost_scale: float


LOADS = (
    Load(name="bulk, one stream", kind="bulk", parallel=1,
         unit="MB/s", scale=1e6, cost_unit="CPU s/GB", cost_scale=1e9),
    Load(name="bulk, eight streams", kind="bulk", parallel=8,
         unit="MB/s", scale=1e6, cost_unit="CPU s/GB", cost_scale=1e9),
    Load(name="keep-alive, 64 connections", kind="requests", parallel=64,
         unit="requests/s", scale=1, cost_unit="CPU us/request", cost_scale=1e-6),
    Load(name="new connections, 16 at a time", kind="connections", parallel=16,
         unit="connections/s", scale=1, cost_unit="CPU us/connection", cost_scale=1e-6),
)  # fmt: skip


@frozen(kw_only=True)
class Sample:
    """What one chain did under one load, once.

    Attributes:
        rate: in the load's unit.
        cost: CPU time of both hops in the load's unit for it; None where that is unknown.
        p50, p99: seconds that a request took; None where the load has no requests.
    """

    rate: float
    cost: float | None = None
    p50: float | None = None
    p99: float | None = None


def sample(load: Load, result: dict[str, float], cpu: float | None) -> Sample:
    """Read what the load program printed.

    Args:
        result: its JSON.
        cpu: seconds of CPU time that the chain took for all of it.
    """
    return Sample(
        rate=result["counted"] / result["seconds"] / load.scale,
        cost=None if cpu is None else _cost(load, cpu, result["total"]),
        p50=result.get("p50"),
        p99=result.get("p99"),
    )


def _cost(load: Load, cpu: float, total: float) -> float:
    if load.cost_scale < 1:  # seconds are given in a part of one, for a single request
        return cpu / total / load.cost_scale
    return cpu / (total / load.cost_scale)


def middle(samples: Sequence[Sample]) -> Sample:
    """The median of each figure."""

    def of(name: str) -> float | None:
        values = [getattr(one, name) for one in samples]
        return None if None in values else median(values)

    rate = of("rate")
    assert rate is not None
    return Sample(rate=rate, cost=of("cost"), p50=of("p50"), p99=of("p99"))


def lines(load: Load, results: dict[str, Sample], yardstick: str) -> list[str]:
    """The rows of the table for one load.

    Args:
        results: the median of each chain.
        yardstick: the chain that the ratios are to.
    """
    base = results[yardstick]
    rows = [
        _row(load.name, load.unit, [_number(one.rate) for one in results.values()]),
        _row("", f"x {yardstick}", [f"{one.rate / base.rate:.2f}" for one in results.values()]),
        _row("", load.cost_unit, [_number(one.cost) for one in results.values()]),
    ]
    if base.cost:
        ratios = [None if one.cost is None else one.cost / base.cost for one in results.values()]
        rows.append(_row("", f"x {yardstick}", [_number(ratio) for ratio in ratios]))
    if base.p50 is not None:
        for name in ("p50", "p99"):
            values = [getattr(one, name) for one in results.values()]
            rows.append(_row("", f"{name}, ms", [f"{value * 1e3:.2f}" for value in values]))
    return rows


def header(chains: Sequence[str]) -> str:
    """The table's first row."""
    return _row("", "", chains)


def _row(name: str, unit: str, cells: Sequence[str]) -> str:
    return f"{name:<31}{unit:<19}" + "".join(f"{cell:>16}" for cell in cells)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
