"""Makes worker processes by forking one that has all of their code loaded and runs none of it.

They share its memory, which is most of what an idle worker takes, and are there within
milliseconds. The forker in turn is forked off the master before that has a reactor, threads or
sockets, so that the master shares the same memory too. Where that can't be, workers are started as
programs of their own.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any, cast

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["MASTER_WORKER", "ForkedProcess", "Forker", "prepare", "prepared", "runs"]

#: The module that a master's workers run.
MASTER_WORKER = "nodepass.master.worker"

#: Seconds within which the forker answers: it does nothing else, and the master waits for it.
PATIENCE = 1.0
#: Seconds between two questions whether a process that was killed has ended.
REAP_INTERVAL = 0.01

_FORK = b"fork "
_REAP = b"reap "
_NOT_YET = b"not yet"


@implementer(IReadDescriptor)
class Forker:
    """The master's end of the forker."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self._pid = pid
        self._link = link
        self._reactor: Any = None
        link.settimeout(PATIENCE)

    @classmethod
    def start(cls) -> Forker:
        """Fork the forker, which takes what is loaded now along."""
        gc.collect()
        # What is there now is never looked at by the collector, whose marks would unshare it.
        gc.freeze()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                _serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        return cls(pid, ours)

    def watch(self, reactor: Any) -> None:
        """Notice its end in this reactor, so that nothing is left of it."""
        if self._reactor is None and self._link.fileno() != -1:
            self._reactor = reactor
            reactor.addReader(self)

    def fork(self, conversation: Any, errors: Any, module: str = MASTER_WORKER) -> int:
        """Make a worker, by calling ``forked`` of a module with the descriptors of two files.

        :param conversation: leads to it.
        :param errors: for what it writes to its standard error.
        :returns: its process id, which stays its own until `reap` has told its end.
        :raises OSError: the forker is gone or stuck.
        """
        return int(self._ask(_FORK + module.encode(), conversation.fileno(), errors.fileno()))

    def reap(self, pid: int) -> int | None:
        """Return how a worker has ended, as `os.waitpid` has it; None while it has not.

        :raises OSError: the forker is gone or stuck.
        """
        answer = self._ask(_REAP + b"%d" % pid)
        return None if answer == _NOT_YET else int(answer)

    def _ask(self, request: bytes, *files: int) -> bytes:
        try:
            os.kill(self._pid, signal.SIGCONT)  # whoever stopped it did not mean to stop the master
            socket.send_fds(self._link, [request], files)
            answer = self._link.recv(64)
            if not answer:
                raise ConnectionError("the forker is gone")
        except OSError:
            self.close()  # an answer that came later would be taken for that to another question
            raise
        return answer

    def close(self) -> None:
        """End the forker; workers that it has made go on."""
        if self._link.fileno() != -1:
            if self._reactor is not None:
                self._reactor.removeReader(self)
            self._link.close()
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    # What the reactor sees of it. It says nothing unasked, and answers are read where they are
    # waited for: what the reactor hears of is its end.

    def fileno(self) -> int:
        return self._link.fileno()

    def doRead(self) -> None:
        self.close()

    def connectionLost(self, reason: Failure) -> None:
        self.close()

    def logPrefix(self) -> str:
        return "forker"


# What all workers run, the reactor excluded: it holds descriptors, which must not be shared.
_NEEDED = (
    "twisted.internet.default",
    "twisted.internet.stdio",
    "cryptography.hazmat.backends.openssl.backend",
    "nodepass.relay.engine.relay",
    "nodepass.roles.client",
    "nodepass.roles.forward",
    "nodepass.roles.server",
    "nodepass.wire.native.acceptor",
    "nodepass.wire.native.connector",
)

_prepared: Forker | None = None


def prepare(*modules: str) -> None:
    """Fork the forker now: the only thread runs, and no reactor is installed yet.

    :param modules: those that workers will run; a master's unless given.

    Without effect but on Linux: elsewhere a process that was forked can't rely on system libraries.
    """
    global _prepared
    if sys.platform != "linux" or _prepared is not None:
        return
    for module in (*_NEEDED, *(modules or (MASTER_WORKER,))):
        import_module(module)
    try:
        _prepared = Forker.start()
        # It would end by itself a moment later; a master that has ended leaves nothing.
        atexit.register(_prepared.close)
    except OSError:
        pass  # no process to give: workers that are spawned will say so


def prepared() -> Forker | None:
    """Return the forker of this process, if there is one."""
    return _prepared


