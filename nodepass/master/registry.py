"""The instances of a master: what they are, what they do, and what they have counted.

A change is written to the store first and takes effect when it is durable; then the event goes out.
What is done to one instance is done in the order in which it was asked for.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from nodepass.config import MasterConfig
from nodepass.errors import ConfigError
from nodepass.logs import Level, Log, printable
from nodepass.meter import Stats

from .accounts import Accounts
from .entry import Entry
from .errors import ApiError
from .hosting import Host, LogLine
from .hub import EventHub, log_event_text
from .labels import changed_meta, check_length
from .logtail import LogTail
from .models import GivenTotals, Instance, InstanceChange, Meta, NewInstance
from .records import Record, Totals
from .running import Running
from .store import Store, StoreError
from .urls import InstanceURL, accept, same

__all__ = ["Registry", "saved"]

T = TypeVar("T")

#: Most instances: far more than the ports and the memory of one machine serve, so that a script
#: that runs away is stopped before the disk is full.
MAX_INSTANCES = 10_000

ACTIONS = ("start", "stop", "restart", "reset")


class Registry:
    """All instances. It is the `Tenants` of whoever hosts them.

    :param hub: is told of every change.
    :param tails: keeps the last lines of each log.
    :param keep_history: takes traffic that was counted, once it is part of the totals.
    :param forget_history: is told of an instance that is gone for good.
    :ivar accounts: what the instances have counted.
    """

    def __init__(
        self,
        config: MasterConfig,
        store: Store,
        hub: EventHub,
        tails: LogTail,
        clock: IReactorTime,
        log: Log,
        keep_history: Callable[[Mapping[str, Totals]], None],
        forget_history: Callable[[str], None],
    ) -> None:
        self._config = config
        self._store = store
        self._hub = hub
        self._tails = tails
        self._log = log
        self._entries: dict[str, Entry] = {}
        self._reserved: set[str] = set()  # ids of instances that are being written
        self._running = Running(clock, partial(self._publish, "update"))
        self._keep_history = keep_history
        self._forget_history = forget_history
        self.accounts = Accounts(clock, log, self._save, self._saved, self._kept)

    # What there is.

    def __iter__(self) -> Iterator[Instance]:
        return (entry.snapshot() for entry in self._entries.values())

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def get(self, id: str) -> Instance:
        """Show one instance.

        :raises ApiError: there is none of this id.
        """
        return self._entry(id).snapshot()

    # From start to stop.

    def load(self, records: Iterable[Record]) -> None:
        """Take over what the store has. A URL that an older version took and this one does not is
        kept, and shown as an error."""
        for record in records:
            self._entries[record.id] = Entry(record, self._accept_stored(record))

    def start(self, host: Host) -> None:
        """Start the instances that start with the master."""
        self._running.begin(host)
        for entry in self._entries.values():
            if entry.record.restart:
                self._log.info(
                    "instance auto-starting: {url} [{id}]", url=entry.url.url, id=entry.record.id
                )
                self._running.start(entry)

    def stop(self) -> None:
        """Start nothing more."""
        self._running.cease(self._entries.values())

    # What clients of the API ask for.

    async def create(self, new: NewInstance) -> Instance:
        """Make an instance and start it.

        :raises ApiError: the URL or the alias can't be used, or the state can't be written.
        """
        if not new.url:
            raise ApiError(400, "Invalid request body")
        url = self._accept(new.url)
        check_length("Instance alias", new.alias)
        meta = changed_meta(Meta(), new.meta)
        if len(self._entries) + len(self._reserved) >= MAX_INSTANCES:
            raise ApiError(
                503, f"this master has {MAX_INSTANCES} instances, the most there can be; delete one"
            )
        id = self._free_id(new.id)
        given = new.totals or GivenTotals()
        record = Record(
            id=id,
            url=url.url,
            alias=new.alias or "",
            restart=new.restart is not False,
            meta=meta,
            totals=Totals(
                tcprx=given.tcprx, tcptx=given.tcptx, udprx=given.udprx, udptx=given.udptx
            ),
        )
        self._reserved.add(id)
        try:
            await saved(self._store.put(record))
        finally:
            self._reserved.discard(id)
        entry = self._entries[id] = Entry(record, url)
        self._publish("create", entry)
        self._log.info("instance starting: {url} [{id}]", url=url.url, id=id)
        self._running.start(entry)
        return entry.snapshot()

    async def change(self, id: str, change: InstanceChange) -> Instance:
        """Change alias, restart policy or meta, and start, stop, restart or reset: all or nothing.

        :raises ApiError: it can't be done; nothing of it was.
        """
        if change.action is not None and change.action not in ACTIONS:
            raise ApiError(400, f"Invalid action: {printable(change.action)}")
        check_length("Instance alias", change.alias)
        changed_meta(Meta(), change.meta)
        async with self._locked(id) as entry:
            await self._change_record(entry, change)
            if change.action == "stop":
                await self._running.stop(entry)
            elif change.action == "restart" or (change.action == "start" and entry.startable):
                if entry.run is not None:
                    await self._running.stop(entry)
                self._log.info("instance starting: {url} [{id}]", url=entry.url.url, id=id)
                self._running.start(entry)
            return entry.snapshot()

    async def replace(self, id: str, text: str | None) -> Instance:
        """Give an instance another URL, and start it with that.

        :raises ApiError: the URL can't be used, or changes nothing.
        """
        if not text:
            raise ApiError(400, "Invalid request body")
        url = self._accept(text)
        async with self._locked(id) as entry:
            if same(url.url, entry.url.url):
                raise ApiError(409, "Instance URL conflict")
            record = evolve(entry.record, url=url.url)
            await saved(self._store.put(evolve(record, totals=self._totals(id))))
            await self._running.stop(entry)
            entry.record, entry.url = evolve(record, totals=entry.record.totals), url
            self._log.info("instance starting: {url} [{id}]", url=url.url, id=id)
            self._running.start(entry)
            return entry.snapshot()

    async def delete(self, id: str) -> None:
        """End an instance for good."""
        async with self._locked(id) as entry:
            await saved(self._store.remove(id))
            await self._running.stop(entry)
            del self._entries[id]
            self._publish("delete", entry)
            self.accounts.forget(id)
            self._forget_history(id)
            self._tails.forget(id)
            self._log.info("instance deleted: {url} [{id}]", url=entry.url.url, id=id)

    # What the host tells: `Tenants`.

    def status(self, id: str, run: int, trouble: str | None) -> None:
        entry = self._entries.get(id)
        if entry is not None and entry.run == run:
            self._running.told(entry, trouble)

    def counted(self, reports: list[tuple[str, int, Stats]]) -> None:
        for id, run, stats in reports:
            entry = self._entries.get(id)
            if entry is None or run not in entry.runs:
                continue
            more = self.accounts.counted(id, run, stats)
            if entry.run != run:
                continue  # a run that drains: only its traffic is of interest
            entry.stats = stats
            if not more:
                self._publish("update", entry)

    def ended(self, id: str, run: int) -> None:
        self.accounts.ended(id, run)
        if id in self._entries:
            self._entries[id].runs.discard(run)

    def logged(self, id: str, run: int, line: LogLine) -> None:
        entry = self._entries.get(id)
        if entry is None or run not in entry.runs:
            return
        self._tails.append(id, line)
        self._hub.publish("log", entry.snapshot(), log_event_text(line))
        own = Log(Level.DEBUG, id)
        say = {
            Level.DEBUG: own.debug,
            Level.INFO: own.info,
            Level.WARN: own.warn,
            Level.ERROR: own.error,
        }.get(line.level, own.event)
        say("{text}", text=line.text)

    def moved(self, id: str, run: int, new: int) -> None:
        entry = self._entries.get(id)
        if entry is not None and entry.run == run:
            self._running.moved(entry, new)

    # How it is done.

    async def _change_record(self, entry: Entry, change: InstanceChange) -> None:
        """Write what a change leaves behind, and tell of each part of it."""
        steps: list[Record] = []
        record = entry.record
        if change.alias and change.alias != record.alias:
            steps.append(record := evolve(record, alias=change.alias))
        if change.restart is not None and change.restart != record.restart:
            steps.append(record := evolve(record, restart=change.restart))
        meta = changed_meta(record.meta, change.meta)
        if meta != record.meta:
            steps.append(record := evolve(record, meta=meta))
        if change.action == "reset":
            # No total may be written between this one and its effect here.
            async with self.accounts.held():
                await saved(self._store.put(evolve(record, totals=Totals())))
                self.accounts.reset(record.id, entry.runs)
        elif steps:
            await saved(self._store.put(evolve(record, totals=self._totals(record.id))))
        for step in steps:
            entry.record = evolve(step, totals=entry.record.totals)
            self._publish("update", entry)
        if change.action == "reset":
            entry.record = evolve(entry.record, totals=Totals())
            self._publish("update", entry)

    def _totals(self, id: str) -> Totals:
        """What is to be written as the total: a write that is under way must not be undone."""
        return self._entries[id].record.totals + self.accounts.pending(id)

    def _save(self, batch: Mapping[str, Totals]) -> Deferred[None]:
        return self._store.put_totals({id: self._totals(id) for id in batch if id in self})

    def _saved(self, batch: Mapping[str, Totals]) -> None:
        """Traffic is durable: show it."""
        self._keep_history(batch)
        for id, delta in batch.items():
            entry = self._entries.get(id)
            if entry is not None:
                entry.record = evolve(entry.record, totals=entry.record.totals + delta)
                self._publish("update", entry)

    def _kept(self, ids: Iterable[str]) -> None:
        """Traffic can't be saved for now: show how the instances are, with the totals they had."""
        for id in ids:
            if id in self._entries:
                self._publish("update", self._entries[id])

    def _publish(self, kind: str, entry: Entry) -> None:
        self._hub.publish(kind, entry.snapshot())

    @asynccontextmanager
    async def _locked(self, id: str) -> AsyncIterator[Entry]:
        """Wait for one's turn with an instance, which may be gone by then."""
        entry = self._entry(id)
        await entry.lock.acquire()
        try:
            yield self._entry(id)
        finally:
            entry.lock.release()

    def _entry(self, id: str) -> Entry:
        entry = self._entries.get(id)
        if entry is None:
            raise ApiError(404, "Instance not found")
        return entry

    def _accept(self, text: str) -> InstanceURL:
        try:
            return accept(text, self._config)
        except ConfigError as error:
            raise ApiError(400, str(error)) from None

    def _accept_stored(self, record: Record) -> InstanceURL:
        try:
            return accept(record.url, self._config, fill=False)
        except ConfigError as error:
            self._log.error(
                "the URL of an instance can't be used any more: {error}; give it another one "
                "[{id}]",
                error=error,
                id=record.id,
            )
            type = record.url.partition("://")[0]
            return InstanceURL(type=type, url=record.url, config=record.url, hosted="")

    def _free_id(self, wanted: str | None) -> str:
        taken = {*self._entries, *self._reserved}
        if wanted is not None and re.fullmatch("[0-9a-f]{8}", wanted) and wanted not in taken:
            return wanted
        while (id := secrets.token_hex(4)) in taken:
            pass
        return id


async def saved(write: Deferred[T]) -> T:
    """Wait until a change is durable.

    :raises ApiError: it is not, and was not made.
    """
    try:
        return await write
    except StoreError as error:
        raise ApiError(503, str(error)) from None
