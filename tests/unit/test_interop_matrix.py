"""The matrix of ``make interop``: what is worse than two Go nodes, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.matrix import GO_GO, GO_OURS, OURS_GO, Cell, Matrix, Outcome, worse
from tests.interop.nodes import dialect_of

CELL = Cell(dialect="1.14", check="tcp", flow="-", tls=1)


def outcome(good: int, of: int = 10, seconds: float = 1.0, note: str = "") -> Outcome:
    """An outcome."""
    return Outcome(good=good, of=of, seconds=seconds, note=note)


def test_fewer_are_worse() -> None:
    """Ours may be slower at bulk, as two Go nodes are no measure of that, but lose nothing that
    they don't."""
    assert worse("tcp", outcome(9, note="1 x reset"), outcome(10)).endswith("1 x reset")
    assert not worse("tcp", outcome(9, seconds=50), outcome(9))
    assert not worse("tcp", outcome(9), outcome(8))


def test_no_tunnel_is_worse_than_some() -> None:
    """Shares are compared, as where no tunnel came about there was one step alone."""
    assert worse("tcp", outcome(0, of=1), outcome(3))
    assert not worse("tcp", outcome(3), outcome(0, of=1))


def test_coming_back_late_is_worse() -> None:
    """A restart is a matter of time as well, by more than chance makes."""
    assert worse("restart-server", outcome(1, of=1, seconds=9.0), outcome(1, of=1))
    assert not worse("restart-server", outcome(1, of=1, seconds=4.0), outcome(1, of=1))
    assert not worse("restart-server", outcome(1, of=1, seconds=9.0), outcome(0, of=1))


def test_table() -> None:
    """A row has all pairs, with a mark at what is worse, and words for what went wrong."""
    matrix = Matrix(versions={"1.14": "v1.14.0"})
    matrix.outcomes[CELL, GO_GO] = outcome(10)
    matrix.outcomes[CELL, GO_OURS] = outcome(9, note="1 x reset")
    lines = list(matrix.lines())
    assert lines[0] == "dialect 1.14, NodePass v1.14.0, server x client"
    assert lines[1].split("  ")[-1].strip() == "Go x ours"
    row = lines[2].split()
    assert row == "tcp flow - tls=1 10/10 1.0 s - 9/10 1.0 s <".split()
    assert lines[-1] == "1.14 tcp flow - tls=1, Go x ours: 1 x reset"


def test_written(tmp_path: Path) -> None:
    """Every outcome is in the file, with its verdict."""
    matrix = Matrix()
    matrix.outcomes[CELL, GO_GO] = outcome(10)
    matrix.outcomes[CELL, OURS_GO] = outcome(5)
    path = tmp_path / "deep" / "interop.json"
    matrix.write(path)
    reference, ours = json.loads(path.read_text())
    assert (reference["pair"], reference["good"], reference["worse"]) == (GO_GO, 10, "")
    assert (ours["pair"], ours["tls"], bool(ours["worse"])) == (OURS_GO, 1, True)


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
    assert matrix.verdict(CELL, OURS_GO)
    assert not list(Matrix(reference=matrix.reference).lines())


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
