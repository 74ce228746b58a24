"""Masters that are killed, and disks that are full: what was acknowledged is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults

from tests.scenarios.harness import Node, node, sleep, until
from tests.scenarios.masters import Caller

#: How often the master is killed; 200 in the long form.
KILLS = int(os.environ.get("NP_TEST_KILLS", "6"))
WRITERS = 4


def offspring(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    children = [int(line) for line in found.stdout.split()]
    return [*children, *(pid for child in children for pid in offspring(child))]


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def start(state: Path, key: str | None = None, **env: str) -> tuple[Node, Caller]:
    """Start a master in a process of its own."""
    one = node("master://127.0.0.1:0?log=info", env={
        "NP_STATE": str(state / "nodepass.db"), "NP_MASTER_WORKERS": "2", **env
    })  # fmt: skip
    if key is None:
        key = (await one.line("API Key created: ([0-9a-f]{32})"))[1]
    port = int((await one.line(r"API on 127\.0\.0\.1:(\d+)"))[1])
    return one, Caller(port, key)


@define
class Book:
    """What a master has acknowledged.

    :ivar aliases: of each instance, the alias that was acknowledged last.
    :ivar doubtful: instances with a request under way, and what it may have made of the alias;
        None: it may be gone.
    """

    aliases: dict[str, str] = field(factory=dict)
    doubtful: dict[str, str | None] = field(factory=dict)
    gone: set[str] = field(factory=set)
    writes: int = 0

    def check(self, shown: list[dict[str, Any]]) -> None:
        """Hold what the master shows against it, and take over what was in doubt."""
        there = {each["id"]: each["alias"] for each in shown if each["id"] != "********"}
        assert len(there) == len(shown) - 1, "an instance is there twice"
        assert not self.gone & set(there), "a deleted instance is back"
        for id, alias in self.aliases.items():
            if id in self.doubtful:
                may_be = {alias, self.doubtful[id]}
                assert there.get(id) in may_be, (id, there.get(id), may_be)
            else:
                assert there.get(id) == alias, (id, there.get(id), alias)
        # Those that nobody was told of were under way when the master died: as many as writers.
        assert len(set(there) - set(self.aliases)) <= WRITERS
        self.gone |= set(self.aliases) - set(there)
        self.aliases, self.doubtful = there, {}


async def write(api: Caller, book: Book, rng: random.Random, mine: list[str]) -> None:
    """One random write."""
    what = rng.random()
    if what < 0.5 or not mine:
        alias = f"made {book.writes}"
        url = "client://127.0.0.1:0/127.0.0.1:9?mode=1&log=none"
        id = (await api.create(url, alias=alias))["id"]
        book.aliases[id] = alias
        mine.append(id)
    elif what < 0.85:
        id = rng.choice(mine)
        alias = f"named {book.writes}"
        book.doubtful[id] = alias
        answer = await api.call("PATCH", f"/instances/{id}", {"alias": alias})
        assert answer.status == 200
        book.aliases[id] = alias
        del book.doubtful[id]
    else:
        id = mine.pop(rng.randrange(len(mine)))
        book.doubtful[id] = None
        answer = await api.call("DELETE", f"/instances/{id}")
        assert answer.status == 204
        del book.doubtful[id], book.aliases[id]
        book.gone.add(id)
    book.writes += 1


async def keep_writing(api: Caller, book: Book, rng: random.Random) -> None:
    """Write until the master is gone."""
    mine: list[str] = []
    try:
        while True:
            await write(api, book, rng, mine)
    except AssertionError:
        raise
    except Exception:
        return  # the connection broke, or no new one can be made


@pytest.mark.timeout(60 + 6 * KILLS)
@pytest_twisted.ensureDeferred
async def test_kill_at_any_moment(tmp_path: Path) -> None:
    """Killed again and again under writes, a master comes back each time with all that it had
    acknowledged, nothing twice, and no worker of the one before lives on."""
    rng = random.Random(20261122)
    book, key = Book(), None
    for _ in range(KILLS):
        one, api = await start(tmp_path, key)
        key = api.key
        book.check((await api.call("GET", "/instances")).json())
        # Not more than there can be looked at in time.
        for id in list(book.aliases)[20:]:
            assert (await api.call("DELETE", f"/instances/{id}")).status == 204
            del book.aliases[id]
            book.gone.add(id)
        workers = offspring(one.pid)
        assert len(workers) >= 3  # two workers, and what forks them
        writing = [
            Deferred.fromCoroutine(keep_writing(api, book, random.Random(rng.random())))
            for _ in range(WRITERS)
        ]
        await sleep(rng.uniform(0, 0.6))
        one.send_signal(signal.SIGKILL)
        await one.ended
        await gatherResults(writing, consumeErrors=True)
        await until(lambda: not any(map(lives, workers)), what="the end of its workers")  # noqa: B023
    one, api = await start(tmp_path, key)
    book.check((await api.call("GET", "/instances")).json())
    assert book.writes > KILLS
    await one.stop()
    print(f"{KILLS} kills, {book.writes} acknowledged writes, {len(book.aliases)} instances")


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system that is soon full."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting is for root")
@pytest_twisted.ensureDeferred
async def test_full_disk(tmp_path: Path) -> None:
    """With the disk full, writes are refused with the reason and change nothing; what runs goes
    on, and when there is space the master writes again, without a restart. A kill meanwhile loses
    nothing."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        one, api = await start(disk)
        id = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="first"))["id"]
        await api.becomes(id, "running")
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        refused = 0
        for _ in range(200):
            answer = await api.call("PATCH", f"/instances/{id}", {"alias": "x" * 250})
            if answer.status == 503:
                refused += 1
                assert "disk" in answer.json()["error"], answer.body
                break
        else:
            raise AssertionError("the disk is not full")
        before = await api.get(id)
        answer = await api.call("POST", "/instances", {"url": "server://k@:0/:0?mode=1"})
        assert answer.status == 503
        assert (await api.get(id)) == before and before["status"] == "running"
        one.send_signal(signal.SIGKILL)
        await one.ended
        filler.unlink()
        one, api = await start(disk, api.key)
        assert (await api.get(id))["alias"] == before["alias"]
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        filler.unlink()
        answer = await api.call("PATCH", f"/instances/{id}", {"alias": "again"})
        assert answer.status == 200
        await one.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="mounting is for root")
