"""What each pair of nodes achieved, cell by cell, and whether ours did at least as well as two Go
nodes do together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from attrs import asdict, field, fields, frozen, mutable

#: The pairs, server first: two Go nodes are what the others are held against.
GO_GO = "Go x Go"
OURS_GO = "ours x Go"
GO_OURS = "Go x ours"
PAIRS = (GO_GO, OURS_GO, GO_OURS)

#: Seconds by which ours may come back later than two Go nodes do: a Go node that has lost its peer
#: tries again every three seconds, so that a restart takes as long as chance has it.
LATER = 4.0

#: Characters of a column of the table.
_COLUMN = 20


@frozen(kw_only=True)
class Cell:
    """What is tried: the same for all three pairs."""

    dialect: str
    check: str
    flow: str
    tls: int

    def __str__(self) -> str:
        return f"{self.check} flow {self.flow} tls={self.tls}"


@frozen(kw_only=True)
class Outcome:
    """How it went.

    :ivar good: how many of the sessions, datagrams or steps went well.
    :ivar of: how many there were.
    :ivar seconds: what they took, or what it took to come back.
    :ivar note: what went wrong, in words.
    """

    good: int
    of: int
    seconds: float
    note: str = ""

    @property
    def share(self) -> float:
        """The good ones among all."""
        return self.good / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.good}/{self.of} {self.seconds:.1f} s"


def worse(check: str, ours: Outcome, reference: Outcome) -> str:
    """Why ours is worse than two Go nodes; empty where it is not."""
    if ours.share < reference.share:
        return f"{ours} where two Go nodes have {reference}: {ours.note or 'no word why'}"
    if check.startswith("restart") and reference.good and ours.seconds > reference.seconds + LATER:
        return f"back after {ours.seconds:.1f} s, two Go nodes after {reference.seconds:.1f} s"
    return ""


@mutable
class Matrix:
    """All outcomes of a run.

    :ivar versions: which NodePass spoke a dialect.
    :ivar reference: what two Go nodes achieved in another run, for those that are not tried again.
    """

    versions: dict[str, str] = field(factory=dict)
    outcomes: dict[tuple[Cell, str], Outcome] = field(factory=dict)
    reference: dict[Cell, Outcome] = field(factory=dict)

    def outcome(self, cell: Cell, pair: str) -> Outcome | None:
        """How it went, where it was tried."""
        known = self.reference.get(cell) if pair == GO_GO else None
        return self.outcomes.get((cell, pair), known)

    def verdict(self, cell: Cell, pair: str) -> str:
        """Why `pair` is worse than two Go nodes at this cell; empty where it is not, or where
        either of them was not tried."""
        ours, reference = self.outcome(cell, pair), self.outcome(cell, GO_GO)
        if ours is None or reference is None or pair == GO_GO:
            return ""
        return worse(cell.check, ours, reference)

    def lines(self) -> Iterable[str]:
        """A table for each dialect; `<` marks what is worse than two Go nodes."""
        cells = list(dict.fromkeys(cell for cell, _ in self.outcomes))
        for dialect in dict.fromkeys(cell.dialect for cell in cells):
            yield f"dialect {dialect}, NodePass {self.versions.get(dialect, '?')}, server x client"
            yield " " * 34 + "".join(pair.ljust(_COLUMN) for pair in PAIRS).rstrip()
            for cell in cells:
                if cell.dialect == dialect:
                    yield self._row(cell)
            yield ""
        yield from self._notes(cells)

    def _row(self, cell: Cell) -> str:
        row = f"  {cell}".ljust(34)
        for pair in PAIRS:
            outcome = self.outcome(cell, pair)
            mark = " <" if self.verdict(cell, pair) else ""
            row += ("-" if outcome is None else f"{outcome}{mark}").ljust(_COLUMN)
        return row.rstrip()

    def _notes(self, cells: list[Cell]) -> Iterable[str]:
        for cell in cells:
            for pair in PAIRS:
                outcome = self.outcome(cell, pair)
                if outcome is not None and outcome.note:
                    yield f"{cell.dialect} {cell}, {pair}: {outcome.note}"

    def read_reference(self, path: Path) -> None:
        """Take what two Go nodes achieved from the file of another run."""
        for row in json.loads(path.read_text()):
            if row["pair"] == GO_GO:
                cell = Cell(**{name.name: row[name.name] for name in fields(Cell)})
                outcome = {name.name: row[name.name] for name in fields(Outcome)}
                self.reference[cell] = Outcome(**outcome)

    def write(self, path: Path) -> None:
        """All of it as JSON, a list with an object per outcome."""
        rows = [
            {
                **asdict(cell),
                "version": self.versions.get(cell.dialect, ""),
                "pair": pair,
                **asdict(outcome),
                "worse": self.verdict(cell, pair),
            }
            for (cell, pair), outcome in self.outcomes.items()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
