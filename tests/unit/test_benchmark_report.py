"""The figures that ``make bench`` prints."""

from __future__ import annotations

import pytest

from benchmarks.report import LOADS, Sample, lines, middle, sample

BULK, REQUESTS = LOADS[0], LOADS[2]


def test_rate_counts_the_measured_time_alone() -> None:
    """The rate is of what was counted while measuring; CPU time is of all that was moved."""
    result = {"counted": 2e9, "seconds": 2.0, "total": 4e9}
    assert sample(BULK, result, cpu=6.0) == Sample(rate=1000, cost=1.5)


def test_cost_of_a_request() -> None:
    """Requests cost microseconds each, and have latencies."""
    result = {"counted": 1000, "seconds": 0.5, "total": 4000, "p50": 0.001, "p99": 0.002}
    one = sample(REQUESTS, result, cpu=0.2)
    assert one.rate == 2000
    assert one.cost == pytest.approx(50)
    assert (one.p50, one.p99) == (0.001, 0.002)


def test_median_of_rounds() -> None:
    """One round that went badly does not show; a figure that one round lacks is left out."""
    rounds = [Sample(rate=rate, cost=rate / 10) for rate in (90, 10, 100)]
    assert middle(rounds) == Sample(rate=90, cost=9)
    assert middle([*rounds, Sample(rate=1)]).cost is None


def test_ratios_are_to_the_yardstick() -> None:
    """Below rates and costs stand their ratios to the yardstick's."""
    results = {"ours": Sample(rate=50, cost=3), "theirs": Sample(rate=100, cost=2)}
    cells = [line.split()[-2:] for line in lines(BULK, results, "theirs")]
    assert cells == [["50.00", "100"], ["0.50", "1.00"], ["3.00", "2.00"], ["1.50", "1.00"]]


def test_system_without_cpu_times() -> None:
    """Where the system tells no CPU time the cost shows as a dash, and has no ratio."""
    result = {"counted": 1e6, "seconds": 1.0, "total": 1e6}
    one = sample(BULK, result, cpu=None)
    cells = [line.split()[-1] for line in lines(BULK, {"theirs": one}, "theirs")]
    assert cells == ["1.00", "1.00", "-"]
