"""The worker's side: many starts, log lines, heartbeats, and the end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from nodepass.logs import Level, Log
from nodepass.master.commands import NO_RUN, Beat
from nodepass.master.outbox import LONGEST_TEXT
from nodepass.master.worker import LogRelay, own_memory
from tests.workers import MIB, Bench


def test_many_starts_leave_it_able_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start has a turn of its own, so that a heartbeat is answered between two of them."""
    bench = Bench(monkeypatch, workers=1).start()
    process = bench.reactor.living[0]
    for number in range(10):
        bench.supervisor.host(str(number), "x", "x")
    answers: list[Any] = []
    bench.supervisor._workers()[0].call(Beat).addCallback(answers.append)
    while process.deliver():
        pass
    assert answers == [{"memory": 10 * MIB}] and bench.tenants.statuses == []
    bench.reactor.settle()
    assert len(bench.tenants.statuses) == 10
    bench.stop()


def test_checkpoints_come_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """One soon after the start, then each NP_REPORT_INTERVAL."""
    bench = Bench(monkeypatch, workers=1).start()
    bench.supervisor.host("a", "a", "a")
    bench.reactor.settle(0.5)
    assert set(bench.tenants.stats) == {1}
    for _ in range(2):
        bench.tenants.stats.clear()
        bench.reactor.settle(5)
        assert set(bench.tenants.stats) == {1}
    bench.stop()


class Heard:
    """An outbox that notes lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Level, str]] = []

    def line(self, run: int, when: float, level: Level, text: str) -> None:
        assert when > 0
        self.lines.append((run, level, text))


def relay(log: Log) -> tuple[LogRelay, Heard]:
    """A relay that gets what the log emits."""
    heard = Heard()
    observer = LogRelay(heard)  # type: ignore[arg-type]
    log._logger.observer = observer
    return observer, heard


def test_lines_carry_their_run() -> None:
    """Each with its level, without key, on one line; checkpoints go another way."""
    log = Log(Level.DEBUG, "12")
    _, heard = relay(log)
    log.debug("to server://secret@h:1/x")
    log.event("{line}", line="CHECK_POINT|MODE=1")
    log.event("something else")
    log.warn("{text}", text="two\nlines")
    assert heard.lines == [
        (12, Level.DEBUG, "to server://***@h:1/x"),
        (12, Level.EVENT, "something else"),
        (12, Level.WARN, "two\\nlines"),
    ]


def test_long_lines_and_tracebacks() -> None:
    """A line is cut with a mark; a traceback comes line by line."""
    log = Log(Level.DEBUG, "1")
    _, heard = relay(log)
    log.info("x" * 100_000)
    assert len(heard.lines[0][2]) == LONGEST_TEXT and heard.lines[0][2].endswith("...")
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError:
        log.failure("it failed", Failure())
    texts = [text for _, _, text in heard.lines[1:]]
    assert texts[0] == "it failed" and any("ZeroDivisionError" in text for text in texts)
    assert all("\n" not in text for text in texts)
    assert {level for _, level, _ in heard.lines[1:]} == {Level.ERROR}


def test_foreign_lines() -> None:
    """Of what no instance has said warnings and errors are passed on, for the master's own log."""
    observer, heard = relay(Log(Level.DEBUG))
    for level in (LogLevel.info, LogLevel.warn, LogLevel.critical):
        observer({"log_format": "hello", "log_level": level, "log_time": 1.0})
    assert heard.lines == [(NO_RUN, Level.WARN, "hello"), (NO_RUN, Level.ERROR, "hello")]


def test_lines_reach_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance's go to its run, the process's own to the master's log."""
    bench = Bench(monkeypatch, workers=1).start()
    bench.supervisor.host("a", "a", "a")
    bench.reactor.settle()
    outbox = bench.reactor.living[0].worker.outbox
    outbox.line(1, 3.5, Level.WARN, "mine")
    outbox.line(99, 3.5, Level.WARN, "of a run that nobody knows")
    outbox.line(NO_RUN, 3.5, Level.ERROR, "the process's")
    bench.reactor.settle()
    ((id, run, line),) = bench.tenants.lines
    assert (id, run, line.when, line.level, line.text) == ("a", 1, 3.5, Level.WARN, "mine")
    assert [text.partition(":")[2] for text in bench.log.lines] == [" the process's"]
    bench.stop()


def test_own_memory_is_of_this_size() -> None:
    """A Python process with Twisted takes some ten MiB."""
    assert 5 * MIB < own_memory() < 1000 * MIB
