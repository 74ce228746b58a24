"""What each pair of nodes achieved, cell by cell, and whether ours did at least as well as two Go
nodes do together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from attrs import asdict, field, fields, frozen, mutable

#: The pairs, server first: two Go nodes are what the others are held against.
GO_GO = "Go x Go"
OURS_GO = "ours x Go"
GO_OURS = "Go x ours"
PAIRS = (GO_GO, OURS_GO, GO_OURS)

#: Seconds by which ours may come back later than two Go nodes do: a process of Python starts by so
#: much later than one on Go where the machine has much to do.
LATER = 1.5
#: Share of the sessions, datagrams or steps by which ours may be behind two Go nodes: none.
FEWER = 0.0

#: Characters of a figure, of a verdict, and of what stands before them.
_FIGURE, _VERDICT, _HEAD = 10, 8, 44


class Measure(Enum):
    """What a check is judged by."""

    SESSIONS = "sessions"
    DATAGRAMS = "datagrams"
    STEPS = "steps"
    ALIVE = "alive, of 2"
    BACK = "seconds to be back"


#: By check.
MEASURES = {
    "tcp": Measure.SESSIONS,
    "short": Measure.SESSIONS,
    "websocket": Measure.SESSIONS,
    "udp": Measure.DATAGRAMS,
    "restart-server": Measure.BACK,
    "restart-client": Measure.BACK,
    "wrong-key": Measure.STEPS,
    "idle": Measure.ALIVE,
}


class Verdict(Enum):
    """How a pair with one of ours did, beside two Go nodes."""

    WORSE = "worse"
    AS_WELL = "as well"
    BETTER = "better"


@frozen(kw_only=True)
class Cell:
    """What is tried: the same for all three pairs."""

    dialect: str
    check: str
    flow: str
    tls: int

    def __str__(self) -> str:
        return f"{self.check} flow {self.flow} tls={self.tls}"

    @property
    def measure(self) -> Measure:
        """What it is judged by."""
        return MEASURES[self.check]


@frozen(kw_only=True)
class Outcome:
    """How it went.

    :ivar good: how many of the sessions, datagrams or steps went well.
    :ivar of: how many there were; 0 where no tunnel came about.
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

    def figure(self, measure: Measure) -> str:
        """What it is judged by, for a table; `no` where there is nothing to judge."""
        if not self.of or (measure is Measure.BACK and not self.good):
            return "no"
        return f"{self.seconds:.1f} s" if measure is Measure.BACK else str(self.good)


