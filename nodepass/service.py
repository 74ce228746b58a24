"""Tunnels as Twisted services, for programs that run them beside services of their own.

An application that has one::

    tunnel = makeService("server://KEY@:10101/:8080?mode=1&tls=1")
    tunnel.setServiceParent(application)
    tunnel.whenReady().addCallback(lambda _: print("up"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from nodepass.address import Endpoint
from nodepass.config import (
    ClientConfig,
    Config,
    MasterConfig,
    Mode,
    ServerConfig,
    TLSLevel,
    parse_url,
)
from nodepass.dialects import NATIVE
from nodepass.errors import ConfigError, FatalError
from nodepass.health import Health
from nodepass.keys import outside_key
from nodepass.logs import Level, Log
from nodepass.meter import Stats
from nodepass.roles.choice import make_role, settle_workers
from nodepass.tls import ClientTLS, load_identity
from nodepass.tuning import Tuning

if TYPE_CHECKING:
    from nodepass.master.service import MasterService
    from nodepass.reactor import IReactor
    from nodepass.roles.role import Role
    from nodepass.workers.crew import Crew

T = TypeVar("T")

#: Bits that a key should hold at least, so that guessing it over the network is hopeless.
STRONG_KEY_BITS = 40


class RoleService(Service):
    """A server, client or forwarder as a service.

    It pickles as its configuration alone; all else is built when it starts, and built anew when it
    starts again.

    :param source: its name where a process has several; its log lines end in `` [source]``.
    :param condition: called with each change of `trouble`, with the new one.
    """

    def __init__(
        self,
        config: ServerConfig | ClientConfig,
        *,
        tuning: Tuning | None = None,
        reactor: Any = None,
        source: str = "",
        condition: Callable[[str | None], None] = lambda trouble: None,
    ) -> None:
        self.config = config
        self._tuning = tuning
        self._source = source
        self._clear(reactor, condition)

    def _clear(
        self, reactor: Any = None, condition: Callable[[str | None], None] = lambda trouble: None
    ) -> None:
        self._reactor = reactor
        self._health = Health(Log(self.config.log, self._source), condition)
        self._introduced = False  # its warnings have been logged
        self._announced = False  # its start has been logged
        self._effective = self.config  # with the processes that there are
        self._role: Role | Crew | None = None
        self._draining: Role | Crew | None = None
        self._earlier = Stats()  # of roles that have failed since the start
        self._last = Stats()
        self._error: FatalError | None = None
        self._is_ready = False
        self._stopping: Deferred[None] | None = None
        self._ready: list[Deferred[None]] = []
        self._failures: list[Deferred[FatalError]] = []
        self._holders = 0
        self._released: list[Deferred[None]] = []

    def __getstate__(self) -> dict[str, Any]:
        # A saved application must hold neither reactor nor sockets, nor settings of this process.
        return {"config": self.config, "_tuning": self._tuning, "_source": self._source,
                "name": self.name, "parent": self.parent}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    # What a program asks.

    def whenReady(self) -> Deferred[None]:
        """Fires when the tunnel can serve for the first time since it was started: its ports are
        bound and, unless it is a plain forwarder, the first peer has joined. Fails with FatalError
        when it never can, and with Twisted's CancelledError when it is stopped before."""
        result: Deferred[None] = Deferred(self._ready.remove)
        if self._is_ready:
            result.callback(None)
        elif self._error is not None:
            result.errback(self._error)
        else:
            self._ready.append(result)
        return result

    def whenFailed(self) -> Deferred[FatalError]:
        """Fires with the error when the tunnel meets what retrying can't mend. Being stopped is no
        failure: it goes on waiting, for a failure after the next start."""
        result: Deferred[FatalError] = Deferred(self._failures.remove)
        if self._error is not None:
            result.callback(self._error)
        else:
            self._failures.append(result)
        return result

    def whenReleased(self) -> Deferred[None]:
        """Fires when none of its ports is bound, so that others can bind them: soon after a stop
        has begun, while sessions may go on."""
        result: Deferred[None] = Deferred(self._released.remove)
        if self._holders or self._role is not None:
            self._released.append(result)
        else:
            result.callback(None)
        return result

    @property
    def trouble(self) -> str | None:
        """Why it can't do its work now, in one line without a key: a port that can't be bound, a
        server that can't be joined. None while nothing is wrong; waiting for a peer is not."""
        return self._health.reason

    @property
    def last_stats(self) -> Stats:
        """What the latest run that has ended had counted."""
        return self._last

    @property
    def stats(self) -> Stats:
        """How the tunnel is now, also while it drains; all zero while it is stopped. Where it has
        failed and can't be built anew, what it had counted before stays."""
        role = self._role or self._draining
        if role is not None:
            return role.stats.after(self._earlier)
        return Stats().after(self._earlier) if self.running else Stats()

    @property
    def tunnel_address(self) -> Endpoint | None:
        """Where the tunnel port is bound, None while it is not; tells the port for port 0."""
        return None if self._role is None else self._role.tunnel_address

    @property
    def visitor_address(self) -> Endpoint | None:
        """Where visitors arrive at this node, None while that port is not bound."""
        return None if self._role is None else self._role.visitor_address

    def reload(self) -> None:
        """Read certificate files again. One that is broken is logged, and the old stays in use."""
        if self._role is not None:
            self._role.reload()

    # Service

    def privilegedStartService(self) -> None:
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self._build()

    def startService(self) -> None:
        self._earlier = self._last = Stats()
        self._build()
        super().startService()  # type: ignore[no-untyped-call]
        if self._role is not None and self._error is None:
            self._role.start()

    def stopService(self) -> Deferred[None] | None:
        """Stop gracefully: no new sessions, and up to `Tuning.shutdown_timeout` seconds for those
        under way. Fires when all is closed; asked again meanwhile, it gives the same Deferred."""
        super().stopService()  # type: ignore[no-untyped-call]
        role, self._role = self._role, None
        self._is_ready = False
        self._error = None
        self._introduced = self._announced = False
        self._health.clear()
        for result in _taken(self._ready):
            result.errback(CancelledError("the tunnel was stopped"))
        if role is not None:
            stopping = self._take_down(role)
            stopping.addCallback(self._say_stopped)
            return stopping
        return self._stopping

    def retry(self) -> Deferred[None]:
        """Build it anew after a failure, which may have been mended. What was logged of it is not
        logged again, and `trouble` stays until it is over.

        :returns: Fires when it has been built, unless it was stopped in the meantime. `whenFailed`,
            asked after that, tells whether it has failed again.
        """
        role, self._role = self._role, None
        self._error = None
        if role is None:
            self._again()
            return succeed(None)
        return self._take_down(role).addCallback(lambda _: self._again())

    def _again(self) -> None:
        if self.running and self._role is None:
            self._earlier = self._last
            self._build()
            if self._role is not None and self._error is None:
                self._role.start()

    def _take_down(self, role: Role | Crew) -> Deferred[None]:
        stopping = self._stopping = Deferred.fromCoroutine(self._stop(role))
        return stopping.addBoth(self._stopped, stopping)

    async def _stop(self, role: Role | Crew) -> None:
        self._draining = role
        self._holders += 1
        try:
            await role.release()
        finally:
            self._holders -= 1
            if not self._holders and self._role is None:
                for result in _taken(self._released):
                    result.callback(None)
        await role.stop()
        self._last = role.stats.after(self._earlier)

    def _stopped(self, result: T, stopping: Deferred[None]) -> T:
        if self._stopping is stopping:
            self._stopping = None
            self._draining = None
        return result

    def _say_stopped(self, _: None) -> None:
        self._health.log.info("stopped: {url}", url=self._effective.effective_url())

    # How it comes to be.

    def _build(self) -> None:
        """Make the role and bind its ports, unless that was done or can't be."""
        if self._role is not None or self._error is not None:
            return
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor  # the one that runs this process
        config = self.config
        log = self._health.log
        tuning, warnings = self._tuning, tuple[str, ...]()
        if tuning is None:
            tuning, warnings = Tuning.from_environ(os.environ)
        if not self._introduced:
            self._introduced = True
            for warning in (*config.warnings, *warnings, *_key_warnings(config)):
                log.warn("{warning}", warning=warning)
        try:
            self._role = self._make_role(config, tuning, reactor)
            self._health.well("configuration")
            self._role.bind()
            # Once the reactor runs, signals are heard: whoever reads the line may send one.
            reactor.callWhenRunning(self._say_started, self._role)
        except ConfigError as error:  # a file that was good when the service was made
            self._health.trouble("configuration", "{error}", level=Level.ERROR, error=error)
            self._failed(FatalError(str(error)))

    def _make_role(
        self, config: ServerConfig | ClientConfig, tuning: Tuning, reactor: IReactor
    ) -> Role | Crew:
        config = self._effective = settle_workers(config, reactor, self._health.log)
        ready, failed = self._now_ready, self._failed
        return make_role(config, tuning, reactor, self._health, ready=ready, failed=failed)

    def _say_started(self, role: Role | Crew) -> None:
        if role is self._role and self._error is None and not self._announced:
            self._announced = True
            role.log.info("started: {url}", url=self._effective.effective_url())

    def _now_ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            for result in _taken(self._ready):
                result.callback(None)

    def _failed(self, error: FatalError) -> None:
        if self._error is not None:
            return
        self._error = error
        for ready in _taken(self._ready):
            ready.errback(Failure(error))
        for result in _taken(self._failures):
            result.callback(error)


