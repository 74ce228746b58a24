"""The history of traffic in its file."""

from __future__ import annotations

import random
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import execute

from nodepass.master.history import LEVELS, Point
from nodepass.master.records import Totals
from nodepass.master.traffic import Traffic, history_path
from tests.outcomes import Lines, got

#: A multiple of each step.
NOW = 1_999_998_000
DAY = 86400


class History:
    """A history with the file it is in."""

    def __init__(self, path: Path) -> None:
        self.log = Lines()
        log: Any = self.log
        self.traffic = Traffic(path / "nodepass.traffic.db", execute, log)

    def add(self, now: float, **counts: int) -> None:
        """Report some bytes of instances, each column with a number of its own."""
        got(
            self.traffic.add(
                now,
                {
                    id: Totals(tcprx=count, tcptx=2 * count, udprx=3 * count, udptx=4 * count)
                    for id, count in counts.items()
                },
            )
        )

    def ask(self, id: str, now: float, *range: int | None) -> tuple[int, list[Point]]:
        return got(self.traffic.query(id, now, *range))

    def rows(self) -> list[int]:
        """How many points each level has."""
        connection = self.traffic._connection
        assert connection is not None
        return [
            connection.execute(f"SELECT count(*) FROM points_{level.step}").fetchone()[0]
            for level in LEVELS
        ]


@pytest.fixture
def history(tmp_path: Path) -> Any:
    history = History(tmp_path)
    yield history
    got(history.traffic.close())


def points(*pairs: tuple[int, int]) -> list[Point]:
    """Points as `History.add` makes them."""
    return [(when, count, 2 * count, 3 * count, 4 * count) for when, count in pairs]


def test_where_it_is(tmp_path: Path) -> None:
    """The history is beside the state it belongs to, whatever that is called."""
    assert history_path(tmp_path / "nodepass.db") == tmp_path / "nodepass.traffic.db"
    assert history_path(tmp_path / "state") == tmp_path / "state.traffic"


def test_levels(history: History) -> None:
    """The same bytes are there in each level, in steps of its own."""
    history.add(NOW, a=1, b=100)
    history.add(NOW + 4.9, a=2)
    history.add(NOW + 5, a=4)
    history.add(NOW + 60, a=8)
    now = NOW + 61
    assert history.ask("a", now) == (5, points((NOW, 3), (NOW + 5, 4), (NOW + 60, 8)))
    assert history.ask("a", now, now - DAY) == (60, points((NOW, 7), (NOW + 60, 8)))
    hour = NOW - NOW % 3600
    assert history.ask("a", now, now - 30 * DAY) == (3600, points((hour, 15)))
    assert history.ask("a", now, None, None, 60) == (60, points((NOW, 7), (NOW + 60, 8)))
    assert history.ask("b", now) == (5, points((NOW, 100)))
    assert history.ask("c", now) == (5, [])


def test_range(history: History) -> None:
    """Only what is in the range is returned."""
    for second in range(0, 50, 5):
        history.add(NOW + second, a=second + 1)
    answer = history.ask("a", NOW + 50, NOW + 10, NOW + 20)
    assert answer == (5, points((NOW + 10, 11), (NOW + 15, 16)))
    with pytest.raises(ValueError, match="since must be before until"):
        history.ask("a", NOW, NOW, NOW)


def test_silence_takes_no_room(history: History) -> None:
    """An instance that moves nothing has no points."""
    history.add(NOW, a=0)
    history.add(NOW, b=1, a=0)
    assert history.rows() == [1, 1, 1]


def test_restart(history: History, tmp_path: Path) -> None:
    """The history outlives the master, and the step that was under way goes on."""
    history.add(NOW, a=1)
    got(history.traffic.close())
    again = History(tmp_path)
    again.add(NOW + 1, a=2)
    assert again.ask("a", NOW + 2) == (5, points((NOW, 3)))
    got(again.traffic.close())
    assert stat.S_IMODE(history.traffic.path.stat().st_mode) == 0o600


def test_old_points_go(history: History) -> None:
    """Each level keeps its time; what is too old goes a bounded part at a time."""
    for hour in range(30):
        for second in (0, 30, 60, 90):
            history.add(NOW + 3600 * hour + second, a=1, b=1)
    fine, middle, coarse = history.rows()
    assert fine <= 2 * 8 and middle <= 2 * 2 * 25 and coarse == 60
    later = NOW + 500 * DAY
    for second in range(0, 200, 5):
        history.add(later + second, a=1)
    assert history.rows() == [40, 4, 1]


def test_forget(history: History) -> None:
    """Who gets the id of an instance that was deleted does not get its history."""
    history.add(NOW, a=1, b=2)
    got(history.traffic.forget("a"))
    got(history.traffic.forget("never"))
    assert history.ask("a", NOW) == (5, [])
    history.add(NOW + 5, a=4)
    assert history.ask("a", NOW + 5) == (5, points((NOW + 5, 4)))
    assert history.ask("b", NOW + 5) == (5, points((NOW, 2)))


def test_a_full_disk(history: History) -> None:
    """What can't be written is written with the next report; one line says why."""
    history.add(NOW, a=1)
    connection = history.traffic._connection
    assert connection is not None

    def full(*args: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    traffic: Any = history.traffic
    add, traffic._add = traffic._add, full
    history.add(NOW + 5, a=2)
    history.add(NOW + 10, a=4, b=8)
    assert history.log.lines[0] == (
        "limited",
        f"{history.traffic.path}: traffic history can't be saved: no space is left there; "
        "make room",
    )
    traffic._add = add
    history.add(NOW + 15, a=16)
    assert history.ask("a", NOW + 20) == (5, points((NOW, 1), (NOW + 15, 22)))
    assert history.ask("b", NOW + 20) == (5, points((NOW + 15, 8)))


def test_damage(tmp_path: Path) -> None:
    """Whatever happens to the file, reports are written: to a new one, with one line about it."""
    source = History(tmp_path)
    for step in range(300):
        source.add(NOW + 5 * step, **{f"i{each}": step + each + 1 for each in range(20)})
    got(source.traffic.close())
    data = source.traffic.path.read_bytes()
    now = NOW + 1500
    for number in range(40):
        chance = random.Random(number)
        home = tmp_path / str(number)
        home.mkdir()
        history = History(home)
        damaged = bytearray(data)
        if number % 4 == 0:
            del damaged[chance.randrange(len(data)) :]
        else:
            place = chance.choice([0, chance.randrange(len(data))])
            length = chance.randrange(1, 5000)
            damaged[place : place + length] = chance.randbytes(length)
        history.traffic.path.write_bytes(damaged)
        history.ask("i1", now)
        history.add(now, i1=5, new=7)
        assert history.ask("new", now) == (5, points((now, 7))), number
        assert history.ask("i1", now)[1][-1][0] >= NOW
        asides = list(home.glob("*.damaged-*"))
        lines = [text for _, text in history.log.lines if "was damaged" in text]
        assert len(asides) == len(lines), number
        assert not asides or str(asides[0]) in lines[0]
        got(history.traffic.close())
