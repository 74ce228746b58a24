"""Which points of a time series are kept, and which of them answer a question. Pure.

Each instance has one series in several levels: fine points of a short time, coarse ones of a long
time. A point says how many bytes moved in the `step` seconds from its time on.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

__all__ = ["LEVELS", "MAX_POINTS", "Level", "Point", "Range", "choose", "merge"]

#: Most points of one answer: more than a screen has columns.
MAX_POINTS = 2000

#: Seconds that an answer covers when nobody says how many: the finest level has them.
DEFAULT_SPAN = 3600

#: The last moment that can be asked for, as Unix time: it is far off, and sums stay small.
LAST_MOMENT = 2**40

#: Time, then bytes: tcprx, tcptx, udprx, udptx.
Point = tuple[int, int, int, int, int]


@frozen
class Level:
    """Points of one width.

    :ivar step: seconds that one stands for.
    :ivar kept: seconds for which it is kept.
    """

    step: int
    kept: int

    def start(self, moment: float) -> int:
        """Return the time of the point that a moment belongs to."""
        return int(moment // self.step) * self.step


#: The levels, finest first; each step is a multiple of the one before, and divides a day. That is
#: 720, 1,440 and 8,760 points for an instance that never rests.
LEVELS = (Level(5, 3600), Level(60, 86400), Level(3600, 365 * 86400))


@frozen
class Range:
    """What is read to answer a question.

    :ivar level: where from.
    :ivar since: time of the first point of the answer, a multiple of `step`.
    :ivar until: the first moment after the answer, likewise.
    :ivar step: seconds that a point of the answer stands for, a multiple of the level's.
    """

    level: Level
    since: int
    until: int
    step: int


def choose(now: float, since: int | None, until: int | None, step: int | None) -> Range:
    """Decide what answers a question.

    The answer comes from the finest level that still has all of the range, the coarsest where none
    has. The step is rounded up to a multiple of that level's, and the range widened to whole
    steps. What is older than all levels keep is left out.

    :param now: Unix time.
    :param since: Unix time, an hour before ``until`` unless given.
    :param until: Unix time, now unless given.
    :param step: seconds; unless given, the level's, or the least multiple of it of which
        `MAX_POINTS` are enough.
    :raises ValueError: that makes no range, or one with too many points.
    """
    if until is None:
        until = int(now) + 1
    if since is None:
        since = max(0, until - DEFAULT_SPAN)
    if since < 0 or until < 0:
        raise ValueError("since and until are Unix times in seconds, not negative")
    if max(since, until) > LAST_MOMENT:
        raise ValueError("since and until are Unix times in seconds, not so far in the future")
    if since >= until:
        raise ValueError("since must be before until")
    if step is not None and not 0 < step <= LAST_MOMENT:
        raise ValueError("step is a number of seconds, 1 or more")
    # Of older times there is nothing, so that the answer need not be coarse for their sake.
    since = max(since, min(int(now) - LEVELS[-1].kept, until - 1))
    for level in LEVELS:
        found = _fit(level, since, until, step)
        if found.since >= level.start(now - level.kept):
            break
    if (found.until - found.since) // found.step > MAX_POINTS:
        raise ValueError(f"more than {MAX_POINTS} points; ask for a longer step or a shorter range")
    return found


def _fit(level: Level, since: int, until: int, step: int | None) -> Range:
    if step is None:
        # One point fewer, as both ends are widened.
        step = (until - since) // (MAX_POINTS - 1) + 1
    step = -(-step // level.step) * level.step
    return Range(level, since // step * step, -(-until // step) * step, step)


def merge(points: Iterable[Point], step: int) -> list[Point]:
    """Add up points, in the order of time, to points of a wider step."""
    merged: list[Point] = []
    for when, *counts in points:
        start = when // step * step
        if merged and merged[-1][0] == start:
            counts = [sum(pair) for pair in zip(merged.pop()[1:], counts, strict=True)]
        merged.append((start, counts[0], counts[1], counts[2], counts[3]))
    return merged
