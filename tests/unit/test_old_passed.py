"""Links that a peer has passed over for a later one: while it is dry it has lost them."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from nodepass.wire.old.passed import CERTAIN, FRESH, YOUNGER, PassedOver


class Link:
    """All that is asked of a link."""

    def __init__(self, came: float) -> None:
        self.came = came


NOW = 100.0


@pytest.mark.parametrize(
    ("ages", "taken", "passed"),
    [
        ([], 0.0, 0),  # there was no other
        ([9.0, 3.0], 0.0, 2),
        ([9.0, YOUNGER], 0.0, 2),
        ([9.0, YOUNGER / 2], 0.0, 1),  # may have changed places
        ([9.0, 3.0], FRESH / 2, 2),
        ([9.0, 3.0], FRESH, 0),  # it had that one in its pool
        ([9.0, 0.1], 0.5, 1),  # one that came later
    ],
)
def test_which_are_passed_over(ages: list[float], taken: float, passed: int) -> None:
    """Those that are older than one that is taken as it comes."""
    clock = Clock()
    clock.advance(NOW)
    over = PassedOver(clock)
    idle: list[Any] = [Link(NOW - age) for age in ages]
    link: Any = Link(NOW - taken)
    assert over.by(link, idle) == idle[:passed]
    assert len(idle) == len(ages)
    assert over.clear() == idle[:passed]
    assert over.clear() == []


@pytest.mark.parametrize(
    ("age", "taken", "lost"),
    [
        (CERTAIN, 0.0, True),
        (CERTAIN - 0.01, 0.0, False),
        (CERTAIN + FRESH, FRESH, False),  # says nothing of others
    ],
)
def test_which_are_certainly_lost(age: float, taken: float, lost: bool) -> None:
    """Those that are much older; they are forgotten."""
    clock = Clock()
    clock.advance(NOW - age)
    over = PassedOver(clock)
    old: Any = Link(clock.seconds() - YOUNGER)
    first: Any = Link(clock.seconds())
    later: Any = Link(clock.seconds() + 0.01)
    over.by(first, [old])
    old.came = NOW - age
    clock.advance(age)
    later.came = NOW - taken
    assert over.lost(later) == ([old] if lost else [])
    assert over.clear() == ([] if lost else [old])


def test_one_that_is_named_after_all() -> None:
    """It is not lost."""
    clock = Clock()
    clock.advance(NOW)
    over = PassedOver(clock)
    links: list[Any] = [Link(0.0), Link(1.0)]
    link: Any = Link(NOW)
    over.by(link, links)
    over.discard(links[0])
    over.discard(links[0])
    assert over.lost(link) == links[1:]
