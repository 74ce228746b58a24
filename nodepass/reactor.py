"""What a tunnel asks of the reactor that it runs on, and the clock that it should have."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
)


class IReactor(
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
):
    """Timers, TCP, sockets to be watched, and calls from the resolver's threads.

    Twisted's reactors provide each of these; none of them declares this sum, which is for type
    hints alone.
    """


def steady_clock(reactor: Any) -> None:
    """Let a reactor's timers follow a clock that nobody sets.

    Twisted's follow the time of day: set back by an hour, it would hold everything up for an hour.
    Nothing is changed where timers run already.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
