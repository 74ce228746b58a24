"""The matrix of ``make interop``: what is worse than two Go nodes, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from tests.interop.matrix import (
    GO_GO,
    GO_OURS,
    MEASURES,
    OURS_GO,
    PAIRS,
    Cell,
    Matrix,
    Outcome,
    Verdict,
    judge,
)
from tests.interop.nodes import dialect_of

CELL = Cell(dialect="1.14", check="tcp", flow="-", tls=1)


def outcome(good: int, of: int = 10, seconds: float = 1.0, note: str = "") -> Outcome:
    """An outcome."""
    return Outcome(good=good, of=of, seconds=seconds, note=note)


def held(check: str, ours: Outcome, reference: Outcome) -> Verdict:
    """What is made of ours at a check."""
    return judge(MEASURES[check], ours, reference)


def test_fewer_are_worse() -> None:
    """Ours may be slower at bulk, as two Go nodes are no measure of that, but lose nothing that
    they don't."""
    assert held("tcp", outcome(9), outcome(10)) is Verdict.WORSE
    assert held("tcp", outcome(9, seconds=50), outcome(9)) is Verdict.AS_WELL
    assert held("tcp", outcome(9), outcome(8)) is Verdict.BETTER


def test_no_tunnel_is_worse_than_some() -> None:
    """Shares are compared, as where no tunnel came about nothing was tried."""
    assert held("tcp", outcome(0, of=0), outcome(3)) is Verdict.WORSE
    assert held("tcp", outcome(3), outcome(0, of=0)) is Verdict.BETTER
    assert held("tcp", outcome(0, of=0), outcome(0, of=0)) is Verdict.AS_WELL


def test_coming_back_late_is_worse() -> None:
    """A restart is a matter of time as well, by more than chance makes."""
    back = outcome(1, of=1)
    assert held("restart-server", outcome(1, of=1, seconds=9.0), back) is Verdict.WORSE
    assert held("restart-server", outcome(1, of=1, seconds=2.0), back) is Verdict.AS_WELL
    assert held("restart-server", back, outcome(1, of=1, seconds=9.0)) is Verdict.BETTER
    never = outcome(0, of=1)
    assert held("restart-server", outcome(1, of=1, seconds=9.0), never) is Verdict.BETTER
    assert held("restart-server", never, never) is Verdict.AS_WELL


def test_verdict_of_both() -> None:
    """What one of the pairs is worse at the other does not make good."""
    matrix = Matrix()
    assert matrix.verdict_of_both(CELL) is None
    matrix.outcomes[CELL, GO_GO] = outcome(8)
    matrix.outcomes[CELL, OURS_GO] = outcome(8)
    assert matrix.verdict_of_both(CELL) is Verdict.AS_WELL
    matrix.outcomes[CELL, GO_OURS] = outcome(10)
    assert matrix.verdict_of_both(CELL) is Verdict.BETTER
    assert not matrix.failures(CELL)
    matrix.outcomes[CELL, OURS_GO] = outcome(7, note="1 x reset")
    assert matrix.verdict_of_both(CELL) is Verdict.WORSE
    (failure,) = matrix.failures(CELL)
    assert failure.startswith("1.14 tcp flow - tls=1, ours x Go: 7/10 1.0 s where")
    assert failure.endswith("8/10 1.0 s: 1 x reset")


