"""The state that outlives a master: one SQLite file, in a thread of its own.

A Deferred of a write fires once the write is on the disk. Writes that come while the disk works are
made durable together, so that many at a time cost little more than one.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attrs import field, frozen
from filelock import FileLock, Timeout
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from nodepass.errors import ConfigError, FatalError, NodePassError
from nodepass.logs import Log

from .backups import (
    LostTail,
    PutBack,
    Recovery,
    beside,
    latest_seal,
    open_ledger,
    put_back,
    save_backup,
    sync_directory,
)
from .ledger import Change, Ledger, StoreError, describe, explain, retype
from .records import Contents, Identity, Record, Totals
from .schema import Damaged

__all__ = ["Contents", "Identity", "Record", "Store", "StoreError", "Totals", "lock_state"]

T = TypeVar("T")

#: Writes made durable at once: enough for a burst, few enough that none waits long.
MAX_GROUP = 256


@frozen(eq=False)
class _Write:
    change: Change
    done: Deferred[None] = field(factory=Deferred)


class _Thread:
    """One thread, in which all SQL runs, in the order in which it was asked for."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def start(self) -> None:
        self._pool = ThreadPool(minthreads=1, maxthreads=1, name="nodepass-state")
        # A daemon: a disk that hangs must not keep the process from its end. The master, too, waits
        # for it only so long.
        self._pool.threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]
        self._pool.start()

    def stop(self) -> None:
        self._pool.stop()

    def run(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._pool, work, *args)


