"""Links that one end has in its pool, and the other perhaps not: what is known of the peer's files.

An old node makes a link, and files it in its pool a little later, or never. A visitor on a link
that the other end has not filed waits in vain.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .link import OldLink

__all__ = ["Filing", "PassedOver"]

#: Seconds within which a visitor gets a link that has just come, at a peer that has no other.
FRESH = 1.0
#: Seconds by which that link must be younger than one that counts as lost. Links that are made side
#: by side change places between the one end's count and the other's.
YOUNGER = 0.25
#: Seconds by which it must be younger than one that is closed for it: none change places by these.
CERTAIN = 5.0
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
        for older, timer in list(self._timers.items()):
            if link.came - older.came >= NEXT_LINK:
                timer.cancel()
                self._file(older)
        self._timers[link] = self._clock.callLater(FILING_TIME, self._file, link)

    def discard(self, link: OldLink) -> None:
        """The link is gone."""
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()

    def _file(self, link: OldLink) -> None:
        del self._timers[link]
        self._filed(link)


class PassedOver:
    """At the end that dials: links that the peer has passed over for a later one, and so may have
    lost. While visitors wait an old node hands out numbers before it has filed their links."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._links: dict[OldLink, None] = {}  # the newest is the last

    def by(self, link: OldLink, idle: dict[str, OldLink]) -> None:
        """The peer takes this idle link, and none of those that are older.

        :param idle: the idle links by number, the newest last. Those that were passed over are
            taken out of it, and closed when it is certain.
        """
        if self._clock.seconds() - link.came >= FRESH:
            return
        for number, older in list(idle.items()):
            if link.came - older.came < YOUNGER:
                break
            del idle[number]
            self._links[older] = None
        for older in list(self._links):
            if link.came - older.came < CERTAIN:
                break
            del self._links[older]
            older.close()

    def discard(self, link: OldLink) -> None:
        """The peer has it after all, or it is gone."""
        self._links.pop(link, None)

    def clear(self) -> list[OldLink]:
        """Forget them.

        :returns: which they were.
        """
        links, self._links = self._links, {}
        return list(links)
