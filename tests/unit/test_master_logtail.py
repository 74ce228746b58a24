"""The tails of logs that the master keeps: their form, and their bounds."""

from __future__ import annotations

from datetime import datetime

import pytest

from nodepass.logs import Level
from nodepass.master import logtail as logtail_module
from nodepass.master.hosting import LogLine
from nodepass.master.logtail import INSTANCE_BYTES, LINE_BYTES, MOST_LINES, LogTail

WHEN = 1_700_000_000.25


def line(text: str) -> LogLine:
    """A line."""
    return LogLine(WHEN, Level.INFO, text)


def texts(data: bytes) -> list[str]:
    """The messages of lines."""
    assert not data or data.endswith(b"\n")
    return [each.split("  ", 2)[2] for each in data.decode().splitlines()]


def kept(tail: LogTail) -> int:
    """Bytes that are kept, counted anew; the books agree."""
    size = sum(len(each) for entry in tail._tails.values() for each in entry.lines)
    assert size == tail.size
    return size


def test_form() -> None:
    """A line has date, time, level and message, without colour, and a line end."""
    tail = LogTail()
    tail.append("a", LogLine(WHEN, Level.ERROR, "no é here"))
    stamp = datetime.fromtimestamp(WHEN)
    assert tail.tail("a", 1).decode() == f"{stamp:%Y-%m-%d %H:%M:%S}.250  ERROR  no é here\n"


def test_last_lines() -> None:
    """The last lines come, newest last, as many as there are at most."""
    tail = LogTail()
    for number in range(5):
        tail.append("a", line(str(number)))
    tail.append("b", line("other"))
    assert texts(tail.tail("a", 2)) == ["3", "4"]
    assert texts(tail.tail("a", 99)) == ["0", "1", "2", "3", "4"]
    assert tail.tail("a", 0) == tail.tail("nobody", 5) == b""


def test_bound_of_lines() -> None:
    """No more lines are kept than a request may ask for."""
    tail = LogTail()
    for number in range(MOST_LINES + 10):
        tail.append("a", line(str(number)))
    lines = texts(tail.tail("a", 10 * MOST_LINES))
    assert (len(lines), lines[0]) == (MOST_LINES, "10")
    kept(tail)


def test_bound_of_an_instance() -> None:
    """Long lines push out more of the old ones."""
    tail = LogTail()
    for number in range(200):
        tail.append("a", line(f"{number} " + "x" * 10_000))
    assert INSTANCE_BYTES - 11_000 < kept(tail) <= INSTANCE_BYTES
    assert texts(tail.tail("a", 1))[0].startswith("199 ")


def test_bound_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """All logs together are bounded, and the longest gives way, not those that say little."""
    monkeypatch.setattr(logtail_module, "TOTAL_BYTES", 50_000)
    tail = LogTail()
    for number in range(20):
        tail.append(f"quiet {number}", line("a word"))
    for number in range(3000):
        tail.append(f"loud {number % 3}", line(str(number)))
        assert tail.size <= 50_000
    assert kept(tail) > 25_000
    assert all(texts(tail.tail(f"quiet {number}", 9)) == ["a word"] for number in range(20))
    assert texts(tail.tail("loud 2", 1)) == ["2999"]


@pytest.mark.parametrize("text", ["x" * 40_000, "漢" * 20_000, "😀" * 20_000])
def test_long_lines_are_cut(text: str) -> None:
    """A line that is too long is cut at a character, and shows it."""
    tail = LogTail()
    tail.append("a", line(text))
    data = tail.tail("a", 1)
    assert LINE_BYTES - 4 <= len(data) <= LINE_BYTES
    assert data.decode().endswith(text[0] + "...\n")


def test_text_that_cannot_be_encoded() -> None:
    """A lone surrogate is no reason to lose a line."""
    tail = LogTail()
    tail.append("a", line("\ud800"))
    assert texts(tail.tail("a", 1)) == ["\\ud800"]


def test_followers() -> None:
    """Each follower is given each line of its instance from then on, the same object, until it ends
    or the instance is forgotten."""
    tail = LogTail()
    told: list[tuple[str, object]] = []
    tail.append("a", line("before"))
    stop = tail.follow(
        "a", lambda data: told.append(("one", data)), lambda: told.append(("one", 0))
    )
    tail.follow("a", lambda data: told.append(("two", data)), lambda: told.append(("two", 0)))
    tail.append("a", line("x"))
    tail.append("b", line("y"))
    assert [who for who, _ in told] == ["one", "two"]
    assert told[0][1] is told[1][1] and texts(told[0][1]) == ["x"]  # type: ignore[arg-type]
    stop()
    stop()
    tail.append("a", line("z"))
    assert [who for who, _ in told] == ["one", "two", "two"]
    tail.forget("a")
    assert told[3:] == [("two", 0)]
    tail.forget("a")
    assert tail.tail("a", 5) == b"" and "a" not in tail._tails
    tail.append("a", line("of another life"))
    assert len(told) == 4


def test_follower_that_ends_meanwhile() -> None:
    """Ending one, or the next, while a line is handed out disturbs nobody."""
    tail = LogTail()
    told: list[str] = []
    stops = []

    def first(data: bytes) -> None:
        told.append("first")
        stops[0]()

    stops.append(tail.follow("a", first, stops.clear))
    tail.follow("a", lambda data: told.append("second"), stops.clear)
    tail.append("a", line("x"))
    tail.append("a", line("y"))
    assert told == ["first", "second", "second"]
