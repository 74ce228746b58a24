"""What keeps an instance from its work: what is said of it, and what is known."""

from __future__ import annotations

from nodepass.health import MAX_REASONS, Health
from nodepass.logs import Level, Log
from tests.workers import Said


class Case:
    """A health, its log, and what was told of its changes."""

    def __init__(self, log: Log | None = None) -> None:
        self.log = log or Said()
        self.changes: list[str | None] = []
        self.health = Health(self.log, self.changes.append)


def test_a_trouble_and_its_end() -> None:
    """It is logged once, however often it is met, and forgotten when it is over."""
    case = Case(log := Said())
    for _ in range(3):
        case.health.trouble("port", "can't bind {port}", port=80)
    assert log.lines == ["WARN can't bind 80"]
    assert case.health.reason == "can't bind 80"
    case.health.well("port")
    case.health.well("port")
    assert case.health.reason is None and case.changes == ["can't bind 80", None]
    case.health.trouble("port", "can't bind {port}", level=Level.ERROR, port=80)
    assert log.lines[1:] == ["ERROR can't bind 80"]


def test_reasons_that_alternate() -> None:
    """Each is logged once; the latest is what is known."""
    case = Case(log := Said())
    for reason in "abab":
        case.health.trouble("server", "no: {reason}", reason=reason)
    assert log.lines == ["WARN no: a", "WARN no: b"]
    assert case.changes == ["no: a", "no: b", "no: a", "no: b"]


def test_the_first_cause_counts() -> None:
    """Another one shows when it is over; clearing ends all."""
    case = Case()
    case.health.trouble("one", "one")
    case.health.trouble("two", "two")
    assert case.changes == ["one"]
    case.health.well("one")
    assert case.changes == ["one", "two"]
    case.health.clear()
    assert case.changes == ["one", "two", None]


def test_the_condition_is_known_without_a_log() -> None:
    """log=none hides lines, not the condition; and it has no key in it, and is one line."""
    case = Case(Log(Level.NONE))
    case.health.trouble("server", "{text}", text="bad: server://secret@host:1/x\nnext")
    assert case.changes == ["bad: server://***@host:1/x\\nnext"]


def test_reasons_are_bounded() -> None:
    """A server that words its refusals anew each time fills no memory."""
    case = Case()
    for number in range(10 * MAX_REASONS):
        case.health.trouble("server", "{number}", number=number)
    assert len(case.health._troubles["server"].told) <= MAX_REASONS