@pytest_twisted.ensureDeferred
async def test_read_only_disk(tmp_path: Path) -> None:
    """Killed, and its disk read-only afterwards: a master can't start and says why, with status 1.
    When it can be written again, all that was acknowledged is there."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        one, api = await start(disk)
        id = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="kept"))["id"]
        await api.becomes(id, "running")
        one.send_signal(signal.SIGKILL)
        await one.ended
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            other = node("master://127.0.0.1:0", env={"NP_STATE": str(disk / "nodepass.db")})
            assert await other.ended == 1, other.lines
            assert sum("read-only" in line.lower() for line in other.lines) >= 1, other.lines
            assert not any("Traceback" in line for line in other.lines)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        one, api = await start(disk, api.key)
        assert (await api.get(id))["alias"] == "kept"
        await one.stop()


@pytest_twisted.ensureDeferred
async def test_one_master_a_state_file(tmp_path: Path) -> None:
    """A second master on the same state file says so, names NP_STATE, and ends with status 2; the
    first one goes on."""
    one, api = await start(tmp_path)
    other = node("master://127.0.0.1:0", env={"NP_STATE": str(tmp_path / "nodepass.db")})
    assert await other.ended == 2
    assert sum("NP_STATE" in line for line in other.lines) == 1, other.lines
    assert not any("Traceback" in line for line in other.lines)
    assert (await api.call("GET", "/info")).status == 200
    await one.stop()


@pytest_twisted.ensureDeferred
async def test_damaged_state(tmp_path: Path) -> None:
    """A state file with garbage in it is set aside and the newest backup used, both named in the
    log; without any backup the master says that it starts empty."""
    one, api = await start(tmp_path, NP_RELOAD_INTERVAL="500ms")
    id = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="kept"))["id"]
    await one.line(r"state backup saved: \S+")
    await sleep(0.7)
    await one.stop(signal.SIGKILL)
    state = tmp_path / "nodepass.db"
    for suffix in ("-wal", "-shm"):
        Path(f"{state}{suffix}").unlink(missing_ok=True)
    size = state.stat().st_size
    with open(state, "r+b") as file:
        for at in range(0, size, 512):
            file.seek(at)
            file.write(b"garbage!")
    one, api = await start(tmp_path, api.key)
    line = (await one.line(r"the state file .* is used.*"))[0]
    assert str(state) in line and "backup" in line
    assert (await api.get(id))["alias"] == "kept"
    assert [path for path in tmp_path.iterdir() if "damaged" in path.name]
    await one.stop()


@pytest_twisted.ensureDeferred
async def test_lost_state(tmp_path: Path) -> None:
    """A state file that is removed while the master runs is there again after the next change, and
    after a clean stop, which also leaves a backup."""
    one, api = await start(tmp_path)
    state = tmp_path / "nodepass.db"
    first = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="first"))["id"]
    state.unlink()
    second = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="second"))["id"]
    await one.line(r"the state file .* was removed; the master has written it anew")
    state.unlink()
    assert await one.stop() == 0
    assert list(tmp_path.glob("nodepass.db.backup-*"))
    one, api = await start(tmp_path, api.key)
    assert (await api.get(first))["alias"] == "first"
    assert (await api.get(second))["alias"] == "second"
    assert not any("the state file" in line for line in one.lines)
    await one.stop()
