"""A worker process: one role, told what to do over a socket, and ended with its parent."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.errors import NodePassError
from nodepass.health import Health
from nodepass.logs import Level, Log, mask
from nodepass.openfiles import open_files, raise_open_files
from nodepass.reactor import install_reactor, steady_clock
from nodepass.roles.instance import MEGABIT, Limits

from .board import Board
from .conversation import Conversation
from .messages import (
    Beat,
    Begin,
    Failed,
    Grant,
    Guess,
    Line,
    Link,
    Ports,
    Ready,
    Released,
    Reload,
    Stop,
    ToParent,
    Trouble,
    Want,
    Well,
    decode_to_worker,
    encode,
)
from .rates import LeasedLimiter
from .roles import Desk, WorkerRole, role_class
from .slots import SharedSlots
from .work import Work

__all__ = ["Worker", "main"]

#: Bytes that may wait for the parent before log lines are dropped: it has stopped listening.
MOST_WAITING = 1 << 20
#: Characters of a log line, cut beyond: none of ours comes near.
LONGEST_LINE = 4000


class _Health(Health):
    """Passes troubles on; the parent logs them, once for all workers."""

    def __init__(self, log: Log, worker: Worker) -> None:
        super().__init__(log)
        self._worker = worker
        self._causes: set[str] = set()

    def trouble(
        self, cause: str, format: str, /, *, level: Level = Level.WARN, **fields: object
    ) -> None:
        self._causes.add(cause)
        text = mask(formatEvent({"log_format": format, **fields}))
        self._worker.tell(Trouble(cause, level, text))

    def well(self, cause: str) -> None:
        if cause in self._causes:
            self._causes.discard(cause)
            self._worker.tell(Well(cause))


class _Log(Log):
    """Names what is limited, so that the parent can limit it over all workers."""

    def limited(self, key: Any, format: str, /, **options: Any) -> None:
        super().limited(key, format, nodepass_key=repr(key), **options)


class Worker:
    """The worker's end of the conversation with its parent.

    :param sock: leads to the parent.
    """

    def __init__(self, reactor: Any, sock: socket.socket) -> None:
        self._reactor = reactor
        self._parent = Conversation(reactor, sock, self._heard, self._orphaned)
        self._role: WorkerRole | None = None
        self._limiters: list[LeasedLimiter] = []
        self._ready = False
        self._log = Log(Level.ERROR)

    def tell(self, message: ToParent) -> None:
        """Say something to the parent."""
        self._parent.send(encode(message))

    def line(self, level: Level, text: str, key: str) -> None:
        """Pass a log line on."""
        if self._parent.backlog < MOST_WAITING:
            self.tell(Line(level, text[:LONGEST_LINE], key[:LONGEST_LINE]))

    def _orphaned(self) -> None:
        os._exit(0)  # at once: nobody is left to whom it would matter

    def _heard(self, data: bytes, files: list[int]) -> None:
        message = decode_to_worker(data)
        role = self._role
        if isinstance(message, Begin):
            self._begin(Work.decode(message.work), files)
        elif isinstance(message, Beat):
            self.tell(message)
        elif isinstance(message, Grant):
            self._limiters[message.way].granted(message.size)
        elif role is None:
            if isinstance(message, Stop):  # it could not begin
                self._reactor.stop()
            for file in files:
                os.close(file)
        elif isinstance(message, Ports):
            tcp, udp = (socket.socket(fileno=file) for file in files)
            role.take_visitors(tcp, udp)
        elif isinstance(message, Link) and not files:
            # The system keeps back what this process has no descriptor for.
            role.lose_link(os.strerror(errno.EMFILE))
        elif isinstance(message, Link):
            sock = socket.socket(fileno=files[0])
            sock.setblocking(False)
            role.take_link(sock)
        elif isinstance(message, Guess):
            role.guess(message.host)
        elif isinstance(message, Reload):
            role.reload()
        elif isinstance(message, Stop):
            self._role = None
            stopping = Deferred.fromCoroutine(self._stop(role))
            stopping.addErrback(self._complain)
            stopping.addBoth(lambda _: self._reactor.stop())

    def _begin(self, work: Work, files: list[int]) -> None:
        import setproctitle

        setproctitle.setproctitle(f"nodepass worker {work.number + 1} of {work.count}")
        config = work.config
        log = _Log(config.log)
        memory, *pool = files
        board = Board(work.count, memory)
        row = board.row(work.number)
        if config.rate:
            self._limiters = [
                LeasedLimiter(config.rate * MEGABIT, self._reactor, partial(self._want, way))
                for way in range(2)
            ]
        limits = Limits(
            SharedSlots(config.slot, open_files(), tuple(pool), row),
            *(self._limiters or (None,) * 2),
        )
        try:
            role: WorkerRole = role_class(config)(
                Desk(work.number, work.count, row, self.tell),
                config,
                work.tuning,
                self._reactor,
                _Health(log, self),
                ready=self._now_ready,
                failed=lambda error: self.tell(Failed(str(error))),
                limits=limits,
            )
            role.bind()
            role.start()
        except NodePassError as error:
            self.tell(Failed(str(error)))
            return
        self._role = role
        self.tell(Beat())  # from now on links are welcome
        role.keep_counting()

    def _want(self, way: int, size: float, sessions: int) -> None:
        self.tell(Want(way, size, sessions))

    def _now_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self.tell(Ready())

    async def _stop(self, role: WorkerRole) -> None:
        await role.release()
        self.tell(Released())
        await role.stop()

    def _complain(self, failure: Failure) -> None:
        self._log.failure("a worker failed to stop", failure)


@implementer(ILogObserver)
class _Lines:
    """Passes log lines to the parent. Of what is not ours, only warnings and errors."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __call__(self, event: LogEvent) -> None:
        level = cast("Level | None", event.get("nodepass_level"))
        if level is None:
            kind = event.get("log_level")
            if kind is LogLevel.warn:
                level = Level.WARN
            elif kind in (LogLevel.error, LogLevel.critical):
                level = Level.ERROR
            else:
                return
        key = cast(str, event.get("nodepass_key", ""))
        lines = [formatEvent(event)]
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            lines += failure.getTraceback().rstrip("\n").split("\n")
        for line in lines:
            self._worker.line(level, mask(line), key)


def forked(conversation: int, errors: int) -> None:
    """Run in a process that was forked; its error output goes where its parent's does."""
    os.dup2(errors, 2)
    os.close(errors)
    main(conversation)


def main(file: int) -> None:
    """Run until the parent says stop, or is no more.

    :param file: the descriptor of the socket that leads to the parent.
    """
    # A Ctrl-C in a terminal, and systemd's SIGTERM, reach all processes; the parent acts upon them.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise_open_files()
    reactor = install_reactor()
    steady_clock(reactor)
    worker = Worker(reactor, socket.socket(fileno=file))
    globalLogBeginner.beginLoggingTo([_Lines(worker)], redirectStandardIO=False, discardBuffer=True)
    cast(Any, reactor).run(installSignalHandlers=False)
    sys.stdout.flush()
    os._exit(0)
