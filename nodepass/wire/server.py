"""All wires that a server admits, behind one tunnel port, and the certificate that they show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall

from nodepass.config import ServerConfig, TLSLevel
from nodepass.dialects import NATIVE
from nodepass.errors import ConfigError
from nodepass.tls import Identity, ServerTLS

from . import Flow, Host, Peer
from .listener import Acceptor, TunnelFactory
from .lobby import Lobby
from .native import ALPN_CONTROL, ALPN_DATA
from .surroundings import Surroundings

if TYPE_CHECKING:
    from .native.acceptor import NativeAcceptor

__all__ = ["ServerWires"]

#: Seconds between telling clients of the next certificate and showing it.
PIN_NOTICE = 2.0


class ServerWires:
    """What a server has in common with its clients' ends, whatever they speak.

    :param host: told of the clients.
    :param flow: which way visitors go.
    :param dials: the targets that this node dials for its clients, for their log lines.
    :param workers: the server's worker processes, of which this is one.
    :param guessed: told of the address of each wrong guess at the key.
    :raises ConfigError: its certificate can't be used.
    """

    def __init__(
        self,
        config: ServerConfig,
        around: Surroundings,
        host: Host,
        *,
        workers: int = 1,
        guessed: Callable[[str], None],
    ) -> None:
        self._config = config
        self._around = around
        self._host = host
        self._workers = workers
        self._guessed = guessed
        level = config.tls if config.tls is TLSLevel.FILES else TLSLevel.SELF_SIGNED
        self.tls = ServerTLS(
            level, [ALPN_CONTROL, ALPN_DATA], crt=config.crt, key_file=config.key_file
        )
        self._lobby = Lobby(around.reactor, around.log, around.tuning.handshake_timeout, workers)
        self._commit_timer: IDelayedCall | None = None
        self._next: Identity | None = None  # announced to clients, not yet shown
        self._native: NativeAcceptor | None = None
        self._acceptors: list[Acceptor] = []

    def begin(self, flow: Flow, dials: str) -> None:
        """It is decided which way visitors go, and what this node dials, for log lines."""
        named = self._config.dialects
        if NATIVE in named:
            self._native = self._make_native(flow, dials)
            self._acceptors.append(self._native)
        old = [name for name in named if name != NATIVE]
        if old:
            self._acceptors.append(self._make_old(flow, old))

    def _make_native(self, flow: Flow, dials: str) -> NativeAcceptor:
        # Not at the top: a server of old dialects alone starts sooner without.
        from .native.acceptor import NativeAcceptor, ServerTerms
        from .native.handshake import key_bytes
        from .native.settings import peer_settings

        config, around = self._config, self._around
        settings = peer_settings(
            around,
            self._host,
            flow=flow,
            level=config.tls,
            takes=flow is Flow.REVERSE,
            dials=dials,
        )
        terms = ServerTerms(
            key=key_bytes(config.key),
            flow=flow,
            tls=config.tls,
            maximum=config.max,
            pin=lambda: self.tls.identity.pin,
            workers=self._workers,
            guessed=self._guessed,
        )
        return NativeAcceptor(terms, settings, around.log)

    def _make_old(self, flow: Flow, names: Collection[str]) -> Acceptor:
        # Not at the top: few nodes speak an old dialect.
        from .old.acceptor import OldAcceptor

        return OldAcceptor(
            self._config, self._around, self._host, flow, names, lambda: self.tls.identity.pin
        )

    @property
    def peers(self) -> Iterable[Peer]:
        """The clients that have joined, those included whose control link is lost for now."""
        return [peer for acceptor in self._acceptors for peer in acceptor.joined]

    def factory(self) -> TunnelFactory:
        """What serves connections to the tunnel port."""
        return TunnelFactory(
            self._lobby, self._acceptors, self.tls.context_factory, self._around.log
        )

    def guess(self, host: str) -> None:
        """Another worker has met a wrong guess at the key."""
        for acceptor in self._acceptors:
            acceptor.guessed(host)

    def refuse(self) -> None:
        """Admit nobody any more: this server is stopping."""
        if self._commit_timer is not None and self._commit_timer.active():
            self._commit_timer.cancel()
        for acceptor in self._acceptors:
            acceptor.refuse()

    def stop(self) -> None:
        """Drop who is about to be admitted."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._lobby.clear()

    # Certificates.

    def reload(self) -> None:
        """Read the certificate's files again, and show what is in them soon."""
        log = self._around.log
        try:
            fresh = self.tls.prepare()
        except ConfigError as error:
            log.error("certificate not reloaded, the old one stays in use: {error}", error=error)
            return
        if fresh == self._next:
            return  # announced already, and soon to be shown
        if self._commit_timer is not None and self._commit_timer.active():
            self._commit_timer.cancel()
        self._announce(None)
        if fresh is self.tls.identity:
            log.info("certificate unchanged")
            self.warn_expired()
            return
        self._announce(fresh)
        self._commit_timer = self._around.reactor.callLater(PIN_NOTICE, self._commit, fresh)

    def _announce(self, fresh: Identity | None) -> None:
        """This is what is shown next; clients of old dialects have no word for it."""
        self._next = fresh
        if self._native is not None:
            self._native.announce(None if fresh is None else fresh.pin)

    def _commit(self, fresh: Identity) -> None:
        self.tls.commit(fresh)
        self._announce(None)
        self._around.log.info(
            "certificate reloaded, valid until {until:%Y-%m-%d}", until=fresh.not_after
        )
        self.warn_expired()

    def warn_expired(self) -> None:
        """Say so if the certificate's time is over."""
        identity = self.tls.identity
        if identity.expired:
            self._around.log.warn(
                "certificate {crt} expired on {day:%Y-%m-%d}: clients with tls=2 refuse it",
                crt=self._config.crt,
                day=identity.not_after,
            )
