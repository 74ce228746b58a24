"""A server's and a client's native wire in one process, joined by connections in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import (
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.address import Address, Endpoint
from nodepass.config import TLSLevel
from nodepass.health import Health
from nodepass.identity import Identity, self_signed
from nodepass.logs import Level, Log
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause, Stream
from nodepass.tls import ClientTLS, server_context
from nodepass.wire import Flow, Opening
from nodepass.wire.listener import TunnelFactory
from nodepass.wire.lobby import Lobby
from nodepass.wire.native import ALPN_CONTROL, ALPN_DATA
from nodepass.wire.native.acceptor import NativeAcceptor, ServerTerms
from nodepass.wire.native.connector import ClientTerms, NativeConnector
from nodepass.wire.native.messages import About
from nodepass.wire.native.peer import NativePeer
from nodepass.wire.native.settings import PeerSettings
from tests.loopback import MemoryTransport, connect
from tests.streams import NotingSink

OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))
INTERVAL = 5.0
ADOPTION = 18.0
HANDSHAKE = 10.0

#: Made once, as making one takes a while.
IDENTITY = self_signed()


@implementer(IHostResolution)
class _Literal:
    """The resolution of an address literal."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        raise AssertionError("it is over at once")


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver)
class MemoryNet(Clock):
    """A reactor whose connections lead to one factory, or nowhere.

    @ivar server: who listens; None: connections are refused.
    @ivar silent: connections are made, but nothing arrives.
    @ivar pairs: the connections, the client's transport first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server: Factory | None = None
        self.silent = False
        self.host = "192.0.2.1"
        self.pairs: list[tuple[MemoryTransport, MemoryTransport]] = []
        self.nameResolver = self

    def resolveHostName(
        self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any, **__: Any
    ) -> _Literal:
        resolution = _Literal(hostName)
        receiver.resolutionBegan(resolution)
        receiver.addressResolved(IPv4Address("TCP", hostName, portNumber))
        receiver.resolutionComplete()
        return resolution

    def installNameResolver(self, resolver: Any) -> None:
        raise NotImplementedError

    def listenTCP(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def connectTCP(self, host: str, port: int, factory: Any, *_: Any, **__: Any) -> Any:
        factory.doStart()
        if self.server is None:
            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
            return None
        address = IPv4Address("TCP", host, port)
        client = factory.buildProtocol(address)
        server = self.server.buildProtocol(IPv4Address("TCP", self.host, 40000))
        assert server is not None
        self.pairs.append(connect(client, server, host=self.host))
        return None

    def flush(self) -> None:
        """Deliver all, and run what is due."""
        moved = True
        while moved:
            self.advance(0)
            moved = False
            if not self.silent:
                for pair in list(self.pairs):
                    for transport in pair:
                        moved = transport.deliver() or moved
        self.pairs = [pair for pair in self.pairs if pair[0].connected]

    def later(self, seconds: float, step: float = 0.5) -> None:
        """Time passes."""
        end = self.seconds() + seconds
        while self.seconds() < end - 1e-9:
            self.advance(min(step, end - self.seconds()))
            self.flush()


class NotingHost:
    """A role that notes what it is told, and serves openings with noting sinks."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.served: list[tuple[Stream, NotingSink]] = []
        self.channels: list[Any] = []
        self.on_left: Any = None
        self.on_lost: Any = None

    def joined(self, peer: NativePeer) -> None:
        self.told.append("joined")

    def returned(self, peer: NativePeer) -> None:
        self.told.append("returned")

    def lost(self, peer: NativePeer) -> None:
        self.told.append("lost")
        if self.on_lost is not None:
            self.on_lost(peer)

    def left(self, peer: NativePeer) -> None:
        self.told.append("left")
        if self.on_left is not None:
            self.on_left(peer)

    def available(self, peer: NativePeer) -> None:
        self.told.append("available")

    def dial(self, peer: NativePeer, opening: Opening, stream: Stream) -> None:
        self.served.append((stream, NotingSink()))
        stream.attach(self.served[-1][1])

    def dial_flow(self, peer: NativePeer, opening: Opening, channel: Any) -> None:
        self.channels.append(channel)


