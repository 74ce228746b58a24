"""The API key in a state file, for commands that run beside the master or in its absence."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from attrs import evolve

from nodepass.errors import ConfigError, FatalError

from .ledger import Ledger, connect_immutable, describe, explain, retype
from .records import Identity
from .schema import Damaged, check
from .store import lock_state

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
    try:
        with _locked(path) as ledger:
            return _identity(path, ledger.connection)
    except (ConfigError, FatalError):
        # A master runs, or its directory is none of ours to write to. What the file says counts.
        return _peek(path)


def renew_key(path: Path, key: str) -> None:
    """Replace the API key in the state file of a master that does not run. Blocks.

    :param key: 32 hex digits.
    :raises ConfigError: there is no such file, or a master runs on it.
    :raises FatalError: it can't be read or written.
    """
    path = _existing(path)
    with _locked(path) as ledger:
        identity = _identity(path, ledger.connection)
        try:
            ledger.commit([lambda ledger: ledger.set_identity(evolve(identity, key=key))])
        except (sqlite3.Error, OSError) as error:
            raise FatalError(str(retype(error, path))) from None


def _existing(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    if not path.is_file():
        raise ConfigError(
            f"NP_STATE: {path} does not exist; accepted: the state file of a master that has run"
        )
    return path


@contextmanager
def _locked(path: Path) -> Iterator[Ledger]:
    try:
        lock = lock_state(path)
    except ConfigError:
        raise ConfigError(
            f"NP_STATE: {path} is in use by a master that runs; accepted: that of one which is "
            "stopped (nodepass ctl key rotate asks one that runs for a new key)"
        ) from None
    try:
        with closing(_open(path)) as ledger:
            yield ledger
    finally:
        lock.release()


def _open(path: Path) -> Ledger:
    try:
        return Ledger(path)
    except (Damaged, sqlite3.Error, OSError) as error:
        raise _unreadable(path, error) from None


def _peek(path: Path) -> Identity:
    for tries_left in reversed(range(TRIES)):
        try:
            with closing(connect_immutable(path)) as connection:
                check(connection, path)
                return _identity(path, connection)
        except (Damaged, sqlite3.Error) as error:
            if not tries_left:
                raise _unreadable(path, error) from None
            time.sleep(PAUSE)
    raise AssertionError


def _identity(path: Path, connection: sqlite3.Connection) -> Identity:
    row = connection.execute("SELECT mid, key, alias FROM identity").fetchone()
    if row is None:
        raise FatalError(f"{path}: there is no API key in it yet; start the master once")
    return Identity(mid=row[0], key=row[1], alias=row[2])


def _unreadable(path: Path, error: Exception) -> FatalError:
    cause, cure = explain(error) or (
        f"the file is damaged ({describe(error)})",
        "start the master, which then takes the newest backup",
    )
    return FatalError(f"{path}: the state can't be read: {cause}; {cure}")
