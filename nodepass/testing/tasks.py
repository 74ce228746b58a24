"""Coroutines that belong together and end together, and what they wait for."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

__all__ = ["Changes", "Silence", "Tasks", "together"]

#: Seconds for what has happened meanwhile, where the reactor was held up: it looks at clocks first.
GRACE = 0.05

T = TypeVar("T")


class Silence(Exception):
    """Nothing happened for as long as one was ready to wait."""


class Changes:
    """Something to wait for that may happen again and again."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: list[Deferred[None]] = []

    def wait(self, timeout: float | None = None) -> Deferred[None]:
        """Fires at the next change, or fails with :exc:`Silence`.

        :param timeout: seconds; None waits for ever.
        """
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if timeout is not None:
            calls = [self._clock.callLater(max(0.0, timeout), lambda: again())]

            def again() -> None:
                calls[0] = self._clock.callLater(GRACE, self._silent, waiting)

            def over(result: T) -> T:
                if calls[0].active():
                    calls[0].cancel()
                return result

            waiting.addBoth(over)
        return waiting

    def _silent(self, waiting: Deferred[None]) -> None:
        self._waiting.remove(waiting)
        waiting.errback(Silence())

    def fire(self) -> None:
        """Tell all who wait."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:
                one.callback(None)


class Tasks:
    """Coroutines that run side by side until they end or :meth:`stop` ends them."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._running: set[Deferred[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, coroutine: Coroutine[Deferred[Any], Any, object]) -> Deferred[None]:
        """Run a coroutine; one that fails is logged. Fires when it has ended, whichever way."""
        task: Deferred[None] = Deferred.fromCoroutine(_nothing(coroutine))
        if task.called and not task.paused:
            task.addErrback(self._failed)
            return task
        self._running.add(task)
        task.addErrback(self._failed)
        task.addBoth(lambda _: self._running.discard(task))
        return task

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("a task of a simulated node failed", failure)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Fires in so many seconds."""
        return deferLater(self._clock, seconds)

    def stop(self) -> None:
        """End all of them where they wait."""
        while self._running:
            self._running.pop().cancel()


async def together(coroutines: Iterable[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run coroutines side by side; returns what they return when all have ended."""
    running = [Deferred.fromCoroutine(each) for each in coroutines]
    try:
        return await gatherResults(running, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
        raise


async def _nothing(coroutine: Coroutine[Deferred[Any], Any, object]) -> None:
    await coroutine
