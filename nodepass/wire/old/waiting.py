"""Visitors that wait for a link, and for how long none has come."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from nodepass.errors import PeerError
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening

from .channel import LinkChannel
from .dialect import INTERVAL
from .link import OldLink

__all__ = ["Waiter", "Waiting"]

Waiter = Deferred[Stream] | LinkChannel


class Waiting:
    """Those who wait at one end, the first comes first."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiters: dict[Waiter, Opening] = {}
        self._dry_since: float | None = None  # somebody waits, and no link has come

    def __len__(self) -> int:
        return len(self._waiters)

    def stream(self, opening: Opening) -> Deferred[Stream]:
        """Wait for a stream. Cancel it to stop waiting."""
        result: Deferred[Stream] = Deferred(self._stop)
        self._add(result, opening)
        return result

    def flow(self, channel: LinkChannel, opening: Opening) -> None:
        """Let a channel wait for its link."""
        self._add(channel, opening)

    def first(self) -> tuple[Waiter, Opening] | None:
        """Whose turn it is, and why it waits; None where nobody does."""
        for waiter, opening in list(self._waiters.items()):
            if not (isinstance(waiter, LinkChannel) and waiter.over):
                return waiter, opening
            self._stop(waiter)
        return None

    def serve(self, waiter: Waiter, link: OldLink) -> None:
        """This link is for who waits."""
        self._stop(waiter)
        if isinstance(waiter, LinkChannel):
            waiter.begin(link)
        else:
            waiter.callback(link)

    def refuse(self, cause: Cause, reason: str) -> None:
        """Fail all who wait."""
        waiters, self._waiters = self._waiters, {}
        self._dry_since = None
        for waiter in waiters:
            if isinstance(waiter, LinkChannel):
                waiter.refuse(cause)
            else:
                waiter.errback(PeerError(reason))

    @property
    def dry(self) -> bool:
        """Whether somebody has waited for an interval, and no link has come."""
        return self._dry_since is not None and self._clock.seconds() - self._dry_since >= INTERVAL

    def link_came(self) -> None:
        """A link has come, or all are made anew: the interval begins again."""
        if self._dry_since is not None:
            self._dry_since = self._clock.seconds()

    def _add(self, waiter: Waiter, opening: Opening) -> None:
        if not self._waiters:
            self._dry_since = self._clock.seconds()
        self._waiters[waiter] = opening

    def _stop(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)
        if not self._waiters:
            self._dry_since = None
