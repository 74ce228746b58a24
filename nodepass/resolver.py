"""Names into addresses.

Twisted looks names up in ten threads that all users of a reactor share, so that one dead name
server stalls every dial of the process. :class:`CachingResolver` has threads of its own, few and
bounded, and a small cache that outlives an outage.
"""

from __future__ import annotations

import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from attrs import define, field, frozen
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import (
    DNSLookupError,
)
from twisted.python.failure import Failure

from nodepass.address import Endpoint

__all__ = ["CachingResolver", "LookupTimeout", "resolve_udp"]

#: Look-ups under way at once, each in a thread. A name server that hangs holds one per name.
THREADS = 4

#: Names that wait for a thread. Names come from configuration, so there are few; more than this
#: means that no look-up comes back any more.
MAX_QUEUED = 128

#: Names kept in the cache; the one looked up longest ago goes first.
MAX_CACHED = 256

#: Addresses used of one answer: more only make a failing dial slower.
MAX_ADDRESSES = 16

#: Seconds an answer counts as fresh: long enough for a burst of visitors, short enough to follow
#: a target that moves.
FRESH = 5.0

#: Seconds beyond that in which an answer still serves when no new one can be had (RFC 8767).
STALE = 60.0

#: Seconds that a caller waits for an answer.
PATIENCE = 10.0

#: Seconds that a caller waits when a stale answer is at hand (RFC 8767 section 5 suggests 1.8).
PATIENCE_WITH_STALE = 1.5

#: RFC 6761 reserves the name. IPv4 comes first as it does for an empty host: services that listen
#: on one loopback address listen on that one, and a UDP session has no second try.
LOCALHOST = ("127.0.0.1", "::1")

#: Hosts of which is remembered whether they are literals: more than a node has targets.
LITERALS_KEPT = 1024

Addresses = tuple[str, ...]


class LookupTimeout(DNSLookupError):
    """No name server answered in time."""


@frozen(kw_only=True)
class _Answer:
    addresses: Addresses
    at: float


@define(eq=False)
class _Query:
    """One name being looked up, and who waits for it."""

    host: str
    waiters: list[Deferred[Addresses]] = field(factory=list)


@lru_cache(LITERALS_KEPT)
def _is_literal(host: str) -> bool:
    return bool(isIPAddress(host) or isIPv6Address(host))


def _daemon_thread(work: Callable[[], None]) -> None:
    # A daemon, because getaddrinfo can't be interrupted and must not hold up the process' exit.
    threading.Thread(target=work, name="nodepass-resolver", daemon=True).start()


