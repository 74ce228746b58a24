"""How many links a client asks for, and when: not while the peer may be dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.pool.policy import DemandPolicy

__all__ = ["Stock", "Supply"]

#: Seconds until links are made for others that are gone. Where the server was killed its control
#: link is gone by then as well. It may be there again at once, and must not meet links of the one
#: before: in 1.6 it takes each for a client that says nothing, and pauses for three seconds.
REPLACE_AFTER = 0.25
#: Idle links that go within that time, and make it likely. A live server closes one now and then.
SEVERAL = 2


class Stock(NamedTuple):
    """What a pool has now.

    :ivar waiting: visitors without a link.
    :ivar busy: links with a session.
    :ivar unused: links without one that visitors can have, now or soon.
    """

    waiting: int
    busy: int
    unused: int


class Supply:
    """Asks for the links that are missing.

    :param policy: how many idle ones there should be; None at the server, which asks for none.
    :param stock: what there is now.
    :param ask: for so many more links.
    """

    def __init__(
        self,
        policy: DemandPolicy | None,
        clock: IReactorTime,
        stock: Callable[[], Stock],
        ask: Callable[[int], None],
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._stock = stock
        self._ask = ask
        self._coming = 0  # asked for and not there yet
        self._later: IDelayedCall | None = None  # when links are asked for again
        self._deaths = 0  # idle links that are gone since the last time
        self._closed = False

    def balance(self) -> None:
        """Ask for what is missing."""
        if self._policy is None or self._closed or self._deaths >= SEVERAL:
            return
        now = self._clock.seconds()
        stock = self._stock()
        in_use = stock.busy + stock.waiting
        self._policy.used(now, in_use)
        idle = self._policy.idle(now, in_use)
        missing = stock.waiting + idle - stock.unused - self._coming
        if missing > 0:
            self._coming += missing
            self._ask(missing)

    def came(self) -> None:
        """A link has come."""
        self._coming = max(0, self._coming - 1)

    def gone(self, *, idle: bool) -> None:
        """A link is gone: ask for another a little later, or when somebody needs one.

        :param idle: nothing here was the reason, so the peer may be gone too. After `SEVERAL` none
            is asked for until then, whoever needs one.
        """
        if self._policy is None or self._closed:
            return
        if self._later is None:
            self._later = self._clock.callLater(REPLACE_AFTER, self._look_again)
        elif idle and self._deaths < SEVERAL:
            self._later.reset(REPLACE_AFTER)
        if idle:
            self._deaths += 1

    def heard(self) -> None:
        """The peer has a visitor: it is there."""
        self._deaths = 0

    def close(self) -> None:
        """Ask for none any more."""
        self._closed = True
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _look_again(self) -> None:
        self._later = None
        self._deaths = 0
        self.balance()
