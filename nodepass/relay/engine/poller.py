"""One epoll for all sockets of the engine, which the reactor sees as a single reader.

Interest never changes: each socket is registered once, edge-triggered, for all there is. What
its owner does not want to hear now it remembers, and asks for later. So a message costs no system
call but the read and the write.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any
from typing import Protocol as Interface

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.logs import Log

__all__ = ["Poller", "Watched"]

#: Events taken from the kernel at a time: enough that the call is cheap for each, few enough that
#: the reactor's timers and other sockets are heard in between.
MOST_EVENTS = 256

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Watched(Interface):
    """A socket's owner."""

    def ready(self, events: int) -> None:
        """Something may have become possible."""


@implementer(IReadDescriptor)
class Poller:
    """Tells owners of sockets what happens to them. It is a reader of the reactor as long as it
    has any."""

    def __init__(self, reactor: Any, log: Log) -> None:
        self._reactor = reactor
        self._log = log
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._removed: set[int] = set()  # since the latest events were taken
        self._soon: list[Callable[[], None]] = []
        self._polling = False
        self._call: IDelayedCall | None = None

    def add(self, fd: int, owner: Watched, events: int = _EVENTS) -> None:
        """Watch a socket.

        :raises OSError: the system has no room for one more.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._epoll.register(fd, events)
        self._watched[fd] = owner

    def replace(self, fd: int, owner: Watched) -> None:
        """Tell another owner from now on. What was told to the one before is not told again."""
        self._watched[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Watch a socket for other events than so far."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Watch it no more; to be done before it is closed."""
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._removed.add(fd)
            self._epoll.unregister(fd)
            if not self._watched:
                self._reactor.removeReader(self)
                self._epoll.close()
                self._epoll = None

    def soon(self, call: Callable[[], None]) -> None:
        """Call something when what happens now has happened."""
        self._soon.append(call)
        if not self._polling and self._call is None:
            self._call = self._reactor.callLater(0, self._late)

    # IReadDescriptor

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        assert self._epoll is not None
        watched, removed = self._watched, self._removed
        removed.clear()
        self._polling = True
        try:
            for fd, events in self._epoll.poll(0, MOST_EVENTS):
                owner = watched.get(fd)
                # A descriptor is used again at once: what was there to be told of it may be about
                # the socket before. The new one is told of at the next poll.
                if owner is not None and fd not in removed:
                    try:
                        owner.ready(events)
                    except Exception:
                        self._failed()
            self._run_soon()
        finally:
            self._polling = False
        if self._soon and self._call is None:
            self._call = self._reactor.callLater(0, self._late)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up; it never does while it is told of nothing wrong."""

    def logPrefix(self) -> str:
        """For the reactor's messages."""
        return "relay"

    def _late(self) -> None:
        self._call = None
        self._polling = True
        try:
            self._run_soon()
        finally:
            self._polling = False
        if self._soon and self._call is None:
            self._call = self._reactor.callLater(0, self._late)

    def _run_soon(self) -> None:
        calls, self._soon = self._soon, []
        for call in calls:
            try:
                call()
            except Exception:
                self._failed()

    def _failed(self) -> None:
        # Whatever it was, the other sockets have no part in it.
        self._log.failure("a connection failed unexpectedly", Failure())
