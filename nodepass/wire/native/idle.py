"""The idle links of the taking end: which is taken next, and which are not worth keeping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from .datalink import DataLink

__all__ = ["IdleLinks", "slowed"]

#: Seconds after which an idle link is replaced: firewalls forget even what keep-alive keeps warm.
LINK_MAX_AGE = 3600.0
#: Of the idle links, the part that is replaced at once when they are too old, or slowed by loss, as
#: links of one age were made in one burst, and visitors need some of them now.
AGED_SHARE = 8


class IdleLinks:
    """The newest is taken first, so that those that nobody needs grow old."""

    def __init__(self) -> None:
        self._links: dict[DataLink, None] = {}  # the newest is the last
        self._broken = 0  # lost since the last look, the last of them then
        self._broken_at = 0.0

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, link: DataLink) -> bool:
        return link in self._links

    def __iter__(self) -> Iterator[DataLink]:
        return iter(self._links)

    def add(self, link: DataLink) -> None:
        """One more."""
        self._links[link] = None

    def take(self) -> DataLink | None:
        """Take out the one that was added last; None when there is none."""
        while self._links:
            link, _ = self._links.popitem()
            if link.idle:
                return link
        return None

    def discard(self, link: DataLink) -> None:
        """It is not idle any more, if it was."""
        self._links.pop(link, None)

    def lost(self, link: DataLink, now: float) -> None:
        """A link is gone, which may have been idle.

        :param now: the clock's seconds.
        """
        if link in self._links:
            del self._links[link]
            self._broken += 1
            self._broken_at = now

    def unfit(self, now: float, wanted: int) -> list[DataLink]:
        """A look at them: which are to be closed because they are too many, too old or slowed by
        loss. These are all when more than half of them have broken since the last look.

        :param now: the clock's seconds.
        :param wanted: how many there should be.
        """
        unfit: list[DataLink] = []
        kept = list(self._links)
        older = [link for link in kept if link.made_at <= self._broken_at]
        if self._broken > len(older):
            # What broke so many has broken the others as well, though they do not show it yet.
            unfit = older
            kept = [link for link in kept if link.made_at > self._broken_at]
        self._broken = 0
        surplus = len(kept) - wanted
        aged = _share(len(kept))
        for link in kept:  # the longest idle first
            if surplus > 0:
                surplus -= 1
                unfit.append(link)
            elif aged > 0 and (now - link.made_at > LINK_MAX_AGE or link.slowed):
                aged -= 1
                unfit.append(link)
        return unfit


def slowed(idle: Sequence[DataLink]) -> Iterator[DataLink]:
    """At either end: those of the idle links that loss has made slow in its direction, no more than
    may be replaced at once."""
    return islice((link for link in idle if link.slowed), _share(len(idle)))


def _share(count: int) -> int:
    """How many of so many may be replaced at once."""
    return count // AGED_SHARE + 1
