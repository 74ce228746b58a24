"""One epoll for all sockets of the engine: the reactor's, or one that it sees as a single reader.

A connection is registered once, edge-triggered, and again when it first has to wait for room. What
its owner does not want to hear now it remembers, and asks for later, so that a message costs no
system call but the read and the write. Listening sockets, those for datagrams and TLS links are
level-triggered.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from typing import Protocol as Interface
from weakref import WeakValueDictionary

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .pipes import Pipes

__all__ = ["READABLE", "WRITABLE", "Poller", "Watched"]

#: Events taken from the kernel at a time: enough that the call is cheap for each, few enough that
#: the reactor's timers and other sockets are heard in between.
MOST_EVENTS = 256

#: Times that the kernel is asked before a reactor that knows nothing of the relay has its turn:
#: what has become ready meanwhile is heard of at the cost of one call, instead of a round of it.
MOST_ROUNDS = 4
#: Events in one answer from which it is worth to ask again.
BUSY = 2

#: What a connection is told of, and what one with something to write is told of besides: as there
#: nearly always is room, it would only be told so in vain.
READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
WRITABLE = READABLE | select.EPOLLOUT


class Watched(Interface):
    """A socket's owner."""

    def ready(self, events: int) -> None:
        """Something may have become possible."""


@implementer(IReadDescriptor)
class Poller:
    """Tells owners of sockets what happens to them. It is a reader of the reactor as long as it
    has any.

    :ivar pipes: for what they carry.
    :ivar has_more: there is something to call; `hear` does. A reactor with the relay's sockets in
        its own epoll asks that by itself.
    """

    _log = Logger()
    _of: ClassVar[WeakValueDictionary[int, Poller]] = WeakValueDictionary()

    @classmethod
    def of(cls, reactor: Any) -> Poller:
        """The poller of a reactor, one for all tunnels in the process: each more would cost a
        round of the reactor for each of its wake-ups."""
        own: Poller | None = getattr(reactor, "engine", None)
        if own is not None:
            return own
        poller = cls._of.get(id(reactor))
        if poller is None:
            poller = cls._of[id(reactor)] = cls(reactor)
        return poller

    def __init__(self, reactor: Any, epoll: select.epoll | None = None) -> None:
        """
        :param epoll: the reactor's own, if it passes what is heard there on to `hear`.
        """
        self._reactor = reactor
        self.pipes = Pipes()
        self._nested = epoll is None
        self._epoll = epoll
        self._watched: dict[int, Watched] = {}
        self._changed: set[int] = set()  # added or removed since the latest events were taken
        self._soon: list[Callable[[], None]] = []
        self._last: list[Callable[[], None]] = []
        self._turns: deque[Callable[[], None]] = deque()
        self.has_more = False
        self._polling = False
        self._call: IDelayedCall | None = None

    def add(self, fd: int, owner: Watched, events: int = READABLE) -> None:
        """Watch a socket.

        :raises OSError: the system has no room for one more.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._epoll.register(fd, events)
        self._changed.add(fd)
        self._watched[fd] = owner

    def replace(self, fd: int, owner: Watched) -> None:
        """Tell another owner from now on. What was told to the one before is not told again."""
        self._watched[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Watch a socket for other events than so far."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def remove(self, fd: int, *, closing: bool = False) -> None:
        """Watch it no more; to be done before it is closed.

        :param closing: it is closed at once, and no other process has it, so that the kernel
            forgets it by itself.
        """
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._changed.add(fd)
            if not closing:
                self._epoll.unregister(fd)
            if not self._watched:
                self.pipes.close()
                if self._nested:
                    self._reactor.removeReader(self)
                    self._epoll.close()
                    self._epoll = None

    def soon(self, call: Callable[[], None]) -> None:
        """Call something when what happens now has happened."""
        self._soon.append(call)
        self.has_more = True
        if self._nested:
            self._see_to_it()

    def in_turn(self, call: Callable[[], None]) -> None:
        """Call something that takes long, when others have been heard: one of these in a round, so
        that what is short needs not wait for all of them."""
        self._turns.append(call)
        self.has_more = True
        if self._nested:
            self._see_to_it()

    def last(self, call: Callable[[], None]) -> None:
        """Call something when what was to be called soon has been called."""
        self._last.append(call)
        self.has_more = True
        if self._nested:
            self._see_to_it()

    # IReadDescriptor

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        for _ in range(MOST_ROUNDS):
            if self._epoll is None:
                return
            ready = self._epoll.poll(0, MOST_EVENTS)
            self.hear(ready)
            if len(ready) < BUSY:
                return

    def hear(self, ready: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Tell the owners what the kernel says.

        :returns: what is about none of them.
        """
        watched, changed = self._watched, self._changed
        others: list[tuple[int, int]] = []
        if changed:
            changed.clear()
        self._polling = True
        try:
            for fd, events in ready:
                # A descriptor is used again at once: what was there to be told of it may be about
                # the socket before. The new one is told of at the next poll.
                if changed and fd in changed:
                    continue
                try:
                    owner = watched[fd]
                except KeyError:
                    others.append((fd, events))
                    continue
                try:
                    owner.ready(events)
                except Exception:
                    self._failed()
        finally:
            self._polling = False
        if self.has_more:
            self._run()
        if others and changed:
            others = [one for one in others if one[0] not in changed]
        return others

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up; it never does while it is told of nothing wrong."""

    def logPrefix(self) -> str:
        """For the reactor's messages."""
        return "relay"

    def _see_to_it(self) -> None:
        if not self._polling and self._call is None:
            self._call = self._reactor.callLater(0, self._late)

    def _late(self) -> None:
        self._call = None
        self._run()

    def _run(self) -> None:
        """Make the calls that are due. What they ask for in turn is for the next round, so that
        the reactor has its turn in between."""
        # The loops are written out, as each message passes here.
        self._polling = True
        self.has_more = False
        try:
            if self._soon or self._turns:
                calls, self._soon = self._soon, []
                if self._turns:
                    calls.append(self._turns.popleft())
                    if self._turns:
                        self.has_more = True
                for call in calls:
                    try:
                        call()
                    except Exception:
                        self._failed()
            calls, self._last = self._last, []
            for call in calls:
                try:
                    call()
                except Exception:
                    self._failed()
        finally:
            self._polling = False
        if self._nested and self.has_more:
            self._see_to_it()

    def _failed(self) -> None:
        # Whatever it was, the other sockets have no part in it.
        self._log.failure("a connection failed unexpectedly")
