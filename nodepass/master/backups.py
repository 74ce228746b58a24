"""The files around the state file: how it begins, its backups, and what becomes of a damaged one.

A file takes its name only when it is whole and on the disk. So whatever has the name was good
once, and one that is empty is damaged too.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from attrs import frozen

from nodepass.errors import FatalError

from .ledger import Ledger, connect, connect_immutable, describe, explain
from .schema import Damaged, Seal, check, migrate
from .wal import is_whole

__all__ = [
    "LostTail",
    "PutBack",
    "Recovery",
    "beside",
    "latest_seal",
    "name_aside",
    "open_ledger",
    "put_back",
    "save_backup",
    "sync_directory",
    "verify",
]

#: Backups kept: at one an hour, damage that shows in the morning still has one from the night.
BACKUPS = 5

#: Seconds between any two backups but the newest, so that starts and stops in a row don't push all
#: of last night's out.
BACKUP_SPACING = 1800.0

_STAMP = "%Y%m%dT%H%M%SZ"


@frozen(kw_only=True)
class Recovery:
    """What stood in the way of the state as it was saved last.

    :ivar trouble: what was found, as the predicate of a sentence about the state file.
    :ivar backup: the backup that took its place, None where no one was good.
    :ivar when: when that was made.
    """

    trouble: str
    backup: Path | None
    when: datetime | None


@frozen(kw_only=True)
class LostTail:
    """SQLite's log was damaged, so that the last changes may not be in the state.

    :ivar log: the log.
    :ivar copy: how it was.
    """

    log: Path
    copy: Path


@frozen(kw_only=True)
class PutBack:
    """The state file was written anew, with all that it had held.

    :ivar trouble: what had become of it, as the predicate of a sentence about the state file.
    """

    trouble: str


def beside(path: Path, suffix: str) -> Path:
    """Return the path of a file whose name goes on from that of another."""
    return path.with_name(path.name + suffix)


def open_ledger(path: Path, now: float) -> tuple[Ledger, Recovery | LostTail | None]:
    """Open the state file, or what there is in its place.

    :param path: real path of the file, in a directory that exists.
    :param now: Unix time, for names.
    :raises FatalError, sqlite3.Error, OSError: it can't be used, and nothing was changed.
    """
    for each in (path, beside(path, "-wal"), beside(path, "-journal")):
        if os.path.lexists(each) and not each.is_file():
            # A pipe, say: to open it would take until somebody writes to it.
            raise FatalError(
                f"{each}: the state can't be kept there: it is no file; move it away, or name "
                "another file by NP_STATE"
            )
    if not path.exists():
        recovery = None
        if _backups(path) or beside(path, "-wal").exists():
            recovery = _replace(path, now, "is gone")
        else:
            _install(_make(path, None), path)
        return Ledger(path), recovery
    with suppress(OSError):  # another user's, who lets this one write
        os.chmod(path, 0o600)
    log = _read_log(path)
    alone = _copy_alone(path) if log else None
    try:
        return Ledger(path), None if is_whole(log) else _lost_tail(path, now, log)
    except (Damaged, sqlite3.Error) as error:
        if explain(error):
            raise
        if alone is not None:
            # What is left of the log is older than the file, and the two do not fit.
            lost = _lost_tail(path, now, log)
            beside(path, "-wal").unlink(missing_ok=True)
            _install(alone, path)
            return Ledger(path), lost
        recovery = _replace(path, now, f"was damaged ({describe(error)})")
    finally:
        if alone is not None:
            alone.unlink(missing_ok=True)
    return Ledger(path), recovery


def save_backup(ledger: Ledger, now: float) -> Path:
    """Write a backup of an open state file and remove the oldest ones.

    :raises Damaged, sqlite3.Error, OSError: none was made; those from before are still there.
    """
    path = ledger.path
    new = _empty(beside(path, ".backup-new"))
    try:
        with closing(sqlite3.connect(new, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")  # it is synchronised below, as a whole
            ledger.connection.backup(target)
        if verify(new) != ledger.seal:
            raise Damaged("it does not hold what was saved last")
    except BaseException:
        new.unlink()  # it takes room that the state itself may need
        raise
    when = datetime.fromtimestamp(int(now), timezone.utc)
    existing = _backups(path)
    if existing:
        # Names keep the order in which backups were made, whatever the clock does.
        when = max(when, _time_of(existing[0]) + timedelta(seconds=1))
    backup = beside(path, f".backup-{when.strftime(_STAMP)}")
    _install(new, backup)
    if len(existing) > 1:
        before, one_more = existing[:2]
        if (_time_of(before) - _time_of(one_more)).total_seconds() < BACKUP_SPACING:
            before.unlink()
    for old in _backups(path)[BACKUPS:]:
        old.unlink()
    return backup


def put_back(ledger: Ledger, now: float) -> PutBack | None:
    """Write an open state file anew, if others have removed, replaced or changed it.

    SQLite still has what was in it. A file that has its place is set aside, as it may be wanted.

    :raises Damaged, sqlite3.Error, OSError: SQLite has lost it too, or it can't be written.
    """
    if not ledger.is_open:
        ledger.reopen()
    trouble = ledger.trouble()
    if not trouble:
        return None
    save_backup(ledger, now)
    trouble = _replace(ledger.path, now, trouble).trouble
    ledger.reopen()
    return PutBack(trouble=trouble)


def latest_seal(path: Path) -> Seal | None:
    """Return the seal of the newest backup; None where there is none, or a bad one."""
    backups = _backups(path)
    return verify(backups[0]) if backups and _is_good(backups[0]) else None


def verify(path: Path) -> Seal:
    """Check a file that nobody writes to, without a trace.

    :raises Damaged, FatalError, sqlite3.Error: it is of no use.
    """
    with closing(connect_immutable(path)) as connection:
        return check(connection, path)


def _replace(path: Path, now: float, trouble: str) -> Recovery:
    """Put the newest good backup, or an empty state, in the place of the state file."""
    backup = next(filter(_is_good, _backups(path)), None)
    new = _make(path, backup)  # first of all, as the disk may have no room
    aside = name_aside(path, now)
    if path.exists():
        os.rename(path, aside)
        trouble += f" and is now {aside}"
    # In this order: a log without its file is noticed, a file without its log would not be.
    log = beside(path, "-wal")
    with suppress(FileNotFoundError):
        if log.stat().st_size:
            os.rename(log, beside(aside, "-wal"))
        else:
            log.unlink()
    _install(new, path)
    return Recovery(trouble=trouble, backup=backup, when=_time_of(backup) if backup else None)


def _make(path: Path, backup: Path | None) -> Path:
    """Make a state file beside its place, from a backup or empty."""
    new = _empty(beside(path, ".new"))
    try:
        if backup is not None:
            shutil.copyfile(backup, new)
        else:
            with closing(connect(new)) as connection:
                migrate(connection, 0)
    except BaseException:
        new.unlink()
        raise
    return new


def _empty(path: Path) -> Path:
    """Make an empty file that only its owner may read, in place of what an earlier try left."""
    for suffix in ("", "-journal", "-wal"):
        beside(path, suffix).unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return path


def _install(new: Path, path: Path) -> None:
    """Give a whole file its name, for good."""
    file = os.open(new, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(new, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the system has a way to."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _read_log(path: Path) -> bytes:
    """Return SQLite's log, which a crash left behind: it is gone once the file has been opened."""
    try:
        return beside(path, "-wal").read_bytes()
    except FileNotFoundError:
        return b""