def _serve(link: socket.socket) -> None:
    """Fork and reap until the master has gone; whatever fails ends it."""
    import setproctitle

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.disable()
    # Who reads what the master prints must not wait for this process, too.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(nowhere, file)
    os.close(nowhere)
    setproctitle.setproctitle("nodepass forker")
    made: set[int] = set()
    while True:
        request, files, _, _ = socket.recv_fds(link, 64, 2)
        if not request:
            for pid in made:
                os.kill(pid, signal.SIGKILL)  # they end by themselves, unless they were stopped
            os._exit(0)
        if request.startswith(_FORK):
            pid = os.fork()
            if pid == 0:
                link.close()
                _become_worker(request.removeprefix(_FORK).decode(), files)
            made.add(pid)
            for file in files:
                os.close(file)
            answer = b"%d" % pid
        else:
            pid, status = os.waitpid(int(request.removeprefix(_REAP)), os.WNOHANG)
            made.discard(pid)
            answer = b"%d" % status if pid else _NOT_YET
        link.send(answer)


def _become_worker(module: str, files: list[int]) -> None:
    import setproctitle

    setproctitle.setproctitle("nodepass worker")
    gc.enable()
    try:
        import_module(module).forked(*files)
    except BaseException:
        sys.excepthook(*cast(Any, sys.exc_info()))
    finally:
        os._exit(1)


def runs(pid: int) -> bool:
    """Whether a process has not ended yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def _unheard(*_: object) -> None:
    pass


class _Pipe(Protocol):
    """One of the sockets that lead to a worker."""

    def __init__(self, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._received = received
        self._lost = lost

    def abandon(self) -> None:
        """Close it, and let nobody hear of it."""
        self._received = self._lost = _unheard
        cast(Any, self.transport).abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost()


class ForkedProcess:
    """A process that the forker has made, as the transport of a ``ProcessProtocol``.

    :param protocol: hears what it would of a process made by ``reactor.spawnProcess``.
    :raises OSError: it can't be made.
    """

    def __init__(self, reactor: Any, forker: Forker, protocol: Any) -> None:
        self._reactor = reactor
        self._forker = forker
        self._protocol = protocol
        self._status: int | None = None
        self._errors_open = True
        talk, their_talk = socket.socketpair()
        errors, their_errors = socket.socketpair()
        forker.watch(reactor)
        with talk, their_talk, errors, their_errors, ExitStack() as undone:
            # All that may fail comes before the process is there, which nobody would end then.
            self._talk = self._adopt(talk, protocol.outReceived, self._talk_lost)
            undone.callback(self._talk.abandon)
            self._errors = self._adopt(errors, protocol.errReceived, self._errors_lost)
            undone.callback(self._errors.abandon)
            self.pid = forker.fork(their_talk, their_errors)
            undone.pop_all()
        protocol.makeConnection(self)

    def _adopt(
        self, end: socket.socket, received: Callable[[bytes], None], lost: Callable[[], None]
    ) -> Any:
        pipe = _Pipe(received, lost)
        factory = Factory.forProtocol(lambda: pipe)
        factory.noisy = False
        end.setblocking(False)
        self._reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, factory)
        return pipe

    def writeToChild(self, childFD: int, data: bytes) -> None:
        """Write to its standard input."""
        self._talk.transport.write(data)

    def loseConnection(self) -> None:
        """Close what leads to it."""
        self._talk.transport.loseConnection()

    def signalProcess(self, name: str) -> None:
        """Kill it, whatever the name: nothing else is ever asked for.

        :raises ProcessExitedAlready: it has ended.
        """
        if self._status is not None:
            raise ProcessExitedAlready()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            raise ProcessExitedAlready() from None

    def _talk_lost(self) -> None:
        self._protocol.childConnectionLost(1)
        self._reap()

    def _reap(self) -> None:
        try:
            self._status = self._forker.reap(self.pid)
        except OSError:
            # Without the forker the system sees to what it had made, and knows the status alone.
            if not runs(self.pid):
                self._status = signal.SIGKILL
        if self._status is None:
            self._reactor.callLater(REAP_INTERVAL, self._reap)
        else:
            self._check_ended()

    def _errors_lost(self) -> None:
        self._errors_open = False
        self._check_ended()

    def _check_ended(self) -> None:
        if self._status is None or self._errors_open:
            return
        code = os.waitstatus_to_exitcode(self._status)
        if code == 0:
            reason: Exception = ProcessDone(self._status)
        elif code > 0:
            reason = ProcessTerminated(code, None, self._status)
        else:
            reason = ProcessTerminated(None, -code, self._status)
        self._protocol.processEnded(Failure(reason))
