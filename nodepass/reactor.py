"""What a tunnel asks of the reactor that it runs on, which it is, and the clock that it has."""

from __future__ import annotations

import sys
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
from twisted.internet.main import installReactor


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


def install_reactor() -> Any:
    """The reactor of a process that is ours: the one that Twisted chooses, on Linux made so that it
    hands the relay what it has for it directly."""
    if sys.platform == "linux" and "twisted.internet.reactor" not in sys.modules:
        from nodepass.relay.engine.reactor import EngineReactor

        installReactor(EngineReactor())
    from twisted.internet import reactor

    return reactor


def steady_clock(reactor: Any) -> None:
    """Let a reactor's timers follow a clock that nobody sets.

    Twisted's follow the time of day: set back by an hour, it would hold everything up for an hour.
    Nothing is changed where timers run already.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
