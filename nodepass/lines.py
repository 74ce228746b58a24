"""Lines for a reader who may stop reading: they wait in a thread, so that nobody else does.

A terminal that is held with Ctrl-S, a log driver that hangs and a pipe that is full all block who
writes to them. Making the descriptor non-blocking is no cure: it is shared with other programs.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TextIO

from nodepass.logs import Level, format_line

__all__ = ["BackgroundStream"]

#: Most characters of lines that wait for a reader: some minutes of a busy log. Later ones are
#: dropped and counted.
MOST_WAITING = 1 << 20
#: Seconds that lines may still take when the process ends.
CLOSE_PATIENCE = 1.0
#: Seconds between two tries where another program made the descriptor non-blocking.
RETRY_INTERVAL = 0.05

_LOST = "{count} lines of the log were lost: nobody read them, or there was no room for them"


class BackgroundStream:
    """Writes to the file behind a stream, in order, and never blocks who writes to it.

    Whoever has it writes whole lines. It takes the descriptor and not the stream, whose lock would
    stop the interpreter's end while a write is stuck.

    :param stream: one with a descriptor, to which nothing else is written until `close`.
    :raises OSError, ValueError, AttributeError: it has none.
    """

    def __init__(self, stream: TextIO) -> None:
        stream.flush()
        self._terminal = stream.isatty()
        self._encoding = stream.encoding
        # A descriptor of our own: the number can't come to mean another file.
        self._file = open(os.dup(stream.fileno()), "wb", buffering=0)
        # Its lock may be taken twice, as a signal's handler may log too.
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._size = 0
        self._lost = 0
        self._taken = 0  # lines that the one on its way stands for
        self._full = False
        self._closing = False
        self._broken = False
        # A daemon: a write that is stuck must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name="nodepass-log", daemon=True)
        self._thread.start()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._terminal

    def flush(self) -> None:
        """Nothing: each line is written as soon as it can be."""

    def write(self, text: str) -> int:
        """Have a line written, or counted as lost where too many wait.

        :raises BrokenPipeError: nobody reads any more.
        """
        with self._changed:
            if self._broken:
                raise BrokenPipeError
            # Once full it stays so until all has gone, for one gap and not one at each line read.
            if self._waiting and self._size + len(text) > MOST_WAITING:
                self._full = True
            if self._full:
                self._lost += 1
            elif self._thread.is_alive():
                self._waiting.append(text)
                self._size += len(text)
                self._changed.notify()
            else:
                self._put(text)  # of the interpreter's last moments
        return len(text)

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Wait until all is written, but no longer than so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience)

    def _run(self) -> None:
        good = True
        while (text := self._next(good)) is not None:
            try:
                self._put(text)
                good = True
            except BrokenPipeError:
                with self._changed:
                    self._broken = True
                return
            except OSError:  # a full disk, say: later lines may find room
                good = False
                with self._changed:
                    self._lost += self._taken

    def _next(self, good: bool) -> str | None:
        """Wait for what is to be written next; None at the end.

        :param good: whether the last line was written.
        """
        with self._changed:
            if not self._waiting:
                self._full = False
            while not self._waiting and not self._closing and not (self._lost and good):
                self._changed.wait()
            if self._waiting:
                self._taken, text = 1, self._waiting.popleft()
                self._size -= len(text)
                return text
            if not self._lost or not good:
                return None
            self._taken, self._lost = self._lost, 0
        return format_line(
            {"log_time": time.time(), "log_format": _LOST, "count": self._taken}, Level.WARN
        )

    def _put(self, text: str) -> None:
        rest = text.replace("\n", os.linesep).encode(self._encoding, "backslashreplace")
        while rest:
            written = self._file.write(rest)
            if written is None:
                time.sleep(RETRY_INTERVAL)
            else:
                rest = rest[written:]
