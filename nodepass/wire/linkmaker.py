"""Makes data links for a client: many side by side, each try after a failed one later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from typing import Protocol as Interface

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from nodepass.health import Health
from nodepass.openfiles import open_files
from nodepass.tlswords import tls_reason

from .newlink import NewLink

__all__ = ["MAX_IDLE", "LinkMaker", "LinkTaker", "LinkTerms", "most_links"]

#: Most idle links, whatever a server says: what the URL accepts for `max`.
MAX_IDLE = 1_000_000

#: Data links that are made side by side: a burst of visitors is served as fast as this allows, and
#: a small server's listen queue is not flooded.
SIDE_BY_SIDE = 64
#: Links that may be wanted and not made yet: as many as visitors may wait.
MAX_WANTED = 65536


class LinkTaker(Interface):
    """Whom links are made for."""

    @property
    def name(self) -> str:
        """The server, for log lines."""

    @property
    def closed(self) -> bool:
        """Whether it is gone for good."""

    @property
    def takes_links(self) -> bool:
        """Whether links can be made now."""

    @property
    def link_count(self) -> int:
        """How many it has."""


Taker = TypeVar("Taker", bound=LinkTaker)


def most_links() -> int:
    """How many links there may be at once: half of the open files, as each session needs a socket
    of its own as well."""
    return max(1, (open_files() or 2 * MAX_IDLE) // 2)


@frozen(kw_only=True)
class LinkTerms:
    """How data links are made.

    :ivar creator: what checks the server's certificate; asked for each link; None on plain links.
    :ivar most: links that there may be at once.
    :ivar dial: connects to an address; fires with what the factory built.
    :ivar handshake_timeout: seconds until a link must be ready.
    :ivar interval: seconds between two tries after failures, the shortest and the longest.
    :ivar worker: the server's worker that the links are for.
    :ivar cause: names what goes wrong for `Health`.
    :ivar patience: failures in a row that are not worth a word.
    """

    reactor: Any
    health: Health
    creator: Callable[[], IOpenSSLClientConnectionCreator] | None
    most: int
    dial: Callable[[str, int, IProtocolFactory], Deferred[IProtocol]]
    handshake_timeout: float
    interval: tuple[float, float]
    worker: int = 0
    cause: str = "link"
    patience: int = 0


class LinkMaker(Generic[Taker]):
    """Makes data links; each dialect says how one is made."""

    def __init__(self, terms: LinkTerms, host: str, port: int) -> None:
        self.terms = terms
        self.host = host
        self.port = port
        self._wanted = 0
        self._making: set[Deferred[None]] = set()
        self._next = 1
        self._failures = 0
        self._pause: IDelayedCall | None = None
        self._stopped = False

    def start_over(self, host: str, port: int) -> None:
        """The server was joined again: it asks anew for what it wants."""
        self.host = host
        self.port = port
        self._wanted = 0
        self.terms.health.well(self.terms.cause)

    def make(self, peer: Taker, count: int) -> None:
        """Make so many more links."""
        self._wanted = min(MAX_WANTED, self._wanted + count)
        self._go_on(peer)

    def stop(self) -> None:
        """Begin no more. Those that are half made go on: the server may have let a session move to
        one by now, which would be lost with it."""
        self._stopped = True
        self.terms.health.well(self.terms.cause)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def close(self) -> None:
        """The peer is closed: make no more, and drop what is half made."""
        self.stop()
        for making in list(self._making):
            making.cancel()

    def _go_on(self, peer: Taker) -> None:
        # After a failure one at a time shows whether things are well again.
        most = 1 if self._failures else SIDE_BY_SIDE
        while (
            self._wanted > 0
            and self._pause is None
            and peer.takes_links
            and not self._stopped
            and len(self._making) < most
        ):
            if peer.link_count + len(self._making) >= self.terms.most:
                self.terms.health.log.limited(
                    "files",
                    "no more than {most} data links to {peer}: the process may open no more files",
                    most=self.terms.most,
                    peer=peer.name,
                )
                break
            self._wanted -= 1
            number, self._next = self._next, self._next % 0xFFFFFFFF + 1
            making = Deferred.fromCoroutine(self._make_one(peer, number))
            self._making.add(making)
            making.addCallbacks(
                self._made, self._not_made, callbackArgs=(peer,), errbackArgs=(peer,)
            )
            making.addBoth(self._finished, making, peer)

    def _made(self, _: None, peer: Taker) -> None:
        self._failures = 0
        self.terms.health.well(self.terms.cause)

    def _not_made(self, failure: Failure, peer: Taker) -> None:
        if self._stopped or peer.closed:
            return
        self._wanted += 1
        if self._pause is None:
            least, most = self.terms.interval
            pause = min(most, least * 2.0 ** min(self._failures, 16))
            self._failures += 1
            self._pause = self.terms.reactor.callLater(
                pause, self._resume, peer, tls_reason(failure)
            )

    def _resume(self, peer: Taker, reason: str) -> None:
        """Say what failed, and try again; but a server that is leaving takes no links, which is no
        trouble. That it leaves, or is lost, may be heard a moment after its port has refused."""
        self._pause = None
        if not peer.takes_links:
            self.terms.health.well(self.terms.cause)
        elif self._failures > self.terms.patience:
            self.terms.health.trouble(
                self.terms.cause,
                "can't make a data link to {peer}: {reason}; trying on",
                peer=peer.name,
                reason=reason,
            )
        self._go_on(peer)

    def _finished(self, _: None, making: Deferred[None], peer: Taker) -> None:
        self._making.discard(making)
        self._go_on(peer)

    async def _make_one(self, peer: Taker, number: int) -> None:
        """Make one link, which gives itself to the peer; raises what keeps it from it."""
        terms = self.terms
        fresh = self.new_link(peer, number)
        factory: Any = _Once(self.beneath(fresh))
        if terms.creator is not None:
            factory = TLSMemoryBIOFactory(terms.creator(), True, factory, terms.reactor)
        await terms.dial(self.host, self.port, factory)
        timer = terms.reactor.callLater(terms.handshake_timeout, fresh.time_out)
        try:
            await fresh.ready
        except CancelledError:
            fresh.abort()
            raise
        finally:
            if timer.active():
                timer.cancel()

    def new_link(self, peer: Taker, number: int) -> NewLink:
        """What becomes a link of the peer's.

        :param number: the link's, where this end numbers them.
        """
        raise NotImplementedError

    def beneath(self, fresh: NewLink) -> Protocol:
        """What a connection or its TLS has for a protocol: the link, or what will be its
        transport."""
        return fresh


class _Once(Factory):
    """Gives a protocol to the one connection that is made, and keeps nothing that knows it."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol: Protocol | None = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        protocol, self._protocol = self._protocol, None
        return protocol
