"""The state file, open: what is read from it and written to it, in one thread, blocking."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from nodepass.errors import NodePassError

from .models import Meta
from .records import Contents, Identity, Record, Totals
from .schema import SCHEMA, Damaged, check, migrate, read_seal, row_digest, write_seal

__all__ = [
    "Change",
    "Ledger",
    "StoreError",
    "connect",
    "connect_immutable",
    "describe",
    "explain",
    "retype",
]

#: Seconds to wait for a program, such as a backup, that has the file locked for a moment.
LOCK_PATIENCE = 1.0

#: Most KiB of the file that are kept in memory: all of it with ten thousand instances. Where others
#: have spoilt the file, it is written anew from there.
CACHE_KIB = 16 << 10

#: Bytes of the header of SQLite's files, which counts pages and changes.
HEADER_BYTES = 100

_COUNTERS = ("tcprx", "tcptx", "udprx", "udptx")


class StoreError(NodePassError):
    """A write could not be made durable, and nothing of it was applied."""


#: What SQLite says, and what it means to whoever runs the master. Anything else is damage.
_TROUBLES = {
    "database or disk is full": ("no space is left there", "make room"),
    "attempt to write a readonly database": (
        "it is read-only",
        "let this user write to it and its directory",
    ),
    "unable to open database file": (
        "it can't be opened",
        "let this user read and write it and its directory, in which nodepass makes files",
    ),
    "disk I/O error": (
        "the file system reports an error, or a quota is used up",
        "see the system's log",
    ),
    "database is locked": ("another program has it open", "close that program"),
    "access permission denied": ("access is denied", "let this user read and write it"),
    "locking protocol": ("it can't be locked", "put it on a local disk"),
}

_DAMAGES = ("file is not a database", "database disk image is malformed")


def explain(error: Exception) -> tuple[str, str] | None:
    """Return cause and cure of an error of the file's surroundings, None where the file is bad."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower(), "let this user write there, and make room"
    if isinstance(error, sqlite3.OperationalError):
        return _TROUBLES.get(str(error))
    return None


def describe(error: Exception) -> str:
    """Return what SQLite or `check` says of damage. Anything that may hold content is left out."""
    if isinstance(error, Damaged) or str(error) in _DAMAGES:
        return str(error)
    return "its content can't be read"


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing file of SQLite's for one user, who is this thread.

    :raises sqlite3.Error: it can't be opened, or is no such file.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,  # transactions begin and end where we say so
        timeout=LOCK_PATIENCE,
    )
    try:
        # Nobody else opens it, so that the index of the log can be memory: a file of it would need
        # room, and the state must be readable on a full disk.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: to the disk, not only to its cache
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA secure_delete = ON")  # an old API key leaves no trace
    except BaseException:
        connection.close()
        raise
    return connection


