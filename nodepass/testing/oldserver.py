"""The server of an old dialect."""

from __future__ import annotations

import os
from collections import deque

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IListeningPort

from nodepass.address import Endpoint
from nodepass.identity import Identity, self_signed
from nodepass.parameters import TLSLevel
from nodepass.tls import server_context
from nodepass.wire import Flow
from nodepass.wire.old.cipher import xor
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.handshake import Grant, HTTPServerHandshake, hello_line
from nodepass.wire.old.lines import LineError, LineSplitter

from .conn import Conn, Gone, Link, Reactor, listen, port_of
from .oldnode import OldNode
from .oldpool import OldPool, ReusingPool
from .oldtunnel import OldTunnel
from .tasks import Changes, Silence, Tasks
from .timing import OldTiming
from .websocket import accept_websocket

__all__ = ["OldServer"]

#: The value of `type` for links that are WebSockets.
WEBSOCKET = 2

#: What a 2.0 server says to plain HTTP.
_NO_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


class OldServer(OldNode):
    """A server that waits for one client, serves it until its tunnel ends, and waits again.

    :ivar granted: handshakes that succeeded.
    :ivar refused: those that failed.
    """

    def __init__(
        self,
        reactor: Reactor,
        dialect: Dialect,
        tunnel: Endpoint,
        other: Endpoint,
        *,
        flow: Flow = Flow.REVERSE,
        key: str = "",
        tls: int = 0,
        identity: Identity | None = None,
        most: int = 1024,
        kind: int = 0,
        read: float = 0.0,
        timing: OldTiming | None = None,
        lost_answers: int = 0,
        absence: float = 0.0,
    ) -> None:
        """
        :param reactor: what it runs on.
        :param dialect: what it speaks.
        :param tunnel: the address for the client. Port 0, which the programs don't have, takes a
            free one; without a key it can't be used, as the key comes from the port.
        :param other: the address for visitors in flow ``-`` (port 0 takes a free one), the target
            in flow ``+``.
        :param flow: who listens for visitors.
        :param key: the tunnel key; empty for the one that comes from the port.
        :param tls: how links are protected: 0, 1 or 2.
        :param identity: the certificate, with `tls` 2.
        :param most: idle links that it lets there be.
        :param kind: the kind of links that it announces (`type`). Only 0, TCP, and 2, WebSocket,
            are really there.
        :param read: seconds of silence that end a session; 0 for none. 1.6 takes an hour for it.
        :param timing: how long it waits for what; the default is as the program does.
        :param lost_answers: as many handshakes at first end without the answer arriving, as
            happens with 1.14 and 2.0 now and then.
        :param absence: seconds that the port is closed after each handshake; with 1.14 and 2.0 it
            always is, but shortly.
        """
        super().__init__(reactor, dialect, tunnel, other, key=key, read=read, timing=timing)
        self.granted = 0
        self.refused = 0
        self._grant = Grant(flow, most, TLSLevel(tls), kind)
        self._identity = identity or self_signed()
        self._files = identity is not None
        self._lost_answers = lost_answers
        self._absence = absence
        self._port: IListeningPort | None = None
        self._accepted: deque[Conn] = deque()
        self._arrivals = Changes(reactor)

    @property
    def tunnel_address(self) -> Endpoint:
        """Where it waits for the client; with the port that it took."""
        return self._tunnel_address

    # The port

    def _listen(self) -> None:
        self._port = listen(self._reactor, self._tunnel_address, self._arrived)
        self._tunnel_address = Endpoint(self._tunnel_address.host, port_of(self._port))

    def _arrived(self, conn: Conn) -> None:
        self._accepted.append(conn)
        self._arrivals.fire()

    async def _accept(self) -> Conn:
        while not self._accepted:
            await self._arrivals.wait()
        return self._accepted.popleft()

    def _close_port(self) -> Deferred[None]:
        closed: Deferred[None] = succeed(None)
        if self._port is not None:
            closed = self._port.stopListening() or closed
            self._port = None
        while self._accepted:
            self._accepted.popleft().abort()
        return closed

    def _give_up(self) -> None:
        super()._give_up()
        self._close_port()

    # A tunnel

    async def _serve(self) -> None:
        self._listen()
        ports = self._open_ports() if self._grant.flow is Flow.REVERSE else None
        if self._dialect.traits.http:
            client = await self._handshake()
            pool = OldPool(self._reactor, self._timing, self._grant.max)
            tunnel = self._new_tunnel(pool)
            self._tasks.start(self._fill(pool, client))
            control: Link = await tunnel.control_link()
            rest = b""
        else:
            control, rest = await self._handshake_1_6()
            pool = ReusingPool(self._reactor, self._timing, self._grant.max, self._tasks)
            tunnel = self._new_tunnel(pool)
            self._tasks.start(self._fill_1_6(pool, control.peer.host))
        self._came_up(tunnel)
        await tunnel.run(control, rest, ports)

    def _new_tunnel(self, pool: OldPool) -> OldTunnel:
        # With files the program has no certificate at hand to compare one with.
        known = self._grant.tls == TLSLevel.SELF_SIGNED and self._identity.pin
        self._tunnel = OldTunnel(self._setting, self._grant, pool, self._tasks, pin=known or b"")
        return self._tunnel

    # 1.14 and 2.0

    async def _handshake(self) -> str:
        """Wait for a client with the right token; its address."""
        granted: Deferred[Conn] = Deferred()
        knocks = Tasks(self._reactor)
        knocks.start(self._knocks(knocks, granted))
        try:
            conn = await granted
        finally:
            knocks.stop()
        # The port goes, and whoever was about to connect with it.
        closed = self._close_port()
        conn.close()
        self.granted += 1
        if self._grant.tls == TLSLevel.SELF_SIGNED and self._dialect is Dialect.V2_0:
            self._identity = self_signed()
        await closed
        if self._absence:
            await self._tasks.sleep(self._absence)
        self._listen()
        return conn.peer.host

    async def _knocks(self, knocks: Tasks, granted: Deferred[Conn]) -> None:
        while True:
            conn = await self._accept()
            knocks.start(self._knock(conn, granted))

    async def _knock(self, conn: Conn, granted: Deferred[Conn]) -> None:
        handshake = HTTPServerHandshake(self._setting.key, self._grant)
        verdict = None
        try:
            if self._dialect.traits.handshake_tls and not await self._under_tls(conn):
                return
            while verdict is None:
                data = await conn.read()
                if not data:
                    return
                verdict = handshake.feed(data)
            if verdict.granted and not granted.called:
                if self._lost_answers:
                    self._lost_answers -= 1
                else:
                    await conn.write(verdict.answer)
                granted.callback(conn)
                return
            self.refused += 1
            await conn.write(verdict.answer)
        except Gone:
            pass
        finally:
            if not (granted.called and granted.result is conn):
                conn.close()

    async def _under_tls(self, conn: Conn) -> bool:
        first = await conn.read()
        if first[:1] == b"\x16":
            conn.unread(first)
            await conn.start_tls(server_context(self._identity, ()), False)
            return True
        if first:
            await conn.write(_NO_TLS)
        return False

    async def _fill(self, pool: OldPool, client: str) -> None:
        numbers = [bytes(4)]
        while True:
            conn = await self._accept()
            self._tasks.start(self._admit(conn, pool, client, numbers))

    async def _admit(self, conn: Conn, pool: OldPool, client: str, first: list[bytes]) -> None:
        if pool.active >= pool.most or conn.peer.host != client:
            conn.close()
            return
        try:
            if self._grant.tls:
                await conn.start_tls(server_context(self._identity, ()), False)
            link: Link = conn
            if self._grant.pool == WEBSOCKET:
                link = await accept_websocket(conn)
            number = first.pop() if first else os.urandom(4)
            await link.write(number)
        except (Gone, CancelledError):
            conn.close()
        else:
            pool.add(number.hex(), link)

    # 1.6

    async def _handshake_1_6(self) -> tuple[Conn, bytes]:
        """Wait for a client that shows a key of the right length; what came behind it."""
        while True:
            conn = await self._accept()
            splitter = LineSplitter()
            try:
                lines: list[bytes] = []
                while not lines:
                    data = await conn.read(timeout=self._timing.handshake)
                    if not data:
                        raise Gone("no hello")
                    lines = splitter.feed(data)
                if lines[0] + b"\n" != hello_line(self._setting.key):
                    raise Gone("another key")
                grant = self._grant
                text = f"np://{grant.max}/{grant.flow.value}#{int(grant.tls)}"
                await conn.write(xor(text.encode(), self._setting.key) + b"\n")
            except (Gone, Silence, LineError):
                self.refused += 1
                conn.close()
                await self._tasks.sleep(self._timing.cooldown)
            except CancelledError:
                conn.close()
                raise
            else:
                self.granted += 1
                return conn, b"\n".join([*lines[1:], splitter.rest])

    async def _fill_1_6(self, pool: OldPool, client: str) -> None:
        while True:
            # One after the other: whoever is slow with TLS holds up all that follow.
            conn = await self._accept()
            if conn.peer.host != client:
                conn.close()
                continue
            try:
                if self._grant.tls:
                    await conn.start_tls(server_context(self._identity, ()), False)
                number = os.urandom(4)
                raw = self._dialect.traits.raw_id
                await conn.write(number if raw else number.hex().encode())
            except (Gone, CancelledError) as error:
                conn.close()
                if isinstance(error, CancelledError):
                    raise
            else:
                pool.add(number.hex(), conn)
