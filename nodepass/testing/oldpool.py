"""The idle links of an old node, with what goes wrong there.

1.14 and 2.0 keep links in a table by number, and numbers in a queue. Whoever wants the link of a
certain number gets that, but takes *some* number from the queue, so that table and queue drift
apart: links are left over whose number nobody will take, and numbers whose link is gone. 1.6 keeps
both in step, and puts links back that have had their session.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import CancelledError

from .conn import Link, Reactor
from .tasks import Changes, Silence, Tasks
from .timing import OldTiming

__all__ = ["NoLink", "OldPool", "ReusingPool"]


class NoLink(Exception):
    """There is no such link, or none at all."""


class _Queue:
    """Numbers, first come, first served; those who wait are served in their order."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._waiting: deque[tuple[Changes, list[str]]] = deque()
        self.numbers: deque[str] = deque()

    def put(self, number: str) -> None:
        if self._waiting:
            changes, given = self._waiting.popleft()
            given.append(number)
            changes.fire()
        else:
            self.numbers.append(number)

    async def take(self, timeout: float | None = None) -> str:
        if self.numbers:
            return self.numbers.popleft()
        changes: Changes = Changes(self._reactor)
        given: list[str] = []
        entry = (changes, given)
        self._waiting.append(entry)
        try:
            await changes.wait(timeout)
        finally:
            if not given:
                self._waiting.remove(entry)
        return given[0]


class OldPool:
    """The pool of 1.14 and 2.0.

    :ivar most: idle links that there may be.
    :ivar links: the table.
    :ivar errors: launches that failed since the last flush.
    """

    def __init__(self, reactor: Reactor, timing: OldTiming, most: int) -> None:
        self.most = most
        self.links: dict[str, Link] = {}
        self.errors = 0
        self._reactor = reactor
        self._timing = timing
        self._queue = _Queue(reactor)

    @property
    def active(self) -> int:
        """Idle links, as the program counts them: the numbers in the queue."""
        return len(self._queue.numbers)

    def add(self, number: str, link: Link) -> bool:
        """File a link; False, and it is closed, where the pool is full."""
        if self.active >= self.most:
            link.close()
            return False
        self.links[number] = link
        self._queue.put(number)
        return True

    async def by_number(self, number: str) -> Link:
        """The link of a number, which may still be on its way.

        :raises NoLink: it did not come in time.
        """
        end = self._reactor.seconds() + self._timing.pool_get
        while number not in self.links:
            left = end - self._reactor.seconds()
            if left <= 0:
                raise NoLink(f"no link {number}")
            await Tasks(self._reactor).sleep(min(self._timing.poll, left))
        link = self.links.pop(number)
        await self._queue.take()  # whichever is first; the program waits for ever where none is
        return link

    async def next(self) -> tuple[str, Link]:
        """The link whose number is first in the queue, and that number.

        :raises NoLink: none came in time.
        """
        end = self._reactor.seconds() + self._timing.pool_get
        while True:
            try:
                number = await self._queue.take(end - self._reactor.seconds())
            except Silence:
                raise NoLink("no idle link") from None
            link = self.links.pop(number, None)
            if link is not None:
                return number, link

    def done(self, number: str, link: Link) -> None:
        """A session on a link is over."""
        link.close()

    def flush(self) -> None:
        """Close all idle links."""
        for link in list(self.links.values()):
            link.close()
        self.links.clear()
        self._queue = _Queue(self._reactor)
        self.errors = 0

    def close(self) -> None:
        """The tunnel is over: close all idle links, now and later."""
        self.flush()


class ReusingPool(OldPool):
    """The pool of 1.6.

    :ivar interval: seconds after which a link that was put back is used again.
    """

    def __init__(self, reactor: Reactor, timing: OldTiming, most: int, tasks: Tasks) -> None:
        super().__init__(reactor, timing, most)
        self.interval = timing.refill_least
        self._closed = False
        self._tasks = tasks

    async def by_number(self, number: str) -> Link:
        """The link of a number. One that is still on its way is not waited for.

        :raises NoLink: there is none.
        """
        link = self.links.pop(number, None)
        if link is None:
            raise NoLink(f"no link {number}")
        if number in self._queue.numbers:
            self._queue.numbers.remove(number)
        return link

    def done(self, number: str, link: Link) -> None:
        """A session on a link is over: what is left in it is thrown away, and it is idle again."""
        if self._closed:
            link.close()
        else:
            self._tasks.start(self._put_back(number, link))

    def close(self) -> None:
        """The tunnel is over: close all idle links, now and later."""
        self._closed = True
        self.flush()

    async def _put_back(self, number: str, link: Link) -> None:
        try:
            while await link.read(2048, self._timing.report):
                pass
        except Silence:
            pass
        except CancelledError:
            link.close()
            raise
        else:
            link.close()
            return
        if link.gone or number in self.links:
            link.close()
            return
        self.links[number] = link
        await self._tasks.sleep(self.interval)
        if self.active < self.most:
            self._queue.put(number)
        else:
            self.links.pop(number, None)
            link.close()
