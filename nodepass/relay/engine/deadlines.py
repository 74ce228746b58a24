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
        due = []
        for call, at in self._due.items():
            if at > now:
                self._timer = self._clock.callLater(at - now, self._look)
                break
            due.append(call)
        # They may add and remove others, also of these.
        for call in due:
            if self._due.pop(call, None) is not None:
                call()