def _taken(waiting: list[T]) -> Iterator[T]:
    """Those that wait now, each taken out at its turn, as its callbacks may cancel others."""
    for result in list(waiting):
        if result in waiting:
            waiting.remove(result)
            yield result


@overload
def makeService(
    url: ServerConfig | ClientConfig, *, reactor: Any = None, tuning: Tuning | None = None
) -> RoleService: ...


@overload
def makeService(
    url: str | Config, *, reactor: Any = None, tuning: Tuning | None = None
) -> RoleService | MasterService: ...


def makeService(
    url: str | Config, *, reactor: Any = None, tuning: Tuning | None = None
) -> RoleService | MasterService:
    """A tunnel, or a master, from its URL or its configuration.

    :param reactor: a reactor of Twisted's to run on; the global one unless given.
    :param tuning: limits and timeouts; those of the environment unless given.
    :returns: A `RoleService`, or for a ``master://`` a `nodepass.master.service.MasterService`.
    :raises ConfigError: the URL, or a file that it names, can't be used.
    """
    config = parse_url(url, key=outside_key(None, os.environ)) if isinstance(url, str) else url
    _check_files(config)
    if isinstance(config, MasterConfig):
        from nodepass.master.service import MasterService

        return MasterService(config, tuning=tuning, reactor=reactor)
    return RoleService(config, tuning=tuning, reactor=reactor)


def _check_files(config: Config) -> None:
    if not isinstance(config, ClientConfig):
        if config.tls is TLSLevel.FILES and config.crt and config.key_file:
            load_identity(config.crt, config.key_file)
    else:
        ClientTLS(config.tls, config.tunnel.host, config.ca)


def _key_warnings(config: ServerConfig | ClientConfig) -> list[str]:
    if isinstance(config, ClientConfig) and config.mode is Mode.ONE:
        return []
    # An end without native has no use for the native key.
    key = config.key if NATIVE in config.dialects else config.key_for_old
    if not key:
        return [
            "no key: anyone who reaches the tunnel port may join; give both ends the same one, by "
            "NODEPASS_KEY, --key-file, or KEY@ before the tunnel host (nodepass key makes one)"
        ]
    # Four bits a character is what hex digits hold; words hold less, and random letters more.
    if 4 * len(key) < STRONG_KEY_BITS:
        return [f"the key is short (under {STRONG_KEY_BITS} bits); nodepass key makes a strong one"]
    return []
