"""Twisted's epoll reactor, with a shorter way to the relay.

A reactor tells each descriptor of its events through a logging context, which takes longer than
to pass a message on, and nearly all that happens in a node happens to sockets of the relay. So they
are watched by this reactor's epoll and told of directly. On any other reactor the relay has an
epoll of its own beneath the reactor's, and does the same, more slowly.
"""

from __future__ import annotations

from twisted.internet.epollreactor import EPollReactor
from twisted.python.log import callWithLogger

from .poller import BUSY, MOST_EVENTS, MOST_ROUNDS, Poller

__all__ = ["EngineReactor"]


class EngineReactor(EPollReactor):
    """What `nodepass` runs on under Linux.

    :ivar engine: tells the relay's sockets.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.engine = Poller(self, self._poller)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events and tell of them, as the class it extends does."""
        wait = -1 if timeout is None else timeout
        for _ in range(MOST_ROUNDS):
            try:
                ready = self._poller.poll(wait, MOST_EVENTS)
            except InterruptedError:
                return
            for fd, event in self.engine.hear(ready):
                selectable = self._selectables.get(fd)
                if selectable is not None:
                    callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
            if len(ready) < BUSY:
                return
            wait = 0

    doIteration = doPoll
