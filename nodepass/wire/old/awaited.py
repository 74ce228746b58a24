"""Launches that came before their links: a signal may overtake the link's number."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .dialect import ID_WAIT
from .signals import Launch

__all__ = ["MOST_AWAITED", "AwaitedLaunches"]

#: Launches whose links are awaited at once. Between two nodes that get on there are a few; a peer
#: that names links which do not exist must not make this node hold more.
MOST_AWAITED = 1024


class AwaitedLaunches:
    """Launches by the numbers of their links, each for `ID_WAIT`.

    :param missed: told of the number of a link that has not come in that time.
    """

    def __init__(self, clock: IReactorTime, missed: Callable[[str], None]) -> None:
        self._clock = clock
        self._missed = missed
        self._launches: dict[str, tuple[Launch, IDelayedCall]] = {}

    def add(self, launch: Launch) -> bool:
        """Await its link; False where that is awaited already, or too many are."""
        if launch.id in self._launches or len(self._launches) >= MOST_AWAITED:
            return False
        timer = self._clock.callLater(ID_WAIT, self._late, launch.id)
        self._launches[launch.id] = (launch, timer)
        return True

    def take(self, number: str) -> Launch | None:
        """The launch of a link that has come; None where there is none yet."""
        if number not in self._launches:
            return None
        launch, timer = self._launches.pop(number)
        timer.cancel()
        return launch

    def clear(self) -> None:
        """Await none any more."""
        for _, timer in self._launches.values():
            timer.cancel()
        self._launches.clear()

    def _late(self, number: str) -> None:
        del self._launches[number]
        self._missed(number)
