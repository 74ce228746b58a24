"""The master's end of one worker process: its start, its pulse, its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.protocols.amp import BinaryBoxProtocol, BoxDispatcher, Command, CommandLocator
from twisted.python.failure import Failure

import nodepass
from nodepass.logs import Log, printable
from nodepass.tuning import Tuning

from .commands import Beat, Begin, Record, Report, decode_records
from .forker import ForkedProcess, prepared

__all__ = ["Keeper", "WorkerProcess"]

#: Seconds that a worker may take to start: far more than a busy small machine needs.
START_TIMEOUT = 30.0
#: Seconds between two heartbeats: a fraction of `HANG_TIMEOUT`.
BEAT_INTERVAL = 0.2
#: Seconds without an answer after which a worker counts as hung. With the start of another, which
#: takes half a second at most, its instances serve again within two.
HANG_TIMEOUT = 1.0
#: The same, time included in which the machine had no CPU to give it: on one so busy, ending its
#: sessions would make nothing better.
STARVED_TIMEOUT = 10.0
#: Bytes of a line on a worker's standard error, where only crashes and stray prints go.
LONGEST_STRAY = 1000
#: Such lines logged of one worker: a traceback is among them, a flood is not.
MOST_STRAY = 200

# No directory of the user's may stand in for a module of ours, and a Ctrl-C in the terminal is none
# of a worker's business from the first moment on.
_CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from nodepass.master.worker import main; main()"
)


class Keeper(Protocol):
    """Who is told about a worker process."""

    def ready(self, worker: WorkerProcess) -> None:
        """It can start runs."""

    def reported(self, worker: WorkerProcess, records: Iterable[Record]) -> None:
        """It tells what has happened."""

    def gone(self, worker: WorkerProcess) -> None:
        """It is no more; told once, last."""


class _Link(BinaryBoxProtocol, BoxDispatcher, CommandLocator):
    """The conversation with a worker: AMP without its own log lines, which twistd would show."""

    def __init__(self, reported: Callable[[Iterable[Record]], None]) -> None:
        BoxDispatcher.__init__(self, self)
        BinaryBoxProtocol.__init__(self, self)
        self._reported = reported

    @Report.responder
    def _report(self, batch: bytes) -> dict[str, Any]:
        self._reported(decode_records(batch))
        return {}


class _Pipes:
    """The pipes to a process, as the transport of a protocol."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        self._process.writeToChild(0, data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._process.loseConnection()


class WorkerProcess(ProcessProtocol):
    """One worker process.

    :ivar up: it can start runs.
    :ivar over: it is no more, or is being killed.
    :ivar memory: bytes that it had to itself when it answered last.
    :ivar why: why it came to its end, for a log line.
    """

    def __init__(self, reactor: Any, keeper: Keeper, tuning: Tuning, log: Log) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._tuning = tuning
        self._log = log
        self._link: Any = _Link(self._reported)
        self._timer: IDelayedCall | None = None
        self._asked: float | None = None  # when the heartbeat went out that has no answer yet
        self._starved = 0.0
        self._due = 0.0
        self._stray = b""
        self._strays = 0
        self._lost = False
        self.up = False
        self.up_at = 0.0
        self.over = False
        self.memory = 0
        self.pid = 0
        self.why = ""

    def spawn(self, environ: Mapping[str, str]) -> None:
        """Start the process.

        :param environ: for a process that is not forked off this one.
        :raises OSError: the system has none to give.
        """
        forker = prepared()
        if forker is not None:
            try:
                ForkedProcess(self._reactor, forker, self)
                return
            except OSError:
                pass  # it is gone or stuck, and is done without from now on
        root = str(Path(nodepass.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-c", _CODE, "nodepass-worker"]
        self._reactor.spawnProcess(self, sys.executable, command, {**environ, "PYTHONPATH": path})

    def call(self, command: type[Command], **arguments: object) -> Deferred[Any]:
        """Ask the worker for something. Fails when it ends before it has answered."""
        return cast("Deferred[Any]", self._link.callRemote(command, **arguments))

    @property
    def silence(self) -> float:
        """For how many seconds it has not answered, but for the time in which it had no CPU."""
        if self._asked is None:
            return 0.0
        starved = starvation(self.pid) - self._starved
        return float(self._reactor.seconds()) - self._asked - starved

    def close(self) -> None:
        """Hang up: the process ends at once."""
        self.why = "it was told to end"
        cast(Any, self.transport).loseConnection()

    def kill(self, why: str) -> None:
        """End the process whatever it does."""
        self.over = True
        self.why = self.why or why
        try:
            cast(Any, self.transport).signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    # ProcessProtocol

    def connectionMade(self) -> None:
        self.pid = cast(Any, self.transport).pid
        self._link.makeConnection(_Pipes(self.transport))
        self._timer = self._reactor.callLater(
            START_TIMEOUT, self.kill, f"it did not start within {START_TIMEOUT:g} s"
        )
        tuning = msgspec.json.encode(attrs.asdict(self._tuning))
        self.call(Begin, tuning=tuning).addCallbacks(self._begun, lambda _: None)

    def outReceived(self, data: bytes) -> None:
        if not self._lost:
            self._link.dataReceived(data)

    def errReceived(self, data: bytes) -> None:
        *lines, rest = (self._stray + data).split(b"\n")
        self._stray = rest[:LONGEST_STRAY]
        for line in lines:
            self._strays += 1
            if line and self._strays <= MOST_STRAY:
                self._log.warn(
                    "worker {pid} wrote: {line}",
                    pid=self.pid,
                    line=printable(line, LONGEST_STRAY),
                )

    def childConnectionLost(self, childFD: int) -> None:
        if childFD == 1:
            # Nothing more can be said to it or heard of it, whatever it does.
            self._lose()
            self.kill("")

    def processEnded(self, reason: Failure) -> None:
        status: Any = reason.value
        if not self.why:
            self.why = (
                f"signal {status.signal}" if status.signal else f"exit status {status.exitCode}"
            )
        self.over = True
        self._lose()
        self._keeper.gone(self)

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self.up = False
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._link.connectionLost(Failure(ConnectionError("the worker is gone")))

    # Its pulse.

    def _begun(self, _: object) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self.up = True
        self.up_at = self._reactor.seconds()
        self._expect()
        self._keeper.ready(self)

    def _expect(self) -> None:
        self._due = self._reactor.seconds() + BEAT_INTERVAL
        self._timer = self._reactor.callLater(BEAT_INTERVAL, self._tick)

    def _tick(self) -> None:
        now = self._reactor.seconds()
        if self._asked is None:
            self._ask_from(now)
            self.call(Beat).addCallbacks(self._beaten, lambda _: None)
        elif now - self._due > BEAT_INTERVAL:
            # This process itself was held up, or the machine asleep: answers may lie unread.
            self._ask_from(now)
        else:
            silence = now - self._asked
            if self.silence >= HANG_TIMEOUT or silence >= STARVED_TIMEOUT:
                self.kill(f"it did not answer for {silence:.1f} s")
                return
        self._expect()

    def _ask_from(self, now: float) -> None:
        self._asked = now
        self._starved = starvation(self.pid)

    def _beaten(self, answer: dict[str, Any]) -> None:
        self._asked = None
        self.memory = answer["memory"]

    def _reported(self, records: Iterable[Record]) -> None:
        self._keeper.reported(self, records)


def starvation(pid: int) -> float:
    """Return for how many seconds a process has been ready to run and had no CPU, since its start;
    0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
