"""A server's and a client's end of the old dialects in one process, joined in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint

from nodepass.config import ClientConfig, ServerConfig, parse_role_url
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import take_over
from nodepass.relay.stream import Cause
from nodepass.tls import ClientTLS, server_context
from nodepass.tuning import Tuning
from nodepass.wire import Flow
from nodepass.wire.listener import TunnelFactory
from nodepass.wire.lobby import Lobby
from nodepass.wire.old.acceptor import OldAcceptor
from nodepass.wire.old.connector import OldConnector
from nodepass.wire.old.peer import OldPeer
from nodepass.wire.search import Search
from tests.memnet import HANDSHAKE, IDENTITY, MemoryNet, NotingHost

KEY = "sesame-7"


def _around(net: MemoryNet) -> Any:
    log = Log(Level.INFO)
    return SimpleNamespace(
        reactor=net, tuning=Tuning(), health=Health(log), log=log, watch=HangupWatch(net),
        relay=SimpleNamespace(take_over=take_over),
    )  # fmt: skip


class OldServerEnd:
    """Our server's end, and the tunnel port before it."""

    def __init__(
        self, net: MemoryNet, wire: str, flow: Flow = Flow.REVERSE, query: str = "", key: str = KEY
    ) -> None:
        mode = 1 if flow is Flow.REVERSE else 2
        config = parse_role_url(
            f"server://{key}@192.0.2.254:10101/127.0.0.1:1?mode={mode}&wire={wire}{query}"
        )
        assert isinstance(config, ServerConfig)
        self.host = NotingHost()
        around = _around(net)
        self.acceptor = OldAcceptor(
            config, around, self.host, flow, config.dialects, lambda: IDENTITY.pin  # type: ignore
        )  # fmt: skip
        self.lobby = Lobby(net, around.log, HANDSHAKE)
        net.server = TunnelFactory(
            self.lobby, [self.acceptor], lambda: server_context(IDENTITY, []), around.log
        )

    @property
    def peer(self) -> OldPeer:
        """The one client."""
        (peer,) = self.acceptor.peers.values()
        return peer


class OldClientEnd:
    """Our client's end.

    :cvar searches: all that there are, to be stopped.
    """

    searches: ClassVar[list[Search]] = []

    def __init__(self, net: MemoryNet, wire: str, query: str = "", key: str = KEY) -> None:
        config = parse_role_url(
            f"client://{key}@192.0.2.254:10101/127.0.0.1:1?mode=2&min=2&wire={wire}{query}"
        )
        assert isinstance(config, ClientConfig)
        self.net = net
        self.host = NotingHost()
        around = _around(net)

        def dial(hosts: Sequence[str], port: int, factory: Any) -> Deferred[Any]:
            return HostnameEndpoint(net, hosts[0], port).connect(factory)

        tls: Callable[[Any], ClientTLS] = lambda level: ClientTLS(level, "192.0.2.254")  # noqa: E731
        self.connector = OldConnector(
            config.dialects[0], config, around, self.host, dial, tls  # type: ignore
        )  # fmt: skip
        self.health = around.health
        self.search = Search([self.connector], net, around.health)
        self.searches.append(self.search)
        self.host.on_left = lambda peer: self.search.lost()

    @property
    def peer(self) -> OldPeer:
        """The server."""
        assert self.connector.peer is not None
        return self.connector.peer

    def start(self) -> OldClientEnd:
        """Look for the server, and give it the time to find silence."""
        self.search.start()
        self.net.later(1.0, 0.02)
        return self

    def stop(self) -> None:
        """Stop, and leave."""
        self.search.stop()
        if self.connector.peer is not None:
            self.connector.peer.close(Cause.STOPPED, "the client is stopping")
        self.net.flush()
