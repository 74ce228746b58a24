"""Which instances run: they are started and stopped here, and what clients see of it is paced."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IReactorTime

from nodepass.meter import Stats

from .entry import Entry
from .hosting import Host

__all__ = ["Running"]

#: Seconds that a restart shows an instance as stopped: clients poll every 200 ms for it.
RESTART_PAUSE = 0.25


class Running:
    """Starts and stops of all instances.

    :param changed: is told of an entry whose status is another one.
    """

    def __init__(self, clock: IReactorTime, changed: Callable[[Entry], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._host: Host | None = None
        self._stopping = False

    def begin(self, host: Host) -> None:
        """Instances can run from now on."""
        self._host = host

    def cease(self, entries: Iterable[Entry]) -> None:
        """Start nothing more."""
        self._stopping = True
        for entry in entries:
            self._cancel_start(entry)

    def start(self, entry: Entry) -> None:
        """Host an instance, now or when clients have had the time to see it stopped."""
        self._cancel_start(entry)
        pause = self._pause(entry)
        if pause > 0:
            entry.starting = self._clock.callLater(pause, self._start_now, entry)
        else:
            self._start_now(entry)

    async def stop(self, entry: Entry) -> None:
        """End the run of an instance, if it has one; its ports are closed then."""
        self._cancel_start(entry)
        if entry.run is not None:
            entry.run = None
            assert self._host is not None
            await self._host.release(entry.record.id)
        self._show(entry, "stopped")

    def told(self, entry: Entry, trouble: str | None) -> None:
        """Its run is well, or has trouble."""
        self._cancel_start(entry)
        pause = self._pause(entry)
        if trouble is None and pause > 0:
            # It was quick: clients still have to see it stopped.
            entry.starting = self._clock.callLater(pause, self._show, entry, "running")
        else:
            self._show(entry, "running" if trouble is None else "error")

    def moved(self, entry: Entry, run: int) -> None:
        """It goes on elsewhere, as another run."""
        entry.run, entry.stats = run, Stats()
        entry.runs.add(run)
        self._cancel_start(entry)
        self._show(entry, "stopped")

    def _pause(self, entry: Entry) -> float:
        return entry.stopped_at + RESTART_PAUSE - self._clock.seconds()

    def _start_now(self, entry: Entry) -> None:
        entry.starting = None
        if self._stopping or self._host is None:
            return
        entry.stats = Stats()
        if not entry.url.hosted:
            self._show(entry, "error")
            return
        entry.run = self._host.host(entry.record.id, entry.url.hosted, entry.record.id)
        entry.runs.add(entry.run)

    def _show(self, entry: Entry, status: str) -> None:
        entry.starting = None
        if entry.status != status:
            entry.status = status
            if status == "stopped":
                entry.stopped_at = self._clock.seconds()
            self._changed(entry)

    def _cancel_start(self, entry: Entry) -> None:
        if entry.starting is not None:
            entry.starting.cancel()
            entry.starting = None