def _copy_alone(path: Path) -> Path | None:
    """Copy a state file without its log; None where it is no good that way, or there is no room."""
    new = beside(path, ".alone")
    try:
        shutil.copyfile(path, _empty(new))
        verify(new)
    except (Damaged, FatalError, sqlite3.Error, OSError):
        new.unlink(missing_ok=True)
        return None
    return new


def _lost_tail(path: Path, now: float, log: bytes) -> LostTail:
    """Keep a log of which SQLite replayed a part, or nothing."""
    copy = beside(name_aside(path, now), "-wal")
    with suppress(OSError):  # no room for what is of little use
        _empty(copy).write_bytes(log)
    return LostTail(log=beside(path, "-wal"), copy=copy)


def name_aside(path: Path, now: float) -> Path:
    """Return a name for what is damaged that is not taken."""
    stamp = datetime.fromtimestamp(now, timezone.utc).strftime(_STAMP)
    aside, number = beside(path, f".damaged-{stamp}"), 1
    while os.path.lexists(aside) or os.path.lexists(beside(aside, "-wal")):
        number += 1
        aside = beside(path, f".damaged-{stamp}-{number}")
    return aside


def _backups(path: Path) -> list[Path]:
    """The backups of a state file, newest first."""
    form = re.compile(re.escape(path.name) + r"\.backup-[0-9]{8}T[0-9]{6}Z")
    names = (name for name in os.listdir(path.parent) if form.fullmatch(name))
    found = (path.with_name(name) for name in sorted(names, reverse=True))
    return [each for each in found if each.is_file()]


def _time_of(backup: Path) -> datetime:
    try:
        when = datetime.strptime(backup.name[-16:], _STAMP)
    except ValueError:  # somebody's own name, such as of a 32nd of January
        when = datetime.fromtimestamp(backup.stat().st_mtime)
    return when.replace(tzinfo=timezone.utc)


def _is_good(backup: Path) -> bool:
    try:
        verify(backup)
    except (Damaged, FatalError, sqlite3.Error, OSError):
        return False
    return True