def test_table() -> None:
    """A row has what a check is judged by, and of each dialect all pairs and a verdict, with a mark
    at what is worse; words for that follow."""
    matrix = Matrix(versions={"1.14": "v1.14.0", "2.0": "v2.0.0"})
    restart = evolve(CELL, check="restart-server")
    for cell in (restart, CELL, evolve(CELL, dialect="2.0", check="idle")):
        matrix.outcomes[cell, GO_GO] = outcome(10, seconds=2.5)
        matrix.outcomes[cell, GO_OURS] = outcome(10, seconds=1.5)
    matrix.outcomes[CELL, GO_OURS] = outcome(9, note="1 x reset")
    matrix.outcomes[CELL, OURS_GO] = outcome(0, of=0)
    titles, head, tcp, back, idle, *rest = matrix.lines()
    assert titles.split("|")[1:] == [
        " 1.14, NodePass v1.14.0".ljust(len(titles.split("|")[1])),
        " 2.0, NodePass v2.0.0".ljust(len(titles.split("|")[2])),
    ]
    assert head.split("|")[1].split() == "Go x Go ours x Go Go x ours ours is".split()
    assert tcp.split() == "tcp - 1 sessions, of 10 | 10 no < 9 < worse | - - -".split()
    assert back.split("|")[0].split() == "restart-server - 1 seconds to be back".split()
    assert back.split("|")[1].split() == "2.5 s - 1.5 s as well".split()
    assert idle.split("|")[0].split() == "idle - 1 alive, of 2".split()
    assert idle.split("|")[2].split() == "10 - 10 as well".split()
    assert rest[:2] == [
        "1.14: ours is 0 better, 1 as well, 1 worse",
        "2.0: ours is 0 better, 1 as well, 0 worse",
    ]
    assert rest[3].endswith("no word why") and rest[4].endswith("1 x reset")


def test_times() -> None:
    """How long bulk took is told of cells where nobody lost anything, as one can't compare others;
    it is no part of the verdict."""
    matrix = Matrix()
    for place, pair in enumerate(PAIRS):
        matrix.outcomes[CELL, pair] = outcome(10, seconds=10.0 * (place + 1))
        matrix.outcomes[evolve(CELL, tls=0), pair] = outcome(9)
    summary = next(line for line in matrix.lines() if line.startswith("1.14:"))
    assert summary.endswith("; tcp and short took Go x Go 10 s, ours x Go 20 s, Go x ours 30 s")


def test_written(tmp_path: Path) -> None:
    """Every outcome is in the file, with its verdict."""
    matrix = Matrix()
    matrix.outcomes[CELL, GO_GO] = outcome(10)
    matrix.outcomes[CELL, OURS_GO] = outcome(5)
    path = tmp_path / "deep" / "interop.json"
    matrix.write(path)
    reference, ours = json.loads(path.read_text())
    assert (reference["pair"], reference["good"], reference["verdict"]) == (GO_GO, 10, "")
    assert (ours["pair"], ours["tls"], ours["verdict"]) == (OURS_GO, 1, "worse")
    assert ours["measure"] == "sessions"


def test_reference_of_another_run(tmp_path: Path) -> None:
    """Two Go nodes need not be tried again and again; ours are."""
    before, matrix = Matrix(), Matrix()
    before.outcomes[CELL, GO_GO] = outcome(10, note="well")
    before.outcomes[CELL, OURS_GO] = outcome(5)
    before.write(tmp_path / "interop.json")
    matrix.read_reference(tmp_path / "interop.json")
    assert matrix.outcome(CELL, GO_GO) == outcome(10, note="well")
    assert matrix.outcome(CELL, OURS_GO) is None
    matrix.outcomes[CELL, OURS_GO] = outcome(5)
    assert matrix.verdict(CELL, OURS_GO) is Verdict.WORSE


@pytest.mark.parametrize(
    ("version", "dialect"),
    [("v1.6.1", "1.6"), ("v1.14.0", "1.14"), ("v2.0.0-b10", "2.0")],
)
def test_dialects(version: str, dialect: str) -> None:
    """A program's version tells what it speaks."""
    assert dialect_of(version) == dialect


@pytest.mark.parametrize("version", ["dev", "v1.13.0", "v1.8.0", "v1.5.1", ""])
def test_no_dialect(version: str) -> None:
    """What ours can't speak is named."""
    with pytest.raises(ValueError, match="none of the dialects"):
        dialect_of(version)