class CachingResolver:
    """Looks host names up, never in the reactor's thread nor in its pool.

    Queries for the same name are made once. The threads live only as long as their look-up, so
    that there is none to wait for at the end.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        getaddrinfo: Callable[..., Sequence[Any]] = socket.getaddrinfo,
        in_thread: Callable[[Callable[[], None]], None] = _daemon_thread,
    ) -> None:
        """
        :param reactor: provides ``IReactorTime`` and ``IReactorFromThreads``.
        :param getaddrinfo: as :func:`socket.getaddrinfo`, may block.
        :param in_thread: runs a callable in another thread.
        """
        self._reactor = reactor
        self._getaddrinfo = getaddrinfo
        self._in_thread = in_thread
        self._cache: OrderedDict[str, _Answer] = OrderedDict()
        self._queries: dict[str, _Query] = {}
        self._queue: deque[_Query] = deque()
        self._busy = 0
        self._running = False

    def start(self) -> None:
        """Accept look-ups."""
        self._running = True

    def stop(self) -> None:
        """Refuse look-ups and cancel those under way; what a thread still finds is ignored."""
        self._running = False
        queries = list(self._queries.values())
        self._queries.clear()
        self._queue.clear()
        self._cache.clear()
        for query in queries:
            for waiter in list(query.waiters):
                waiter.cancel()

    def lookup(self, host: str) -> Deferred[Addresses]:
        """Find the addresses of a host, in the system's order of preference, at least one.

        An IP literal is its own address, and ``localhost`` is known without asking.

        :returns: fires with IP literals; fails with :exc:`LookupTimeout` or another
            :exc:`DNSLookupError`. It may be cancelled.
        """
        addresses = self.known(host)
        if addresses:
            return succeed(addresses)
        if not self._running:
            return fail(DNSLookupError("the resolver is stopped"))
        name = host.lower().rstrip(".")
        known = self._cache.get(name)
        age = self._reactor.seconds() - known.at if known is not None else 0.0
        stale = known.addresses if known is not None and age <= FRESH + STALE else None
        return self._ask(name, stale)

    def known(self, host: str) -> Addresses:
        """The addresses of a host if they need no looking up; else none."""
        if _is_literal(host):
            return (host,)
        name = host.lower().rstrip(".")
        if name == "localhost":
            return LOCALHOST
        answer = self._cache.get(name)
        fresh = answer is not None and self._reactor.seconds() - answer.at <= FRESH
        return answer.addresses if answer is not None and fresh else ()

    def _ask(self, name: str, stale: Addresses | None) -> Deferred[Addresses]:
        query = self._queries.get(name)
        if query is None:
            if len(self._queue) >= MAX_QUEUED:
                return succeed(stale) if stale else fail(LookupTimeout("too many look-ups wait"))
            query = self._queries[name] = _Query(name)
            self._queue.append(query)
        waiter: Deferred[Addresses] = Deferred(partial(self._leave, query))
        query.waiters.append(waiter)
        waiter.addTimeout(
            PATIENCE if stale is None else PATIENCE_WITH_STALE,
            self._reactor,
            onTimeoutCancel=partial(_no_answer, name),
        )
        if stale is not None:
            waiter.addErrback(_fall_back, stale)
        self._work()
        return waiter

    def _leave(self, query: _Query, waiter: Deferred[Addresses]) -> None:
        """A waiter gave up. A query that nobody waits for needs no thread."""
        query.waiters.remove(waiter)
        if not query.waiters and query in self._queue:
            self._queue.remove(query)
            del self._queries[query.host]

    def _work(self) -> None:
        """Give threads to queued queries while there are any."""
        while self._queue and self._busy < THREADS:
            query = self._queue.popleft()
            self._busy += 1
            try:
                self._in_thread(partial(self._in_a_thread, query))
            except RuntimeError as error:  # the system has no thread to give
                self._done(query, DNSLookupError(f"{query.host}: {error}"))

    def _in_a_thread(self, query: _Query) -> None:
        outcome: Addresses | DNSLookupError
        try:
            found = self._getaddrinfo(query.host, None, type=socket.SOCK_STREAM)
            # A name may have the same address several times; the order is the system's.
            outcome = tuple(dict.fromkeys(str(each[4][0]) for each in found))[:MAX_ADDRESSES]
        except OSError as error:
            outcome = DNSLookupError(f"{query.host}: {error.strerror or error}")
        except Exception as error:  # such as UnicodeError for a name that can't be one
            outcome = DNSLookupError(f"{query.host}: {error}")
        self._reactor.callFromThread(self._done, query, outcome)

    def _done(self, query: _Query, outcome: Addresses | DNSLookupError) -> None:
        self._busy -= 1
        if self._queries.get(query.host) is query:
            del self._queries[query.host]
            self._settle(query, outcome or DNSLookupError(f"{query.host}: no address"))
        self._work()

    def _settle(self, query: _Query, outcome: Addresses | DNSLookupError) -> None:
        if isinstance(outcome, tuple):
            self._cache[query.host] = _Answer(addresses=outcome, at=self._reactor.seconds())
            self._cache.move_to_end(query.host)
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        # One by one, because what a waiter does next may cancel another.
        while query.waiters:
            waiter = query.waiters.pop(0)
            if isinstance(outcome, tuple):
                waiter.callback(outcome)
            else:
                waiter.errback(outcome)


def _no_answer(name: str, _result: object, timeout: float) -> Addresses:
    raise LookupTimeout(f"{name}: no answer within {timeout:g} s")


def _fall_back(failure: Failure, stale: Addresses) -> Addresses:
    failure.trap(DNSLookupError)
    return stale


async def resolve_udp(resolver: CachingResolver, host: str, port: int) -> Endpoint:
    """Find where datagrams for a host go: the system's first choice among its addresses.

    :raises DNSLookupError: where it has none.
    """
    addresses = await resolver.lookup(host)
    return Endpoint(addresses[0], port)
