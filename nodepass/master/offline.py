"""The API key in a state file, for commands that run beside the master or in its absence.

Reading leaves everything as it is: opening the file as a master does would bring its schema up to
date, let SQLite replay and remove a log, and hold the lock for a moment in which a master can't
start.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from attrs import evolve

from nodepass.errors import ConfigError, FatalError

from .backups import beside
from .ledger import Ledger, connect, connect_immutable, describe, explain, retype
from .records import Identity
from .schema import Damaged, check
from .store import lock_state
from .wal import is_whole

__all__ = ["read_identity", "renew_key"]

#: Times that a file is read which a master writes to at the same time: one of them is between two
#: of its writes.
TRIES = 20

#: Seconds from one of those to the next: longer than a write takes.
PAUSE = 0.05


def read_identity(path: Path) -> Identity:
    """Return the identity of the master whose state a file holds; the master may run. Blocks.

    :raises ConfigError: there is no such file.
    :raises FatalError: it can't be read, or holds no identity.
    """
    path = _existing(path)
    for tries_left in reversed(range(TRIES)):
        try:
            with _snapshot(path) as connection:
                return _identity(path, connection)
        except (Damaged, sqlite3.Error) as error:
            if not tries_left:
                raise _unreadable(path, error) from None
            time.sleep(PAUSE)
    raise AssertionError


def renew_key(path: Path, key: str) -> None:
    """Replace the API key in the state file of a master that does not run. Blocks.

    A file that a master would have to mend is left to it, as it is the one that tells of it.

    :param key: 32 hex digits.
    :raises ConfigError: there is no such file, or a master runs on it.
    :raises FatalError: it can't be read or written.
    """
    path = _existing(path)
    try:
        lock = lock_state(path)
    except ConfigError:
        raise ConfigError(
            f"NP_STATE: {path} is in use by a master that runs; accepted: that of one which is "
            "stopped (nodepass ctl key rotate asks one that runs for a new key)"
        ) from None
    try:
        try:
            with _snapshot(path) as connection:
                identity = _identity(path, connection)
        except (Damaged, sqlite3.Error) as error:
            raise _unreadable(path, error) from None
        _write(path, evolve(identity, key=key))
    finally:
        lock.release()


def _write(path: Path, identity: Identity) -> None:
    try:
        with closing(Ledger(path)) as ledger:
            ledger.commit([lambda ledger: ledger.set_identity(identity)])
    except (Damaged, sqlite3.Error, OSError) as error:
        raise FatalError(str(retype(error, path))) from None


def _existing(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    try:
        found = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except OSError as error:
        # A directory on the way may be closed to this user, say.
        raise _unreachable(path, error) from None
    if not found:
        raise ConfigError(
            f"NP_STATE: {path} does not exist; accepted: the state file of a master that has run"
        )
    return path


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """The state as it lies there, its log included, once it was found to be good.

    :raises FatalError: it can't be reached.
    :raises Damaged, sqlite3.Error: it is not good, or is being written to.
    """
    try:
        # Its log first: what a checkpoint moves into the file from now on is then in both.
        log = _read_log(path)
        if not is_whole(log):
            raise Damaged("its log is not as it was written")
        with _opened(path, log) as connection:
            check(connection, path)
            yield connection
    except OSError as error:
        raise _unreachable(path, error) from None


def _read_log(path: Path) -> bytes:
    try:
        return beside(path, "-wal").read_bytes()
    except FileNotFoundError:
        return b""


@contextmanager
def _opened(path: Path, log: bytes) -> Iterator[sqlite3.Connection]:
    if not log:
        with closing(connect_immutable(path)) as connection:
            yield connection
        return
    # A crash has left it, or a full disk: the newest changes are in it alone. Only a writer can
    # read the two together, so it gets a copy that nobody else sees.
    with tempfile.TemporaryDirectory(prefix="nodepass-") as directory:
        copy = Path(directory) / "state"
        shutil.copyfile(path, copy)
        beside(copy, "-wal").write_bytes(log)
        with closing(connect(copy)) as connection:
            yield connection


def _identity(path: Path, connection: sqlite3.Connection) -> Identity:
    row = connection.execute("SELECT mid, key, alias FROM identity").fetchone()
    if row is None:
        raise FatalError(f"{path}: there is no API key in it yet; start the master once")
    return Identity(mid=row[0], key=row[1], alias=row[2])


def _unreachable(path: Path, error: OSError) -> FatalError:
    return FatalError(
        f"{path}: the state can't be read: {(error.strerror or str(error)).lower()}; do it as "
        "the master's user, with some room in the directory for temporary files"
    )


def _unreadable(path: Path, error: Exception) -> FatalError:
    cause, cure = explain(error) or (
        f"the file is damaged ({describe(error)})",
        "start the master, which then mends it or takes the newest backup",
    )
    return FatalError(f"{path}: the state can't be read: {cause}; {cure}")
