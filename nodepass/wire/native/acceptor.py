"""The server's side of the native wire: admits clients and their data links."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from attrs import field, frozen
from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.config import TLSLevel
from nodepass.errors import PeerError
from nodepass.logs import Log, printable
from nodepass.relay.stream import Cause
from nodepass.relay.tcp import tune
from nodepass.tls import exporter
from nodepass.wire import Flow, Peer
from nodepass.wire.listener import Acceptor
from nodepass.wire.lobby import Guest

from . import ALPN_CONTROL, ALPN_DATA
from .budget import GuessLimit, PakeBudget
from .control import ControlLink
from .handshake import CONTROL_EXPORTER, HandshakeError, Secrets, ServerHandshake, refuse
from .messages import (
    Answer,
    Confirm,
    Hello,
    Refusal,
    decode,
    expect,
    framed,
)  # fmt: skip
from .peer import NativePeer
from .proof import LINK_EXPORTER, MAGIC, LinkAcceptor, ProofError
from .settings import PeerSettings


@frozen(kw_only=True)
class ServerTerms:
    """What the server tells its clients.

    :ivar maximum: most idle links per client.
    :ivar pin: SHA-256 of the certificate that data links show now.
    :ivar workers: the server's worker processes, of which this is one.
    :ivar guessed: told of the address of each wrong guess at the key.
    """

    key: bytes | None = field(repr=False)
    flow: Flow
    tls: TLSLevel
    maximum: int
    pin: Callable[[], bytes]
    workers: int = 1
    guessed: Callable[[str], None] = lambda host: None


class NativeAcceptor(Acceptor):
    """Admits clients, and keeps their associations until nothing is left of them.

    :ivar peers: all of them, by the association's id.
    """

    def __init__(self, terms: ServerTerms, settings: PeerSettings, log: Log) -> None:
        self.terms = terms
        self.settings = settings
        self.log = log
        self.stopping = False
        self.peers: dict[bytes, NativePeer] = {}
        self._budget = PakeBudget()
        self._guesses = GuessLimit()
        self._next_pin: bytes | None = None
        self._serving: set[Deferred[None]] = set()

    # Acceptor

    def plain(self, guest: Guest, first: bytes) -> Protocol | None:
        if not MAGIC.startswith(first[: len(MAGIC)]):
            return None
        return _LinkKnock(self, guest, encrypted=False)

    def encrypted(self, guest: Guest, alpn: bytes | None) -> Protocol | None:
        if alpn == ALPN_CONTROL:
            control = ControlLink()
            control.gone().addCallback(lambda _: guest.admit())
            serving = Deferred.fromCoroutine(self._serve(control, guest))
            self._serving.add(serving)
            serving.addErrback(self._handshake_failed, guest)
            serving.addBoth(lambda _: self._serving.discard(serving))
            return control
        if alpn == ALPN_DATA:
            return _LinkKnock(self, guest, encrypted=True)
        return None

    @property
    def joined(self) -> Collection[Peer]:
        return self.peers.values()

    def refuse(self) -> None:
        self.stopping = True

    def stop(self) -> None:
        for serving in list(self._serving):
            serving.cancel()

    def guessed(self, host: str) -> None:
        self._guesses.failed(host, self.settings.clock.seconds())

    def _wrong(self, host: str) -> None:
        self.guessed(host)
        self.terms.guessed(host)

    def announce(self, pin: bytes | None) -> None:
        """Tell all clients, and those that join from now on, of the certificate that is shown next;
        None: there is none to come."""
        self._next_pin = pin
        if pin is not None:
            for peer in self.peers.values():
                peer.announce_pin(pin)

    def _forget(self, peer: NativePeer) -> None:
        """A peer is gone for good."""
        self.peers.pop(peer.association, None)

    # Control links.

    def secrets_of(self, association: bytes) -> Secrets | None:
        """What proves that somebody belongs to an association."""
        peer = self.peers.get(association)
        return None if peer is None else peer.secrets

    async def _serve(self, control: ControlLink, guest: Guest) -> None:
        host = guest.address.host
        shared = False  # the client has our share: giving up now is a guess spent
        try:
            await control.encrypted
            binding = exporter(control.transport, CONTROL_EXPORTER)
            raw = await control.read()
            hello = expect(Hello, decode(raw))
            handshake = ServerHandshake(self.terms.key, self.secrets_of)
            if self.stopping:
                raise HandshakeError("this server is stopping", Refusal.STOPPING)
            if handshake.check(hello):
                await self._pake_turn(host)
            if self.terms.tls < hello.level:
                raise HandshakeError(
                    f"the client asks for tls={hello.level}, this server has "
                    f"tls={self.terms.tls.value}; set tls={hello.level} at the server, or take tls "
                    "out of the client's URL",
                    Refusal.TLS,
                )
            answer = handshake.answer(hello, framed(raw), binding, self._answer())
            shared = self.terms.key is not None and not handshake.coming_back
            control.send_raw(answer)
            confirm = expect(Confirm, decode(await control.read()))
            shared = False
            welcome, secrets = handshake.confirmed(confirm, self.terms.pin())
            if self.terms.key is None and not handshake.coming_back:
                await self._sole_client(hello)
        except HandshakeError as error:
            if error.guess:
                self._wrong(host)
            if error.refusal is not None:
                control.send(refuse(error.refusal, str(error)))
            self._denied(guest, error)
            control.close()
            return
        except (PeerError, ConnectionClosed, SSL.Error, CancelledError) as error:
            if shared:
                self._wrong(host)
            if isinstance(error, PeerError):
                self._denied(guest, error)
            control.abort()
            return
        if not control.connected_:
            return  # it went while another client was asked whether it is there
        guest.admit()
        control.send(welcome)
        self._welcome(control, hello, handshake, secrets, guest)

    def _welcome(
        self,
        control: ControlLink,
        hello: Hello,
        handshake: ServerHandshake,
        secrets: Secrets,
        guest: Guest,
    ) -> None:
        peer = self.peers.get(handshake.association)
        if peer is not None:
            peer.address = str(guest.address)
            peer.attach(control)
            self._announce_next(peer)
            self.settings.host.returned(peer)
            return
        if handshake.coming_back:
            control.abort()  # its time ran out during the handshake
            return
        peer = NativePeer(
            self.settings,
            association=handshake.association,
            secrets=secrets,
            address=str(guest.address),
            node=hello.node,
            worker=hello.worker,
            minimum=max(1, hello.minimum),
            maximum=self.terms.maximum,
            gone=self._forget,
        )
        for other in list(self.peers.values()):
            if (other.node, other.worker) == (hello.node, hello.worker):
                other.probe().addCallback(self._replace, other)
        self.peers[peer.association] = peer
        peer.attach(control)
        self._announce_next(peer)

    def _announce_next(self, peer: NativePeer) -> None:
        """A client that comes between a certificate's announcement and its use needs it too."""
        if self._next_pin is not None:
            peer.announce_pin(self._next_pin)

    def _replace(self, there: bool, peer: NativePeer) -> None:
        """The same node has come as a new process: the older one, if silent, is no more."""
        if not there and peer.control is not None:
            peer.close(Cause.LOST, "its node has started anew")

    async def _sole_client(self, hello: Hello) -> None:
        """Without a key: the client that is there stays while it answers, and its other worker
        processes join it.

        Nothing may come between the end of this and the new client's joining.
        """

        def others() -> Iterator[NativePeer]:
            for peer in self.peers.values():
                if peer.node != hello.node or peer.worker == hello.worker:
                    yield peer

        while (peer := next(others(), None)) is not None:
            if await peer.probe():
                raise HandshakeError(
                    f"a server without a key serves one client, and {peer.name} is there; "
                    "set a key on both ends",
                    Refusal.TAKEN,
                )
            peer.close(Cause.LOST, "it does not answer, and another client came")

    async def _pake_turn(self, host: str) -> None:
        """Wait for a share of the CPU; an address with too many wrong guesses gets none."""
        now = self.settings.clock.seconds()
        if not self._guesses.allows(host, now):
            raise HandshakeError(
                "too many wrong keys from this address; wait a minute", Refusal.BUSY
            )
        delay = self._budget.delay(now)
        if delay is None:
            raise HandshakeError("too many handshakes at once; try again", Refusal.BUSY)
        if delay > 0:
            self._budget.waiting += 1
            try:
                await deferLater(self.settings.clock, delay)
            finally:
                self._budget.waiting -= 1

    def _answer(self) -> Answer:
        return Answer(
            version=0,
            flow=ord(self.terms.flow.value),
            tls=self.terms.tls.value,
            maximum=self.terms.maximum,
            workers=self.terms.workers,
            nonce=b"",
        )

    def _denied(self, guest: Guest, error: PeerError) -> None:
        if isinstance(error, HandshakeError) and error.refusal is Refusal.UNKNOWN_ASSOCIATION:
            return  # the client starts anew by itself
        self.log.limited(
            ("denied", guest.address.host, str(error)),
            "access denied to {address}: {error}",
            address=guest.address.host,
            error=printable(str(error)),
        )

    def _handshake_failed(self, failure: Failure, guest: Guest) -> None:
        self.log.failure("handshake with {address} failed", failure, address=guest.address)
        guest.turn_away()


