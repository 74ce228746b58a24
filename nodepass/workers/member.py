"""One worker, seen from the parent: its start, its pulse, its end, and who takes its place."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall

from .conversation import Conversation
from .messages import Beat, ToParent, ToWorker, decode_to_parent, encode
from .spawn import Child

__all__ = ["Keeper", "Member"]

#: Seconds of life after which the end of a worker is no sign that the next one will end as well.
LASTING = 5.0
#: Seconds before a worker is replaced whose forerunners have ended early too: the first such pause,
#: and the longest. The first end of all is followed by no pause.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
#: Times that the pause is doubled at most: the longest is reached far before, and the power of a
#: number that grows for ever would overflow one day.
MOST_DOUBLINGS = 16
#: Seconds without an answer after which a worker counts as hung. A machine may be busy, and ending
#: a worker ends its sessions.
HANG_TIMEOUT = 10.0


class Keeper(Protocol):
    """Who has the members."""

    def begin(self, member: Member) -> tuple[bytes, Sequence[int]]:
        """The first words to a new worker, with descriptors."""

    def alive(self, member: Member) -> None:
        """A worker has said something, whatever it is."""

    def heard(self, member: Member, message: ToParent) -> None:
        """A worker says something."""

    def gone(self, member: Member, why: str, pause: float) -> None:
        """A worker is no more; another is started in so many seconds, unless `stop` is called."""


class Member:
    """A place for a worker.

    :ivar number: its number, from 0.
    :ivar here: whether there is a worker now.
    :ivar up: whether the worker has said something, and so runs.
    """

    def __init__(self, reactor: Any, keeper: Keeper, number: int, interval: float) -> None:
        self.number = number
        self._reactor = reactor
        self._keeper = keeper
        self._interval = interval
        self._most_missed = max(2, math.ceil(HANG_TIMEOUT / interval))
        self._child: Child | None = None
        self._conversation: Conversation | None = None
        self._timer: IDelayedCall | None = None  # of the next start
        self._beat: IDelayedCall | None = None
        self._missed = 0
        self._started = 0.0
        self._early_ends = 0
        self._stopping = False
        self.up = False
        self.why = ""

    @property
    def here(self) -> bool:
        return self._child is not None

    @property
    def pid(self) -> int:
        """The worker's process id; 0 while there is none."""
        return 0 if self._child is None else self._child.pid

    def start(self) -> None:
        """Start a worker."""
        self._timer = None
        self._started = self._reactor.seconds()
        self.why = ""
        try:
            self._child = child = Child(self._reactor)
        except OSError as error:
            self._ended(f"it can't be started: {error.strerror}")
            return
        self._conversation = Conversation(
            self._reactor, child.sock, self._heard, lambda: child.end(self._ended)
        )
        self._missed = 0
        self._beat = self._reactor.callLater(self._interval, self._feel_pulse)
        words, files = self._keeper.begin(self)
        self._conversation.send(words, files)

    def say(self, message: ToWorker, files: Sequence[int] = ()) -> None:
        """Say something to the worker, if there is one."""
        if self._conversation is not None:
            self._conversation.send(encode(message), files)

    def offer(self, message: ToWorker, files: Sequence[int]) -> bool:
        """The same, where it can be said at once and the worker runs; whether it was."""
        return (
            self.up
            and self._conversation is not None
            and self._conversation.offer(encode(message), files)
        )

    def stop(self) -> None:
        """Start no other one."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def kill(self, why: str) -> None:
        """End the worker at once."""
        if self._child is not None:
            self.why = self.why or why
            self._child.kill()

    def _heard(self, data: bytes, files: list[int]) -> None:
        for file in files:
            os.close(file)  # nothing that a worker says brings any
        self.up = True
        self._missed = 0
        self._keeper.alive(self)
        message = decode_to_parent(data)
        if not isinstance(message, Beat):
            self._keeper.heard(self, message)

    def _feel_pulse(self) -> None:
        self._beat = self._reactor.callLater(self._interval, self._feel_pulse)
        self._missed += 1
        if self._missed > self._most_missed:
            self.kill(f"no answer for {self._missed * self._interval:.0f} s")
        self.say(Beat())

    def _ended(self, why: str) -> None:
        self._child = None
        self.up = False
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        lasting = self._reactor.seconds() - self._started >= LASTING
        self._early_ends = 0 if lasting else self._early_ends + 1
        pause = 0.0
        if self._early_ends > 1:
            doublings = min(self._early_ends - 2, MOST_DOUBLINGS)
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**doublings)
        if not self._stopping:
            self._timer = self._reactor.callLater(pause, self.start)
        self._keeper.gone(self, self.why or why, pause)
