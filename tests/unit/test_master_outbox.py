"""What a worker tells, however slowly the master listens."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from nodepass.logs import Level
from nodepass.master.commands import (
    LONGEST_BATCH,
    Count,
    End,
    Line,
    Record,
    Status,
    decode_records,
)
from nodepass.master.outbox import LONGEST_TEXT, MOST_WAITING, Outbox
from nodepass.meter import Stats


class Master:
    """Takes a report when told to."""

    def __init__(self) -> None:
        self.got: list[Record] = []
        self.sizes: list[int] = []
        self.waiting: Deferred[object] | None = None
        self.outbox = Outbox(self.send, wall=lambda: 7.0)

    def send(self, batch: bytes) -> Deferred[object]:
        assert self.waiting is None, "one report at a time"
        self.sizes.append(len(batch))
        self.got += decode_records(batch)
        self.waiting = Deferred()
        return self.waiting

    def take(self) -> None:
        """Answer the report that waits."""
        waiting, self.waiting = self.waiting, None
        assert waiting is not None
        waiting.callback(None)

    def take_all(self) -> None:
        """Answer until nothing comes."""
        while self.waiting is not None:
            self.take()


def test_records_arrive_as_they_were() -> None:
    """Every field of each kind, whatever is in a line."""
    master = Master()
    stats = Stats(mode=2, ping=0.25, pool=3, peers=1, tcps=4, udps=5, tcp_rx=1 << 60, tcp_tx=6,
                  udp_rx=7, udp_tx=8, udp_dropped=9, udp_oversized=10)  # fmt: skip
    master.outbox.status(1, None)
    master.outbox.status(2, "trouble")
    master.outbox.line(1, 12.5, Level.WARN, 'quotes " and ünicode \U0001f600')
    master.outbox.count(1, stats)
    master.outbox.end(2, stats)
    master.take_all()
    counts = [record for record in master.got if isinstance(record, Count)]
    assert [(count.run, count.stats()) for count in counts] == [(1, stats), (2, stats)]
    assert [record for record in master.got if not isinstance(record, Count)] == [
        Status(1, None),
        Status(2, "trouble"),
        Line(1, 12.5, Level.WARN, 'quotes " and ünicode \U0001f600'),
        End(2),
    ]
    assert master.outbox.empty().called


def test_the_newest_waits() -> None:
    """Of a run's checkpoints and statuses one each waits; its end comes after all."""
    master = Master()
    master.outbox.status(9, None)  # is under way
    for number in range(5):
        master.outbox.status(1, str(number))
        master.outbox.count(1, Stats(tcp_rx=number))
    master.outbox.end(1, Stats(tcp_rx=9))
    empty = master.outbox.empty()
    master.take()
    assert not empty.called
    master.take_all()
    assert empty.called
    assert master.got[1:] == [Status(1, "4"), Count(1, tcp_rx=9), End(1)]


def test_reports_fit_and_alternate() -> None:
    """Many long lines and many checkpoints share reports, each below what AMP takes."""
    master = Master()
    for run in range(1, 2000):
        master.outbox.count(run, Stats(tcp_rx=1 << 60, tcp_tx=1 << 60))
    for _ in range(30):
        master.outbox.line(1, 1.0, Level.INFO, "\u20ac" * LONGEST_TEXT)
    master.take()
    assert {type(record) for record in master.got[1:]} == {Count, Line}
    master.take_all()
    assert max(master.sizes) <= LONGEST_BATCH
    assert len(master.got) == 1999 + 30


def test_lines_are_dropped_beyond_the_bound() -> None:
    """They are counted by run, and one line says so once there is room; the rest still comes."""
    master = Master()
    sent = 0
    for _ in range(2000):
        master.outbox.line(1, 1.0, Level.INFO, "x" * 1000)
        sent += 1
    master.outbox.line(2, 1.0, Level.INFO, "y" * 1000)
    assert master.outbox._characters <= MOST_WAITING
    master.outbox.status(1, "trouble")
    master.take_all()
    lines = [record for record in master.got if isinstance(record, Line)]
    kept = sum(line.text[0] == "x" for line in lines)
    notes = {line.run: line for line in lines if "dropped" in line.text}
    assert notes[1] == Line(
        1, 7.0, Level.WARN, f"{sent - kept} log lines dropped: more than the master could take"
    )
    assert notes[2].text.startswith("1 log lines dropped")
    assert Status(1, "trouble") in master.got
    assert master.outbox._characters == 0