@implementer(IHandshakeListener)
class _LinkKnock(Protocol):
    """A data link before it has proved that it belongs."""

    transport: Any

    def __init__(self, acceptor: NativeAcceptor, guest: Guest, encrypted: bool) -> None:
        self._acceptor = acceptor
        self._guest = guest
        self._encrypted = encrypted
        self._proof: LinkAcceptor | None = None

    def connectionMade(self) -> None:
        tune(self.transport)
        if not self._encrypted:
            self._start(None)

    def handshakeCompleted(self) -> None:
        self._start(exporter(self.transport, LINK_EXPORTER))

    def _start(self, binding: bytes | None) -> None:
        self._proof = LinkAcceptor(self._acceptor.secrets_of, binding)

    def dataReceived(self, data: bytes) -> None:
        assert self._proof is not None
        try:
            if self._encrypted == (self._acceptor.terms.tls is TLSLevel.PLAIN):
                kind = "an encrypted" if self._encrypted else "a plain"
                raise ProofError(f"{kind} data link where tls={self._acceptor.terms.tls.value}")
            send, rest = self._proof.feed(data)
            if rest is not None:
                self._belongs(self._proof, send, rest)
            elif send:
                self.transport.write(send)
        except PeerError as error:
            self._acceptor.log.limited(
                ("link", self._guest.address.host, str(error)),
                "access denied to {address}: {error}",
                address=self._guest.address.host,
                error=error,
            )
            self._guest.turn_away()

    def _belongs(self, proof: LinkAcceptor, send: bytes, rest: bytes) -> None:
        preface = proof.preface
        assert preface is not None
        peer = self._acceptor.peers[preface.association]
        if preface.link in peer.links:
            raise ProofError(f"data link {preface.link} exists already")
        link = peer.links.add(preface.link)
        self._guest.admit()
        transport = self.transport
        transport.write(send)
        peer.links.connect(link, transport, rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._guest.admit()
