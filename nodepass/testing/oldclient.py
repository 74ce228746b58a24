"""The client of an old dialect."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from nodepass.address import Endpoint, is_literal
from nodepass.parameters import TLSLevel
from nodepass.tls import ClientTLS
from nodepass.wire import Flow
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.handshake import (
    Grant,
    GrantReader,
    HandshakeError,
    HTTPClientHandshake,
    hello_line,
)

from .conn import Conn, Gone, Link, Reactor, dial
from .oldnode import OldNode
from .oldpool import OldPool, ReusingPool
from .oldtunnel import Ended, OldTunnel
from .tasks import Silence, together
from .timing import OldTiming

__all__ = ["OldClient"]

#: Seconds that the programs give the connect of an HTTP handshake.
HTTP_DIAL = 30.0


class OldClient(OldNode):
    """A client that joins a server, serves until the tunnel ends, and joins again.

    :ivar grant: what the server said last.
    """

    def __init__(
        self,
        reactor: Reactor,
        dialect: Dialect,
        tunnel: Endpoint,
        other: Endpoint,
        *,
        key: str = "",
        least: int = 64,
        name: str = "",
        ca: str | None = None,
        source: str = "",
        read: float = 0.0,
        timing: OldTiming | None = None,
    ) -> None:
        """
        :param reactor: what it runs on.
        :param dialect: what it speaks.
        :param tunnel: the server.
        :param other: the target in flow ``-``, the address for visitors in flow ``+`` (port 0 takes
            a free one).
        :param key: the tunnel key; empty for the one that comes from the port.
        :param least: idle links that it keeps.
        :param name: the server's name (`sni`), which its certificate must have with `tls` 2.
        :param ca: PEM path of the roots to trust with `tls` 2; the programs trust the system's.
        :param source: the address of this machine to connect from; empty for the system's choice.
        :param read: seconds of silence that end a session; 0 for none. 1.6 takes an hour for it.
        :param timing: how long it waits for what; the default is as the program does.
        """
        super().__init__(reactor, dialect, tunnel, other, key=key, read=read, timing=timing)
        self.grant: Grant | None = None
        self._least = least
        self._name = name or ("" if is_literal(tunnel.host) else tunnel.host)
        self._ca = ca
        self._source = source
        self._interval = self._timing.refill_least
        self._capacity = least

    async def _serve(self) -> None:
        control: Link | None = None
        rest = b""
        if self._dialect.traits.http:
            self.grant = await self._handshake()
        else:
            control, self.grant, rest = await self._handshake_1_6()
        grant = self.grant
        most, least = max(grant.max, self._least), min(grant.max, self._least)
        self._capacity, self._interval = max(1, least), self._timing.refill_least
        if control is None:
            if grant.pool != 0:
                raise Ended(f"links of type {grant.pool} are not simulated")
            pool = OldPool(self._reactor, self._timing, most)
            tunnel = self._new_tunnel(grant, pool)
            self._tasks.start(self._fill(pool, least, most))
            control = await tunnel.control_link()
        else:
            pool = ReusingPool(self._reactor, self._timing, most, self._tasks)
            tunnel = self._new_tunnel(grant, pool)
            self._tasks.start(self._fill_1_6(pool, least, most))
        ports = self._open_ports() if grant.flow is Flow.FORWARD else None
        self._came_up(tunnel)
        await tunnel.run(control, rest, ports)

    def _new_tunnel(self, grant: Grant, pool: OldPool) -> OldTunnel:
        self._tunnel = OldTunnel(self._setting, grant, pool, self._tasks, pin=None)
        return self._tunnel

    async def _dial(self, timeout: float) -> Conn:
        return await dial(self._reactor, self._tunnel_address, timeout, self._source)

    # The handshake

    async def _handshake(self) -> Grant:
        conn = await self._dial(HTTP_DIAL)
        try:
            if self._dialect.traits.handshake_tls:
                tls = ClientTLS(None, self._tunnel_address.host)
                await conn.start_tls(tls.creator(()), True)
            handshake = HTTPClientHandshake(self._setting.key, self._name or None)
            await conn.write(handshake.request())
            grant = None
            while grant is None:
                # The program waits for ever.
                grant = handshake.feed(await conn.read())
            return grant
        except HandshakeError as error:
            raise Ended(str(error)) from error
        finally:
            conn.close()

    async def _handshake_1_6(self) -> tuple[Conn, Grant, bytes]:
        conn = await self._dial(self._timing.dial)
        try:
            await conn.write(hello_line(self._setting.key))
            reader = GrantReader(self._setting.key)
            grant = None
            while grant is None:
                data = await conn.read(timeout=2 * self._timing.report)
                if not data:
                    raise Ended("the server closed the connection")
                grant = reader.feed(data)
            return conn, grant, reader.rest
        except (HandshakeError, Silence) as error:
            conn.close()
            raise Ended(str(error) or "the server is silent") from error
        except (Ended, CancelledError):
            conn.close()
            raise

    # Links

    async def _fill(self, pool: OldPool, least: int, most: int) -> None:
        while True:
            self._adjust_interval(pool)
            need = self._capacity - pool.active
            # All at once, and the next look only after the last of them.
            made = await together(self._link(pool) for _ in range(need))
            self._adjust_capacity(sum(made), least, most)
            await self._tasks.sleep(self._interval)

    async def _fill_1_6(self, pool: ReusingPool, least: int, most: int) -> None:
        while True:
            self._adjust_interval(pool)
            pool.interval = self._interval
            made = 0
            while pool.active < self._capacity:
                # One after the other. The program does not pause after a failure.
                if await self._link(pool):
                    made += 1
                else:
                    await self._tasks.sleep(self._timing.poll / 10)
            self._adjust_capacity(made, least, most)
            await self._tasks.sleep(self._interval)

    async def _link(self, pool: OldPool) -> bool:
        """Make a link; whether there is one more now."""
        assert self.grant is not None
        traits = self._dialect.traits
        try:
            conn = await self._dial(self._timing.dial)
        except Gone:
            return False
        try:
            if self.grant.tls == TLSLevel.SELF_SIGNED:
                await conn.start_tls(ClientTLS(None, "127.0.0.1").creator(()), True)
            elif self.grant.tls == TLSLevel.FILES:
                checked = ClientTLS(TLSLevel.FILES, self._name or "none", self._ca)
                await conn.start_tls(checked.creator(()), True)
            if traits.raw_id:
                number = (await conn.read_exactly(4, self._timing.id_wait)).hex()
            else:
                # In one read, or not at all.
                number = (await conn.read(8, self._timing.id_wait)).decode("latin-1")
                if len(number) != 8:
                    raise Gone("not the number of a link")
        except (Gone, Silence):
            conn.close()
            return False
        except CancelledError:
            conn.close()
            raise
        return pool.add(number, conn)

    def _adjust_interval(self, pool: OldPool) -> None:
        timing = self._timing
        if pool.active < int(self._capacity * 0.2):
            self._interval = max(self._interval - timing.refill_step, timing.refill_least)
        if pool.active > int(self._capacity * 0.8):
            self._interval = min(self._interval + timing.refill_step, timing.refill_most)

    def _adjust_capacity(self, made: int, least: int, most: int) -> None:
        ratio = made / self._capacity
        if ratio < 0.2 and self._capacity > least:
            self._capacity -= 1
        if ratio > 0.8 and self._capacity < most:
            self._capacity += 1
