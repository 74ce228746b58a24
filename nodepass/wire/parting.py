"""What the end of a pool of links waits for: the last of them is gone, or their time is up."""

from __future__ import annotations

from collections.abc import Callable, Sized

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["PARTING_TIMEOUT", "Parting"]

#: Seconds that both ends have to take leave: time for a round trip over a slow line.
PARTING_TIMEOUT = 2.0


class Parting:
    """Waits, once a pool is closed, until it has no link.

    :param links: those that it has.
    """

    def __init__(self, links: Sized, clock: IReactorTime) -> None:
        self._links = links
        self._clock = clock
        self._over: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def begin(self, cut: Callable[[], None] | None) -> Deferred[None]:
        """The pool is closed, once.

        :param cut: called after `PARTING_TIMEOUT`, to close what is left; None where it may stay.
        :returns: fires when no link is left.
        """
        assert self._over is None, "a pool parts once: who waits for it would wait for ever"
        if not self._links:
            return succeed(None)
        self._over = Deferred()
        if cut is not None:
            self._timer = self._clock.callLater(PARTING_TIMEOUT, cut)
        return self._over

    def look(self) -> None:
        """A link is gone."""
        if self._over is None or self._links:
            return
        over, self._over = self._over, None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        over.callback(None)
