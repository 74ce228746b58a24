"""Links that the peer has passed over for a later one, and so may have lost.

While visitors wait an old node hands out numbers before it has filed their links.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.interfaces import IReactorTime

from .link import OldLink

__all__ = ["PassedOver"]

#: Seconds within which a visitor gets a link that has just come, at a peer that has no other.
FRESH = 1.0
#: Seconds by which that link must be younger than one that counts as lost. Links that are made side
#: by side change places between the one end's count and the other's.
YOUNGER = 0.25
#: Seconds by which it must be younger than one that is closed for it: none change places by these.
CERTAIN = 5.0


class PassedOver:
    """At the end that dials: links that the peer passed over, until it names them, they are gone,
    or it is certain that it has lost them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._links: dict[OldLink, None] = {}  # the newest is the last

    def by(self, link: OldLink, idle: Iterable[OldLink]) -> list[OldLink]:
        """The peer takes this link, and none of those that are older.

        :param idle: the idle links, the newest last.
        :returns: those of them that do not count as idle any more.
        """
        passed: list[OldLink] = []
        if not self._dry(link):
            return passed
        for older in idle:
            if link.came - older.came < YOUNGER:
                break
            passed.append(older)
        self._links.update(dict.fromkeys(passed))
        return passed

    def lost(self, link: OldLink) -> list[OldLink]:
        """Forget those that the peer certainly has lost, as it takes this link.

        :returns: which they were, to be closed.
        """
        lost: list[OldLink] = []
        if not self._dry(link):
            return lost
        for older in self._links:
            if link.came - older.came < CERTAIN:
                break
            lost.append(older)
        for older in lost:
            del self._links[older]
        return lost

    def _dry(self, link: OldLink) -> bool:
        """Whether a peer that takes this link has no other."""
        return self._clock.seconds() - link.came < FRESH

    def discard(self, link: OldLink) -> None:
        """The peer has it after all, or it is gone."""
        self._links.pop(link, None)

    def clear(self) -> list[OldLink]:
        """Forget them.

        :returns: which they were.
        """
        links, self._links = self._links, {}
        return list(links)
