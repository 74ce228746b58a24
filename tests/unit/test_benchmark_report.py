"""The figures that ``make bench`` prints."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import arguments
from benchmarks.loads import LOADS, Counted
from benchmarks.peers import OURS, REFERENCE, YARDSTICK, Form
from benchmarks.report import (
    FAR_OFF,
    FIGURES,
    Goal,
    Spread,
    aligned,
    cell,
    far_off,
    metrics,
    number,
    ratios,
    rows,
    spread,
    table,
    verdict,
)
from benchmarks.steps import shares

BULK = next(load for load in LOADS if load.kind == "bulk")
REQUESTS = next(load for load in LOADS if load.kind == "requests")
FIGURE = {figure.key: figure for figure in FIGURES}
RATE, COST = FIGURE["requests.rate"], FIGURE["requests.cost"]


def test_rate_counts_the_measured_time_alone() -> None:
    """The rate is of what was counted while measuring; CPU time is of all that was moved."""
    counted = Counted(counted=2e9, seconds=2.0, total=4e9)
    assert metrics(BULK, counted, cpu=6.0) == {"bulk1.rate": 1.0, "bulk1.cost": 1.5}


def test_cost_of_a_request() -> None:
    """Requests cost microseconds each, and have latencies."""
    counted = Counted(counted=1000, seconds=0.5, total=4000, p50=0.001, p99=0.002)
    figures = metrics(REQUESTS, counted, cpu=0.2)
    assert figures["requests.rate"] == 2000
    assert figures["requests.cost"] == pytest.approx(50)
    assert (figures["requests.p50"], figures["requests.p99"]) == (0.001, 0.002)


def test_system_without_cpu_times() -> None:
    """Where the system tells no CPU time there is no cost, rather than one of nothing."""
    counted = Counted(counted=1e9, seconds=1.0, total=1e9)
    assert metrics(BULK, counted, cpu=0.0) == {"bulk1.rate": 1.0}


def test_spread_of_rounds() -> None:
    """One round that went badly does not move the median; one that failed has no part."""
    assert spread([90, 10, None, 100, 95, 85]) == Spread(85, 90, 95)
    assert spread([7.0]) == Spread(7, 7, 7)
    assert spread([None]) is None


def test_ratios_are_of_the_same_round() -> None:
    """What slows a round down slows both sides: the ratio of each round is taken, then the
    median. A round that one side lacks has none."""
    assert ratios([100, 50, 30, 10], [50, 25, None]) == [2.0, 2.0]


def test_goals_of_rates_and_costs() -> None:
    """More is better for a rate and less for a cost; a firm bound is the easier one."""
    goal = Goal(0.95, firm=0.85)
    assert [verdict(RATE, goal, ratio) for ratio in (0.95, 0.9, 0.8)] == ["met", "firm", "missed"]
    assert [verdict(COST, Goal(1.05), ratio) for ratio in (1.05, 1.06)] == ["met", "missed"]


def test_goal_is_to_the_reference_where_there_is_one() -> None:
    """A goal is judged by the ratio to rathole, or else by that to the yardstick."""
    ours_and_go = {OURS: [100.0], YARDSTICK: [110.0]}
    (row,) = rows(Form.PLAIN, {"requests.rate": ours_and_go})
    assert (row.goal, row.verdict) == (">= 0.95 (firm 0.85) x go copy", "firm")
    (row,) = rows(Form.PLAIN, {"requests.rate": {**ours_and_go, REFERENCE: [100.0]}})
    assert (row.goal, row.verdict) == (">= 0.95 (firm 0.85) x rathole", "met")


def test_goal_that_is_no_ratio() -> None:
    """Memory has goals of its own, whatever others take; it is shown in the unit of its goal."""
    (row,) = rows(Form.PLAIN, {"idle.memory": {OURS: [3900.0], YARDSTICK: [1.0]}})
    assert row.cells[OURS] == Spread(3.9, 3.9, 3.9)
    assert (row.goal, row.verdict) == ("<= 4 kB", "met")


def test_what_is_far_off() -> None:
    """The quick form names what is several times worse than it was and what has no figure, and is
    silent about what merely misses its goal."""
    limits = FAR_OFF[Form.PLAIN]
    samples = {
        key: {OURS: [limit.bound * (FIGURE[key].scale if limit.absolute else 1)], YARDSTICK: [1.0]}
        for key, limit in limits.items()
    }
    assert far_off(Form.PLAIN, samples) == []
    samples["bulk1.cost"] = {OURS: [30.0], YARDSTICK: [1.0]}
    del samples["udp.cost"]
    assert far_off(Form.PLAIN, samples) == [
        f"dual-end, plain: bulk, one stream, CPU s/GB: 30.0 should be <= "
        f"{limits['bulk1.cost'].bound:g} x go copy",
        "dual-end, plain: udp.cost could not be measured",
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--load udp --form plain --output x", "--form, --load, --output"),
        ("--seconds 2 --workers 2 --budget 9", "--budget, --seconds, --workers"),
    ],
)
def test_the_quick_form_has_no_choice(
    words: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that it would ignore are refused, in one line that names them."""
    with pytest.raises(SystemExit):
        arguments(["--quick", *words.split()])
    assert capsys.readouterr().err.endswith(f"measures the same: leave out {named}\n")
    assert arguments(["--quick", "--rounds", "5"]).rounds == 5
    assert arguments(words.split()).quick is False


def test_table_has_a_column_for_each_peer() -> None:
    """A peer that lacks a figure has a dash there; ratios and goals stand at the end."""
    samples = {
        "requests.rate": {OURS: [90.0, 90.0], YARDSTICK: [100.0, 100.0], "frp": [50.0]},
        "udp.rate": {OURS: [5.0], YARDSTICK: [10.0]},
    }
    heading, requests, udp = table(Form.SINGLE, samples)
    assert heading == ["single-end", "unit", OURS, YARDSTICK, "frp", f"x {YARDSTICK}", "goal", ""]
    assert requests[2:] == ["90.0", "100", "50.0", "0.90", ">= 1 x go copy", "missed"]
    assert udp[2:5] == ["5.00", "10.0", "-"]


def test_cells() -> None:
    """A median with half the distance of the quartiles beside it, where there is one."""
    assert cell(Spread(90, 100, 110)) == "100 ±10%"
    assert cell(None) == "-"
    assert [number(value) for value in (0.123, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]


def test_columns_are_as_wide_as_their_cells() -> None:
    """Names stand to the left, figures to the right."""
    text = aligned([["a", "unit", "1"], ["longer", "", "1,000"]])
    assert text.splitlines() == ["a       unit      1", "longer        1,000"]


def test_shares_of_a_profile() -> None:
    """Ticks of functions become shares, of modules too; a profile without any has none."""
    ticks = {"a:read": 6, "b:write": 3, "a:write": 1}
    found = shares({"user": 1.0, "system": 2.0, "ticks": ticks})
    assert found["modules"] == {"a": 0.7, "b": 0.3}
    assert found["functions"] == {"a:read": 0.6, "b:write": 0.3, "a:write": 0.1}
    assert (found["user"], found["system"]) == (1.0, 2.0)
    assert shares({"user": 0.0, "system": 0.0, "ticks": {}})["modules"] == {}
