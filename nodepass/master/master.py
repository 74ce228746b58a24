"""The master without its port: everything that the API works on, from start to stop."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import asdict, evolve
from twisted.internet.defer import Deferred, DeferredList, DeferredLock, TimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from nodepass import __version__
from nodepass.config import MasterConfig
from nodepass.errors import FatalError
from nodepass.logs import Level, Log
from nodepass.parameters import show_value
from nodepass.tuning import Tuning

from .access import Access
from .hub import EventHub
from .labels import check_length
from .logtail import LogTail
from .models import MASTER_ID, Info, Instance
from .records import Identity, Totals, new_api_key
from .registry import Registry, saved
from .settings import MasterSettings
from .store import Store, StoreError
from .stream import Streams
from .supervisor import Supervisor
from .sysinfo import Machine
from .tcping import Tcping
from .traffic import Traffic, history_path

__all__ = ["Master"]

#: Seconds that the disk may take for what is saved at the end: a busy one takes one. One that hangs
#: does not keep the master from its end; what was acknowledged is on it already.
CLOSE_TIMEOUT = 10.0

#: Seconds after the start until the first backup, unless ``NP_RELOAD_INTERVAL`` is less: a new
#: master has its key and first instances by then.
FIRST_BACKUP = 60.0


class Master:
    """A master's parts, put together.

    :ivar registry: the instances.
    :ivar hub: their events.
    :ivar streams: the streams of events and logs that are open.
    :ivar tails: the last lines of each instance's log.
    :ivar access: who may use the API.
    :ivar tcping: connects on request.
    :ivar traffic: who moved how much when.
    """

    def __init__(
        self,
        config: MasterConfig,
        settings: MasterSettings,
        tuning: Tuning,
        reactor: Any,
        log: Log,
    ) -> None:
        self.config = config
        self._reactor = reactor
        self._log = log
        self._tuning = tuning
        self._identity = Identity(mid="", key="")
        self._identity_lock = DeferredLock()
        self._began = 0.0
        self._opened = False
        self._backup_timer: IDelayedCall | None = None
        self.store = Store(settings.state, reactor, log)
        self.traffic = Traffic(history_path(self.store.path), self.store.run, log)
        self.hub = EventHub(self.instances)
        self.streams = Streams(reactor, log)
        self.tails = LogTail()
        self.access = Access(reactor, lambda: self._identity.key, log)
        self.tcping = Tcping(reactor)
        self.registry = Registry(
            config,
            self.store,
            self.hub,
            self.tails,
            reactor,
            log,
            self._keep_history,
            self._forget_history,
        )
        self._machine = Machine()
        self._host = Supervisor(reactor, self.registry, log, settings, tuning, os.environ)

    # From start to stop.

    async def start(self) -> None:
        """Read the state, start the workers and the instances.

        :raises ConfigError: another master has the state.
        :raises FatalError: the state or the workers can't be used.
        :raises CancelledError: see `cancel_start`.
        """
        contents = await self.store.open()
        self._opened = True
        self._identity = contents.identity or await self._new_identity()
        if contents.identity is not None:
            self._log.info("API Key loaded")
        self.registry.load(contents.records)
        self._began = self._reactor.seconds()
        self.tcping.start()
        await self._host.start()
        self.registry.start(self._host)
        self._schedule_backup(min(FIRST_BACKUP, self._tuning.reload_interval))

    def cancel_start(self) -> None:
        """Wait for no worker any more: `start` fails, and the master is to be stopped."""
        self._host.stop()

    async def stop(self) -> None:
        """Tell subscribers, stop the instances side by side, save what they counted."""
        if self._backup_timer is not None:
            self._backup_timer.cancel()
            self._backup_timer = None
        self.registry.stop()
        self.hub.publish("shutdown", None)
        await DeferredList([self.streams.close(), self._host.stop()], consumeErrors=True)
        self.hub.close()
        self.tcping.stop()
        if self._opened:  # else there is no thread to close anything in
            closing = Deferred.fromCoroutine(self._close())
            try:
                await closing.addTimeout(CLOSE_TIMEOUT, self._reactor)
            except TimeoutError:
                self._log.error(
                    "{path}: the state can't be closed: the disk does not answer for "
                    "{seconds:g} s; traffic of the last moments may be lost",
                    path=str(self.store.path),
                    seconds=CLOSE_TIMEOUT,
                )

    async def _close(self) -> None:
        await self.registry.accounts.flush()
        await self.traffic.close()
        await self._backup()
        await self.store.close()

    def reload(self) -> None:
        """Let all instances read their certificate files again."""
        self._host.reload()

    async def _new_identity(self) -> Identity:
        identity = Identity(mid=secrets.token_hex(8), key=new_api_key())
        try:
            await self.store.set_identity(identity)
        except StoreError as error:
            raise FatalError(str(error)) from None
        # Whatever `log` says: it is shown this once, and nobody gets in without it.
        Log(Level.DEBUG).info("API Key created: {key}", key=identity.key)
        return identity

    # The master itself.

    def instances(self) -> Iterator[Instance]:
        """The API key, as clients expect it, and then the instances."""
        yield self.key_instance()
        yield from self.registry

    def key_instance(self) -> Instance:
        """The API key in the form of an instance."""
        identity = self._identity
        return Instance(id=MASTER_ID, alias=identity.alias, url=identity.key, config=identity.mid)

    async def rotate_key(self) -> Instance:
        """Make a new API key; subscribers learn of it, and have to come back with it."""
        await self._change_identity(lambda now: evolve(now, key=new_api_key()))
        self._log.info("API key renewed by a client of the API")
        shown = self.key_instance()
        self.hub.publish("update", shown)
        self.hub.publish("shutdown", None)
        self.streams.finish().addErrback(self._unexpected)
        return shown

    async def set_alias(self, alias: str | None) -> None:
        """Name the master; None or an empty name changes nothing.

        :raises ApiError: it is too long, or can't be saved.
        """
        check_length("Master alias", alias)
        if alias and alias != self._identity.alias:
            await self._change_identity(lambda now: evolve(now, alias=alias))
            self.hub.publish("update", self.key_instance())

    async def _change_identity(self, change: Callable[[Identity], Identity]) -> None:
        """Save a change; one after another, so that none undoes another."""
        await self._identity_lock.acquire()
        try:
            identity = change(self._identity)
            await saved(self.store.set_identity(identity))
            self._identity = identity
        finally:
            self._identity_lock.release()

    def info(self) -> Info:
        """Describe the master and its machine."""
        config = self.config
        return Info(
            **asdict(self._machine.figures()),
            alias=self._identity.alias,
            mid=self._identity.mid,
            name=config.listen.host if config.listen is not None else "",
            ver=version(),
            tls=show_value(config.tls),
            log=show_value(config.log),
            crt=config.crt or "",
            key=config.key_file or "",
            uptime=int(self._reactor.seconds() - self._began),
        )

    # What goes on behind it.

    def _keep_history(self, batch: Mapping[str, Totals]) -> None:
        self.traffic.add(time.time(), batch).addErrback(self._unexpected)

    def _forget_history(self, id: str) -> None:
        self.traffic.forget(id).addErrback(self._unexpected)

    def _schedule_backup(self, delay: float) -> None:
        self._backup_timer = self._reactor.callLater(delay, self._backup_due)

    def _backup_due(self) -> None:
        self._schedule_backup(self._tuning.reload_interval)
        Deferred.fromCoroutine(self._backup()).addErrback(self._unexpected)

    async def _backup(self) -> None:
        try:
            path = await self.store.backup()
        except StoreError as error:
            self._log.error("state backup failed: {error}", error=error)
            return
        if path is not None:
            self._log.info("state backup saved: {path}", path=str(path))

    def _unexpected(self, failure: Failure) -> None:
        self._log.failure("the master failed at something, and goes on", failure)


def version() -> str:
    """The version as dashboards compare it: three numbers."""
    numbers = [part for part in __version__.split(".") if part.isdigit()]
    return "v" + ".".join([*numbers, "0", "0"][:3])
