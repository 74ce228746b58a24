"""The UDP sessions of an old node's tunnel: each has a link to itself."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredList

from nodepass.address import Endpoint
from nodepass.wire.old.signals import Launch

from .conn import Gone, Link
from .oldpool import NoLink, OldPool
from .setting import Setting
from .tasks import Silence
from .udp import Socket

__all__ = ["OldFlows"]


class OldFlows:
    """Those of one tunnel.

    :param over: fires when the tunnel is over.
    :param announce: sends the other end a launch.
    """

    def __init__(
        self,
        setting: Setting,
        pool: OldPool,
        over: Deferred[str],
        announce: Callable[[Launch], None],
    ) -> None:
        self._setting = setting
        self._pool = pool
        self._over = over
        self._announce = announce
        self._targets: dict[str, Socket] = {}

    # The end with the visitors

    async def visitors(self, socket: Socket) -> None:
        """Carry what visitors send to this port."""
        sessions: dict[Endpoint, Link] = {}
        limit = self._setting.dialect.traits.udp_read
        while True:
            try:
                data, visitor = await socket.receive(limit)
            except Gone:
                return
            link = sessions.get(visitor)
            if link is None:
                # Other visitors wait meanwhile.
                try:
                    number, link = await self._pool.next()
                except NoLink:
                    continue
                sessions[visitor] = link
                self._setting.sessions.start(self._answers(number, link, socket, visitor, sessions))
                self._announce(Launch(True, visitor, number))
            try:
                await self._write_datagram(link, data)
            except Gone:
                sessions.pop(visitor, None)
                link.close()

    async def _answers(
        self,
        number: str,
        link: Link,
        socket: Socket,
        visitor: Endpoint,
        sessions: dict[Endpoint, Link],
    ) -> None:
        try:
            while not self._over.called:
                socket.send(await self._read_datagram(link), visitor)
        except (Gone, Silence):
            pass
        finally:
            self._pool.done(number, link)
            if sessions.get(visitor) is link:
                del sessions[visitor]

    # The end that dials

    async def dialed(self, launch: Launch, link: Link) -> None:
        """Carry what one visitor sends to the target."""
        setting = self._setting
        key = str(launch.visitor)
        target = self._targets.get(key)
        own = target is None
        if target is None:
            wildcard = "::" if ":" in setting.other.host else "0.0.0.0"
            target = Socket(setting.reactor, Endpoint(wildcard, 0), setting.other)
            self._targets[key] = target
        ways = [
            setting.sessions.start(self._to_target(link, target)),
            setting.sessions.start(self._from_target(link, target)),
        ]
        try:
            await DeferredList(ways, fireOnOneCallback=True)
        finally:
            if own:
                del self._targets[key]
                target.close()
            self._pool.done(launch.id, link)

    async def _to_target(self, link: Link, target: Socket) -> None:
        try:
            while not self._over.called:
                target.send(await self._read_datagram(link))
        except (Gone, Silence):
            pass

    async def _from_target(self, link: Link, target: Socket) -> None:
        try:
            while not self._over.called:
                data, _ = await target.receive(self._setting.dialect.traits.udp_read, self._silence)
                await self._write_datagram(link, data)
        except (Gone, Silence):
            pass

    # Datagrams on a link

    @property
    def _silence(self) -> float | None:
        """Seconds without a datagram that end a UDP session."""
        setting = self._setting
        if setting.dialect.traits.http:
            return setting.timing.udp_silence
        return setting.read or None

    async def _read_datagram(self, link: Link) -> bytes:
        """The next datagram; without frames, what one read gives.

        :raises Gone: the link ended, or a frame is too long.
        :raises Silence: none came in time.
        """
        traits = self._setting.dialect.traits
        if not traits.framed_udp:
            data = await link.read(traits.udp_read, self._silence)
            if not data:
                raise Gone("the link was closed")
            return data
        size = int.from_bytes(await link.read_exactly(2, self._silence), "big")
        if size > traits.udp_read:
            raise Gone("a datagram longer than the buffer")
        return await link.read_exactly(size, self._silence)

    async def _write_datagram(self, link: Link, data: bytes) -> None:
        if self._setting.dialect.traits.framed_udp:
            await link.write(len(data).to_bytes(2, "big"))
        if data:
            await link.write(data)
