"""Makes data links: the client's side of their proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.health import Health
from nodepass.relay.tcp import tune
from nodepass.tls import exporter, tls_reason

from .peer import NativePeer
from .proof import LINK_EXPORTER, LinkConnector, ProofError

#: Data links that are made side by side: a burst of visitors is served as fast as this allows, and
#: a small server's listen queue is not flooded.
SIDE_BY_SIDE = 64
#: Links that may be wanted and not made yet: as many as visitors may wait.
MAX_WANTED = 65536


@frozen(kw_only=True)
class LinkTerms:
    """How data links are made.

    :ivar creator: what checks the server's certificate; asked for each link; None on plain links.
    :ivar most: links that there may be at once: half of the open files, as each session needs a
        socket of its own as well.
    :ivar dial: connects to an address; fires with what the factory built.
    :ivar interval: seconds between two tries after failures, the shortest and the longest.
    :ivar worker: the server's worker that the links are for.
    :ivar cause: names what goes wrong for `Health`.
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


class LinkMaker:
    """Makes data links for a peer: many side by side, each try after a failed one later."""

    def __init__(self, terms: LinkTerms, host: str, port: int) -> None:
        self._terms = terms
        self._host = host
        self._port = port
        self._wanted = 0
        self._making: set[Deferred[None]] = set()
        self._next = 1
        self._failures = 0
        self._pause: IDelayedCall | None = None
        self._stopped = False

    def start_over(self, host: str, port: int) -> None:
        """The server was joined again: it asks anew for what it wants."""
        self._host = host
        self._port = port
        self._wanted = 0
        self._terms.health.well(self._terms.cause)

    def make(self, peer: NativePeer, count: int) -> None:
        """Make so many more links."""
        self._wanted = min(MAX_WANTED, self._wanted + count)
        self._go_on(peer)

    def stop(self) -> None:
        """Make no more, and drop what is half made."""
        self._stopped = True
        self._terms.health.well(self._terms.cause)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for making in list(self._making):
            making.cancel()

    def _go_on(self, peer: NativePeer) -> None:
        # After a failure one at a time shows whether things are well again.
        most = 1 if self._failures else SIDE_BY_SIDE
        while (
            self._wanted > 0
            and self._pause is None
            and peer.joined
            and not peer.draining
            and not self._stopped
            and len(self._making) < most
        ):
            if len(peer.links) + len(self._making) >= self._terms.most:
                self._terms.health.log.limited(
                    "files",
                    "no more than {most} data links to {peer}: the process may open no more files",
                    most=self._terms.most,
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

    def _made(self, _: None, peer: NativePeer) -> None:
        self._failures = 0
        self._terms.health.well(self._terms.cause)

    def _not_made(self, failure: Failure, peer: NativePeer) -> None:
        if self._stopped or peer.closed:
            return
        self._wanted += 1
        if self._pause is None:
            least, most = self._terms.interval
            pause = min(most, least * 2.0 ** min(self._failures, 16))
            self._failures += 1
            self._pause = self._terms.reactor.callLater(
                pause, self._resume, peer, tls_reason(failure)
            )

    def _resume(self, peer: NativePeer, reason: str) -> None:
        """Say what failed, and try again; but a server that is leaving takes no links, which is no
        trouble. That it leaves, or is lost, may be heard a moment after its port has refused."""
        self._pause = None
        if peer.draining:
            self._terms.health.well(self._terms.cause)
        elif peer.joined:
            self._terms.health.trouble(
                self._terms.cause,
                "can't make a data link to {peer}: {reason}; trying on",
                peer=peer.name,
                reason=reason,
            )
        self._go_on(peer)

    def _finished(self, _: None, making: Deferred[None], peer: NativePeer) -> None:
        self._making.discard(making)
        self._go_on(peer)

    async def _make_one(self, peer: NativePeer, number: int) -> None:
        terms = self._terms
        encrypted = terms.creator is not None
        factory: Any = Factory.forProtocol(lambda: _NewLink(peer, number, terms.worker, encrypted))
        factory.noisy = False
        if terms.creator is not None:
            factory = TLSMemoryBIOFactory(terms.creator(), True, factory, terms.reactor)
        protocol: Any = await terms.dial(self._host, self._port, factory)
        fresh: _NewLink = protocol.wrappedProtocol if encrypted else protocol
        timer = terms.reactor.callLater(terms.handshake_timeout, fresh.time_out)
        try:
            await fresh.ready
        finally:
            if timer.active():
                timer.cancel()


@implementer(IHandshakeListener)
class _NewLink(Protocol):
    """A data link of the client's before the server has said that it is ready."""

    transport: Any

    def __init__(self, peer: NativePeer, number: int, worker: int, encrypted: bool) -> None:
        self._peer = peer
        self._number = number
        self._worker = worker
        self._encrypted = encrypted
        self._proof: LinkConnector | None = None
        self._timed_out = False
        self.ready: Deferred[None] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        tune(self.transport)
        if not self._encrypted:
            self._start(None)

    def handshakeCompleted(self) -> None:
        self._start(exporter(self.transport, LINK_EXPORTER))

    def _start(self, binding: bytes | None) -> None:
        peer = self._peer
        self._proof = LinkConnector(
            peer.association, peer.secrets, self._number, binding, worker=self._worker
        )
        self.transport.write(self._proof.start())

    def time_out(self) -> None:
        """The server took too long."""
        self._timed_out = True
        self._abort()

    def _abort(self) -> None:
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._proof is None or self.ready.called:
            return
        try:
            send, rest = self._proof.feed(data)
        except ProofError:
            self.ready.errback(Failure())
            self._abort()
            return
        if send:
            self.transport.write(send)
        if rest is None:
            return
        if self._peer.closed:
            self._abort()
            return
        transport = self.transport
        try:
            link = self._peer.links.add(self._number)
        except PeerError:
            self.ready.errback(Failure())
            self._abort()
            return
        self._peer.links.connect(link, transport, rest)
        self.ready.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ready.called:
            if self._timed_out:
                reason = Failure(PeerError("the proof of a data link timed out"))
            self.ready.errback(reason)
