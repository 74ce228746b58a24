"""Launches whose links are not there: they are on the way, or unknown, or their numbers misread."""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.logs import Log

from .dialect import ID_WAIT, Dialect
from .linkid import takes_raw
from .signals import Launch

__all__ = ["MOST_AWAITED", "AwaitedLaunches"]

#: Launches whose links are awaited at once. Between two nodes that get on there are a few; a peer
#: that names links which do not exist must not make this node hold more.
MOST_AWAITED = 1024


class AwaitedLaunches:
    """Launches by the numbers of their links, each for `ID_WAIT`: a signal may overtake its link.

    :param numbers: of the links that are there.
    :param peer: its name, for log lines.
    :param missed: called for each launch whose link has not come.
    """

    def __init__(
        self,
        dialect: Dialect,
        numbers: Collection[str],
        clock: IReactorTime,
        log: Log,
        peer: str,
        missed: Callable[[], None],
    ) -> None:
        self._dialect = dialect
        self._numbers = numbers
        self._clock = clock
        self._log = log
        self._peer = peer
        self._missed = missed
        self._launches: dict[str, tuple[Launch, IDelayedCall]] = {}

    def add(self, launch: Launch) -> None:
        """Await its link, unless that is awaited already, or too many are."""
        if launch.id in self._launches or len(self._launches) >= MOST_AWAITED:
            self.miss(launch.id)
            return
        if not self._dialect.traits.raw_id and takes_raw(launch.id, self._numbers):
            self._log.limited(
                ("raw numbers", self._peer),
                "{peer} takes numbers of data links as raw bytes, so its visitors wait in vain; "
                "write wire=1.6-raw at this server",
                peer=self._peer,
            )
        timer = self._clock.callLater(ID_WAIT, self._late, launch.id)
        self._launches[launch.id] = (launch, timer)

    def take(self, number: str) -> Launch | None:
        """The launch of a link that has come; None where there is none yet."""
        if number not in self._launches:
            return None
        launch, timer = self._launches.pop(number)
        timer.cancel()
        return launch

    def miss(self, number: str) -> None:
        """A launch has no link, and is not awaited any more."""
        self._log.debug(
            "{peer} names data link {number}, which is not there", peer=self._peer, number=number
        )
        self._missed()

    def clear(self) -> None:
        """Await none any more."""
        for _, timer in self._launches.values():
            timer.cancel()
        self._launches.clear()

    def _late(self, number: str) -> None:
        del self._launches[number]
        self.miss(number)
