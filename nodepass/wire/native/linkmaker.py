"""Makes data links: the client's side of their proof."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.relay.tcp import tune
from nodepass.tls import exporter
from nodepass.wire.linkmaker import LinkMaker

from .peer import NativePeer
from .proof import LINK_EXPORTER, LinkConnector, ProofError


class NativeLinkMaker(LinkMaker[NativePeer]):
    """Makes data links of the native wire."""

    async def make_one(self, peer: NativePeer, number: int) -> None:
        terms = self.terms
        encrypted = terms.creator is not None
        factory: Any = Factory.forProtocol(lambda: _NewLink(peer, number, terms.worker, encrypted))
        factory.noisy = False
        if terms.creator is not None:
            factory = TLSMemoryBIOFactory(terms.creator(), True, factory, terms.reactor)
        protocol: Any = await terms.dial(self.host, self.port, factory)
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
