"""A worker process: runs instances for the master, and ends with it.

It is started by `nodepass.master.workerprocess` and spoken to over its standard input and output.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.protocols.amp import AMP
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.logs import Level, mask, printable
from nodepass.openfiles import raise_open_files
from nodepass.reactor import install_reactor, steady_clock
from nodepass.tuning import Tuning

from .commands import NO_RUN, Beat, Begin, Release, Reload, Report, Start, Stop
from .outbox import LONGEST_TEXT, Outbox
from .tenant import Tenant

__all__ = ["LogRelay", "Worker", "main", "own_memory"]

#: Seconds from a start to its first checkpoint, so that its mode shows soon, and one report tells
#: of all that start together.
FIRST_COUNT = 0.25


class Worker(AMP):
    """The worker's end of the link to the master.

    :param lost: called when the link is lost.
    """

    def __init__(self, reactor: Any, lost: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._lost = lost
        self._tuning = Tuning()
        self._tenants: dict[int, Tenant] = {}
        self._starting: deque[Tenant] = deque()
        self._start_timer: IDelayedCall | None = None
        self._count_timer: IDelayedCall | None = None
        self._first_count: IDelayedCall | None = None
        self._idle: list[Deferred[None]] = []
        self.outbox = Outbox(self._report)

    def _report(self, batch: bytes) -> Deferred[Any]:
        sent: Deferred[Any] = self.callRemote(Report, batch=batch)  # type: ignore[no-untyped-call]
        return sent

    # Commands

    @Begin.responder
    def _begin(self, tuning: bytes) -> dict[str, Any]:
        self._tuning = Tuning(**msgspec.json.decode(tuning))
        self._count_timer = self._reactor.callLater(self._tuning.report_interval, self._count_due)
        return {}

    @Start.responder
    def _start(self, run: int, url: str) -> dict[str, Any]:
        tenant = self._tenants[run] = Tenant(
            run,
            url,
            tuning=self._tuning,
            reactor=self._reactor,
            outbox=self.outbox,
            ended=self._ended,
        )
        # One a turn, so that many that start together leave this process able to answer.
        self._starting.append(tenant)
        if self._start_timer is None:
            self._start_timer = self._reactor.callLater(0, self._start_next)
        return {}

    def _start_next(self) -> None:
        self._start_timer = None
        if self._starting:
            self._starting.popleft().start()
            if self._first_count is None:
                self._first_count = self._reactor.callLater(FIRST_COUNT, self._count_first)
        if self._starting:
            self._start_timer = self._reactor.callLater(0, self._start_next)

    @Release.responder
    def _release(self, run: int) -> Deferred[dict[str, Any]] | dict[str, Any]:
        tenant = self._tenants.get(run)
        if tenant is None:
            return {}
        return tenant.release().addCallback(lambda _: {})

    @Reload.responder
    def _reload(self) -> dict[str, Any]:
        for tenant in list(self._tenants.values()):
            tenant.reload()
        return {}

    @Beat.responder
    def _beat(self) -> dict[str, Any]:
        return {"memory": own_memory()}

    @Stop.responder
    def _stop(self) -> Deferred[dict[str, Any]]:
        for tenant in list(self._tenants.values()):
            tenant.release()
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        self._check_idle()
        return idle.addCallback(lambda _: self.outbox.empty()).addCallback(lambda _: {})

    # Runs

    def _ended(self, tenant: Tenant) -> None:
        self._tenants.pop(tenant.run, None)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._tenants:
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.callback(None)

    def _count_first(self) -> None:
        self._first_count = None
        self._count()

    def _count_due(self) -> None:
        self._count_timer = self._reactor.callLater(self._tuning.report_interval, self._count_due)
        self._count()

    def _count(self) -> None:
        for run, tenant in self._tenants.items():
            self.outbox.count(run, tenant.stats())

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        for timer in (self._start_timer, self._count_timer, self._first_count):
            if timer is not None and timer.active():
                timer.cancel()
        self._lost()


@implementer(ILogObserver)
class LogRelay:
    """Passes log lines to the master; checkpoints go another way.

    Of what no instance has said, only warnings and errors.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(self, event: LogEvent) -> None:
        level = cast("Level | None", event.get("nodepass_level"))
        run = NO_RUN
        if level is not None:
            run = int(cast(str, event.get("nodepass_source")) or NO_RUN)
        elif event.get("log_level") is LogLevel.warn:
            level = Level.WARN
        elif event.get("log_level") in (LogLevel.error, LogLevel.critical):
            level = Level.ERROR
        else:
            return
        text = formatEvent(event)
        if level is Level.EVENT and text.startswith("CHECK_POINT|"):
            return
        lines = [text]
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            lines += failure.getTraceback().rstrip("\n").split("\n")
        when = cast(float, event.get("log_time", 0.0))
        for line in lines:
            self._outbox.line(run, when, level, printable(mask(line), LONGEST_TEXT))


def own_memory() -> int:
    """Return how many bytes of memory this process has to itself; 0 where that can't be told."""
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared = file.read().split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except Exception:
        return 0


def forked(conversation: int, errors: int) -> None:
    """Run in a process that was forked; the first is its standard input and output."""
    os.dup2(conversation, 0)
    os.dup2(conversation, 1)
    os.dup2(errors, 2)
    for file in (conversation, errors):
        os.close(file)
    main()


def main() -> None:
    """Run until the master ends, or says so by closing the pipe."""
    # A Ctrl-C in a terminal reaches all processes; the master alone acts upon it.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise_open_files()
    to_read, to_write = os.dup(0), os.dup(1)
    # Whatever prints must not print into the conversation.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    reactor = install_reactor()
    from twisted.internet.stdio import StandardIO

    steady_clock(reactor)
    # At once, without any clean-up: nobody is left to whom it would matter.
    worker = Worker(reactor, lambda: os._exit(0))
    globalLogBeginner.beginLoggingTo(
        [LogRelay(worker.outbox)], redirectStandardIO=False, discardBuffer=True
    )
    # Its class depends on the platform, which types can't tell.
    cast(Any, StandardIO)(worker, stdin=to_read, stdout=to_write, reactor=reactor)
    sys.stdout = sys.stderr
    cast(Any, reactor).run(installSignalHandlers=False)
