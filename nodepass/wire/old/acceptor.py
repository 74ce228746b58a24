"""The server's side of the old dialects: lets clients in, and gives their links numbers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from nodepass.config import ServerConfig
from nodepass.errors import PeerError
from nodepass.parameters import TLSLevel
from nodepass.relay.stream import Cause
from nodepass.wire import Flow, Host, Peer
from nodepass.wire.listener import Acceptor
from nodepass.wire.lobby import Guest
from nodepass.wire.native.budget import GuessLimit
from nodepass.wire.surroundings import Surroundings

from .cipher import key_for
from .dialect import JOIN_TIMEOUT, Dialect
from .fingerprint import fingerprint
from .handshake import UNAUTHORIZED, Grant, HelloReader, HTTPServerHandshake, grant_line
from .linkid import encode_id
from .peer import OldPeer, old_settings
from .signals import CONTROL_ID

__all__ = ["OldAcceptor"]

#: Seconds of silence after which a connection is taken for the control link. A handshake speaks at
#: once: a round trip is over when its connection is accepted. What is taken for the control link by
#: mistake costs its client a new start.
CONTROL_SILENCE = 0.03
#: The same for other links, which visitors wait for; such a mistake costs this end a useless link.
LINK_SILENCE = 0.005
#: Seconds from a client's grant in which nobody else of its address is let in. Its first link is on
#: the way, and would be taken for the other's.
UNDISTURBED = 1.0

_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n"


class OldAcceptor(Acceptor):
    """Lets clients of old dialects in.

    Their links prove nothing: they are known by the address that they come from, and by saying
    nothing until they have their number. So there is one client for each address.

    :param host: told of the clients.
    :param flow: which way visitors go.
    :param names: the dialects that are admitted.
    :param pin: SHA-256 of the certificate that is shown now.
    :ivar peers: by the client's address, those included that have no control link yet.
    """

    def __init__(
        self,
        config: ServerConfig,
        around: Surroundings,
        host: Host,
        flow: Flow,
        names: Collection[str],
        pin: Callable[[], bytes],
    ) -> None:
        self.settings = old_settings(around, host, key_for(config.key_for_old, config.tunnel.port))
        self.log = around.log
        self._admitted = [Dialect(name) for name in names]
        self._grant = Grant(flow, config.max, config.tls)
        self._pin = pin
        self.peers: dict[str, OldPeer] = {}
        self.stopping = False
        self._guesses = GuessLimit()
        self._timers: dict[OldPeer, IDelayedCall] = {}

    # Acceptor

    @property
    def joined(self) -> Collection[Peer]:
        return [peer for peer in self.peers.values() if peer.joined]

    def plain(self, guest: Guest, first: bytes) -> Protocol | None:
        if first[:1].isalpha() and Dialect.V1_14 in self._admitted:
            return _Request(self, guest, Dialect.V1_14)
        dialect = self._line_dialect
        if first[0] == 0 and dialect is not None:
            return _Hello(self, guest, dialect)
        return None

    @property
    def _line_dialect(self) -> Dialect | None:
        for dialect in (Dialect.V1_6, Dialect.V1_6_RAW):
            if dialect in self._admitted:
                return dialect
        return None

    @property
    def nameless(self) -> bool:
        # Links of 1.6 and 1.14, and all of 2.0.
        return self._grant.tls is not TLSLevel.PLAIN or Dialect.V2_0 in self._admitted

    def inside(self, guest: Guest, first: bytes, web: bool) -> Protocol | None:
        dialect = Dialect.V1_14 if web else Dialect.V2_0
        if first[:1].isalpha() and dialect in self._admitted:
            return _Request(self, guest, dialect)
        return None

    def patience(self, guest: Guest, encrypted: bool) -> float | None:
        peer = self.peers.get(guest.address.host)
        if peer is None or encrypted is (peer.tls is TLSLevel.PLAIN):
            return None
        return LINK_SILENCE if peer.controlled else CONTROL_SILENCE

    def silent(self, guest: Guest, encrypted: bool) -> Protocol | None:
        waits = self.patience(guest, encrypted) is not None
        return _NewLink(self, guest) if waits else None

    def refuse(self) -> None:
        self.stopping = True

    def stop(self) -> None:
        for peer in list(self.peers.values()):
            if not peer.joined:
                peer.close(Cause.STOPPED, "the server is stopping")

    # Clients

    @property
    def grant(self) -> Grant:
        """What a client is told."""
        return self._grant

    def fingerprint(self, dialect: Dialect) -> str:
        """Of the certificate that is shown now, as a dialect writes it; empty without TLS."""
        plain = self._grant.tls is TLSLevel.PLAIN
        return "" if plain else fingerprint(self._pin(), dialect)

    def may_guess(self, guest: Guest) -> bool:
        """Whether this address may show a token: asked before it is known to be wrong."""
        if self._guesses.allows(guest.address.host, self.settings.clock.seconds()):
            return True
        self.denied(guest, "too many wrong keys from this address; wait a minute")
        return False

    def wrong(self, guest: Guest) -> None:
        """A client has shown a token, or a key's length, that is wrong."""
        self._guesses.failed(guest.address.host, self.settings.clock.seconds())
        self.denied(guest, "the client has another key; set the same on both")

    def denied(self, guest: Guest, why: str) -> None:
        """Say that a client was not let in."""
        self.log.limited(
            ("denied", guest.address.host, why),
            "access denied to {address}: {error}",
            address=guest.address.host,
            error=why,
        )

    async def make_room(self, guest: Guest) -> None:
        """See that the client is the one of its address.

        :raises PeerError: another one is there, or this server is stopping.
        """
        host = guest.address.host
        # Who else waits for an answer may be let in first.
        while not self.stopping:
            other = self.peers.get(host)
            if other is None:
                return
            there = await other.probe() if other.controlled else self._just_let_in(other)
            if there:
                raise PeerError(
                    f"old dialects have one client per address, and {other.name} is there"
                )
            if self.peers.get(host) is other:
                other.close(Cause.LOST, "another client came, and it does not answer")
        raise PeerError("this server is stopping")

    def _just_let_in(self, peer: OldPeer) -> bool:
        timer = self._timers.get(peer)
        if timer is None:
            return False
        since = timer.getTime() - JOIN_TIMEOUT
        return self.settings.clock.seconds() - since < UNDISTURBED

    def let_in(self, guest: Guest, dialect: Dialect) -> OldPeer:
        """A client has shown the right key; its links may come."""
        grant = self._grant
        peer = OldPeer(
            self.settings,
            dialect,
            flow=grant.flow,
            tls=grant.tls,
            server=True,
            address=str(guest.address),
            maximum=grant.max,
            gone=lambda peer: self._forget(guest.address.host, peer),
        )
        self.peers[guest.address.host] = peer
        self._timers[peer] = self.settings.clock.callLater(JOIN_TIMEOUT, self._too_late, peer)
        peer.ready.addCallbacks(lambda _: self._in_time(peer), lambda _: None)
        return peer

    def _too_late(self, peer: OldPeer) -> None:
        del self._timers[peer]
        if not peer.controlled:
            self.log.limited(
                ("no control", peer.name),
                "client {peer} of {dialect} has brought no control link within {timeout:g} s",
                peer=peer.name,
                dialect=peer.dialect.value,
                timeout=JOIN_TIMEOUT,
            )
            peer.close(Cause.LOST, "it has brought no control link")

    def _in_time(self, peer: OldPeer) -> None:
        timer = self._timers.pop(peer, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _forget(self, host: str, peer: OldPeer) -> None:
        self._in_time(peer)
        if self.peers.get(host) is peer:
            del self.peers[host]

    # Links

    def link(self, guest: Guest, transport: Any) -> None:
        """A connection from a client's address waits for its number."""
        peer = self.peers.get(guest.address.host)
        if peer is None or peer.links.full:
            # A guest still: under TLS it is gone when the other end has closed as well.
            transport.loseConnection()
            return
        guest.admit()
        fingerprint = self.fingerprint(peer.dialect)
        if not peer.controlled:
            transport.write(encode_id(CONTROL_ID, peer.dialect))
            peer.attach(transport, fingerprint)
            return
        number = secrets.token_hex(4)
        while number == CONTROL_ID or number in peer.links:
            number = secrets.token_hex(4)
        transport.write(encode_id(number, peer.dialect))
        peer.links.add(number, transport, fingerprint)


class _NewLink(Protocol):
    """A connection that has said nothing: it is for a link."""

    def __init__(self, acceptor: OldAcceptor, guest: Guest) -> None:
        self._acceptor = acceptor
        self._guest = guest

    def connectionMade(self) -> None:
        self._acceptor.link(self._guest, self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._guest.admit()


class _Asking(Protocol):
    """A connection on which a client asks to be let in."""

    transport: Any

    def __init__(self, acceptor: OldAcceptor, guest: Guest, dialect: Dialect) -> None:
        self._acceptor = acceptor
        self._guest = guest
        self._dialect = dialect
        self._judged = False
        self._gone = False

    def _right(self) -> None:
        """The client has shown the right key."""
        Deferred.fromCoroutine(self._make_room()).addErrback(self._failed)

    async def _make_room(self) -> None:
        try:
            await self._acceptor.make_room(self._guest)
        except PeerError as error:
            self._acceptor.denied(self._guest, str(error))
            self._refuse()
            return
        if not self._gone:
            self._let_in(self._acceptor.let_in(self._guest, self._dialect))

    def _refuse(self) -> None:
        """Let the client know that it is not let in."""
        raise NotImplementedError

    def _let_in(self, peer: OldPeer) -> None:
        """Let the client know that it is let in."""
        raise NotImplementedError

    def _failed(self, failure: Failure) -> None:
        self._acceptor.log.failure(
            "handshake with {address} failed", failure, address=self._guest.address
        )
        self._guest.turn_away()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._gone = True
        self._guest.admit()


class _Request(_Asking):
    """A client's handshake by HTTP."""

    def __init__(self, acceptor: OldAcceptor, guest: Guest, dialect: Dialect) -> None:
        super().__init__(acceptor, guest, dialect)
        self._handshake = HTTPServerHandshake(acceptor.settings.key, acceptor.grant)
        self._grant = b""

    def dataReceived(self, data: bytes) -> None:
        if self._judged:
            return
        verdict = self._handshake.feed(data)
        if verdict is None:
            return
        self._judged = True
        acceptor, guest = self._acceptor, self._guest
        if not acceptor.may_guess(guest):
            self._refuse()
        elif verdict.status == UNAUTHORIZED:
            acceptor.wrong(guest)
            self._answer(verdict.answer)
        elif not verdict.granted:
            acceptor.denied(guest, f"status {verdict.status} for a handshake by HTTP")
            self._answer(verdict.answer or _UNAVAILABLE)
        else:
            self._grant = verdict.answer
            self._right()

    def _refuse(self) -> None:
        self._answer(_UNAVAILABLE)

    def _let_in(self, peer: OldPeer) -> None:
        self._answer(self._grant)

    def _answer(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.loseConnection()


class _Hello(_Asking):
    """A client's handshake of 1.6; the connection becomes the control link."""

    def __init__(self, acceptor: OldAcceptor, guest: Guest, dialect: Dialect) -> None:
        super().__init__(acceptor, guest, dialect)
        self._hello = HelloReader(acceptor.settings.key)

    def dataReceived(self, data: bytes) -> None:
        if self._judged:
            return
        acceptor, guest = self._acceptor, self._guest
        try:
            right = self._hello.feed(data)
        except PeerError as error:
            acceptor.denied(guest, str(error))
            self._refuse()
            return
        if right is None:
            return
        self._judged = True
        if not acceptor.may_guess(guest):
            self._refuse()
        elif not right:
            acceptor.wrong(guest)
            self._refuse()
        else:
            self._right()

    def _refuse(self) -> None:
        self._guest.turn_away()

    def _let_in(self, peer: OldPeer) -> None:
        acceptor, transport = self._acceptor, self.transport
        self._guest.admit()
        transport.write(grant_line(acceptor.grant, acceptor.settings.key))
        peer.attach(transport, acceptor.fingerprint(self._dialect), self._hello.rest)
