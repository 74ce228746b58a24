"""Places for worker processes, and the runs of instances in them."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from .workerprocess import WorkerProcess

__all__ = ["Place", "Run"]

#: Seconds that a worker has to live for its end not to count as one right after its start.
EARLY_END = 5.0
#: Seconds of the first and of the longest pause before a worker is replaced that ends right after
#: its start again and again: what ends it may go away, and must not keep the machine busy.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0


@define(eq=False)
class Run:
    """One run of an instance.

    :ivar worker: where it was started; None before.
    :ivar waiting: for its ports to be closed.
    """

    number: int
    id: str
    url: str
    place: Place
    worker: WorkerProcess | None = None
    waiting: list[Deferred[None]] = field(factory=list)
    releasing: bool = False

    def released(self) -> None:
        """Its ports are closed."""
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            one.callback(None)


@define(eq=False)
class Place:
    """Where a worker process is, or is to be.

    :ivar leaving: it gets no more instances, and ends with the last one.
    :ivar early_ends: how many workers in a row have ended here right after their start.
    """

    worker: WorkerProcess | None = None
    runs: dict[int, Run] = field(factory=dict)
    leaving: bool = False
    early_ends: int = 0
    pause: IDelayedCall | None = None

    def pause_after(self, seconds: float) -> float:
        """Its worker has ended: the seconds until another one is started.

        :param seconds: that the worker was up.
        """
        self.early_ends = 0 if seconds >= EARLY_END else self.early_ends + 1
        if self.early_ends <= 1:
            return 0.0
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.early_ends - 2, 16))