def connect_immutable(path: Path) -> sqlite3.Connection:
    """Open a file for reading, without locks and as it lies there, its log left aside."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


class Ledger:
    """A state file with the newest schema.

    :param path: the file, which exists.
    :raises Damaged: it is not as it was written.
    :raises FatalError: a newer version wrote it.
    :raises sqlite3.Error: see `explain`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self.connection = connect(self.path)
        try:
            if check(self.connection, self.path).version < SCHEMA:
                migrate(self.connection, read_seal(self.connection).version)
                self.tidy()
            #: What the file says that it holds.
            self.seal = read_seal(self.connection)
            self._seal_page = self._find_seal()
            self._file = open(self.path, "rb", buffering=0)
        except BaseException:
            self.connection.close()
            raise
        self._left = self._look()

    def close(self) -> None:
        """Close the file; what is in its log moves into it."""
        self.connection.close()
        # Not before: it would take SQLite's locks of the file along.
        self._file.close()

    @property
    def is_open(self) -> bool:
        """Whether it can be written to; not after a `reopen` that failed."""
        return not self._file.closed

    def reopen(self) -> None:
        """Go on with another file, which has taken the place of this one with the same content.

        :raises Damaged, sqlite3.Error, OSError: it can't be opened, or is another state.
        """
        seal = self.seal
        self.close()
        self._open()
        if self.seal != seal:
            self.close()
            self.seal = seal
            raise Damaged("it is not what was saved last")

    def trouble(self) -> str:
        """Return what others have done to the file, as a predicate about it; empty if nothing.

        SQLite would not notice: it goes on with a file that has no name any more, and adds to one
        that was cut off.
        """
        now = self._look()
        if now == self._left:
            return ""
        if now is None:
            return "was removed"
        if self._left is None or now[0] != self._left[0]:
            return "was replaced by another file"
        return "was changed by another program"

    def _look(self) -> tuple[object, ...] | None:
        """What tells the file from another one, and from itself once it has changed."""
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return None
        beginning = self._read(0, HEADER_BYTES)
        return (named.st_dev, named.st_ino), named.st_size, beginning, self._read(*self._seal_page)

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)

    def _find_seal(self) -> tuple[int, int]:
        """Return where in the file the seal is, which each change changes, and how long."""
        (page,) = self.connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'seal'"
        ).fetchone()
        (size,) = self.connection.execute("PRAGMA page_size").fetchone()
        return (page - 1) * size, size

    def contents(self) -> Contents:
        """Return all that the file holds."""
        query = self.connection.execute
        found = query("SELECT mid, key, alias FROM identity").fetchone()
        totals = {
            id: Totals(**dict(zip(_COUNTERS, counts, strict=True)))
            for id, *counts in query("SELECT id, tcprx, tcptx, udprx, udptx FROM totals")
        }
        rows = query("SELECT id, url, alias, restart, meta FROM instances ORDER BY position")
        return Contents(
            identity=found and Identity(mid=found[0], key=found[1], alias=found[2]),
            records=tuple(
                Record(
                    id=id,
                    url=url,
                    alias=alias,
                    restart=bool(restart),
                    meta=msgspec.json.decode(meta, type=Meta),
                    totals=totals.get(id, Totals()),
                )
                for id, url, alias, restart, meta in rows
            ),
        )

    def commit(self, changes: Iterable[Change]) -> None:
        """Apply changes as one: all are durable when it returns, or none was applied.

        :raises StoreError: see `trouble`.
        :raises sqlite3.Error: see `explain`.
        """
        if trouble := self.trouble():
            raise StoreError(f"{self.path}: the state can't be saved: the file {trouble}")
        before = self.seal
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            before = self.seal = read_seal(self.connection)
            for change in changes:
                change(self)
            if self.seal != before:
                write_seal(self.connection, self.seal)
            self.connection.execute("COMMIT")
        except BaseException:
            self.seal = before
            if self.connection.in_transaction:  # some errors end it by themselves
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
            raise
        self.tidy()
        with suppress(OSError):  # what happens to the directory now is found at the next commit
            self._left = self._look()

    def tidy(self) -> None:
        """Move the log into the file, so that the file alone is the state.

        `commit` ends with it. Rows of the file have digests, the log has none: what is cut off its
        end looks as if it had never been there.
        """
        with suppress(sqlite3.Error):  # the log keeps what the file has no room for
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # Changes, inside `commit`.

    def put(self, record: Record) -> None:
        """Add an instance, or replace what is known of it; its place in the order stays."""
        query = self.connection.execute
        place = query("SELECT position FROM instances WHERE id = ?", (record.id,)).fetchone()
        if place is None:
            place = query("SELECT coalesce(max(position), 0) + 1 FROM instances").fetchone()
        self._write(
            "instances",
            position=place[0],
            id=record.id,
            url=record.url,
            alias=record.alias,
            restart=int(record.restart),
            meta=msgspec.json.encode(record.meta).decode(),
        )
        self._write_totals(record.id, record.totals)

    def remove(self, id: str) -> None:
        """Forget an instance, if there is one."""
        place = self.connection.execute(
            "SELECT position FROM instances WHERE id = ?", (id,)
        ).fetchone()
        if place is not None:
            self._delete("instances", "position", place[0])
            self._delete("totals", "id", id)

    def put_totals(self, totals: Mapping[str, Totals]) -> None:
        """Replace the totals of instances; those that are not there are left out."""
        for id, counts in totals.items():
            if self._digest("totals", "id", id) is not None:
                self._write_totals(id, counts)

    def set_identity(self, identity: Identity) -> None:
        """Replace the identity."""
        self._write("identity", one=1, mid=identity.mid, key=identity.key, alias=identity.alias)

    def _write_totals(self, id: str, totals: Totals) -> None:
        self._write("totals", id=id, **{name: getattr(totals, name) for name in _COUNTERS})

    def _digest(self, table: str, key: str, value: str | int) -> bytes | None:
        row = self.connection.execute(
            f"SELECT digest FROM {table} WHERE {key} = ?", (value,)
        ).fetchone()
        return None if row is None else row[0]

    def _write(self, table: str, **row: Any) -> None:
        """Write a row in place of the one with the same key, which is its first column."""
        key = next(iter(row))
        digest = row_digest(table, row)
        self.seal = self.seal.changed(out=self._digest(table, key, row[key]), into=digest)
        names = ", ".join((*row, "digest"))
        marks = ", ".join("?" * (len(row) + 1))
        self.connection.execute(
            f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", (*row.values(), digest)
        )

    def _delete(self, table: str, key: str, value: str | int) -> None:
        self.seal = self.seal.changed(out=self._digest(table, key, value))
        self.connection.execute(f"DELETE FROM {table} WHERE {key} = ?", (value,))


#: What a transaction is made of.
Change = Callable[[Ledger], None]


def retype(error: Exception, path: Path, what: str = "the state") -> Exception:
    """Return a failed write as `StoreError`, with cause and cure; what is no such error as it is.

    :param what: what could not be saved.
    """
    if isinstance(error, (sqlite3.Error, OSError, Damaged)):
        cause, cure = explain(error) or (
            f"the file is damaged ({describe(error)})",
            "start the master anew, which then takes the newest backup",
        )
    elif isinstance(error, (UnicodeError, OverflowError)):
        cause, cure = "a text or number is none that can be stored", "send another one"
    else:
        return error
    return StoreError(f"{path}: {what} can't be saved: {cause}; {cure}")
