"""How many bytes each instance moved when, in a SQLite file beside the state.

It is a file of its own, so that neither its size nor damage to it touches the state, and losing
its last seconds with the power is no harm. An instance has 10,920 points at most, of some 30 bytes
each: a third of a megabyte.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from nodepass.logs import Log

from .backups import name_aside
from .history import LEVELS, Level, Point, Range, choose, merge
from .ledger import connect, describe, explain
from .records import Totals
from .schema import Damaged

__all__ = ["Traffic", "history_path"]

T = TypeVar("T")

#: Bytes that one report may count: more than any machine moves in between two. Sums of a year of
#: them still fit.
MAX_COUNT = 2**48

#: Steps of each level forgotten in one go: more than come to be meanwhile, so that what waits after
#: a long pause goes by and by.
PRUNED_STEPS = 10

_VERSION = 1
_COLUMNS = ("tcprx", "tcptx", "udprx", "udptx")


def history_path(state: Path) -> Path:
    """Return where the history that belongs to a state file is."""
    state = Path(os.path.realpath(state))
    return state.with_name(f"{state.stem}.traffic{state.suffix}")


class Traffic:
    """The history of all instances.

    The file is opened when it is first needed. Nothing that happens to it keeps a master from its
    work.

    :param path: the file; it is made when absent, its directory is there.
    :param run: calls something that blocks in a thread, always the same; `Store.run`.
    """

    def __init__(self, path: Path, run: Callable[..., Deferred[Any]], log: Log) -> None:
        self.path = path
        self._run = run
        self._log = log
        self._connection: sqlite3.Connection | None = None
        #: Numbers of the instances in the file.
        self._series: dict[str, int] = {}
        #: What could not be written yet.
        self._unsaved: dict[str, Totals] = {}

    def add(self, now: float, counts: Mapping[str, Totals]) -> Deferred[None]:
        """Add what instances moved since the last report, all in one transaction.

        :param now: Unix time of the report.
        :returns: fires when it is written, or can't be: then it is tried again with the next one.
        """
        for id, more in counts.items():
            if more:
                self._unsaved[id] = self._unsaved.get(id, Totals()) + more
        return Deferred.fromCoroutine(self._save(now))

    async def _save(self, now: float) -> None:
        counts, self._unsaved = self._unsaved, {}
        if not counts:
            return
        try:
            await self._do(self._add, now, counts)
        except (sqlite3.Error, OSError, Damaged) as error:
            for id, more in counts.items():
                self._unsaved[id] = self._unsaved.get(id, Totals()) + more
            cause, cure = explain(error) or (describe(error), "see to the disk")
            self._log.limited(
                "history",
                "{path}: traffic history can't be saved: {cause}; {cure}",
                path=str(self.path),
                cause=cause,
                cure=cure,
                interval=3600.0,
            )

    def query(
        self,
        id: str,
        now: float,
        since: int | None = None,
        until: int | None = None,
        step: int | None = None,
    ) -> Deferred[tuple[int, list[Point]]]:
        """Return what an instance moved; steps in which it moved nothing are left out.

        :param since, until, step: see `choose`.
        :returns: fires with the step in seconds, and the points, oldest first. Fails with
            ValueError when that makes no range.
        """
        return Deferred.fromCoroutine(self._query(id, now, since, until, step))

    async def _query(
        self, id: str, now: float, since: int | None, until: int | None, step: int | None
    ) -> tuple[int, list[Point]]:
        asked = choose(now, since, until, step)
        try:
            points = await self._do(self._read, id, asked)
        except (sqlite3.Error, OSError, Damaged):
            points = []  # `add` says why
        return asked.step, merge(points, asked.step)

    def forget(self, id: str) -> Deferred[None]:
        """Let nobody ask for the history of an instance any more. Its points go in their time."""
        self._unsaved.pop(id, None)
        return Deferred.fromCoroutine(self._forget_in_thread(id))

    async def _forget_in_thread(self, id: str) -> None:
        with suppress(sqlite3.Error, OSError, Damaged):  # its points fade all the same
            await self._do(self._forget, id)

    def close(self) -> Deferred[None]:
        """Close the file; to be done before the state is closed."""
        return self._run(self._drop)

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        result, damage = await self._run(self._try, work, args)
        if damage is not None:
            self._log.warn(
                "the traffic history {path} was damaged ({reason}) and is now {aside}; a new one "
                "begins",
                path=str(self.path),
                reason=damage[0],
                aside=str(damage[1]),
            )
        return result  # type: ignore[no-any-return]

    # In the thread.

    def _try(self, work: Callable[..., T], args: Any) -> tuple[T, tuple[str, Path] | None]:
        """Do some work; when the file turns out to be damaged, with a new one."""
        try:
            return work(self._open(), *args), None
        except (sqlite3.Error, Damaged) as error:
            self._drop()
            if explain(error):
                raise
            reason = describe(error)
        aside = name_aside(self.path, time.time())
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
        return work(self._open(), *args), (reason, aside)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = connect(self.path)
            try:
                connection.execute("PRAGMA synchronous = NORMAL")
                _prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._series.clear()
        if connection is not None:
            connection.close()

    def _add(
        self, connection: sqlite3.Connection, now: float, counts: Mapping[str, Totals]
    ) -> None:
        with _transaction(connection):
            rows = [
                (
                    self._number(connection, id),
                    *(min(getattr(each, n), MAX_COUNT) for n in _COLUMNS),
                )
                for id, each in counts.items()
            ]
            for level in LEVELS:
                _add_points(connection, level, level.start(now), rows)
                _prune(connection, level, now)

    def _number(self, connection: sqlite3.Connection, id: str) -> int:
        number = self._series.get(id)
        if number is None:
            connection.execute("INSERT OR IGNORE INTO series (id) VALUES (?)", (id,))
            number = _find(connection, id)
            if number is None:
                raise Damaged("a row is gone as soon as it is written")
            self._series[id] = number
        return number

    def _read(self, connection: sqlite3.Connection, id: str, asked: Range) -> list[Point]:
        number = _find(connection, id)
        return [] if number is None else _read_points(connection, number, asked)

    def _forget(self, connection: sqlite3.Connection, id: str) -> None:
        # Its points lie among those of others, so that they are left to age: looking for them would
        # hold up writes of the state. The number is never given again.
        self._series.pop(id, None)
        connection.execute("DELETE FROM series WHERE id = ?", (id,))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _prepare(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
        raise Damaged("its version is none that is known here")
    with _transaction(connection):
        connection.execute(
            "CREATE TABLE series (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE)"
        )
        for level in LEVELS:
            # Time goes first, so that a report changes the last pages alone, not one for each
            # instance.
            connection.execute(
                f"CREATE TABLE points_{level.step} (t INTEGER, series INTEGER, tcprx INTEGER,"
                " tcptx INTEGER, udprx INTEGER, udptx INTEGER, PRIMARY KEY (t, series))"
                " WITHOUT ROWID"
            )
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def _find(connection: sqlite3.Connection, id: str) -> int | None:
    row = connection.execute("SELECT number FROM series WHERE id = ?", (id,)).fetchone()
    return None if row is None else row[0]


def _add_points(
    connection: sqlite3.Connection, level: Level, start: int, rows: list[tuple[int, ...]]
) -> None:
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COLUMNS)
    connection.executemany(
        f"INSERT INTO points_{level.step} VALUES ({start}, ?, ?, ?, ?, ?)"
        f" ON CONFLICT (t, series) DO UPDATE SET {sums}",
        rows,
    )


def _prune(connection: sqlite3.Connection, level: Level, now: float) -> None:
    """Forget what is too old, a bounded part of it."""
    (oldest,) = connection.execute(f"SELECT min(t) FROM points_{level.step}").fetchone()
    limit = min(level.start(now - level.kept), oldest + PRUNED_STEPS * level.step)
    connection.execute(f"DELETE FROM points_{level.step} WHERE t < ?", (limit,))


def _read_points(connection: sqlite3.Connection, number: int, asked: Range) -> list[Point]:
    table, width = f"points_{asked.level.step}", asked.level.step
    first, last = connection.execute(f"SELECT min(t), max(t) FROM {table}").fetchone()
    if first is None:
        return []
    until = min(asked.until, last + 1)
    # What is older is about to go. And times in a damaged file may be any.
    since = max(asked.since, first // width * width, until // width * width - 2 * asked.level.kept)
    # One look-up for each moment: points of all instances lie side by side.
    rows = connection.execute(
        "WITH RECURSIVE moments (t) AS (SELECT ? UNION ALL"
        f" SELECT t + {width} FROM moments WHERE t + {width} < ?)"
        f" SELECT points.* FROM moments CROSS JOIN {table} AS points"
        " ON points.t = moments.t AND points.series = ?",
        (since, until, number),
    )
    points: list[Point] = []
    for when, _, *counts in rows:
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise Damaged("it has a number that was never counted")
        points.append((when, counts[0], counts[1], counts[2], counts[3]))
    return points
