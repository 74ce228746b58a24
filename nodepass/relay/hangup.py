"""Notices that a connection was reset while nobody reads from it.

A transport whose reading is paused is not told of a reset: the reactor no longer watches its
socket. Asking the kernel once a second for the error state of just those sockets costs one system
call.
"""

from __future__ import annotations

import select
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between two looks: a peer's reset is passed on within this time however long the pause.
LOOK_INTERVAL = 1.0

_HAS_POLL = hasattr(select, "poll")


class HangupWatch:
    """Looks after the sockets of paused connections.

    Where the platform has no poll() a reset is noticed when reading goes on.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._watched: dict[int, Callable[[], None]] = {}
        self._timer: IDelayedCall | None = None

    def add(self, fd: int, reset: Callable[[], None]) -> None:
        """Call `reset` once if the connection of this descriptor turns out to be dead."""
        if fd < 0 or not _HAS_POLL:
            return
        self._watched[fd] = reset
        if self._timer is None:
            self._timer = self._clock.callLater(LOOK_INTERVAL, self._look)

    def discard(self, fd: int) -> None:
        """Stop looking after a descriptor: it is read from again, or closed."""
        self._watched.pop(fd, None)

    def stop(self) -> None:
        """Forget all."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._watched:
            return
        poller = select.poll()
        for fd in self._watched:
            poller.register(fd, 0)  # errors are reported without asking for them
        # POLLHUP alone is not enough: it is also set when both directions were shut down in order
        # and bytes are still waiting to be read.
        for fd, events in poller.poll(0):
            if events & (select.POLLERR | select.POLLNVAL):
                reset = self._watched.pop(fd, None)
                if reset is not None:
                    reset()
        if self._watched and self._timer is None:
            self._timer = self._clock.callLater(LOOK_INTERVAL, self._look)
