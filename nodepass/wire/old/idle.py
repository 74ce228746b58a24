"""Links without a session: which of them a visitor may have, and which are not what they seem."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.interfaces import IReactorTime

from .dialect import ID_WAIT
from .link import OldLink
from .passed import PassedOver

__all__ = ["IdleLinks"]


class IdleLinks:
    """The idle links of one end, and those that do not count as idle any more.

    The newest is taken first: old nodes take their oldest for their verify, and so the two rarely
    meet.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._idle: dict[str, OldLink] = {}  # the newest is the last
        self._passed = PassedOver(clock)
        self._doubtful: dict[OldLink, float] = {}  # since when

    def __len__(self) -> int:
        return len(self._idle)

    def __contains__(self, link: OldLink) -> bool:
        return link.number in self._idle

    def add(self, link: OldLink) -> None:
        """One more."""
        self._idle[link.number] = link

    def newest_first(self) -> Iterator[OldLink]:
        """Those that a visitor may have. Stop when one was taken out."""
        for number in reversed(self._idle):
            link = self._idle[number]
            if link.fresh:  # else its end is being told of
                yield link

    def discard(self, link: OldLink) -> bool:
        """It is taken, or gone.

        :returns: whether it was idle.
        """
        self._passed.discard(link)
        self._doubtful.pop(link, None)
        return self._idle.pop(link.number, None) is not None

    def named(self, link: OldLink) -> None:
        """The peer has chosen this link for a visitor of its own."""
        if link in self:
            for older in self._passed.by(link, self._idle.values()):
                del self._idle[older.number]
            for older in self._passed.lost(link):
                older.close()
        self.discard(link)

    def doubt(self, link: OldLink) -> None:
        """At the end that dials: it is not quiet. Its launch may be on the way."""
        self.discard(link)
        self._doubtful[link] = self._clock.seconds()

    def tidy(self) -> None:
        """Close those that were not quiet, and whose launch has not come."""
        now = self._clock.seconds()
        for link, since in list(self._doubtful.items()):
            if now - since >= ID_WAIT:
                del self._doubtful[link]
                link.close()

    def close(self) -> None:
        """Close all that may be idle at the other end."""
        idle = [*self._passed.clear(), *self._idle.values()]
        self._idle.clear()
        for link in idle:
            link.close()
