"""All wires by which a client may reach its server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory

from nodepass.config import ClientConfig, TLSLevel
from nodepass.dialects import NATIVE
from nodepass.racing import connect_tcp
from nodepass.relay.stream import Cause
from nodepass.tls import ClientTLS

from . import Flow, Host, Peer
from .native.tags import associations, partners
from .search import Search, Way
from .surroundings import Surroundings

if TYPE_CHECKING:
    from .native.connector import NativeConnector
    from .native.settings import PeerSettings

__all__ = ["ClientWires"]


class ClientWires:
    """A client's search for its server, and what it has found.

    :param host: told of the server.
    :param dials: the targets that this node dials, where visitors come to the server.
    :param worker: which of this client's worker processes this is.
    :param workers: how many there are.
    :param elsewhere: whether this process is joined with any worker of the server.
    :raises ConfigError: the server's name, or the roots to trust, can't be used.
    """

    def __init__(
        self,
        config: ClientConfig,
        around: Surroundings,
        host: Host,
        dials: str,
        *,
        worker: int = 0,
        workers: int = 1,
        elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._around = around
        self._host = host
        self._dials = dials
        self._worker = worker
        self._workers = workers
        self._elsewhere = elsewhere
        self.tls = ClientTLS(config.tls, config.tunnel.host, config.ca)
        # The first one leads: it learns how many workers the server has, and says what is wrong
        # with it.
        self._leader = self._connector(worker) if NATIVE in config.dialects else None
        self._ways = [self._way(name) for name in config.dialects]
        self._search = Search(self._ways, around.reactor, around.health)
        self._others: dict[int, NativeConnector] = {}  # by the worker of the server

    def start(self) -> None:
        """Begin to look for the server."""
        self._search.start()

    def stop(self) -> None:
        """Stop looking. The peers that are there are left to their owner."""
        self._search.stop()
        for connector in self._others.values():
            connector.stop()

    def reload(self) -> None:
        """Read the roots to trust again.

        :raises ConfigError: they can't be used; what was trusted before stays trusted.
        """
        self.tls.reload()

    @property
    def peers(self) -> Iterable[Peer]:
        """The server; each of its workers is a peer of its own."""
        peers = [way.peer for way in (*self._ways, *self._others.values())]
        return [peer for peer in peers if peer is not None and not peer.closed]

    def joined(self, peer: Peer) -> None:
        """A peer is there: join the server's other workers that are this process's to join, and
        leave those that it has no more."""
        if self._leader is None or peer is not self._leader.peer:
            return
        others = partners(self._worker, self._workers, self._leader.workers)[1:]
        for number in set(self._others) - set(others):
            connector = self._others.pop(number)
            connector.stop()
            if connector.peer is not None and not connector.peer.closed:
                connector.peer.close(Cause.STOPPED, "the server has fewer workers")
        for number in others:
            if number not in self._others:
                connector = self._connector(number)
                self._others[number] = connector
                connector.start()

    def lost(self, peer: Peer) -> None:
        """A peer's control link was lost, or it is gone."""
        for connector in self._others.values():
            if connector.peer is peer:
                connector.control_lost()
                return
        self._search.lost()

    def _way(self, name: str) -> Way:
        """How the server may be reached by this dialect."""
        if name == NATIVE:
            assert self._leader is not None
            return self._leader
        # Not at the top: few nodes speak an old dialect.
        from .old.connector import OldConnector

        return OldConnector(name, self._config, self._around, self._host, self._dial, self._tls_for)

    def _tls_for(self, level: TLSLevel) -> ClientTLS:
        """What asks a server's certificate for as much as this level says."""
        config = self._config
        if level is TLSLevel.FILES and config.tls is not level:
            return ClientTLS(level, config.tunnel.host, config.ca)
        return self.tls

    # Native

    def _connector(self, server_worker: int) -> NativeConnector:
        """What joins one of the server's workers."""
        # Not at the top: a client of old dialects alone starts sooner without.
        from .native.connector import ClientTerms, NativeConnector, node_id
        from .native.handshake import key_bytes

        config, tuning = self._config, self._around.tuning
        terms = ClientTerms(
            key=key_bytes(config.key),
            node=node_id(str(config.tunnel), ",".join(map(str, config.targets))),
            level=config.tls,
            minimum=config.min,
            tls=self.tls,
            reactor=self._around.reactor,
            server=config.tunnel,
            dial=self._dial,
            settings=self._settings,
            handshake_timeout=tuning.handshake_timeout,
            cooldown=tuning.service_cooldown,
            pool_interval=(tuning.min_pool_interval, tuning.max_pool_interval),
            worker=self._worker,
            server_worker=server_worker,
            leads=server_worker == self._worker,
            elsewhere=self._elsewhere,
        )
        return NativeConnector(terms, self._around.health)

    def _dial(
        self, hosts: Sequence[str], port: int, factory: IProtocolFactory
    ) -> Deferred[IProtocol]:
        around = self._around
        return connect_tcp(
            around.reactor, around.resolver, hosts, port, factory, around.tuning.tcp_dial_timeout
        )

    def _settings(self, flow: Flow, level: TLSLevel, servers: int) -> PeerSettings:
        from .native.settings import peer_settings

        return peer_settings(
            self._around,
            self._host,
            flow=flow,
            level=level,
            takes=flow is Flow.FORWARD,
            dials=self._dials if flow is Flow.REVERSE else "",
            associations=associations(self._workers, servers),
        )
