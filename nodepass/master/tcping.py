"""How long a TCP connect to some address takes, asked through the API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from nodepass.address import Address, parse_address
from nodepass.racing import connect_tcp, dial_cause
from nodepass.reactor import IReactor
from nodepass.resolver import CachingResolver

from . import models

__all__ = ["Tcping"]

#: Connects under way at once: enough for a dashboard, too few to scan a network with.
MOST_AT_ONCE = 10

#: Seconds that a request waits for one of these places.
PATIENCE = 1.0

#: Seconds that a connect may take, the look-up of the name included.
CONNECT_LIMIT = 5.0


class Tcping:
    """Connects to an address, and hangs up.

    Names are looked up by a resolver of its own, so that one that gets no answer delays nobody
    else.

    :param clock: monotonic seconds, finer than the reactor's.
    """

    def __init__(self, reactor: IReactor, clock: Callable[[], float] = time.perf_counter) -> None:
        self._reactor = reactor
        self._clock = clock
        self._resolver = CachingResolver(reactor)
        self._places = DeferredSemaphore(MOST_AT_ONCE)
        self._under_way: set[Deferred[models.Tcping]] = set()
        self._stopped = False

    def start(self) -> None:
        """Accept requests."""
        self._stopped = False
        self._resolver.start()

    def stop(self) -> None:
        """Give up all that is under way."""
        self._stopped = True
        for each in list(self._under_way):
            each.cancel()
        self._resolver.stop()

    def ping(self, target: str) -> Deferred[models.Tcping]:
        """Connect to ``host:port``.

        :returns: fires with what became of it, a target that is none included, and one that was
            given up by `stop`. Fails only when it is cancelled.
        """
        asked = Deferred.fromCoroutine(self._ping(target))
        if not asked.called:
            self._under_way.add(asked)
            asked.addBoth(self._done, asked, target)
        return asked

    def _done(self, result: Any, asked: Deferred[models.Tcping], target: str) -> Any:
        self._under_way.discard(asked)
        if self._stopped and isinstance(result, Failure) and result.check(CancelledError):
            return _failed(target, "the master stops")
        return result

    async def _ping(self, target: str) -> models.Tcping:
        try:
            address = parse_address(target, dialed=True)
        except ValueError as error:
            return _failed(target, str(error))
        if self._stopped:
            return _failed(target, "the master stops")
        place = self._places.acquire()
        try:
            await place.addTimeout(PATIENCE, self._reactor)
        except TimeoutError:
            return _failed(target, "too many requests")
        try:
            latency = await self._connect(address)
        except CancelledError:
            raise
        except Exception:
            return _failed(target, dial_cause(Failure()))
        finally:
            self._places.release()
        return models.Tcping(target=target, connected=True, latency=latency, error=None)

    async def _connect(self, address: Address) -> int:
        """Return how long it took, ms; at least 1, as 0 stands for no connection."""
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        began = self._clock()
        protocol: Any = await connect_tcp(
            self._reactor,
            self._resolver,
            address.dial_hosts(),
            address.port,
            factory,
            CONNECT_LIMIT,
        )
        took = self._clock() - began
        protocol.transport.abortConnection()
        return max(1, round(took * 1000))


def _failed(target: str, error: str) -> models.Tcping:
    return models.Tcping(target=target, connected=False, latency=0, error=error)
