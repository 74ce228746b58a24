"""When a peer of 1.6 has filed a link: as the next one comes, or after a while."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from nodepass.wire.old.filed import FILING_TIME, NEXT_LINK, Filing


class Link:
    """All that is asked of a link."""

    def __init__(self, came: float) -> None:
        self.came = came


class Rig:
    """New links, and those that the peer has filed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.filed: list[Any] = []
        self.filing = Filing(self.clock, self._filed)
        self.discards: list[Any] = []

    def _filed(self, link: Any) -> None:
        self.filed.append(link)
        for other in self.discards:
            self.filing.discard(other)

    def add(self) -> Any:
        """A link comes now."""
        link: Any = Link(self.clock.seconds())
        self.filing.add(link)
        return link


def test_a_link_alone() -> None:
    """It is filed when its time is over, and told of once."""
    rig = Rig()
    link = rig.add()
    rig.clock.advance(FILING_TIME - 0.01)
    assert not rig.filed
    rig.clock.advance(1.0)
    assert rig.filed == [link]


def test_links_that_follow_each_other() -> None:
    """The next one tells, unless the two may have changed places on the way."""
    rig = Rig()
    first = rig.add()
    rig.clock.advance(NEXT_LINK / 2)
    second = rig.add()
    assert not rig.filed
    rig.clock.advance(NEXT_LINK / 2)
    rig.add()
    assert rig.filed == [first]
    rig.clock.advance(NEXT_LINK)
    rig.add()
    assert rig.filed[:2] == [first, second] and len(rig.filed) == 3


def test_a_link_that_goes_first() -> None:
    """Nobody is told of it, and nothing waits for it."""
    rig = Rig()
    rig.filing.discard(rig.add())
    assert not rig.clock.getDelayedCalls()


def test_links_that_go_while_others_are_told_of() -> None:
    """A visitor that gets one link may be the end of others: those that were due, and the new one.
    They are not told of, and nothing is left of them."""
    rig = Rig()
    first, second = rig.add(), rig.add()
    rig.clock.advance(NEXT_LINK)
    new: Any = Link(rig.clock.seconds())
    rig.discards = [second, new]
    rig.filing.add(new)
    assert rig.filed == [first]
    assert not rig.clock.getDelayedCalls()
