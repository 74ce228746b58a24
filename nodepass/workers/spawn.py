"""Starts worker processes, and sees to it that nothing is left of those that have ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nodepass
from nodepass.master.forker import Forker, prepared, runs

__all__ = ["Child"]

#: Seconds between two questions whether a process that was killed has ended.
REAP_INTERVAL = 0.02

_MODULE = "nodepass.workers.worker"

# No directory of the user's may stand in for a module of ours, and a Ctrl-C in the terminal is none
# of a worker's business from the first moment on.
_CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from nodepass.workers.worker import main; main(int(sys.argv[1]))"
)


class Child:
    """A worker process, and the socket that leads to it.

    :raises OSError: the system has no process or descriptor to give.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = _forked(reactor, theirs) or _Started(theirs)
        except BaseException:
            self.sock.close()
            raise
        self.pid = self._process.pid

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def end(self, ended: Callable[[str], None]) -> None:
        """It has hung up: make sure of its end.

        :param ended: called with how it has ended, in words.
        """
        self._process.kill()
        self._reap(ended)

    def _reap(self, ended: Callable[[str], None]) -> None:
        status = self._process.status()
        if status is None:
            self._reactor.callLater(REAP_INTERVAL, self._reap, ended)
        else:
            ended(f"signal {-status}" if status < 0 else f"exit status {status}")


class _Started:
    """A process with a program of its own."""

    def __init__(self, sock: socket.socket) -> None:
        root = str(Path(nodepass.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        file = sock.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(file,),
            env={**os.environ, "PYTHONPATH": path},
        )
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def status(self) -> int | None:
        """How it has ended, below 0 by a signal; None while it has not."""
        return self._process.poll()


class _Forked:
    """A process that shares its code with others, and starts at once."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self._forker = forker
        self.pid = pid

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def status(self) -> int | None:
        """As above."""
        try:
            status = self._forker.reap(self.pid)
        except OSError:
            # Without the forker the system sees to what it had made, and knows the status alone.
            return None if runs(self.pid) else -signal.SIGKILL
        return None if status is None else os.waitstatus_to_exitcode(status)


def _forked(reactor: Any, sock: socket.socket) -> _Forked | None:
    """A process made by the forker; None where there is none, or it is gone or stuck."""
    forker = prepared()
    if forker is None:
        return None
    forker.watch(reactor)
    try:
        with open(2, "wb", buffering=0, closefd=False) as errors:
            return _Forked(forker, forker.fork(sock, errors, _MODULE))
    except OSError:
        return None
