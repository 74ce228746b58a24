"""Which points of a series answer which question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.master.history import LEVELS, MAX_POINTS, Point, choose, merge

#: A moment that is no multiple of any step.
NOW = 2_000_000_123.4
DAY = 86400


def test_the_last_hour() -> None:
    """Without a range: the last hour, as fine as it is kept."""
    found = choose(NOW, None, None, None)
    assert (found.level, found.step) == (LEVELS[0], 5)
    assert found.until - 3605 <= found.since <= NOW - 3595
    assert found.until > NOW


@pytest.mark.parametrize(
    ("ago", "step", "level", "answer"),
    [
        (60, None, 5, 5),
        (3600, None, 5, 5),
        (60, 1, 5, 5),
        (60, 7, 5, 10),
        (7200, None, 60, 60),
        (7200, 90, 60, 120),
        (DAY, None, 60, 60),
        (2 * DAY, None, 3600, 3600),
        (90 * DAY, None, 3600, 2 * 3600),
        (365 * DAY, DAY, 3600, DAY),
        (365 * DAY, None, 3600, 5 * 3600),
        (5000 * DAY, None, 3600, 5 * 3600),
    ],
)
def test_level_and_step(ago: int, step: int | None, level: int, answer: int) -> None:
    """The finest level that has all of the range; a step that is too fine for it is rounded up."""
    found = choose(NOW, int(NOW) - ago, None, step)
    assert (found.level.step, found.step) == (level, answer)


def test_a_range_in_the_past() -> None:
    """Both ends are widened to whole steps."""
    found = choose(NOW, 1_999_990_001, 1_999_990_100, 600)
    assert (found.since, found.until, found.step) == (1_999_989_600, 1_999_990_200, 600)


@pytest.mark.parametrize(
    ("since", "until", "step", "reason"),
    [
        (10, 10, None, "since must be before until"),
        (11, 10, None, "since must be before until"),
        (-1, None, None, "not negative"),
        (None, -1, None, "not negative"),
        (None, 10**20, None, "not so far in the future"),
        (None, None, 0, "1 or more"),
        (None, None, -5, "1 or more"),
        (None, None, 10**20, "1 or more"),
        (int(NOW) - 365 * DAY, None, 3600, "more than 2000 points"),
    ],
)
def test_bad_ranges(since: int | None, until: int | None, step: int | None, reason: str) -> None:
    """What makes no range is refused with a reason."""
    with pytest.raises(ValueError, match=reason):
        choose(NOW, since, until, step)


moments = st.none() | st.integers(-10, 2**41) | st.integers(int(NOW) - 400 * DAY, int(NOW))


@given(st.floats(0, 4e9), moments, moments, st.none() | st.integers(-1, 2**41))
def test_any_range(now: float, since: int | None, until: int | None, step: int | None) -> None:
    """Every answer is of whole steps of its level, and within bounds."""
    try:
        found = choose(now, since, until, step)
    except ValueError:
        return
    assert found.since < found.until
    assert found.since % found.step == found.until % found.step == 0
    assert found.step % found.level.step == 0
    assert found.step >= (step or 1)
    assert (found.until - found.since) // found.step <= MAX_POINTS
    assert until is None or found.until >= until
    assert since is None or found.since <= max(since, now - LEVELS[-1].kept)


def test_an_hour_without_a_step_is_always_answered() -> None:
    """Without a step there is one for every range."""
    for since in range(0, int(NOW), 9_999_999):
        assert choose(NOW, since, None, None).step >= 5


points = st.lists(
    st.tuples(st.integers(0, 10**5), *[st.integers(0, 2**48)] * 4), unique_by=lambda point: point[0]
)


@given(points, st.integers(1, 5000))
def test_merged_points(found: list[Point], step: int) -> None:
    """Nothing is lost or counted twice, and there is one point a step, in order."""
    merged = merge(sorted(found), step)
    for column in range(1, 5):
        assert sum(point[column] for point in merged) == sum(point[column] for point in found)
    times = [point[0] for point in merged]
    assert times == sorted({point[0] // step * step for point in found})
