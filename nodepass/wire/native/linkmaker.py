"""Makes data links: the client's side of their proof."""

from __future__ import annotations

from twisted.internet.interfaces import IHandshakeListener
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.tls import exporter
from nodepass.wire.linkmaker import LinkMaker
from nodepass.wire.newlink import NewLink

from .peer import NativePeer
from .proof import LINK_EXPORTER, LinkConnector


class NativeLinkMaker(LinkMaker[NativePeer]):
    """Makes data links of the native wire."""

    def new_link(self, peer: NativePeer, number: int) -> NewLink:
        return _NewLink(peer, number, self.terms.worker, self.terms.creator is not None)


@implementer(IHandshakeListener)
class _NewLink(NewLink):
    """A data link before the server has said that it is ready."""

    late = "the proof of a data link timed out"

    def __init__(self, peer: NativePeer, number: int, worker: int, encrypted: bool) -> None:
        super().__init__()
        self._peer = peer
        self._number = number
        self._worker = worker
        self._encrypted = encrypted
        self._proof: LinkConnector | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
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

    def dataReceived(self, data: bytes) -> None:
        if self._proof is None or self.ready.called:
            return
        peer, transport = self._peer, self.transport
        try:
            send, rest = self._proof.feed(data)
            if send:
                transport.write(send)
            if rest is None:
                return
            if peer.closed:
                raise PeerError("the server is gone")
            link = peer.links.add(self._number)
        except PeerError:
            self.fail()
            return
        peer.links.connect(link, transport, rest)
        self.ready.callback(None)
