"""Hosts instances in worker processes, and keeps these alive.

A worker that dies or hangs is replaced and its instances run again in its place: what one of them
may have done to it is not done to the others. A worker that grows too large is drained: its
instances move to others, one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from nodepass.errors import FatalError
from nodepass.logs import Level, Log
from nodepass.meter import Stats
from nodepass.tuning import Tuning

from .commands import NO_RUN, Count, Line, Record, Release, Reload, Start, Status, Stop
from .hosting import LogLine, Tenants
from .places import Place, Run
from .settings import MasterSettings
from .workerprocess import WorkerProcess

__all__ = ["Supervisor"]

#: Workers that may end in a row before the first is ever up, until it is said that none can be.
MOST_FAILED_STARTS = 3
#: Seconds beyond NP_SHUTDOWN_TIMEOUT that a worker may take to stop, before it is killed: what
#: peers have to take leave, and one more.
STOP_GRACE = 3.0
#: Seconds that a worker may take to close an instance's ports. One that answers nothing at all by
#: then is killed, which closes them: whoever asked has an answer within a second.
RELEASE_PATIENCE = 0.8
#: Seconds without any answer after which a worker that releases nothing counts as hung: several
#: heartbeats. One that is merely busy, or has no CPU, gets more time.
RELEASE_SILENCE = 0.4
#: Seconds between two looks at the memory of workers, which grows slowly.
MEMORY_INTERVAL = 5.0
#: Seconds of a worker's age before it is drained: where its instances need what they take, they are
#: moved in vain, and not more often than this.
DRAINING_AGE = 60.0


class Supervisor:
    """A `nodepass.master.hosting.Host` on worker processes.

    :param reactor: provides ``IReactorProcess`` and ``IReactorTime``.
    :param environ: what the workers get; ``PYTHONPATH`` is amended.
    """

    def __init__(
        self,
        reactor: Any,
        tenants: Tenants,
        log: Log,
        settings: MasterSettings,
        tuning: Tuning,
        environ: Mapping[str, str],
    ) -> None:
        self._reactor = reactor
        self._tenants = tenants
        self._log = log
        self._settings = settings
        self._tuning = tuning
        self._environ = environ
        self._places: list[Place] = []
        self._runs: dict[int, Run] = {}
        self._current: dict[str, Run] = {}
        self._number = NO_RUN
        self._starting: Deferred[None] | None = None
        self._was_up = False
        self._failed_starts = 0
        self._stopping = False
        self._stopped: list[Deferred[None]] = []
        self._killers: list[IDelayedCall] = []
        self._memory_timer: IDelayedCall | None = None

    # Host

    def start(self) -> Deferred[None]:
        """Start the workers; fires when the first is up. Fails with CancelledError when it is
        stopped before."""
        if self._stopping:
            return fail(CancelledError("the master was stopped"))
        starting = self._starting = Deferred()
        for _ in range(self._settings.workers):
            self._open()
        self._memory_timer = self._reactor.callLater(MEMORY_INTERVAL, self._look_at_memory)
        return starting

    def host(self, id: str, url: str, source: str = "") -> int:
        """Start an instance where the fewest are; it waits while no worker is up there."""
        self.release(id)
        return self._settle(id, url, self._emptiest()).number

    def release(self, id: str) -> Deferred[None]:
        """End the instance's run; fires when its ports are closed."""
        run = self._current.pop(id, None)
        return succeed(None) if run is None else self._release(run)

    def reload(self) -> None:
        """Let all instances read their certificate files again."""
        for worker in self._workers():
            if worker.up:
                worker.call(Reload).addErrback(self._not_done, worker)

    def stop(self) -> Deferred[None]:
        """End all runs gracefully and side by side, then the workers."""
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        if not self._stopping:
            self._stopping = True
            self._stop()
        self._check_stopped()
        return stopped

    def _stop(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
        if self._memory_timer is not None:
            self._memory_timer.cancel()
            self._memory_timer = None
        self._current.clear()
        patience = self._tuning.shutdown_timeout + STOP_GRACE
        for place in list(self._places):
            if place.pause is not None:
                place.pause.cancel()
                place.pause = None
            worker = place.worker
            if worker is None:
                self._end_all(place)
                self._places.remove(place)
            elif worker.up:
                self._killers.append(
                    self._reactor.callLater(patience, self._cut_short, worker, patience)
                )
                worker.call(Stop).addCallbacks(
                    self._drained, self._not_done, (worker,), errbackArgs=(worker,)
                )
            else:
                worker.kill("the master stops")

    def _cut_short(self, worker: WorkerProcess, patience: float) -> None:
        """See whether a worker has stopped in time."""
        if all(place.worker is not worker for place in self._places):
            return
        self._log.warn(
            "worker {pid} did not stop within {patience:g} s, and is killed: what its instances "
            "counted last is lost",
            pid=worker.pid,
            patience=patience,
        )
        worker.kill(f"it did not stop within {patience:g} s")

    def _drained(self, _: object, worker: WorkerProcess) -> None:
        worker.close()

    def _check_stopped(self) -> None:
        if self._stopping and not self._places:
            for killer in self._killers:
                if killer.active():
                    killer.cancel()
            self._killers.clear()
            waiting, self._stopped = self._stopped, []
            for stopped in waiting:
                stopped.callback(None)

    # Runs

    def _emptiest(self) -> Place:
        open_places = (place for place in self._places if not place.leaving)
        return min(open_places, key=lambda place: len(place.runs))

    def _settle(self, id: str, url: str, place: Place) -> Run:
        """Make a new run of an instance, and start it if it can be."""
        self._number += 1
        run = Run(self._number, id, url, place)
        self._runs[run.number] = place.runs[run.number] = self._current[id] = run
        if place.worker is not None and place.worker.up:
            self._send(run, place.worker)
        return run

    def _send(self, run: Run, worker: WorkerProcess) -> None:
        run.worker = worker
        started = worker.call(Start, run=run.number, url=run.url)
        started.addErrback(self._not_done, worker)

    def _release(self, run: Run) -> Deferred[None]:
        released: Deferred[None] = Deferred()
        run.waiting.append(released)
        if run.releasing:
            return released
        run.releasing = True
        worker = run.worker
        if worker is None:
            self._end(run)
        else:
            # A worker that is gone has its ports closed when its process has ended.
            late = self._reactor.callLater(RELEASE_PATIENCE, self._not_released, worker)
            asked = worker.call(Release, run=run.number)
            asked.addBoth(self._answered, late)
            asked.addCallbacks(lambda _: run.released(), self._not_done, errbackArgs=(worker,))
        return released

    def _answered(self, result: Any, late: IDelayedCall) -> Any:
        if late.active():
            late.cancel()
        return result

    def _not_released(self, worker: WorkerProcess) -> None:
        """A worker has not closed ports in time."""
        silence = worker.silence
        if silence >= RELEASE_SILENCE:
            worker.kill(f"it did not answer for {silence:.1f} s")

    def _end(self, run: Run) -> None:
        """Nothing more comes of a run."""
        del self._runs[run.number], run.place.runs[run.number]
        if self._current.get(run.id) is run:
            del self._current[run.id]
        run.released()
        self._tenants.ended(run.id, run.number)
        self._check_left(run.place)

    def _end_all(self, place: Place) -> None:
        for run in list(place.runs.values()):
            self._end(run)

    def _move(self, run: Run, place: Place) -> Run:
        """Let an instance go on as a new run elsewhere."""
        successor = self._settle(run.id, run.url, place)
        self._tenants.moved(run.id, run.number, successor.number)
        return successor

    def _not_done(self, failure: Failure, worker: WorkerProcess) -> None:
        """A worker that is gone can't answer; that is dealt with when it is."""
        if worker.up and not worker.over:
            self._log.failure("a worker failed to do as it was told", failure)

    # Workers

    def _workers(self) -> list[WorkerProcess]:
        return [place.worker for place in self._places if place.worker is not None]

    def _place_of(self, worker: WorkerProcess) -> Place:
        return next(place for place in self._places if place.worker is worker)

    def _open(self) -> None:
        place = Place()
        self._places.append(place)
        self._spawn(place)

    def _spawn(self, place: Place) -> None:
        place.pause = None
        worker = place.worker = WorkerProcess(self._reactor, self, self._tuning, self._log)
        try:
            worker.spawn(self._environ)
        except OSError as error:
            worker.why = f"it can't be started: {error.strerror or error}"
            self.gone(worker)

    # Keeper

    def ready(self, worker: WorkerProcess) -> None:
        """A worker can start runs."""
        self._was_up = True
        for run in list(self._place_of(worker).runs.values()):
            self._send(run, worker)
        for place in self._places:
            if place.leaving:
                self._move_next(place)
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.callback(None)  # last, as instances are hosted in there

    def reported(self, worker: WorkerProcess, records: Iterable[Record]) -> None:
        """A worker tells what has happened."""
        counts: list[tuple[str, int, Stats]] = []
        for record in records:
            run = self._runs.get(record.run)
            if run is None:
                if isinstance(record, Line) and record.run == NO_RUN:
                    self._relay(worker, record)
            elif isinstance(record, Count):
                counts.append((run.id, run.number, record.stats()))
            elif isinstance(record, Line):
                line = LogLine(record.when, Level(record.level), record.text)
                self._tenants.logged(run.id, run.number, line)
            elif isinstance(record, Status):
                self._tenants.status(run.id, run.number, record.trouble)
            else:
                if counts:
                    self._tenants.counted(counts)
                    counts = []
                self._end(run)
        if counts:
            self._tenants.counted(counts)

    def _relay(self, worker: WorkerProcess, line: Line) -> None:
        """What a worker has logged that no instance of its has said."""
        if line.level >= Level.ERROR:
            self._log.error("worker {pid}: {line}", pid=worker.pid, line=line.text)
        else:
            self._log.warn("worker {pid}: {line}", pid=worker.pid, line=line.text)

    def gone(self, worker: WorkerProcess) -> None:
        """A worker is no more: another takes its place."""
        place = self._place_of(worker)
        place.worker = None
        if self._stopping:
            self._places.remove(place)
            self._end_all(place)
            self._check_stopped()
            return
        if place.leaving:
            self._places.remove(place)
            self._move_all(place, None)
            return
        pause = place.pause_after(self._reactor.seconds() - worker.up_at if worker.up_at else 0.0)
        self._log.error(
            "worker {pid} ended ({why}): its instances, {count}, start again in {pause:g} s",
            pid=worker.pid,
            why=worker.why,
            count=len(place.runs),
            pause=pause,
        )
        if not self._was_up and self._starting is not None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                starting, self._starting = self._starting, None
                starting.errback(FatalError(f"worker processes can't be started: {worker.why}"))
                return
        place.pause = self._reactor.callLater(pause, self._spawn, place)
        self._move_all(place, place)
        if pause:
            for run in place.runs.values():
                trouble = (
                    f"its worker process ended right after its start ({worker.why}); trying on"
                )
                self._tenants.status(run.id, run.number, trouble)

    def _move_all(self, place: Place, to: Place | None) -> None:
        """The worker of a place is gone: what it ran goes on elsewhere, what drained does not."""
        for run in list(place.runs.values()):
            if self._current.get(run.id) is run:
                self._move(run, to or self._emptiest())
            self._end(run)

    # A worker that is too large.

    def _look_at_memory(self) -> None:
        self._memory_timer = self._reactor.callLater(MEMORY_INTERVAL, self._look_at_memory)
        if any(place.leaving for place in self._places):
            return  # one after another, as each costs memory before it gives some back
        for place in self._places:
            worker = place.worker
            if worker is None or not worker.up:
                continue
            age = self._reactor.seconds() - worker.up_at
            if worker.memory > self._settings.worker_memory and age >= DRAINING_AGE:
                self._drain(place, worker)
                return

    def _drain(self, place: Place, worker: WorkerProcess) -> None:
        self._log.warn(
            "worker {pid} takes {memory} MiB, above NP_WORKER_MEMORY={most}: "
            "its instances, {count}, move to another",
            pid=worker.pid,
            memory=worker.memory >> 20,
            most=self._settings.worker_memory >> 20,
            count=len(place.runs),
        )
        place.leaving = True
        self._open()

    def _move_next(self, place: Place) -> None:
        """Move an instance out of a place that is being left, and then the next one."""
        if self._stopping or place.worker is None:
            return
        for run in place.runs.values():
            if self._current.get(run.id) is run and not run.releasing:
                self._release(run).addCallback(self._moved_out, run)
                return
        self._check_left(place)

    def _moved_out(self, _: None, run: Run) -> None:
        # Unless it was released for good in the meantime, or its worker has gone.
        if self._current.get(run.id) is run and not self._stopping:
            self._move(run, self._emptiest())
        self._move_next(run.place)

    def _check_left(self, place: Place) -> None:
        if place.leaving and not place.runs and place.worker is not None and not self._stopping:
            place.worker.close()
