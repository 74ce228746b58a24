"""Twisted's epoll reactor, with a shorter way to the relay.

A reactor tells each descriptor of its events through a logging context, which takes longer than
to pass a message on, and nearly all that happens in a node happens to sockets of the relay. So they
are watched by this reactor's epoll and told of directly. On any other reactor the relay has an
epoll of its own beneath the reactor's, and does the same, more slowly.
"""

from __future__ import annotations

from twisted.internet.base import DelayedCall
from twisted.internet.epollreactor import EPollReactor
from twisted.python.log import callWithLogger

from .poller import MOST_EVENTS, Poller

__all__ = ["EngineReactor"]


class EngineReactor(EPollReactor):
    """What `nodepass` runs on under Linux.

    :ivar engine: tells the relay's sockets.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.engine = Poller(self, self._poller)
        self._sooner = False  # a timer was moved to an earlier time

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and tell of them, as the class it extends does, until there is something
        else to do than to pass bytes on: a round of the reactor takes as long as to pass a message
        on, and most rounds would find nothing."""
        engine, poll, seconds = self.engine, self._poller.poll, self.seconds
        until = 0.0 if timeout is None else seconds() + timeout
        wait = -1 if timeout is None else timeout
        self._sooner = False
        while True:
            try:
                ready = poll(0 if engine.has_more else wait, MOST_EVENTS)
            except InterruptedError:
                return
            others = engine.hear(ready)
            for fd, event in others:
                selectable = self._selectables.get(fd)
                if selectable is not None:
                    callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
            # Timers, calls from threads (the other end of which was among the others) and the end.
            if others or self._newTimedCalls or self._sooner or not self._started:
                return
            if self._justStopped:
                return
            if timeout is not None:
                wait = until - seconds()
                if wait <= 0:
                    return

    doIteration = doPoll

    def _moveCallLaterSooner(self, delayedCall: DelayedCall) -> None:
        super()._moveCallLaterSooner(delayedCall)
        self._sooner = True
