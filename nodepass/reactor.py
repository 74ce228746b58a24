"""What a tunnel asks of the reactor that it runs on."""

from __future__ import annotations

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
