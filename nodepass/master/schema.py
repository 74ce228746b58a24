"""What the state file looks like, and how damage to it is noticed.

SQLite notices damage to its own structure, but not to a text between two of its pointers. So each
row carries a digest of its content, and one row, the *seal*, the number of all rows and the
exclusive or of their digests: a row that changed, and one that is missing, both show.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from attrs import frozen

from nodepass.errors import FatalError, NodePassError

__all__ = ["SCHEMA", "Damaged", "Seal", "check", "migrate", "read_seal", "row_digest", "write_seal"]

#: Marks SQLite's file as ours: "npst" in ASCII.
APPLICATION_ID = 0x6E707374

#: Bytes of a digest: no two of some thousand rows ever share one by chance.
DIGEST_BYTES = 16

#: The statements that lead from each version of the schema to the next. The seal keeps its form in
#: all versions, and each table but it a column ``digest``: that is how a newer file is told from a
#: damaged one.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        "CREATE TABLE seal (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL,"
        " count INTEGER NOT NULL, sum BLOB NOT NULL, digest BLOB NOT NULL)",
        "CREATE TABLE identity (one INTEGER PRIMARY KEY CHECK (one = 1), mid TEXT NOT NULL,"
        " key TEXT NOT NULL, alias TEXT NOT NULL, digest BLOB NOT NULL)",
        "CREATE TABLE instances (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,"
        " url TEXT NOT NULL, alias TEXT NOT NULL, restart INTEGER NOT NULL, meta TEXT NOT NULL,"
        " digest BLOB NOT NULL)",
        # A table of their own, as they change every few seconds and the rest hardly ever.
        "CREATE TABLE totals (id TEXT PRIMARY KEY NOT NULL, tcprx INTEGER NOT NULL,"
        " tcptx INTEGER NOT NULL, udprx INTEGER NOT NULL, udptx INTEGER NOT NULL,"
        " digest BLOB NOT NULL) WITHOUT ROWID",
    ),
)

SCHEMA = len(MIGRATIONS)


class Damaged(NodePassError):
    """A file is not what was once written to it."""


@frozen
class Seal:
    """How many rows there are, and the exclusive or of their digests."""

    version: int
    count: int
    sum: int

    def changed(self, *, out: bytes | None = None, into: bytes | None = None) -> Seal:
        """Return the seal once a row with the digest ``out`` made way for one with ``into``."""
        count, total = self.count, self.sum
        for digest, step in ((out, -1), (into, 1)):
            if digest is not None:
                count += step
                total ^= int.from_bytes(digest, "big")
        return Seal(self.version, count, total)


def row_digest(table: str, row: Mapping[str, Any]) -> bytes:
    """Return the digest of a row's content, its own column aside."""
    content = [table, {name: value for name, value in row.items() if name != "digest"}]
    encoded = msgspec.json.encode(content, order="sorted")
    return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()


def read_seal(connection: sqlite3.Connection) -> Seal:
    """Return the seal of a file.

    :raises Damaged: it has none, or one that was tampered with.
    """
    rows = _rows(connection, "seal")
    if len(rows) != 1 or rows[0]["digest"] != row_digest("seal", rows[0]):
        raise Damaged("its seal is broken")
    row = rows[0]
    return Seal(row["version"], row["count"], int.from_bytes(row["sum"], "big"))


def write_seal(connection: sqlite3.Connection, seal: Seal) -> None:
    """Replace the seal of a file."""
    row = {
        "one": 1,
        "version": seal.version,
        "count": seal.count,
        "sum": seal.sum.to_bytes(DIGEST_BYTES, "big"),
    }
    connection.execute(
        "INSERT OR REPLACE INTO seal (one, version, count, sum, digest) VALUES (?, ?, ?, ?, ?)",
        (*row.values(), row_digest("seal", row)),
    )


def check(connection: sqlite3.Connection, path: Path) -> Seal:
    """Make sure that a file holds what was written to it, in a schema that is known here.

    :returns: its seal.
    :raises Damaged: it does not.
    :raises FatalError: a newer version of the program wrote it.
    :raises sqlite3.Error: it can't be read.
    """
    for (problem,) in connection.execute("PRAGMA integrity_check(1)"):
        if problem != "ok":
            raise Damaged(str(problem).replace("\n", " "))
    seal = read_seal(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != seal.version or version < 1:
        raise Damaged("its version is not the one that its seal names")
    found = Seal(version, 0, 0)
    for table in _tables(connection):
        for row in _rows(connection, table):
            if row.get("digest") != row_digest(table, row):
                raise Damaged(f"a row of its table {table} is not as it was written")
            found = found.changed(into=row["digest"])
    if found != seal:
        raise Damaged(f"it has {found.count} rows that are not the {seal.count} that were written")
    if version > SCHEMA:
        raise FatalError(
            f"{path} was written by a newer version of nodepass (its schema is {version}, known "
            f"here are those up to {SCHEMA}); start that version, or name another file by NP_STATE"
        )
    if version == SCHEMA and _shape(connection) != _expected_shape():
        raise Damaged("its tables are not those of its version")
    return seal


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file to the newest schema, all or nothing.

    :param version: the schema that it has; 0 for an empty one.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        seal = Seal(SCHEMA, 0, 0)
        for table in _tables(connection):
            for row in _rows(connection, table):
                # The columns may be others now. A digest names its row, as no two are alike.
                digest = row_digest(table, row)
                connection.execute(
                    f"UPDATE {table} SET digest = ? WHERE digest = ?", (digest, row["digest"])
                )
                seal = seal.changed(into=digest)
        write_seal(connection, seal)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'seal' ORDER BY name"
    )
    return [name for (name,) in found if str(name).isidentifier()]


def _shape(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    return list(connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name"))


def _expected_shape() -> list[tuple[str, str, str | None]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, 0)
        return _shape(connection)


def _rows(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
