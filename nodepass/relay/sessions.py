"""The TCP sessions of an instance, and the one timer that finds the idle ones among them."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .session import Session
from .stream import Cause

__all__ = ["Sessions"]

#: Looks within the time that a session may be idle: it is ended after that time, and at most a
#: quarter of it late.
LOOKS = 8
#: Seconds between two looks at most, so that a long limit is kept within seconds, and at least, so
#: that a short one costs little.
RAREST_LOOK = 5.0
OFTENEST_LOOK = 0.02


class Sessions:
    """Sessions under way.

    :param read: seconds without a byte after which a session ends; 0: never.
    """

    def __init__(self, clock: IReactorTime, read: float) -> None:
        self._clock = clock
        self._interval = min(RAREST_LOOK, max(OFTENEST_LOOK, read / LOOKS)) if read else 0.0
        self._sessions: set[Session] = set()
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions)

    def start(self, session: Session) -> None:
        """Let a session begin; `discard` it when it is done."""
        self._sessions.add(session)
        if self._interval and self._timer is None:
            self._timer = self._clock.callLater(self._interval, self._look)
        session.start()

    def discard(self, session: Session) -> None:
        """A session is over."""
        self._sessions.discard(session)
        if not self._sessions:
            self._rest()

    def abort(self, cause: Cause) -> None:
        """Reset all that are left."""
        for session in list(self._sessions):
            session.abort(cause)
        self._rest()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for session in list(self._sessions):
            session.check_idle(now)
        if self._sessions:
            self._timer = self._clock.callLater(self._interval, self._look)
