"""One line where all workers say the same. No I/O and no clock of its own."""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

__all__ = ["Chorus"]

#: Seconds within which the same line from another worker is the same news.
SAME_NEWS = 10.0
#: Lines remembered; beyond them the oldest is forgotten.
MOST_LINES = 256


@define
class _Said:
    at: float
    by: set[int] = field(factory=set)


class Chorus:
    """Knows which lines are news.

    A line is none when another worker said it a moment ago and this one has not since: what happens
    to the whole, each worker tells once.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, _Said] = OrderedDict()

    def is_news(self, worker: int, line: str, now: float) -> bool:
        """Whether this line of a worker's should be logged."""
        said = self._lines.get(line)
        if said is not None and now - said.at < SAME_NEWS and worker not in said.by:
            said.by.add(worker)
            return False
        self._lines[line] = _Said(now, {worker})
        self._lines.move_to_end(line)
        if len(self._lines) > MOST_LINES:
            self._lines.popitem(last=False)
        return True
