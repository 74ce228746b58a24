"""What a worker has to tell the master, bounded however slowly the master reads.

One report is under way at a time. Of checkpoints the newest waits, of statuses too; log lines wait
up to a bound, beyond which they are counted and given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed

from nodepass.logs import Level
from nodepass.meter import Stats

from .commands import LONGEST_BATCH, Count, End, Line, Record, Status, encode_record

__all__ = ["LONGEST_TEXT", "Outbox"]

#: Characters of a log line, cut with a mark beyond: none of ours comes near, and an event of the
#: stream holds one line beside the instance.
LONGEST_TEXT = 4000
#: Characters of log lines that may wait: a second of the busiest log.
MOST_WAITING = 1 << 20


class Outbox:
    """Collects records and sends them in reports.

    :param send: sends a report; fires when the master has taken it.
    :param wall: Unix time, seconds.
    """

    def __init__(
        self, send: Callable[[bytes], Deferred[object]], wall: Callable[[], float] = time.time
    ) -> None:
        self._send = send
        self._wall = wall
        self._queue: deque[Record] = deque()
        self._statuses: dict[int, Status] = {}
        self._counts: dict[int, Count] = {}
        self._characters = 0
        self._lost: dict[int, int] = {}
        self._sending = False
        self._empty: list[Deferred[None]] = []

    def status(self, run: int, trouble: str | None) -> None:
        """A run is up, or has trouble."""
        waiting = self._statuses.get(run)
        if waiting is not None:
            waiting.trouble = trouble
            return
        self._statuses[run] = status = Status(run, trouble)
        self._put(status)

    def line(self, run: int, when: float, level: Level, text: str) -> None:
        """A run has logged a line, which is no longer than `LONGEST_TEXT`."""
        if self._characters + len(text) > MOST_WAITING:
            self._lost[run] = self._lost.get(run, 0) + 1
            return
        self._characters += len(text)
        self._put(Line(run, when, level, text))

    def count(self, run: int, stats: Stats) -> None:
        """A checkpoint."""
        self._counts[run] = Count.of(run, stats)
        self._go_on()

    def end(self, run: int, stats: Stats) -> None:
        """The run is over, and this is its last checkpoint."""
        self._counts.pop(run, None)
        self._tell_lost(run)
        self._queue.append(Count.of(run, stats))
        self._put(End(run))

    def empty(self) -> Deferred[None]:
        """Fires when the master has taken all."""
        if not self._sending:
            return succeed(None)
        self._empty.append(Deferred())
        return self._empty[-1]

    def _put(self, record: Record) -> None:
        self._queue.append(record)
        self._go_on()

    def _go_on(self) -> None:
        if self._sending or not (self._queue or self._counts):
            return
        self._sending = True
        self._send(self._batch()).addBoth(self._sent)

    def _batch(self) -> bytes:
        parts: list[bytes] = []
        room = LONGEST_BATCH
        # Half of it at least is for the queue, so that neither kind holds the other up.
        while self._counts and room > LONGEST_BATCH // 2:
            parts.append(encode_record(self._counts.pop(next(iter(self._counts)))))
            room -= len(parts[-1])
        while self._queue:
            part = encode_record(self._queue[0])
            if len(part) > room:
                break
            record = self._queue.popleft()
            if isinstance(record, Line):
                self._characters -= len(record.text)
            elif isinstance(record, Status):
                self._statuses.pop(record.run, None)
            parts.append(part)
            room -= len(part)
        return b"".join(parts)

    def _sent(self, _: object) -> None:
        # A report that failed is not sent again: the link is lost, and with it this process.
        self._sending = False
        if self._characters <= MOST_WAITING // 2:
            for run in list(self._lost):
                self._tell_lost(run)
        self._go_on()
        if not self._sending:
            waiting, self._empty = self._empty, []
            for one in waiting:
                one.callback(None)

    def _tell_lost(self, run: int) -> None:
        count = self._lost.pop(run, 0)
        if count:
            text = f"{count} log lines dropped: more than the master could take"
            self._characters += len(text)
            self._queue.append(Line(run, self._wall(), Level.WARN, text))
