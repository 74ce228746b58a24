"""Starts worker processes, and sees to it that nothing is left of those that have ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodepass

__all__ = ["Child"]

#: Seconds between two questions whether a process that was killed has ended.
REAP_INTERVAL = 0.02

# No directory of the user's may stand in for a module of ours, and a Ctrl-C in the terminal is none
# of a worker's business from the first moment on.
_CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from nodepass.workers.worker import main; main(int(sys.argv[1]))"
)


class Child:
    """A worker process.

    :ivar sock: leads to it.
    :raises OSError: the system has no process or descriptor to give.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(nodepass.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        file = theirs.fileno()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CODE, str(file)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(file,),
                    env={**os.environ, "PYTHONPATH": path},
                )
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
        status = self._process.poll()
        if status is None:
            self._reactor.callLater(REAP_INTERVAL, self._reap, ended)
        else:
            ended(f"signal {-status}" if status < 0 else f"exit status {status}")
