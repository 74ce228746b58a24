"""One tunnel of an old node, from the handshake to what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred

from nodepass.wire import Flow
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.handshake import Grant
from nodepass.wire.old.signals import (
    CONTROL_ID,
    Flush,
    Launch,
    Ping,
    Pong,
    Signal,
    SignalReader,
    Verify,
    encode,
)

from .conn import Conn, Gone, Link, dial
from .exchange import exchange
from .oldflows import OldFlows
from .oldlines import BadLine, PlainReader, write_plain
from .oldpool import NoLink, OldPool
from .setting import Setting
from .tasks import Silence, Tasks
from .udp import Socket

__all__ = ["Ended", "OldTunnel"]


class Ended(Exception):
    """The tunnel is over; the text says why."""


class Ports(Protocol):
    """The ports for visitors of one tunnel."""

    datagrams: Socket

    def admit(self, visitor: Callable[[Conn], None]) -> None:
        """Give TCP visitors to somebody from now on, first those who wait."""


class OldTunnel:
    """What both ends do alike.

    :ivar established: whether the control link is up.
    """

    def __init__(
        self, setting: Setting, grant: Grant, pool: OldPool, tasks: Tasks, pin: bytes | None
    ) -> None:
        """
        :param tasks: what ends with the tunnel.
        :param pin: the SHA-256 of the certificate that a server shows and knows itself; empty where
            it does not; None for a client.
        """
        self.established = False
        self._is_server = pin is not None
        self._pin = pin or b""
        self._setting = setting
        self._grant = grant
        self._pool = pool
        self._tasks = tasks
        self._control: Link | None = None
        self._over: Deferred[str] = Deferred()
        self._verified: Deferred[None] = Deferred()
        self._flows = OldFlows(setting, pool, self._over, self._send)

    @property
    def has_visitors(self) -> bool:
        """Whether visitors come to this end."""
        return self._is_server == (self._grant.flow is Flow.REVERSE)

    @property
    def _verifies(self) -> bool:
        return int(self._grant.tls) in self._setting.dialect.traits.verified

    # From the control link to the end

    async def control_link(self) -> Link:
        """The pool's first link, of 1.14 and 2.0.

        :raises Ended: none came.
        """
        waited = 0.0
        timing = self._setting.timing
        while not self._pool.active:
            if waited > timing.handshake:
                raise Ended("no link came in time")
            await self._tasks.sleep(timing.poll)
            waited += timing.poll
        try:
            return await self._pool.by_number(CONTROL_ID)
        except NoLink:
            raise Ended("no control link came in time") from None

    async def run(self, control: Link, rest: bytes, ports: Ports | None) -> None:
        """Serve until the tunnel is over.

        :param rest: what has come over the control link already.
        :raises Ended: always.
        """
        self._control = control
        self._tasks.start(self._read(control, rest))
        self._tasks.start(self._check_health())
        if self._verifies:
            self._tasks.start(self._verify())
        if ports is not None:
            self._tasks.start(self._admit(ports))
        raise Ended(await self._over)

    def end(self, reason: str) -> None:
        """It is over."""
        if not self._over.called:
            self._over.callback(reason)

    def close(self) -> None:
        """Give up what is left of it: idle links and the control link."""
        self.established = False
        self._pool.close()
        if self._control is not None:
            self._control.close()

    def _send(self, signal: Signal) -> None:
        setting = self._setting
        if setting.dialect.traits.json:
            line = encode(signal, setting.dialect, setting.key)
        else:
            line = write_plain(signal, setting.key)
        try:
            assert self._control is not None
            self._control.send(line)
        except Gone:
            pass  # the reader of the link notices

    async def _read(self, control: Link, rest: bytes) -> None:
        setting = self._setting
        traits = setting.dialect.traits
        reader: SignalReader | PlainReader
        if traits.json:
            reader = SignalReader(setting.dialect, setting.key)
        else:
            reader = PlainReader(setting.key)
        intervals = 3 if traits.json else 2
        data = rest
        try:
            while True:
                for signal in reader.feed(data):
                    self._handle(signal)
                data = await control.read(timeout=intervals * setting.timing.report)
                if not data:
                    self.end("the control link was closed")
                    return
        except Silence:
            self.end("the control link was silent for too long")
        except BadLine as error:
            self.end(str(error))

    def _handle(self, signal: Signal) -> None:
        if isinstance(signal, Ping):
            self._send(Pong())
        elif isinstance(signal, Flush):
            self._pool.flush()
        elif isinstance(signal, Verify):
            if self._verifies:
                self._tasks.start(self._compare(signal))
        elif isinstance(signal, Launch):
            self._tasks.start(self._launch(signal))

    async def _check_health(self) -> None:
        interval = self._setting.timing.report
        tick = 0
        while True:
            if self._pool.errors > self._pool.active // 2:
                self._send(Flush())
                self._pool.flush()
                await self._tasks.sleep(interval)
                tick += 1
            self._send(Ping())
            await self._tasks.sleep(interval)
            tick += 1
            if self._verifies and self._setting.dialect is Dialect.V1_14 and tick == 1:
                # The verify takes the second tick of the clock from the ping.
                await self._tasks.sleep(interval)

    # Certificates

    async def _verify(self) -> None:
        intervals = 2 if self._setting.dialect is Dialect.V1_14 else 1
        await self._tasks.sleep(intervals * self._setting.timing.report)
        while not self._pool.active:
            await self._tasks.sleep(self._setting.timing.poll)
        try:
            number, link = await self._pool.next()
        except NoLink:
            self.end("no link to verify")
            return
        self._send(Verify(number, self._fingerprint(link)))
        link.close()

    async def _compare(self, signal: Verify) -> None:
        if not signal.fingerprint:
            self.end("a verify without a fingerprint")
            return
        try:
            link = await self._pool.by_number(signal.id)
        except NoLink:
            self.end("the link to verify did not come")
            return
        known = self._fingerprint(link)
        link.close()
        if known != signal.fingerprint:
            self.end("the certificate is another one" if known else "no certificate to compare")
        elif not self._verified.called:
            self._verified.callback(None)

    def _fingerprint(self, link: Link) -> str:
        pin = self._pin if self._is_server else link.pin
        if not pin:
            return ""
        colons = self._setting.dialect.traits.colons
        return "sha256:" + (pin.hex(":").upper() if colons else pin.hex())

    # The end with the visitors

    async def _admit(self, ports: Ports) -> None:
        if self._verifies:
            await self._verified
        ports.admit(lambda visitor: _forget(self._tasks.start(self._visitor(visitor))))
        await self._flows.visitors(ports.datagrams)

    async def _visitor(self, visitor: Conn) -> None:
        try:
            number, link = await self._pool.next()
        except (NoLink, CancelledError):
            visitor.close()
            return
        self._send(Launch(False, visitor.peer, number))
        self._setting.sessions.start(self._session(number, link, visitor))

    async def _session(self, number: str, link: Link, socket: Conn) -> None:
        setting = self._setting
        try:
            await exchange(setting.dialect, link, socket, setting.read)
        finally:
            socket.close()
            self._pool.done(number, link)

    # The end that dials

    async def _launch(self, launch: Launch) -> None:
        try:
            link = await self._pool.by_number(launch.id)
        except NoLink:
            self._pool.errors += 1
            return
        session = self._flows.dialed if launch.udp else self._connection
        self._setting.sessions.start(session(launch, link))

    async def _connection(self, launch: Launch, link: Link) -> None:
        setting = self._setting
        try:
            target = await dial(setting.reactor, setting.other, setting.timing.dial)
        except (Gone, CancelledError):
            self._pool.done(launch.id, link)
            return
        await self._session(launch.id, link, target)


def _forget(_: Any) -> None:
    """What has been started goes on by itself."""
