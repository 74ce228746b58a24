"""The state file: what is acknowledged stays, whatever happens to the file or the disk."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, execute, inlineCallbacks
from twisted.trial.unittest import TestCase

from nodepass.errors import ConfigError, FatalError
from nodepass.logs import Level, Log
from nodepass.master import backups, offline, wal
from nodepass.master.ledger import Ledger
from nodepass.master.models import Meta, Peer
from nodepass.master.offline import read_identity, renew_key
from nodepass.master.schema import SCHEMA, read_seal, write_seal
from nodepass.master.store import Contents, Identity, Record, Store, StoreError, Totals
from tests.outcomes import Lines, got

T = TypeVar("T")

IDENTITY = Identity(mid="0123456789abcdef", key="00112233445566778899aabbccddeeff", alias="m")
#: 2033-05-18 03:33:20 UTC.
NOW = 2e9


class Inline:
    """A thread that does everything at once."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def run(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        return execute(work, *args)


class Paused(Inline):
    """A thread that does things when it is told to, once `hold` is set."""

    def __init__(self) -> None:
        self.hold = False
        self.waiting: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def run(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        if not self.hold:
            return execute(work, *args)
        done: Deferred[T] = Deferred()
        self.waiting.append((done, lambda: work(*args)))
        return done

    def step(self) -> None:
        """Do the next thing."""
        done, work = self.waiting.pop(0)
        done.callback(work())


#: A user without rights of its own.
NOBODY = 65534


class Home:
    """A directory with a state file, and a store on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Lines()
        self.now = NOW
        self.store = self.another()

    def another(self, thread: Any = None) -> Store:
        log: Any = self.log
        return Store(self.path, None, log, clock=lambda: self.now, thread=thread or Inline())

    def open(self, thread: Any = None) -> Contents:
        """Open the file with a new store."""
        self.store = self.another(thread)
        return got(self.store.open())

    def close(self) -> None:
        got(self.store.close())

    def crash(self) -> None:
        """What ``kill -9`` leaves: the file, and the log with all that is not in the file yet."""
        assert self.store._ledger is not None and self.store._lock is not None
        log = backups.beside(self.path, "-wal")
        files = {path: path.read_bytes() for path in (self.path, log)}
        self.close()
        for path, data in files.items():
            path.write_bytes(data)

    def files(self, kind: str) -> list[Path]:
        """The files beside the state file whose names go on like that, oldest first."""
        return sorted(self.path.parent.glob(f"{self.path.name}.{kind}*"))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "state" / "nodepass.db")
    yield home
    home.close()


def put_together(store: Store, records: list[Record]) -> Deferred[None]:
    """Save instances in one write."""

    def change(ledger: Ledger) -> None:
        for each in records:
            ledger.put(each)

    return store._write(change)


def record(number: int, **fields: Any) -> Record:
    """An instance with something in each field."""
    return evolve(
        Record(
            id=f"{number:08x}",
            url=f"server://secret{number}@:{number}/127.0.0.1:80?note=%20é",
            alias=f"name {number}",
            restart=number % 2 == 0,
            meta=Meta(Peer(f"s{number}", "client", "p"), {"b": "2", "a": str(number)}),
            totals=Totals(tcprx=number, tcptx=2**62 + number, udprx=1, udptx=0),
        ),
        **fields,
    )


# What is kept.


def test_new_file(home: Home) -> None:
    """A file that is not there is made, with its directory, and nobody else may read any of it."""
    assert home.open() == Contents()
    got(home.store.set_identity(IDENTITY))
    got(home.store.backup())
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [home.path.parent, *home.path.parent.iterdir()]
    }
    assert modes.pop("state") == 0o700
    assert set(modes.values()) == {0o600}
    assert {"nodepass.db", "nodepass.db-wal", "nodepass.db.lock"} < set(modes)
    assert home.log.lines == []


def test_others_may_no_longer_read_a_file(home: Home) -> None:
    """A file that came with another mode, from a copy say, is made private."""
    home.open()
    home.close()
    home.path.chmod(0o644)
    home.open()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o600


def test_everything_comes_back(home: Home) -> None:
    """All fields of all instances are there after a restart, in the order of creation."""
    home.open()
    records = [record(number) for number in (3, 1, 2)]
    for each in records:
        got(home.store.put(each))
    got(home.store.set_identity(IDENTITY))
    changed = evolve(records[0], alias="new", url="client://a:1/b:2")
    got(home.store.put(changed))
    got(home.store.remove("00000001"))
    got(home.store.remove("0badcafe"))
    got(home.store.put(records[1]))
    home.close()
    assert home.open() == Contents(identity=IDENTITY, records=(changed, records[2], records[1]))


def test_a_write_is_all_or_nothing(home: Home) -> None:
    """One instance that can't be stored keeps those out that were to come with it."""
    home.open()
    with pytest.raises(StoreError, match="none that can be stored"):
        got(put_together(home.store, [record(1), record(2, alias="\udc80")]))
    got(put_together(home.store, [record(3), record(4)]))
    home.close()
    assert [each.id for each in home.open().records] == ["00000003", "00000004"]


def test_totals(home: Home) -> None:
    """Totals replace those from before, and do not bring an instance back that was removed."""
    home.open()
    got(put_together(home.store, [record(1), record(2)]))
    got(home.store.remove("00000002"))
    new = Totals(tcprx=10**30, udptx=5)
    got(home.store.put_totals({"00000001": new, "00000002": new, "00000003": new}))
    home.close()
    assert home.open().records == (record(1, totals=Totals(tcprx=2**63 - 1, udptx=5)),)


def test_keys_do_not_show() -> None:
    """Neither an identity nor a record shows a key where it is printed."""
    text = repr(Contents(identity=IDENTITY, records=(record(7),)))
    assert IDENTITY.key not in text and "secret" not in text


def test_a_crash_loses_nothing(home: Home) -> None:
    """What SQLite's log alone holds after ``kill -9`` is there at the next start."""
    home.open()
    ledger: Any = home.store._ledger
    ledger.tidy = lambda: None
    got(home.store.put(record(1)))
    got(home.store.put(record(2)))
    home.crash()
    assert home.open().records == (record(1), record(2))
    assert home.log.lines == []


def test_the_file_alone_is_the_state(home: Home) -> None:
    """Once all is quiet, nothing is in the log: it has no digests, and copies forget it."""
    home.open()
    got(home.store.put(record(1)))
    assert backups.beside(home.path, "-wal").stat().st_size == 0
    assert b"secret1" in home.path.read_bytes()


def test_an_old_key_leaves_no_trace(home: Home) -> None:
    """A key that was replaced is nowhere in the file any more."""
    home.open()
    got(home.store.set_identity(IDENTITY))
    got(home.store.set_identity(evolve(IDENTITY, key="f" * 32)))
    home.close()
    assert IDENTITY.key.encode() not in home.path.read_bytes()


# Writes at the same time, and writes that fail.


def commits(store: Store) -> list[str]:
    """The commits of a store from now on."""
    seen: list[str] = []
    assert store._ledger is not None
    store._ledger.connection.set_trace_callback(
        lambda statement: seen.append(statement) if statement == "COMMIT" else None
    )
    return seen


def test_writes_share_a_commit(home: Home) -> None:
    """What is asked for while the disk works is made durable in one go, and then acknowledged."""
    thread = Paused()
    home.open(thread)
    seen = commits(home.store)
    thread.hold = True
    writes = [home.store.put(record(number)) for number in range(10)]
    thread.step()
    assert [write.called for write in writes] == [True] + [False] * 9
    thread.step()
    assert all(write.called for write in writes)
    assert len(seen) == 2
    thread.hold = False


def test_a_bad_write_fails_alone(home: Home) -> None:
    """One write of a group that can't be done does not fail the others."""
    thread = Paused()
    home.open(thread)
    thread.hold = True
    writes = [home.store.put(record(n, alias="\ud800" if n == 3 else "a")) for n in range(5)]
    thread.step()
    thread.step()
    failed = []
    for number, write in enumerate(writes):
        try:
            got(write)
        except StoreError:
            failed.append(number)
    assert failed == [3]
    thread.hold = False
    home.close()
    assert [int(each.id, 16) for each in home.open().records] == [0, 1, 2, 4]


def test_who_no_longer_waits(home: Home) -> None:
    """A write goes on when the one who asked for it has gone."""
    thread = Paused()
    home.open(thread)
    thread.hold = True
    write = home.store.put(record(1))
    write.addErrback(lambda failure: None)
    write.cancel()
    thread.step()
    thread.hold = False
    home.close()
    assert home.open().records == (record(1),)


def test_a_full_disk(home: Home) -> None:
    """Without space a write fails with cause and cure, nothing of it stays, and later ones work."""
    home.open()
    got(home.store.put(record(1)))
    assert home.store._ledger is not None
    query = home.store._ledger.connection.execute
    (pages,) = query("PRAGMA page_count").fetchone()
    query(f"PRAGMA max_page_count = {pages}")
    big = [record(number, url="server://" + "x" * 3000) for number in range(2, 9)]
    with pytest.raises(StoreError) as caught:
        got(put_together(home.store, big))
    assert str(caught.value) == (
        f"{home.path}: the state can't be saved: no space is left there; make room"
    )
    got(home.store.put_totals({"00000001": Totals(tcprx=7)}))
    query("PRAGMA max_page_count = 100000")
    got(home.store.put(big[0]))
    home.close()
    assert home.open().records == (record(1, totals=Totals(tcprx=7)), big[0])


def replace_file(path: Path) -> None:
    path.rename(path.with_name("before"))
    path.write_bytes(b"of somebody else")


@pytest.mark.parametrize(
    ("harm", "trouble", "aside"),
    [
        (Path.unlink, "was removed", 0),
        (replace_file, "was replaced by another file and is now ", 1),
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_a_file_that_is_lost_is_put_back(
    home: Home, harm: Callable[[Path], None], trouble: str, aside: int, write: bool
) -> None:
    """What was removed or replaced is written anew at the next write or backup, with all that was
    in it; what has its place is kept, and one line says so."""
    home.open()
    got(home.store.set_identity(IDENTITY))
    records = [record(number) for number in range(30)]
    got(put_together(home.store, records))
    harm(home.path)
    if write:
        records.append(record(100))
        got(home.store.put(records[-1]))
    else:
        got(home.store.backup())
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o600
    assert len(home.files("damaged")) == aside
    [(level, line)] = home.log.lines
    assert level == "warn" and line.startswith(f"the state file {home.path} {trouble}")
    assert line.endswith("; the master has written it anew, and nothing is lost")
    got(home.store.put(records[-1]))
    home.close()
    assert home.open() == Contents(identity=IDENTITY, records=tuple(records))
    assert len(home.log.lines) == 1


def test_a_directory_that_is_lost(home: Home) -> None:
    """Without its directory nothing can be saved; once that is back all of it is."""
    home.open()
    got(home.store.put(record(1)))
    away = home.path.parent.with_name("away")
    home.path.parent.rename(away)
    with pytest.raises(StoreError, match="can't be saved: no such file or directory; "):
        got(home.store.put(record(2)))
    home.path.parent.mkdir()
    got(home.store.put(record(3)))
    home.close()
    assert home.open().records == (record(1), record(3))


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [truncate, cut])
@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_is_cut_off(home: Home, harm: Callable[[Path], None], cached: bool) -> None:
    """It is written anew from memory. Where that does not have it, nothing is acknowledged that
    would be lost at the next start, for which the newest backup is still there."""
    home.open()
    records = [record(number) for number in range(500)]
    got(put_together(home.store, records))
    backup = got(home.store.backup())
    if not cached:
        assert home.store._ledger is not None
        home.store._ledger.connection.execute("PRAGMA cache_size = 1")
        home.store._ledger.connection.execute("PRAGMA shrink_memory")
    harm(home.path)
    if cached:
        records.append(record(1000))
        got(home.store.put(records[-1]))
    else:
        with pytest.raises(StoreError, match=r"can't be saved: .*; start the master anew"):
            got(home.store.put(record(1000)))
        assert home.files("backup") == [backup]
    home.close()
    assert home.open().records == tuple(records)


def test_a_file_that_is_overwritten(home: Home) -> None:
    """An older copy, written over the file in place, is not taken for what was left there."""
    home.open()
    got(home.store.put(record(1)))
    older = home.path.read_bytes()
    got(home.store.put(record(1, alias="other")))
    assert len(older) == home.path.stat().st_size
    home.path.write_bytes(older)
    got(home.store.put(record(2)))
    home.close()
    assert home.open().records == (record(1, alias="other"), record(2))
    assert "was changed by another program and is now " in home.log.lines[0][1]


def test_a_new_file_that_can_not_be_opened(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was put back and can't be opened is tried again at the next write."""
    home.open()
    got(home.store.put(record(1)))
    home.path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_open", lambda self: os.open("/", os.O_WRONLY))
        with pytest.raises(StoreError, match="is a directory"):
            got(home.store.put(record(2)))
    got(home.store.put(record(3)))
    home.close()
    assert home.open().records == (record(1), record(3))


def test_close_finishes_what_was_asked_for(home: Home) -> None:
    """Writes that wait are done before the file is closed; later ones fail."""
    thread = Paused()
    home.open(thread)
    thread.hold = True
    writes = [home.store.put(record(number)) for number in range(3)]
    closed = home.store.close()
    late = home.store.put(record(9))
    while thread.waiting:
        thread.step()
    assert closed.called and all(write.called for write in writes)
    with pytest.raises(StoreError, match="closed"):
        got(late)
    assert len(home.open().records) == 3


# Who may use a file.


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal", ".backup-20330518T033320Z"])
def test_a_pipe_in_the_place_of_a_file(home: Home, suffix: str) -> None:
    """A named pipe beside the state does not hold the start for ever."""
    home.path.parent.mkdir()
    os.mkfifo(backups.beside(home.path, suffix))
    if suffix.startswith(".backup"):
        home.open()
    else:
        with pytest.raises(FatalError, match=f"{suffix}: the state can't be kept .*; move it away"):
            home.open()


def test_one_master_for_each_file(home: Home, tmp_path: Path) -> None:
    """A second master is told which variable to set, by another name of the file too."""
    home.open()
    link = tmp_path / "link.db"
    link.symlink_to(home.path)
    log: Any = home.log
    second = Store(link, None, log, thread=Inline())
    with pytest.raises(ConfigError) as caught:
        got(second.open())
    assert str(caught.value) == (
        f"NP_STATE: {home.path} is in use by another master; accepted: a state file of its own "
        "for each master"
    )
    home.close()
    got(second.open())
    got(second.close())


@pytest.mark.parametrize("where", ["file/nodepass.db", "directory", "fifo"])
def test_places_that_can_not_be_used(tmp_path: Path, where: str) -> None:
    """A path that is no place for a file is named with what to do, and left as it is."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FatalError, match="can't be kept there"):
        Home(tmp_path / where).open()
    assert {path.name for path in tmp_path.iterdir()} >= {"file", "directory", "fifo"}


@contextmanager
def owned_by_a_user(directory: Path) -> Iterator[None]:
    """Be a user, and the owner of a directory with all in it: permissions don't bind root."""
    if os.geteuid() != 0:
        yield
        return
    for path in (directory, *directory.iterdir()):
        os.chown(path, NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_is_read_only() -> None:
    """Where nothing can be written the master does not start, and says what to do."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        home = Home(Path(name) / "nodepass.db")
        home.open()
        home.close()
        with owned_by_a_user(Path(name)):
            os.chmod(name, 0o500)
            try:
                with pytest.raises(FatalError, match="let this user"):
                    home.open()
            finally:
                os.chmod(name, 0o700)


def test_a_newer_schema(home: Home) -> None:
    """The file of a newer version is no damaged one: it stays, and the line says what to do."""
    home.open()
    got(home.store.put(record(1)))
    assert home.store._ledger is not None
    connection = home.store._ledger.connection
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    write_seal(connection, evolve(read_seal(connection), version=SCHEMA + 1))
    home.close()
    before = home.path.read_bytes()
    with pytest.raises(FatalError, match="newer version of nodepass"):
        home.open()
    assert home.path.read_bytes() == before


# Backups.


def test_rotation(home: Home) -> None:
    """Backups are made when something changed; the newest five stay, whatever the clock does."""
    home.open()
    made: list[Path] = []
    for number in range(7):
        got(home.store.put(record(number)))
        home.now = NOW + 3600 * number
        backup = got(home.store.backup())
        assert backup is not None
        made.append(backup)
        assert got(home.store.backup()) is None
    assert home.files("backup") == made[-backups.BACKUPS :]
    assert made[0].name == "nodepass.db.backup-20330518T033320Z"
    home.now = NOW
    got(home.store.put(record(8)))
    newest = got(home.store.backup())
    assert home.files("backup") == [*made[-backups.BACKUPS + 1 :], newest]


def test_backups_in_a_row(home: Home) -> None:
    """Many backups within minutes, as of a master that is started and stopped again and again,
    leave those of the hours before."""
    home.open()
    made: list[Path | None] = []
    for number, minutes in enumerate((0, 60, 120, 121, 122, 123, 124, 125)):
        home.now = NOW + 60 * minutes
        got(home.store.put(record(number)))
        made.append(got(home.store.backup()))
    assert home.files("backup") == [*made[:3], made[-1]]


def test_a_backup_that_fails_leaves_nothing(home: Home, monkeypatch: Any) -> None:
    """When a backup can't be made, the ones from before stay, and no half of it takes up room."""
    home.open()
    got(home.store.put(record(1)))
    kept = got(home.store.backup())
    got(home.store.put(record(2)))

    def full(path: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backups, "verify", full)
    with pytest.raises(StoreError, match="a backup of the state can't be saved: no space is left"):
        got(home.store.backup())
    assert home.files("backup") == [kept]


def scribble(path: Path, text: bytes) -> None:
    """Change one letter of a text in a file, where SQLite has no way to notice it."""
    data = path.read_bytes()
    assert data.count(text) > 0
    path.write_bytes(data.replace(text, text[:-1] + b"#"))


def saved_twice(home: Home) -> tuple[Path, Path]:
    """A state that has changed since two backups of it."""
    home.open()
    got(home.store.set_identity(IDENTITY))
    made = []
    for number in (1, 2):
        got(home.store.put(record(number)))
        made.append(got(home.store.backup()))
    got(home.store.put(record(3)))
    home.close()
    older, newer = made
    assert older is not None and newer is not None
    return older, newer


def test_a_damaged_file(home: Home) -> None:
    """It is set aside for the newest backup, and one line says so, without a key."""
    _, newer = saved_twice(home)
    scribble(home.path, b"name 1")
    damaged = home.path.read_bytes()
    assert home.open() == Contents(identity=IDENTITY, records=(record(1), record(2)))
    [aside] = home.files("damaged")
    assert aside.read_bytes() == damaged
    assert home.log.lines == [
        (
            "warn",
            f"the state file {home.path} was damaged (a row of its table instances is not as it "
            f"was written) and is now {aside}; its backup {newer} is used, and what was changed "
            "after 2033-05-18 03:33:21 UTC is lost",
        )
    ]


def test_a_damaged_backup(home: Home) -> None:
    """The next older one is used when the newest backup is damaged too."""
    older, newer = saved_twice(home)
    scribble(home.path, b"name 1")
    newer.write_bytes(newer.read_bytes()[:5000])
    assert home.open().records == (record(1),)
    assert str(older) in home.log.lines[0][1]


def test_nothing_good_is_left(home: Home) -> None:
    """The master starts empty, and says so as an error; what was damaged is kept."""
    for backup in saved_twice(home):
        backup.write_bytes(b"")
    home.path.write_bytes(b"")
    assert home.open() == Contents()
    [(level, line)] = home.log.lines
    assert level == "error" and "no backup is good: the master starts empty" in line
    got(home.store.put(record(1)))
    home.close()
    assert home.open().records == (record(1),)


def test_a_file_that_is_gone(home: Home) -> None:
    """A state file that somebody moved away is no reason to start empty in silence."""
    saved_twice(home)
    home.path.unlink()
    assert home.open().records == (record(1), record(2))
    assert "is gone; its backup" in home.log.lines[0][1]


def test_lost_rows_are_noticed(home: Home) -> None:
    """A file from which another program took a row is not as it was written."""
    saved_twice(home)
    with sqlite3.connect(home.path) as connection:
        connection.execute("DELETE FROM instances WHERE id = '00000002'")
    connection.close()
    home.open()
    assert "that are not the 7 that were written" in home.log.lines[0][1]


def test_damage_shows_no_keys(home: Home) -> None:
    """What SQLite says of a text that it can't read holds the text, and is not logged."""
    saved_twice(home)
    data = home.path.read_bytes()
    home.path.write_bytes(data.replace(b"//secret1", b"//secre\xff1"))
    home.open()
    assert "its content can't be read" in home.log.lines[0][1]
    assert "secre" not in home.log.lines[0][1]


#: Random damages that are tried to each of the files.
DAMAGES = int(os.environ.get("NP_TEST_DAMAGES", "60"))


def damage(data: bytes, chance: random.Random) -> bytes:
    """Truncate a file, or change something anywhere in it."""
    kind = chance.choice(["cut", "bits", "noise", "zeros", "head", "page"])
    place = chance.randrange(len(data))
    if kind == "cut":
        return data[:place]
    changed = bytearray(data)
    if kind == "bits":
        for _ in range(chance.randrange(1, 9)):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "head":
        changed[place % 100] = chance.randrange(256)
    elif kind == "page":
        changed[place // 4096 * 4096 + chance.randrange(12)] = chance.randrange(256)
    else:
        length = min(chance.randrange(1, 6000), len(data) - place)
        changed[place : place + length] = (
            bytes(length) if kind == "zeros" else chance.randbytes(length)
        )
    return bytes(changed[: len(data)])


@pytest.mark.parametrize("what", ["file", "file beside a log", "log"])
def test_random_damage(tmp_path: Path, what: str) -> None:
    """After any damage the state is what was acknowledged, or a line says which one it is."""
    source = Home(tmp_path / "source" / "nodepass.db")
    source.open()
    for number in range(40):
        got(source.store.put(record(number, url="client://" + "x" * (17 * number))))
    got(source.store.set_identity(IDENTITY))
    backup = got(source.store.backup())
    assert backup is not None and source.store._ledger is not None
    before = source.store._ledger.contents()
    if what != "file":
        monkey: Any = source.store._ledger
        monkey.tidy = lambda: None
    for number in range(30, 50):
        got(source.store.put(record(number, alias="changed")))
    now = source.store._ledger.contents()
    source.crash()
    state, log = source.path.read_bytes(), backups.beside(source.path, "-wal").read_bytes()
    for number in range(DAMAGES):
        chance = random.Random(f"{what} {number}")
        home = Home(tmp_path / str(number) / "nodepass.db")
        home.path.parent.mkdir()
        (home.path.parent / backup.name).write_bytes(backup.read_bytes())
        home.path.write_bytes(damage(state, chance) if what != "log" else state)
        end = b""
        if what != "file":
            end = log if what != "log" else damage(log, chance)
            backups.beside(home.path, "-wal").write_bytes(end)
        found = home.open()
        content = found.identity, found.records
        if content != (now.identity, now.records):
            # What is cut off a log can't be told from what a crash kept from being written.
            assert home.log.lines or (what == "log" and log.startswith(end)), number
            if what != "log":
                assert home.log.lines and content == (before.identity, before.records), number
            assert found.identity == IDENTITY and len(found.records) >= 40
        got(home.store.put(record(99)))
        home.close()
        assert record(99) in home.open().records
        home.close()


def test_damage_to_a_log_whose_content_is_in_the_file(home: Home) -> None:
    """Before a write is acknowledged it is in the file, so that no log is needed for it."""
    home.open()
    ledger: Any = home.store._ledger
    # Killed at the worst moment: all is in the file, and the log is not emptied yet.
    ledger.tidy = lambda: ledger.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    got(put_together(home.store, [record(number, alias="x" * 200) for number in range(30)]))
    got(put_together(home.store, [record(number, alias="y" * 200) for number in range(20)]))
    now = ledger.contents().records
    home.crash()
    log = backups.beside(home.path, "-wal")
    state, end = home.path.read_bytes(), log.read_bytes()
    assert len(end) > 3 * 4096
    for number in range(DAMAGES):
        home.path.write_bytes(state)
        log.write_bytes(damage(end, random.Random(number)))
        assert home.open().records == now, number
        home.close()
    assert home.files("alone") == []


def test_a_commit_cut_short_is_no_damage(home: Home) -> None:
    """A log that ends in the middle of a commit is what a crash leaves, and nothing to tell."""
    home.open()
    ledger: Any = home.store._ledger
    ledger.tidy = lambda: None
    log = backups.beside(home.path, "-wal")
    got(home.store.put(record(1)))
    size = log.stat().st_size
    got(home.store.put(record(2)))
    for end in (size + 1, size + 24, size + 4120 + 30):
        assert wal.is_whole(log.read_bytes()[:end])
    assert wal.is_whole(b"")


# Without a master.


def test_the_key_offline(home: Home) -> None:
    """The key can be read at any time, and renewed while no master runs."""
    with pytest.raises(ConfigError, match="does not exist"):
        read_identity(home.path)
    home.open()
    with pytest.raises(FatalError, match="no API key in it yet"):
        read_identity(home.path)
    got(home.store.set_identity(IDENTITY))
    assert read_identity(home.path) == IDENTITY
    with pytest.raises(ConfigError, match="in use by a master that runs"):
        renew_key(home.path, "f" * 32)
    home.close()
    renew_key(home.path, "f" * 32)
    assert read_identity(home.path) == evolve(IDENTITY, key="f" * 32)
    assert home.open().identity == evolve(IDENTITY, key="f" * 32)


def test_the_key_out_of_reach(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that this user may not enter is named, as a file that can't be read is."""

    def forbid(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", forbid)
    for work in (read_identity, lambda path: renew_key(path, "f" * 32)):
        with pytest.raises(FatalError, match="permission denied; do it as the master's user"):
            work(home.path)


def test_the_key_of_a_damaged_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands about the key leave a damaged file alone, and say what mends it."""
    monkeypatch.setattr(offline, "PAUSE", 0)
    saved_twice(home)
    scribble(home.path, b"name 1")
    before = home.path.read_bytes()
    with pytest.raises(FatalError, match="start the master, which then mends it or takes"):
        read_identity(home.path)
    with pytest.raises(FatalError, match="damaged"):
        renew_key(home.path, "f" * 32)
    assert home.path.read_bytes() == before


def snapshot(home: Home) -> dict[str, bytes]:
    """Everything beside the state file, and what is in it."""
    return {file.name: file.read_bytes() for file in home.path.parent.iterdir()}


def test_reading_the_key_touches_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock is held in which a master could not start, and no log is replayed and removed."""
    home.open()
    got(home.store.set_identity(IDENTITY))
    home.close()
    backups.beside(home.path, ".lock").unlink(missing_ok=True)
    before = snapshot(home)
    locked: list[Path] = []
    monkeypatch.setattr(offline, "lock_state", locked.append)
    assert read_identity(home.path) == IDENTITY
    assert (snapshot(home), locked) == (before, [])


def test_the_key_in_a_log(home: Home) -> None:
    """What a crash left in the log alone counts, and stays there until the master starts."""
    home.open()
    got(home.store.set_identity(IDENTITY))
    ledger: Any = home.store._ledger
    ledger.tidy = lambda: None
    newer = evolve(IDENTITY, key="a" * 32)
    got(home.store.set_identity(newer))
    home.crash()
    before = snapshot(home)
    assert before["nodepass.db-wal"]
    assert read_identity(home.path) == newer
    assert snapshot(home) == before
    renew_key(home.path, "b" * 32)
    assert home.open().identity == evolve(IDENTITY, key="b" * 32)
    assert home.log.lines == []


def test_a_damaged_log_is_left_to_the_master(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands about the key keep the log, so that the master can tell what became of it."""
    monkeypatch.setattr(offline, "PAUSE", 0)
    home.open()
    got(home.store.set_identity(IDENTITY))
    ledger: Any = home.store._ledger
    ledger.tidy = lambda: None
    for number in (1, 2):
        got(home.store.put(record(number)))
    home.crash()
    log = backups.beside(home.path, "-wal")
    data = bytearray(log.read_bytes())
    data[100] ^= 1
    log.write_bytes(data)
    before = snapshot(home)
    for work in (read_identity, lambda path: renew_key(path, "f" * 32)):
        with pytest.raises(FatalError, match="its log is not as it was written"):
            work(home.path)
    assert snapshot(home) == before
    assert home.open().identity == IDENTITY
    assert any("was damaged" in str(line) for line in home.log.lines)


class ThreadTests(TestCase):
    """On a real reactor."""

    @inlineCallbacks
    def test_the_reactor_is_never_held_up(self) -> Any:
        """All SQL runs in one other thread, and the file is free again when it is closed."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "state" / "nodepass.db"
        threads: set[int] = set()

        def note(ledger: Ledger) -> None:
            threads.add(threading.get_ident())

        for _ in range(2):
            store = Store(path, reactor, Log(Level.NONE))
            yield store.open()
            yield store._write(note)
            yield store.put(record(1))
            yield store.backup()
            yield store.run(lambda: threads.add(threading.get_ident()))
            yield store.close()
        assert threading.get_ident() not in threads
        assert len(threads) <= 2