class Store:
    """A state file.

    :param path: the file; it is made when absent, its directory too.
    :param reactor: provides ``IReactorFromThreads``.
    :param clock: Unix time, for the names of backups.
    """

    def __init__(
        self,
        path: Path,
        reactor: Any,
        log: Log,
        *,
        clock: Callable[[], float] = time.time,
        thread: Any = None,
    ) -> None:
        #: Where it really is: links would be replaced by files when backups take their place.
        self.path = Path(os.path.realpath(path))
        self._log = log
        self._clock = clock
        self._thread = _Thread(reactor) if thread is None else thread
        self._ledger: Ledger | None = None
        self._lock: FileLock | None = None
        self._waiting: list[_Write] = []
        self._busy = False
        self._closing: Deferred[None] | None = None

    def run(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        """Call something that blocks in the thread that the state has, while it is open."""
        result: Deferred[T] = self._thread.run(work, *args)
        return result

    def open(self) -> Deferred[Contents]:
        """Lock and read the file.

        A damaged one is set aside for its newest good backup, or for an empty one where there is
        none, and a line in the log says so.

        :returns: fires with what it holds. Fails with ConfigError when another master has it, and
            with FatalError when it can't be used.
        """
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> Contents:
        self._thread.start()
        try:
            contents, recovery = await self.run(self._open_in_thread)
        except BaseException:
            self._thread.stop()
            raise
        if recovery is not None:
            self._tell(recovery)
        return contents

    def _open_in_thread(self) -> tuple[Contents, Recovery | LostTail | None]:
        lock = lock_state(self.path)
        try:
            try:
                ledger, recovery = open_ledger(self.path, self._clock())
            except (Damaged, sqlite3.Error, OSError) as error:
                cause, cure = explain(error) or (describe(error), "see to the disk")
                raise FatalError(
                    f"{self.path}: the state can't be read: {cause}; {cure}, or name another file "
                    "by NP_STATE"
                ) from None
            self._lock, self._ledger = lock, ledger
            return ledger.contents(), recovery
        except BaseException:
            lock.release()
            raise

    def _tell(self, recovery: Recovery | LostTail | PutBack) -> None:
        if isinstance(recovery, PutBack):
            self._log.warn(
                "the state file {path} {trouble}; the master has written it anew, and nothing is "
                "lost",
                path=str(self.path),
                trouble=recovery.trouble,
            )
        elif isinstance(recovery, LostTail):
            self._log.warn(
                "the log of the state file, {path}, was damaged; how it was is in {copy}, and "
                "changes of the last moments before the master ended may be lost",
                path=str(recovery.log),
                copy=str(recovery.copy),
            )
        elif recovery.backup is not None:
            self._log.warn(
                "the state file {path} {trouble}; its backup {backup} is used, and what was "
                "changed after {when:%Y-%m-%d %H:%M:%S} UTC is lost",
                path=str(self.path),
                trouble=recovery.trouble,
                backup=str(recovery.backup),
                when=recovery.when,
            )
        else:
            self._log.error(
                "the state file {path} {trouble}, and no backup is good: the master starts empty, "
                "with a new API key",
                path=str(self.path),
                trouble=recovery.trouble,
            )

    def close(self) -> Deferred[None]:
        """Finish what was asked for, close the file and give its lock back."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        if self._ledger is None or self._closing is not None:
            return
        if self._busy:
            self._closing = Deferred()
            await self._closing
        ledger, self._ledger, self._closing = self._ledger, None, None
        await self.run(ledger.close)
        if self._lock is not None:
            self._lock.release()
        self._thread.stop()

    # Writes. Each fires when it is durable, or fails with StoreError and was not applied.

    def put(self, record: Record) -> Deferred[None]:
        """Save an instance, new or changed, with its totals."""
        return self._write(lambda ledger: ledger.put(record))

    def put_totals(self, totals: Mapping[str, Totals]) -> Deferred[None]:
        """Save the totals of instances, all or none; ids that are not there are left out."""
        totals = dict(totals)
        return self._write(lambda ledger: ledger.put_totals(totals))

    def remove(self, id: str) -> Deferred[None]:
        """Forget an instance."""
        return self._write(lambda ledger: ledger.remove(id))

    def set_identity(self, identity: Identity) -> Deferred[None]:
        """Save who the master is."""
        return self._write(lambda ledger: ledger.set_identity(identity))

    def _write(self, change: Change) -> Deferred[None]:
        write = _Write(change)
        if self._ledger is None or self._closing is not None:
            write.done.errback(self._closed())
        else:
            self._waiting.append(write)
            self._work()
        return write.done

    def _work(self) -> None:
        """Give the thread what waits, unless it has something."""
        if self._busy or not self._waiting or self._ledger is None:
            return
        self._busy = True
        group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        changes = [write.change for write in group]
        saving = self.run(_save, self._ledger, changes, self._clock())
        saving.addBoth(self._saved, group)

    def _saved(
        self,
        result: tuple[PutBack | None, list[BaseException | None]] | Failure,
        group: list[_Write],
    ) -> None:
        if isinstance(result, Failure):
            result = None, [result.value for _ in group]
        what_else, outcomes = result
        if what_else is not None:
            self._tell(what_else)
        for write, error in zip(group, outcomes, strict=True):
            # Whatever is written in answer to these goes into one group.
            if error is None:
                write.done.callback(None)
            else:
                write.done.errback(error)
        self._busy = False
        if self._waiting:
            self._work()
        elif self._closing is not None:
            self._closing.callback(None)

    def backup(self) -> Deferred[Path | None]:
        """Save a backup, unless nothing has changed since the last one.

        :returns: fires with its path or None; fails with StoreError.
        """
        return Deferred.fromCoroutine(self._backup())

    async def _backup(self) -> Path | None:
        if self._ledger is None:
            raise self._closed()
        what_else, backup = await self.run(_back_up, self._ledger, self._clock())
        if what_else is not None:
            self._tell(what_else)
        return backup

    def _closed(self) -> StoreError:
        return StoreError(f"{self.path}: the state is closed; start the master")


def _save(
    ledger: Ledger, changes: Sequence[Change], now: float
) -> tuple[PutBack | None, list[BaseException | None]]:
    """Commit changes to the file, once it is where and as it was left."""
    try:
        what_else = put_back(ledger, now)
    except Exception as error:
        return None, [retype(error, ledger.path)] * len(changes)
    return what_else, _commit(ledger, changes)


def _commit(ledger: Ledger, changes: Sequence[Change]) -> list[BaseException | None]:
    """Commit changes together, or singly when they can't be all; None stands for success."""
    try:
        ledger.commit(changes)
        return [None] * len(changes)
    except Exception as error:
        if len(changes) == 1:
            return [retype(error, ledger.path)]
    return [outcome for change in changes for outcome in _commit(ledger, [change])]


def _back_up(ledger: Ledger, now: float) -> tuple[PutBack | None, Path | None]:
    """Save a backup unless the newest one is as good, and see to the file itself."""
    try:
        what_else = put_back(ledger, now)
        if ledger.seal == latest_seal(ledger.path):
            return what_else, None
        return what_else, save_backup(ledger, now)
    except (NodePassError, sqlite3.Error, OSError) as error:
        raise retype(error, ledger.path, "a backup of the state") from None


def lock_state(path: Path) -> FileLock:
    """Take the lock of a state file, of which there is one.

    :param path: real path of the file; its directory is made when absent.
    :raises ConfigError: another master has it.
    :raises FatalError: it can't be made.
    """
    try:
        if not path.parent.exists():
            os.makedirs(path.parent, mode=0o700)
            sync_directory(path.parent.parent)
        lock = FileLock(beside(path, ".lock"), mode=0o600, thread_local=False)
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"NP_STATE: {path} is in use by another master; accepted: a state file of its own for "
            "each master"
        ) from None
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise FatalError(
            f"{path}: the state can't be kept there: {cause}; let this user write to "
            f"{path.parent}, or name another file by NP_STATE"
        ) from None
    return lock
