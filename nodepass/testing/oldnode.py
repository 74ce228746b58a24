"""An old node: tunnel after tunnel, with a pause between them, for ever."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError

from nodepass.address import Endpoint
from nodepass.wire.old.cipher import key_for
from nodepass.wire.old.dialect import Dialect

from .conn import Conn, Gone, Reactor, listen, port_of
from .oldtunnel import Ended, OldTunnel
from .setting import Setting
from .tasks import Changes, Silence, Tasks
from .timing import OldTiming
from .udp import Socket

__all__ = ["OldNode", "VisitorPorts"]

#: `read` of 1.6 where it is not given, seconds.
READ_OF_1_6 = 3600.0

#: Tries to find a port that is free for TCP and UDP alike.
TRIES = 20


class VisitorPorts:
    """The TCP and the UDP port for visitors; they wait until they are admitted."""

    def __init__(self, reactor: Reactor, where: Endpoint) -> None:
        """
        :raises CannotListenError: one of them is taken.
        """
        self._waiting: list[Conn] = []
        self._visitor: Callable[[Conn], None] | None = None
        for remaining in reversed(range(TRIES)):
            self._port = listen(reactor, where, self._accepted)
            self.endpoint = Endpoint(where.host, port_of(self._port))
            try:
                self.datagrams = Socket(reactor, self.endpoint)
                return
            except CannotListenError:
                self._port.stopListening()
                if where.port or not remaining:
                    raise

    def admit(self, visitor: Callable[[Conn], None]) -> None:
        """Give TCP visitors to somebody from now on, first those who wait."""
        self._visitor = visitor
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            visitor(one)

    def _accepted(self, visitor: Conn) -> None:
        if self._visitor is not None:
            self._visitor(visitor)
        else:
            self._waiting.append(visitor)

    def close(self) -> None:
        """Listen no more; those who wait are reset."""
        self._port.stopListening()
        self.datagrams.close()
        for visitor in self._waiting:
            visitor.abort()
        self._waiting.clear()


class OldNode:
    """What servers and clients have in common.

    :ivar errors: why each tunnel ended, or did not come about; the program would log it.
    :ivar tunnels: how many have come about.
    """

    def __init__(
        self,
        reactor: Reactor,
        dialect: Dialect,
        tunnel: Endpoint,
        other: Endpoint,
        *,
        key: str,
        read: float,
        timing: OldTiming | None,
    ) -> None:
        self.errors: list[str] = []
        self.tunnels = 0
        if not dialect.traits.http:
            read = read or READ_OF_1_6
        self._reactor = reactor
        self._dialect = dialect
        self._timing = timing or OldTiming.of(dialect)
        self._sessions = Tasks(reactor)
        self._tasks = Tasks(reactor)  # those of the present tunnel
        self._tunnel_address = tunnel
        self._visitors_at = other
        self._setting = Setting(
            reactor=reactor,
            dialect=dialect,
            key=key_for(key or None, tunnel.port),
            timing=self._timing,
            other=other,
            read=read,
            sessions=self._sessions,
        )
        self._ports: VisitorPorts | None = None
        self._tunnel: OldTunnel | None = None
        self._life: Deferred[None] | None = None
        self._changes = Changes(reactor)

    @property
    def visitor_address(self) -> Endpoint | None:
        """Where visitors connect; None while there is no port for them."""
        return None if self._ports is None else self._ports.endpoint

    @property
    def established(self) -> bool:
        """Whether a tunnel is up."""
        return self._tunnel is not None and self._tunnel.established

    @property
    def sessions(self) -> int:
        """Coroutines that carry sessions; 0 when none is left."""
        return len(self._sessions)

    async def ready(self, timeout: float = 10.0) -> None:
        """Returns when a tunnel is up.

        :raises Ended: none is after so many seconds; says what went wrong.
        """
        deadline = self._reactor.seconds() + timeout
        while not self.established:
            try:
                await self._changes.wait(deadline - self._reactor.seconds())
            except Silence:
                raise Ended(f"no tunnel after {timeout} s: {self.errors}") from None

    def start(self) -> None:
        """Live; once."""
        self._life = Deferred.fromCoroutine(self._live())
        self._life.addErrback(lambda failure: failure.trap(CancelledError))

    def stop(self) -> None:
        """End at once, as the program does when it is killed: the system closes all sockets."""
        if self._life is not None:
            self._life.cancel()
        self._give_up()
        self._sessions.stop()

    async def _live(self) -> None:
        while True:
            try:
                await self._serve()
            except (Ended, Gone) as error:
                self.errors.append(str(error))
            except CannotListenError as error:
                self.errors.append(f"can't listen: {error.socketError}")
            self._give_up()
            await self._tasks.sleep(self._timing.cooldown)

    async def _serve(self) -> None:
        """Bring a tunnel about and serve it to its end.

        :raises Ended: or any of the other things that `_live` knows.
        """
        raise NotImplementedError

    def _came_up(self, tunnel: OldTunnel) -> None:
        """The control link is there."""
        tunnel.established = True
        self.tunnels += 1
        # Not from within: who waits may stop this node.
        self._reactor.callLater(0, self._changes.fire)

    def _open_ports(self) -> VisitorPorts:
        ports = VisitorPorts(self._reactor, self._visitors_at)
        self._visitors_at = ports.endpoint  # the same one after a restart
        self._ports = ports
        return ports

    def _give_up(self) -> None:
        """Close what the present tunnel holds; TCP sessions go on."""
        self._tasks.stop()
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None
        if self._ports is not None:
            self._ports.close()
            self._ports = None
