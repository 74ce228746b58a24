"""Says how often something happens, in few lines that come by themselves."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between two lines: often enough to be noticed, rarely enough not to fill a log.
INTERVAL = 60.0


class Tally:
    """Counts what happens too often for a line each.

    The first time is said at once; what follows is counted and said together, a minute after the
    line before. A timer runs only while there is something unsaid.

    :param say: writes the line; called with how many there were since the line before.
    """

    def __init__(self, clock: IReactorTime, say: Callable[[int], None]) -> None:
        self._clock = clock
        self._say = say
        self._quiet_until = clock.seconds()
        self._unsaid = 0
        self._timer: IDelayedCall | None = None

    def add(self, count: int = 1) -> None:
        """It happened once more, or so many times."""
        self._unsaid += count
        if self._timer is None:
            left = self._quiet_until - self._clock.seconds()
            if left <= 0:
                self.flush()
            else:
                self._timer = self._clock.callLater(left, self._due)

    def flush(self) -> None:
        """Say what is unsaid, and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unsaid:
            count, self._unsaid = self._unsaid, 0
            self._quiet_until = self._clock.seconds() + INTERVAL
            self._say(count)

    def _due(self) -> None:
        self._timer = None
        self.flush()