class Server:
    """A server's end: its lobby, its acceptor, its host."""

    def __init__(
        self,
        net: MemoryNet,
        *,
        key: bytes | None = b"a key",
        flow: Flow = Flow.REVERSE,
        tls: TLSLevel = TLSLevel.PLAIN,
        maximum: int = 16,
        identity: Identity = IDENTITY,
        workers: int = 1,
    ) -> None:
        self.net = net
        self.host = NotingHost()
        self.guesses: list[str] = []
        self.identity = identity
        log = Log(Level.INFO)
        settings = PeerSettings(
            clock=net, log=log, watch=HangupWatch(net), host=self.host,  # type: ignore[arg-type]
            flow=flow, level=tls, takes=flow is Flow.REVERSE,
            report_interval=INTERVAL, adoption=ADOPTION,
            about=About(name="the server"), soon=lambda call: call(),
        )  # fmt: skip
        terms = ServerTerms(
            key=key,
            flow=flow,
            tls=tls,
            maximum=maximum,
            pin=lambda: self.identity.pin,
            workers=workers,
            guessed=self.guesses.append,
        )
        self.acceptor = NativeAcceptor(terms, settings, log)
        self.lobby = Lobby(net, log, HANDSHAKE)
        self.factory = TunnelFactory(self.lobby, [self.acceptor], self._context, log)
        net.server = self.factory

    def _context(self) -> Any:
        return server_context(self.identity, [ALPN_CONTROL, ALPN_DATA])

    @property
    def peer(self) -> NativePeer:
        """The one client."""
        (peer,) = self.acceptor.peers.values()
        return peer


class Client:
    """A client's end: its connector, its host."""

    def __init__(
        self,
        net: MemoryNet,
        *,
        key: bytes | None = b"a key",
        node: bytes = b"n" * 16,
        level: TLSLevel | None = None,
        minimum: int = 2,
        worker: int = 0,
        server_worker: int = 0,
        associations: int = 1,
    ) -> None:
        self.net = net
        self.host = NotingHost()
        log = Log(Level.INFO)

        def settings(flow: Flow, tls: TLSLevel, workers: int) -> PeerSettings:
            return PeerSettings(
                clock=net, log=log, watch=HangupWatch(net), host=self.host,  # type: ignore[arg-type]
                flow=flow, level=tls, takes=flow is Flow.FORWARD,
                report_interval=INTERVAL, adoption=ADOPTION,
                about=About(name="the client", associations=associations), soon=lambda call: call(),
            )  # fmt: skip

        def dial(hosts: Sequence[str], port: int, factory: Any) -> Deferred[Any]:
            return HostnameEndpoint(net, hosts[0], port).connect(factory)

        self.connector = NativeConnector(
            ClientTerms(
                key=key, node=node, level=level, minimum=minimum,
                tls=ClientTLS(level, "192.0.2.254", None), reactor=net, dial=dial,
                server=Address("192.0.2.254", 10101),
                settings=settings, handshake_timeout=HANDSHAKE, cooldown=3.0,
                pool_interval=(0.1, 1.0), worker=worker, server_worker=server_worker,
            ),
            Health(log),
        )  # fmt: skip
        self.host.on_lost = self.host.on_left = lambda peer: self.connector.control_lost()

    def start(self) -> Client:
        """Look for the server."""
        self.connector.start()
        self.net.flush()
        return self

    @property
    def peer(self) -> NativePeer:
        """The server."""
        assert self.connector.peer is not None
        return self.connector.peer

    def stop(self) -> None:
        """Stop, and leave."""
        self.connector.stop()
        if self.connector.peer is not None:
            self.connector.peer.close(Cause.STOPPED, "the client is stopping")
        self.net.flush()
