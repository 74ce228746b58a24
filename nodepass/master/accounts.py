"""Traffic of all instances: from counters of runs to totals that never run backwards.

A run counts from 0. What it has counted since it was last heard is saved, together with that of all
others, and shown when it is saved: a total that a client has seen survives a crash.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from nodepass.logs import Log
from nodepass.meter import Stats

from .records import Totals
from .store import StoreError

__all__ = ["Accounts"]

#: Seconds between a checkpoint and saving it. Those of other workers and runs that come meanwhile
#: are saved by the same write to the disk.
GATHERING = 0.2

#: Seconds before a write that failed is tried again, with all that has come since.
RETRY = 5.0


def _totals(stats: Stats) -> Totals:
    return Totals(tcprx=stats.tcp_rx, tcptx=stats.tcp_tx, udprx=stats.udp_rx, udptx=stats.udp_tx)


def _since(now: Totals, before: Totals) -> Totals:
    return Totals(
        tcprx=now.tcprx - before.tcprx,
        tcptx=now.tcptx - before.tcptx,
        udprx=now.udprx - before.udprx,
        udptx=now.udptx - before.udptx,
    )


class Accounts:
    """What has been counted and is not saved yet.

    :param save: writes the sums of instances; its Deferred fires when they are durable.
    :param saved: called with what became durable.
    :param kept: called with the instances whose traffic could not be saved for now.
    """

    def __init__(
        self,
        clock: IReactorTime,
        log: Log,
        save: Callable[[Mapping[str, Totals]], Deferred[None]],
        saved: Callable[[Mapping[str, Totals]], None],
        kept: Callable[[Iterable[str]], None],
    ) -> None:
        self._clock = clock
        self._log = log
        self._save = save
        self._saved = saved
        self._kept = kept
        self._seen: dict[tuple[str, int], Totals] = {}
        self._reset: set[tuple[str, int]] = set()  # runs that were not heard since a reset
        self._unsaved: dict[str, Totals] = {}
        self._writing: dict[str, Totals] = {}
        self._timer: IDelayedCall | None = None
        self._lock = DeferredLock()

    def counted(self, id: str, run: int, stats: Stats) -> bool:
        """Take a checkpoint; whether there is something new to save."""
        now = _totals(stats)
        if (id, run) in self._reset:
            # It has part of what it counted from before the reset: it counts from here.
            self._reset.discard((id, run))
            self._seen[id, run] = now
            return False
        before = self._seen.get((id, run), Totals())
        delta = _since(now, before)
        # Not what it says now: a counter that fell would be counted again when it is back.
        self._seen[id, run] = before + delta
        if not delta:
            return False
        self._unsaved[id] = self._unsaved.get(id, Totals()) + delta
        self._schedule(GATHERING)
        return True

    def ended(self, id: str, run: int) -> None:
        """A run counts no more."""
        self._seen.pop((id, run), None)
        self._reset.discard((id, run))

    def pending(self, id: str) -> Totals:
        """What an instance has counted beyond its saved total."""
        return self._writing.get(id, Totals()) + self._unsaved.get(id, Totals())

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Save nothing meanwhile."""
        await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def reset(self, id: str, runs: Iterable[int] = ()) -> None:
        """What was counted so far no longer counts.

        :param runs: those that go on counting, from their next checkpoint on.
        """
        self._unsaved.pop(id, None)
        self._writing.pop(id, None)
        self._reset.update((id, run) for run in runs)

    def forget(self, id: str) -> None:
        """An instance is gone."""
        self.reset(id)
        for key in [key for key in self._seen if key[0] == id]:
            self.ended(*key)

    async def flush(self) -> None:
        """Save all there is, for the last time: what can't be saved now is lost, and said."""
        await self._write()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, delay: float) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        Deferred.fromCoroutine(self._write()).addErrback(self._unexpected)

    async def _write(self) -> None:
        async with self.held():
            self._writing, self._unsaved = self._unsaved, {}
            if not self._writing:
                return
            try:
                await self._save(self._writing)
            except StoreError as error:
                self._log.limited(
                    "traffic totals",
                    "traffic totals can't be saved: {error}; they are kept and tried again",
                    error=error,
                )
                self._unsaved = {id: self.pending(id) for id in {**self._writing, **self._unsaved}}
                self._schedule(RETRY)
                self._kept(list(self._writing))
            else:
                self._saved(self._writing)
            self._writing = {}

    def _unexpected(self, failure: Failure) -> None:
        self._log.failure("saving traffic totals failed", failure)
