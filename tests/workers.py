"""Worker processes that are none: the real conversation in memory, and instances that pretend."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from nodepass.logs import Level, Log
from nodepass.master import worker as worker_module
from nodepass.master.hosting import LogLine
from nodepass.master.outbox import Outbox
from nodepass.master.settings import MasterSettings
from nodepass.master.supervisor import Supervisor
from nodepass.master.worker import Worker
from nodepass.meter import Stats
from nodepass.tuning import Tuning

MIB = 1 << 20


class FakeTenant:
    """An instance that does as its URL says: "drain" ends when told, "trouble" has some."""

    def __init__(
        self,
        run: int,
        url: str,
        *,
        tuning: Tuning,
        reactor: Any,
        outbox: Outbox,
        ended: Callable[[Any], None],
    ) -> None:
        self.run, self.url = run, url
        self.outbox, self.ended = outbox, ended
        self.released = False
        self.over = False
        self.reloads = 0

    def start(self) -> None:
        self.outbox.status(self.run, "no luck" if "trouble" in self.url else None)

    def stats(self) -> Stats:
        return Stats(mode=1, tcp_rx=self.run)

    def reload(self) -> None:
        self.reloads += 1

    def release(self) -> Deferred[None]:
        if not self.released:
            self.released = True
            if "drain" not in self.url:
                self.end()
        return succeed(None)

    def end(self) -> None:
        """Its last session is over."""
        if not self.over:
            self.over = True
            self.outbox.end(self.run, self.stats())
            self.ended(self)


class _ToMaster:
    """The worker's transport."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        self._process.to_master.append(data)

    def loseConnection(self) -> None:
        raise AssertionError("a worker never hangs up")

    def getPeer(self) -> str:
        return "the master"

    def getHost(self) -> str:
        return "the worker"


class FakeProcess:
    """A worker process, and its transport as the master has it.

    @ivar stuck: it neither reads nor writes.
    """

    def __init__(self, reactor: ProcessClock, protocol: Any, pid: int) -> None:
        self.reactor, self.protocol, self.pid = reactor, protocol, pid
        self.to_master: deque[bytes] = deque()
        self.to_worker: deque[bytes] = deque()
        self.stuck = False
        self.alive = True
        self.worker = Worker(reactor, lambda: None)
        self.worker.makeConnection(_ToMaster(self))

    @property
    def tenants(self) -> dict[int, FakeTenant]:
        """What it runs."""
        return self.worker._tenants  # type: ignore[return-value]

    def writeToChild(self, fd: int, data: bytes) -> None:
        self.to_worker.append(data)

    def loseConnection(self) -> None:
        self.reactor.callLater(0, self.die, None)

    def signalProcess(self, name: str) -> None:
        if not self.alive:
            raise ProcessExitedAlready()
        self.reactor.callLater(0, self.die, 9)

    def die(self, number: int | None) -> None:
        """It ends, by a signal or by itself."""
        if not self.alive:
            return
        self.alive = False
        self.worker.connectionLost(Failure(ProcessDone(0)))
        self.protocol.childConnectionLost(1)
        error = ProcessDone(0) if number is None else ProcessTerminated(None, number)
        self.protocol.processEnded(Failure(error))

    def deliver(self) -> bool:
        """Bring what is on its way; False where there is nothing."""
        if self.stuck or not self.alive:
            return False
        if self.to_worker:
            self.worker.dataReceived(self.to_worker.popleft())
        elif self.to_master:
            self.protocol.outReceived(self.to_master.popleft())
        else:
            return False
        return True


class ProcessClock(Clock):
    """A reactor with a clock of its own and with processes that are none.

    @ivar refuses: what starting a process fails with.
    @ivar stillborn: processes do not say a word.
    """

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.refuses: OSError | None = None
        self.stillborn = False

    def spawnProcess(
        self, protocol: Any, executable: str, arguments: list[str], environ: Any
    ) -> FakeProcess:
        if self.refuses is not None:
            raise self.refuses
        # No process has such a number, so that nothing is read of a stranger's.
        process = FakeProcess(self, protocol, 5_000_000 + len(self.processes))
        process.stuck = self.stillborn
        self.processes.append(process)
        protocol.transport = process
        protocol.connectionMade()
        return process

    def settle(self, seconds: float = 0.0) -> None:
        """Let time pass, in small steps, and deliver all that is sent meanwhile."""
        steps = max(1, round(seconds / 0.05))
        for _ in range(steps):
            self.advance(seconds / steps)
            for _ in range(10):
                while any(process.deliver() for process in self.processes):
                    pass
                self.advance(0)

    @property
    def living(self) -> list[FakeProcess]:
        """The processes that have not ended."""
        return [process for process in self.processes if process.alive]


class Noted:
    """`Tenants` that note what they hear."""

    def __init__(self) -> None:
        self.statuses: list[tuple[str, int, str | None]] = []
        self.stats: dict[int, Stats] = {}
        self.lines: list[tuple[str, int, LogLine]] = []
        self.over: list[int] = []
        self.moves: list[tuple[str, int, int]] = []

    def status(self, id: str, run: int, trouble: str | None) -> None:
        self.statuses.append((id, run, trouble))

    def counted(self, reports: Iterable[tuple[str, int, Stats]]) -> None:
        for _, run, stats in reports:
            assert run not in self.over, "a checkpoint after the end"
            self.stats[run] = stats

    def ended(self, id: str, run: int) -> None:
        assert run not in self.over, "a run ends once"
        self.over.append(run)

    def logged(self, id: str, run: int, line: LogLine) -> None:
        self.lines.append((id, run, line))

    def moved(self, id: str, run: int, new: int) -> None:
        assert run not in self.over, "it moves before it ends"
        self.moves.append((id, run, new))


class Said(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(Level.DEBUG)
        self.lines: list[str] = []

    def _emit(self, level: Level, format: str, fields: dict[str, object]) -> None:
        self.lines.append(f"{level.name} {format.format(**fields)}")


class Bench:
    """A supervisor and its workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int = 2) -> None:
        monkeypatch.setattr(worker_module, "Tenant", FakeTenant)
        self.memory = 10 * MIB
        monkeypatch.setattr(worker_module, "own_memory", lambda: self.memory)
        self.reactor = ProcessClock()
        self.tenants = Noted()
        self.log = Said()
        self.supervisor = Supervisor(
            self.reactor,
            self.tenants,
            self.log,
            MasterSettings(state=None, workers=workers, worker_memory=100 * MIB),  # type: ignore[arg-type]
            Tuning(report_interval=5.0, shutdown_timeout=5.0),
            {"PATH": os.defpath},
        )

    def start(self) -> Bench:
        """Start the workers."""
        started = self.supervisor.start()
        assert not started.called
        self.reactor.settle()
        assert started.called
        return self

    def stop(self) -> None:
        """Stop, and find nothing left."""
        stopped = self.supervisor.stop()
        self.reactor.settle(10)
        assert stopped.called
        assert not self.reactor.living
        assert not self.reactor.getDelayedCalls()
        assert not self.supervisor._runs and not self.supervisor._current

    def runs(self) -> list[list[str]]:
        """The URLs that each living worker runs."""
        return [
            [tenant.url for tenant in process.tenants.values()] for process in self.reactor.living
        ]
