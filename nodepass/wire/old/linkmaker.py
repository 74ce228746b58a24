"""Makes links of the old dialects: a client waits for the number of each."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.tls import peer_pin
from nodepass.wire.linkmaker import LinkMaker, LinkTerms
from nodepass.wire.newlink import NewLink

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

    def new_link(self, peer: OldPeer, number: int) -> NewLink:
        return _NewLink(peer)

    def beneath(self, fresh: NewLink) -> Protocol:
        if self._web is None:
            return fresh
        assert isinstance(fresh, _NewLink)
        # Not at the top: few servers have such links.
        from .websocket import WebSocketLink

        fresh.beneath = WebSocketLink(self._web, fresh)
        return fresh.beneath


@implementer(IHandshakeListener)
class _NewLink(NewLink):
    """A link before it has its number.

    :ivar beneath: what will be its transport, where that is not a connection.
    """

    late = "no number came for a data link"
    beneath: Protocol | None = None

    def __init__(self, peer: OldPeer) -> None:
        super().__init__()
        self._peer = peer
        self._fingerprint = ""
        self._id = LinkIdReader(peer.dialect)

    def handshakeCompleted(self) -> None:
        self._fingerprint = fingerprint(peer_pin(self.transport), self._peer.dialect)

    def abort(self) -> None:
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
            self.fail()
            return
        self.ready.callback(None)
