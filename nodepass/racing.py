"""Addresses into connections, whichever answers first.

Twisted's ``HostnameEndpoint`` waits 300 ms before it tries the second address even when the first
was refused at once; :func:`connect_tcp` races addresses as RFC 8305 asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import (
    ConnectionRefusedError,
    DNSLookupError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory
from twisted.python.failure import Failure

from nodepass.connection import connect
from nodepass.resolver import CachingResolver, LookupTimeout

__all__ = ["Attempt", "connect_tcp", "dial_cause"]

#: Seconds before the next address is tried beside one that has not answered (RFC 8305 section 8).
ATTEMPT_DELAY = 0.25

#: Connects to one IP address, port, factory and seconds given; fires with the protocol.
Attempt = Callable[[str, int, Any, float], "Deferred[Any]"]


def connect_tcp(
    reactor: Any,
    resolver: CachingResolver,
    hosts: Sequence[str],
    port: int,
    factory: IProtocolFactory,
    timeout: float,
    attempt: Attempt | None = None,
) -> Deferred[IProtocol]:
    """Connect to whichever address of a host answers first (RFC 8305).

    Addresses are tried in order, the families by turns; the next one starts when the one before
    has failed, or beside it after 250 ms.

    :param reactor: provides ``IReactorTCP`` and ``IReactorTime``.
    :param hosts: names or IP literals of one target, the preferred one first.
    :param timeout: seconds for the whole, look-up included.
    :param attempt: connects to one address; by the reactor unless given.
    :returns: fires with the protocol that ``factory`` built. Fails with what :func:`dial_cause`
        sorts. Cancelling it ends the look-up and every attempt.
    """
    if attempt is None:
        attempt = partial(connect, reactor)
    connecting = Deferred.fromCoroutine(
        _connect(reactor, resolver, hosts, port, factory, timeout, attempt)
    )
    return connecting.addTimeout(timeout, reactor, onTimeoutCancel=_timed_out)


def _timed_out(_result: object, timeout: float) -> IProtocol:
    raise TimeoutError(string=f"no connection within {timeout:g} s")


async def _connect(
    reactor: Any,
    resolver: CachingResolver,
    hosts: Sequence[str],
    port: int,
    factory: IProtocolFactory,
    timeout: float,
    attempt: Attempt,
) -> IProtocol:
    addresses: list[str] = []
    missing = DNSLookupError("no host to connect to")
    for host in hosts:
        try:
            addresses += _by_turns(await resolver.lookup(host))
        except DNSLookupError as error:
            missing = error
    if not addresses:
        raise missing
    return await _Race(reactor, addresses, port, factory, timeout, attempt).start()


def _by_turns(addresses: Iterable[str]) -> list[str]:
    """Order addresses so that the families alternate, beginning with the first one's."""
    families: dict[bool, list[str]] = {}
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    return [each for turn in zip_longest(*families.values()) for each in turn if each]


class _Race:
    """Attempts to several addresses, of which the first to succeed ends the others."""

    def __init__(
        self,
        reactor: Any,
        addresses: Iterable[str],
        port: int,
        factory: IProtocolFactory,
        timeout: float,
        attempt: Attempt,
    ) -> None:
        self._reactor = reactor
        self._attempt = attempt
        self._addresses: Iterator[str] = iter(addresses)
        self._port = port
        self._factory = factory
        self._timeout = timeout
        self._pending: list[Deferred[IProtocol]] = []
        self._failures: list[Failure] = []
        self._timer: IDelayedCall | None = None
        self._winner: Deferred[IProtocol] = Deferred(lambda _winner: self._end())

    def start(self) -> Deferred[IProtocol]:
        """Begin; fires with the first protocol, or fails when all attempts have."""
        self._next()
        return self._winner

    def _next(self) -> None:
        self._stop_timer()
        address = next(self._addresses, None)
        if address is not None:
            self._timer = self._reactor.callLater(ATTEMPT_DELAY, self._next)
            attempt = maybeDeferred(
                self._attempt, address, self._port, self._factory, self._timeout
            )
            self._pending.append(attempt)
            attempt.addCallbacks(
                self._succeeded, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
            )
        elif not self._pending:
            self._end()
            self._winner.errback(min(self._failures, key=_rank))

    def _succeeded(self, protocol: IProtocol, attempt: Deferred[IProtocol]) -> None:
        self._pending.remove(attempt)
        self._end()
        self._winner.callback(protocol)

    def _failed(self, failure: Failure, attempt: Deferred[IProtocol]) -> None:
        if attempt in self._pending:  # else it was called off
            self._pending.remove(attempt)
            self._failures.append(failure)
            self._next()

    def _end(self) -> None:
        self._stop_timer()
        pending, self._pending = self._pending, []
        for attempt in pending:
            attempt.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


#: What a dial can fail with, the more telling first: where one address refuses and another can't
#: be reached, the host is alive and the port is closed.
_CAUSES: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    ("refused", (ConnectionRefusedError,)),
    ("timed out", (TimeoutError, TCPTimedOutError, LookupTimeout)),
    ("name not found", (DNSLookupError,)),
    ("unreachable", (BaseException,)),
)


def dial_cause(failure: Failure) -> str:
    """Sort what :func:`connect_tcp` and :func:`~nodepass.resolver.resolve_udp` failed with.

    :returns: ``refused``, ``timed out``, ``name not found`` or ``unreachable``; the last is also
        what anything unforeseen counts as.
    """
    return _CAUSES[_rank(failure)][0]


def _rank(failure: Failure) -> int:
    return next(
        rank for rank, (_cause, kinds) in enumerate(_CAUSES) if isinstance(failure.value, kinds)
    )
