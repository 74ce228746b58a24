"""Makes links of the old dialects: a client waits for the number of each."""

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
from nodepass.tls import peer_pin
from nodepass.wire.linkmaker import LinkMaker, LinkTerms

from .fingerprint import fingerprint
from .linkid import LinkIdReader
from .peer import OldPeer
from .signals import CONTROL_ID

__all__ = ["OldLinkMaker"]


class OldLinkMaker(LinkMaker[OldPeer]):
    """Makes links of old dialects.

    :param web: the server's name where links are WebSockets, else None.
    """

    def __init__(self, terms: LinkTerms, host: str, port: int, web: str | None) -> None:
        super().__init__(terms, host, port)
        self._web = web

    async def make_one(self, peer: OldPeer, number: int) -> None:
        terms = self.terms
        fresh = _NewLink(peer)
        factory: Any = Factory.forProtocol(lambda: self._beneath(fresh))
        factory.noisy = False
        if terms.creator is not None:
            factory = TLSMemoryBIOFactory(terms.creator(), True, factory, terms.reactor)
        await terms.dial(self.host, self.port, factory)
        timer = terms.reactor.callLater(terms.handshake_timeout, fresh.time_out)
        try:
            await fresh.ready
        finally:
            if timer.active():
                timer.cancel()

    def _beneath(self, fresh: _NewLink) -> Protocol:
        if self._web is None:
            return fresh
        # Not at the top: few servers have such links.
        from .websocket import WebSocketLink

        fresh.beneath = WebSocketLink(self._web, fresh)
        return fresh.beneath


@implementer(IHandshakeListener)
class _NewLink(Protocol):
    """A link before it has its number.

    :ivar beneath: what will be its transport, where that is not a connection.
    """

    transport: Any
    beneath: Protocol | None = None

    def __init__(self, peer: OldPeer) -> None:
        self._peer = peer
        self._fingerprint = ""
        self._id = LinkIdReader(peer.dialect)
        self._timed_out = False
        self.ready: Deferred[None] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        tune(self.transport)

    def handshakeCompleted(self) -> None:
        self._fingerprint = fingerprint(peer_pin(self.transport), self._peer.dialect)

    def time_out(self) -> None:
        """The server took too long."""
        self._timed_out = True
        self._abort()

    def _abort(self) -> None:
        transport: Any = self.beneath.transport if self.beneath is not None else self.transport
        if transport is not None:
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        number = self._id.feed(data)
        if number is None or self.ready.called:
            return
        peer, transport = self._peer, self.transport
        try:
            if peer.closed:
                raise PeerError("the server is gone")
            if number != CONTROL_ID or not peer.dialect.traits.http:
                peer.links.add(number, transport, self._fingerprint, self._id.rest)
            elif not peer.controlled:
                peer.attach(transport, self._fingerprint, self._id.rest)
            else:
                raise PeerError("a second control link")
        except PeerError:
            self._abort()
            self.ready.errback(Failure())
            return
        self.ready.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ready.called:
            if self._timed_out:
                reason = Failure(PeerError("no number came for a data link"))
            self.ready.errback(reason)
