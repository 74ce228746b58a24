"""One timer for all that may take equally long."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Deadlines"]


class Deadlines:
    """Calls what was not removed in time. As all have the same time, the first added is the first
    due, and the reactor has one timer however many there are.

    :param seconds: the time that each has.
    """

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._due: dict[Callable[[], None], float] = {}  # in order
        self._timer: IDelayedCall | None = None

    def add(self, call: Callable[[], None]) -> None:
        """Call something in time, once, unless it is removed before."""
        self._due[call] = self._clock.seconds() + self._seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._look)

    def remove(self, call: Callable[[], None]) -> None:
        """It is done; harmless when it was called already."""
        self._due.pop(call, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._due:
            call = next(iter(self._due))
            left = self._due[call] - now
            if left > 0:
                self._timer = self._clock.callLater(left, self._look)
                return
            del self._due[call]
            call()