def judge(measure: Measure, ours: Outcome, reference: Outcome) -> Verdict:
    """Hold ours against two Go nodes."""
    if ours.share != reference.share:
        if ours.share > reference.share:
            return Verdict.BETTER
        return Verdict.WORSE if ours.share < reference.share - FEWER else Verdict.AS_WELL
    if measure is Measure.BACK and ours.good:
        later = ours.seconds - reference.seconds
        if abs(later) > LATER:
            return Verdict.WORSE if later > 0 else Verdict.BETTER
    return Verdict.AS_WELL


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

    def verdict(self, cell: Cell, pair: str) -> Verdict | None:
        """How `pair` did beside two Go nodes; None where either was not tried."""
        ours, reference = self.outcome(cell, pair), self.outcome(cell, GO_GO)
        if ours is None or reference is None or pair == GO_GO:
            return None
        return judge(cell.measure, ours, reference)

    def verdict_of_both(self, cell: Cell) -> Verdict | None:
        """The worse one, where either of the pairs with one of ours is worse; else the better."""
        verdicts = [self.verdict(cell, pair) for pair in (OURS_GO, GO_OURS)]
        for verdict in (Verdict.WORSE, Verdict.BETTER, Verdict.AS_WELL):
            if verdict in verdicts:
                return verdict
        return None

    def failures(self, cell: Cell) -> list[str]:
        """What is worse than two Go nodes at this cell, in words."""
        reference = self.outcome(cell, GO_GO)
        return [
            f"{cell.dialect} {cell}, {pair}: {ours} where two Go nodes have {reference}: "
            f"{ours.note or 'no word why'}"
            for pair in PAIRS
            if self.verdict(cell, pair) is Verdict.WORSE
            and (ours := self.outcome(cell, pair)) is not None
        ]

    def lines(self) -> Iterable[str]:
        """One table, a row for each check, with all dialects side by side; `<` marks the pair that
        is worse than two Go nodes."""
        cells = list(dict.fromkeys(cell for cell, _ in self.outcomes))
        dialects = sorted({cell.dialect for cell in cells})
        order = list(MEASURES)
        rows = sorted(
            {(cell.check, cell.flow, cell.tls) for cell in cells},
            key=lambda row: (order.index(row[0]), row[1] == "+", row[2]),
        )
        titles = [f"{dialect}, NodePass {self.versions.get(dialect, '?')}" for dialect in dialects]
        columns = "".join(pair.ljust(_FIGURE) for pair in PAIRS) + "ours is".ljust(_VERDICT)
        head = "check          flow tls judged by"
        yield (" " * _HEAD + "".join(f"| {title}".ljust(len(columns) + 2) for title in titles))
        yield (head.ljust(_HEAD) + "".join(f"| {columns}" for _ in titles)).rstrip()
        for check, flow, tls in rows:
            line = f"{check:<15}{flow:<5}{tls:<4}{self._measured(check, cells)}".ljust(_HEAD)
            for dialect in dialects:
                cell = Cell(dialect=dialect, check=check, flow=flow, tls=tls)
                line += f"| {self._row(cell)}"
            yield line.rstrip()
        for dialect in dialects:
            yield self._summary(dialect, [cell for cell in cells if cell.dialect == dialect])
        yield (
            f"server x client; no: not at all; ours is worse (<) where it has fewer"
            f"{f', by more than {FEWER:.1%}' if FEWER else ''}, or is back more than {LATER:g} s "
            f"later, than two Go nodes"
        )
        for cell in cells:
            yield from self.failures(cell)

    def _measured(self, check: str, cells: list[Cell]) -> str:
        measure = MEASURES[check]
        if measure in (Measure.BACK, Measure.ALIVE):
            return measure.value
        sizes = [
            outcome.of
            for cell in cells
            if cell.check == check
            for pair in PAIRS
            if (outcome := self.outcome(cell, pair)) is not None and outcome.of
        ]
        return f"{measure.value}, of {max(sizes, default=0)}"

    def _row(self, cell: Cell) -> str:
        row = ""
        for pair in PAIRS:
            outcome = self.outcome(cell, pair)
            mark = " <" if self.verdict(cell, pair) is Verdict.WORSE else ""
            figure = "-" if outcome is None else outcome.figure(cell.measure) + mark
            row += figure.ljust(_FIGURE)
        verdict = self.verdict_of_both(cell)
        return row + ("" if verdict is None else verdict.value).ljust(_VERDICT)

    def _summary(self, dialect: str, cells: list[Cell]) -> str:
        """How many cells came out which way, and, judged by nobody, how long the bulk took."""
        counts = Counter(self.verdict_of_both(cell) for cell in cells)
        told = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in reversed(Verdict))
        took = Counter[str]()
        for cell in cells:
            outcomes = {pair: self.outcome(cell, pair) for pair in PAIRS}
            if cell.check in ("tcp", "short") and all(
                outcome is not None and outcome.share == 1 for outcome in outcomes.values()
            ):
                took.update({pair: each.seconds for pair, each in outcomes.items() if each})
        times = ", ".join(f"{pair} {took[pair]:.0f} s" for pair in PAIRS)
        return f"{dialect}: ours is {told}" + (f"; tcp and short took {times}" if took else "")

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
                "measure": cell.measure.value,
                "verdict": verdict.value if (verdict := self.verdict(cell, pair)) else "",
            }
            for (cell, pair), outcome in self.outcomes.items()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
