"""The port of the API: bound early, where privileges may be needed, and read when all is ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from nodepass.config import MasterConfig, TLSLevel
from nodepass.errors import ConfigError, FatalError
from nodepass.logs import Log
from nodepass.relay.portable import listen_tcp
from nodepass.roles.visitors import fatal, why
from nodepass.tls import ServerTLS

__all__ = ["ApiPort"]

#: Who may connect to a Unix socket: the master's user and group, such as a web server in front.
SOCKET_MODE = 0o660

#: Connections that the kernel holds while the master is busy.
BACKLOG = 1024


@implementer(IOpenSSLServerConnectionCreator)
class _Current:
    """Makes the server end of each connection from the identity of that moment."""

    def __init__(self, tls: ServerTLS) -> None:
        self._tls = tls

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Any:
        return self._tls.context_factory().serverConnectionForTLS(tlsProtocol)


class ApiPort:
    """Listens for clients of the API; an address that is in use is tried again for ever.

    :param cooldown: seconds between two tries.
    :param opened: called once when clients are served.
    :param failed: called once when the address never can be bound.
    """

    def __init__(
        self,
        reactor: Any,
        config: MasterConfig,
        factory: Factory,
        log: Log,
        cooldown: float,
        *,
        opened: Callable[[], None],
        failed: Callable[[FatalError], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._log = log
        self._cooldown = cooldown
        self._opened = opened
        self._failed = failed
        self._tls: ServerTLS | None = None
        self._factory: Any = factory
        if config.tls is not TLSLevel.PLAIN:
            self._tls = ServerTLS(
                config.tls, [b"http/1.1"], crt=config.crt, key_file=config.key_file
            )
            self._factory = TLSMemoryBIOFactory(_Current(self._tls), False, factory, reactor)
        self._port: IListeningPort | None = None
        self._retry: IDelayedCall | None = None

    @property
    def address(self) -> str | None:
        """Where it is bound: ``host:port`` or the path of a socket; None while it is not."""
        if self._port is None:
            return None
        if self._config.unix is not None:
            return self._config.unix
        host: Any = self._port.getHost()
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the certificate that clients are shown, in hex; None without TLS."""
        return None if self._tls is None else self._tls.identity.pin.hex(":").upper()

    def bind(self) -> None:
        """Try to bind the address, and let clients wait in the kernel's queue until `start`.

        :raises FatalError: it never can be bound.
        """
        try:
            if self._config.unix is not None:
                port = self._reactor.listenUNIX(
                    self._config.unix, self._factory, BACKLOG, SOCKET_MODE, wantPID=True
                )
            else:
                assert self._config.listen is not None
                port = listen_tcp(self._reactor, self._config.listen, self._factory)
        except OSError as error:  # the lock beside a Unix socket can't be made
            raise FatalError(
                f"API socket {self._shown}: {error.strerror}; make its directory, where this user "
                "may write"
            ) from None
        except CannotListenError as error:
            hopeless = fatal(error, f"API address {self._shown}")
            if hopeless is not None:
                raise hopeless from None
            self._log.once(
                "API port",
                "can't listen for the API on {address}: {reason}; trying on",
                address=self._shown,
                reason=why(error),
            )
            return
        port.stopReading()
        self._port = port

    def start(self) -> None:
        """Serve clients from now on, or as soon as the address can be bound."""
        self._retry = None
        if self._port is None:
            try:
                self.bind()
            except FatalError as error:
                self._failed(error)
                return
            if self._port is None:
                self._retry = self._reactor.callLater(self._cooldown, self.start)
                return
        port: Any = self._port
        port.startReading()
        self._log.forget("API port")
        self._opened()

    def stop(self) -> Deferred[object]:
        """Take no more clients; fires when the address is free."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        port, self._port = self._port, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    def reload(self) -> None:
        """Read certificate files again; broken ones are logged, and what was there stays."""
        if self._tls is None:
            return
        try:
            changed = self._tls.reload()
        except ConfigError as error:
            self._log.error(
                "certificate not reloaded, the old one stays in use: {error}", error=error
            )
            return
        if changed:
            self._log.info("certificate of the API reloaded")

    @property
    def _shown(self) -> str:
        return self._config.unix or str(self._config.listen)
