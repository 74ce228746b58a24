"""How many idle links a pool of reusable links should hold: demand leads.

No I/O and no clock of its own: given `now` and counts, it answers with counts.
"""

from __future__ import annotations

from collections import deque

#: Seconds for which the most links that were in use at once are remembered.
MEMORY = 60.0
#: The memory's resolution, seconds: twelve entries remember a minute.
STEP = 5.0


class DemandPolicy:
    """Keeps as many links as were in use at once within the last minute, and some, within bounds.

    A visitor should find a link waiting. What it will take in the next minute is best guessed from
    the last one, so the pool holds its recent high-water mark of links in use and `minimum` more,
    and never fewer than `minimum` nor more than `maximum` idle ones. It had them all when the mark
    was reached: with fewer, every wave of visitors would have links made that are closed after it.

    :param minimum: idle links to keep however quiet it is.
    :param maximum: most idle links.
    """

    def __init__(self, minimum: int, maximum: int) -> None:
        self.bound(minimum, maximum)
        self._marks: deque[tuple[float, int]] = deque()  # start of a step, most in use within it

    def bound(self, minimum: int, maximum: int) -> None:
        """Go on with other bounds."""
        self.minimum = min(minimum, maximum)
        self.maximum = maximum

    def used(self, now: float, in_use: int) -> None:
        """Note that so many links are in use or asked for by visitors."""
        marks = self._marks
        if marks and now - marks[-1][0] < STEP:
            if in_use > marks[-1][1]:
                marks[-1] = (marks[-1][0], in_use)
        else:
            marks.append((now, in_use))
        self._forget(now)

    def knows(self, now: float, in_use: int) -> bool:
        """Whether that so many links are in use is no news: as many were lately, and what one more
        takes, one fewer needs to be idle."""
        marks = self._marks
        return bool(marks) and in_use <= marks[-1][1] and now - marks[-1][0] < STEP

    def idle(self, now: float, in_use: int) -> int:
        """How many idle links there should be now."""
        self._forget(now)
        mark = max((used for _, used in self._marks), default=0)
        return min(self.maximum, self.minimum + max(0, mark - in_use))

    def _forget(self, now: float) -> None:
        marks = self._marks
        while marks and now - marks[0][0] >= MEMORY + STEP:
            marks.popleft()
