"""Links that this end has and a peer of 1.6 perhaps not yet: when it has filed them in its pool.

It makes a link, and files it a little later. A visitor on one that is not filed waits in vain.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .link import OldLink

__all__ = ["Filing"]

#: Seconds after which a 1.6 node surely has filed a link whose number it was given, on a machine
#: with much to do too. One that has not does not find it, and its visitor waits in vain.
FILING_TIME = 0.25
#: Seconds by which another link must be younger for a link to count as filed by then: a 1.6 node
#: makes one link after the other. By less, they may have changed places on the way.
NEXT_LINK = 0.01


class Filing:
    """At the end with the visitors: new links that a peer of 1.6 may not have filed yet. It looks
    for a link once, when it is told of a visitor.

    :param filed: told of each link that the peer has filed now.
    """

    def __init__(self, clock: IReactorTime, filed: Callable[[OldLink], None]) -> None:
        self._clock = clock
        self._filed = filed
        self._timers: dict[OldLink, IDelayedCall] = {}

    def add(self, link: OldLink) -> None:
        """A link has come; the peer has filed those that came before it."""
        due = [older for older in self._timers if link.came - older.came >= NEXT_LINK]
        self._timers[link] = self._clock.callLater(FILING_TIME, self._file, link)
        for older in due:
            timer = self._timers.get(older)
            if timer is not None:  # else it went while others were told of
                timer.cancel()
                self._file(older)

    def discard(self, link: OldLink) -> None:
        """The link is gone."""
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()

    def _file(self, link: OldLink) -> None:
        del self._timers[link]
        self._filed(link)
