"""A master as a Twisted service, for programs that run one beside services of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred

from nodepass.address import is_literal
from nodepass.config import MasterConfig, TLSLevel
from nodepass.errors import ConfigError, FatalError, NodePassError
from nodepass.logs import Log
from nodepass.openfiles import open_files
from nodepass.tuning import Tuning

from .settings import MasterSettings

if TYPE_CHECKING:
    from .listener import ApiPort
    from .master import Master
    from .site import MasterSite

__all__ = ["MasterService"]


class MasterService(Service):
    """A master: its API, its workers, its state.

    It pickles as its configuration alone; all else is built when it starts.

    :param settings: state file and workers; those of the environment unless given.
    :param tuning: limits and timeouts; those of the environment unless given.
    :param reactor: the global one unless given.
    """

    def __init__(
        self,
        config: MasterConfig,
        *,
        settings: MasterSettings | None = None,
        tuning: Tuning | None = None,
        reactor: Any = None,
    ) -> None:
        self.config = config
        self._settings = settings
        self._tuning = tuning
        self._clear(reactor)

    def _clear(self, reactor: Any) -> None:
        self._reactor = reactor
        self._master: Master | None = None
        self._port: ApiPort | None = None
        self._site: MasterSite | None = None
        self._log = Log(self.config.log)
        self._error: NodePassError | None = None
        self._is_ready = False
        self._starting: Deferred[None] | None = None
        self._stopping: Deferred[None] | None = None
        self._ready: list[Deferred[None]] = []
        self._failures: list[Deferred[NodePassError]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "_settings": self._settings, "_tuning": self._tuning,
                "name": self.name, "parent": self.parent}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear(None)

    # What a program asks.

    def whenReady(self) -> Deferred[None]:
        """Fires when the API answers. Fails with the error when it never can, and with Twisted's
        CancelledError when the master is stopped before."""
        result: Deferred[None] = Deferred(self._ready.remove)
        if self._is_ready:
            result.callback(None)
        elif self._error is not None:
            result.errback(self._error)
        else:
            self._ready.append(result)
        return result

    def whenFailed(self) -> Deferred[NodePassError]:
        """Fires with the error when the master meets what retrying can't mend."""
        result: Deferred[NodePassError] = Deferred(self._failures.remove)
        if self._error is not None:
            result.callback(self._error)
        else:
            self._failures.append(result)
        return result

    @property
    def address(self) -> str | None:
        """Where the API is bound, ``host:port`` or the path of a socket; None while it is not."""
        return None if self._port is None else self._port.address

    @property
    def key(self) -> str:
        """The API key; empty while the master has not started."""
        return "" if self._master is None else self._master.key_instance().url

    def reload(self) -> None:
        """Read certificate files again, the API's and those of all instances."""
        if self._port is not None:
            self._port.reload()
        if self._master is not None:
            self._master.reload()

    # Service

    def privilegedStartService(self) -> None:
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self._build()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._build()
        if self._master is not None and self._error is None:
            self._starting = Deferred.fromCoroutine(self._start(self._master))
            self._starting.addErrback(self._not_started)

    def stopService(self) -> Deferred[None] | None:
        """Stop gracefully: subscribers are told, instances stopped, the state is saved. Fires when
        all is done."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._stopping is None and self._master is not None:
            for waiting in self._ready:
                waiting.errback(CancelledError("the master was stopped"))
            self._ready = []
            self._stopping = Deferred.fromCoroutine(self._stop(self._master))
        return self._stopping

    # How it comes to be, and how it ends.

    def _build(self) -> None:
        """Make the parts and bind the port, unless that was done or can't be."""
        if self._master is not None or self._error is not None:
            return
        # Not at the top: Klein imports what installs a reactor.
        from .api import Api
        from .listener import ApiPort
        from .master import Master
        from .site import MOST_CONNECTIONS, MasterSite

        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor
        log, settings, tuning = self._log, self._settings, self._tuning
        warnings: list[str] = list(self.config.warnings)
        try:
            if settings is None:
                settings, more = MasterSettings.from_environ(os.environ)
                warnings += more
            if tuning is None:
                tuning, complaints = Tuning.from_environ(os.environ)
                warnings += complaints
            if self.config.tls is TLSLevel.PLAIN and _reachable(self.config):
                warnings.append(
                    "the API is reachable from other machines without TLS: its key, and the keys "
                    "of all tunnels, can be read on the way; add tls=1, or bind 127.0.0.1"
                )
            for warning in warnings:
                log.warn("{warning}", warning=warning)
            self._master = Master(self.config, settings, tuning, reactor, log)
            files = open_files()
            # Half of the files that may be open are left for workers and the state.
            most = MOST_CONNECTIONS if files is None else min(MOST_CONNECTIONS, files // 2)
            self._site = MasterSite(
                Api(self._master).resource,
                reactor,
                log,
                knows=self._master.access.knows,
                most=most,
            )
            self._port = ApiPort(
                reactor,
                self.config,
                cast(Any, self._site),
                log,
                tuning.service_cooldown,
                opened=self._opened,
                failed=self._failed,
            )
            self._port.bind()
        except (ConfigError, FatalError) as error:
            self._failed(error)

    async def _start(self, master: Master) -> None:
        try:
            await master.start()
        except CancelledError:
            return  # it is being stopped
        except (ConfigError, FatalError) as error:
            self._failed(error)
            return
        if self._port is not None and self.running:
            self._port.start()

    def _not_started(self, failure: Any) -> None:
        self._log.failure("the master failed to start", failure)
        self._failed(FatalError("the master failed to start; the log says why"))

    def _opened(self) -> None:
        self._log.info("started: {url}", url=self.config.effective_url())
        self._log.info(
            "API on {address}, prefix {prefix}/v1", address=self.address, prefix=self.config.prefix
        )
        if self._port is not None and self._port.fingerprint is not None:
            self._log.info("API certificate SHA-256: {pin}", pin=self._port.fingerprint)
        self._is_ready = True
        waiting, self._ready = self._ready, []
        for result in waiting:
            result.callback(None)

    def _failed(self, error: NodePassError) -> None:
        if self._error is not None:
            return
        self._error = error
        waiting, self._ready = self._ready, []
        for result in waiting:
            result.errback(error)
        failures, self._failures = self._failures, []
        for failure in failures:
            failure.callback(error)

    async def _stop(self, master: Master) -> None:
        port, site, starting = self._port, self._site, self._starting
        if starting is not None and not starting.called:
            # What is half started can't be stopped. The state takes a moment to be read; workers
            # that may take long are not waited for.
            master.cancel_start()
            started: Deferred[None] = Deferred()
            starting.addBoth(lambda _: started.callback(None))
            await started
        if port is not None:
            await port.stop()
        await master.stop()
        if site is not None:
            await site.close()
        if self._is_ready:
            self._log.info("stopped: {url}", url=self.config.effective_url())
        stopping = self._stopping
        self._clear(self._reactor)
        self._stopping = stopping


def _reachable(config: MasterConfig) -> bool:
    """Whether other machines may reach the API."""
    if config.listen is None:
        return False
    host = config.listen.host
    return host.lower() != "localhost" and not (
        is_literal(host) and (host.startswith("127.") or host == "::1")
    )
