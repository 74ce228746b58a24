"""Log lines: levels, format, limits, and what must never be in them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import (
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    formatEvent,
    globalLogPublisher,
)
from twisted.python import log as legacy_log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from nodepass import logs
from nodepass.logs import Level, LineObserver, Log, mask, printable

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  (DEBUG|INFO|WARN|ERROR|EVENT)  (.*)\n")


@contextmanager
def events() -> Iterator[list[LogEvent]]:
    """Collect what reaches the process's observers."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        yield seen
    finally:
        globalLogPublisher.removeObserver(seen.append)


@contextmanager
def lines(**options: object) -> Iterator[io.StringIO]:
    """Collect what a LineObserver writes."""
    stream = io.StringIO()
    observer = LineObserver(stream, **options)  # type: ignore[arg-type]
    globalLogPublisher.addObserver(observer)
    try:
        yield stream
    finally:
        globalLogPublisher.removeObserver(observer)


def texts(seen: list[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in seen]


def say_everything(log: Log) -> None:
    log.debug("d {n}", n=1)
    log.info("i {n}", n=2)
    log.warn("w {n}", n=3)
    log.error("e {n}", n=4)
    log.event("v {n}", n=5)
    log.limited("key", "l {n}", n=6)
    log.once("key", "o {n}", n=7)


ALL = ["d 1", "i 2", "w 3", "e 4", "v 5", "l 6", "o 7"]


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (Level.DEBUG, ALL),
        (Level.INFO, ALL[1:]),
        (Level.WARN, ALL[2:]),
        (Level.ERROR, ["e 4", "v 5"]),
        (Level.EVENT, ["v 5"]),
        (Level.NONE, []),
    ],
)
def test_filtered_at_the_source(level: Level, shown: list[str]) -> None:
    """What is below an instance's level reaches no observer at all."""
    with events() as seen:
        say_everything(Log(level))
    assert texts(seen) == shown


def test_instances_have_levels_of_their_own() -> None:
    """A quiet instance and a chatty one share a process."""
    with events() as seen:
        Log(Level.ERROR, "a").info("not this")
        Log(Level.DEBUG, "b").debug("but this")
    assert texts(seen) == ["but this"]


def test_foreign_observers_get_sensible_levels() -> None:
    """Twistd's own log sees Twisted's levels; an event is routine there, not an alarm."""
    with events() as seen:
        say_everything(Log(Level.DEBUG, "a1"))
    assert [event["log_level"] for event in seen] == [
        LogLevel.debug,
        LogLevel.info,
        LogLevel.warn,
        LogLevel.error,
        LogLevel.info,
        LogLevel.warn,
        LogLevel.warn,
    ]
    assert {event["log_namespace"] for event in seen} == {"nodepass.a1"}
    assert "[nodepass.a1#info] i 2" in eventAsText(seen[1])


@pytest.mark.parametrize("level", list(Level))
def test_level_values(level: Level) -> None:
    """Levels are named as in `log=`, in that spelling alone."""
    assert Level.parse(level.name.lower()) is level
    for text in (level.name, "", str(int(level))):
        with pytest.raises(ValueError):
            Level.parse(text)


def test_line_format() -> None:
    """A line is local time to the millisecond, level and message, two blanks apart."""
    stream = io.StringIO()
    when = datetime(2026, 1, 31, 12, 0, 0, 7999).timestamp()
    LineObserver(stream)(
        {"log_time": when, "nodepass_level": Level.INFO, "log_format": "{a} up", "a": "link"}
    )
    assert stream.getvalue() == "2026-01-31 12:00:00.007  INFO  link up\n"


def test_lines_of_a_log() -> None:
    """Each call makes one line with its level's name; events are EVENT."""
    with lines() as stream:
        say_everything(Log(Level.DEBUG))
        Log(Level.EVENT).event("CHECK_POINT|MODE=1|PING=3ms")
    found = [match.groups() for match in LINE.finditer(stream.getvalue())]
    assert "".join(match[0] for match in LINE.finditer(stream.getvalue())) == stream.getvalue()
    assert found == [
        ("DEBUG", "d 1"),
        ("INFO", "i 2"),
        ("WARN", "w 3"),
        ("ERROR", "e 4"),
        ("EVENT", "v 5"),
        ("WARN", "l 6"),
        ("WARN", "o 7"),
        ("EVENT", "CHECK_POINT|MODE=1|PING=3ms"),
    ]


def test_source_ends_the_line() -> None:
    """Where a process has several instances, a line ends in the name of its own."""
    with lines() as stream:
        Log(Level.INFO, "a1b2c3d4").info("ready")
    assert stream.getvalue().endswith("  INFO  ready [a1b2c3d4]\n")


def test_one_event_one_line() -> None:
    """Line breaks and terminal codes in a message can't forge a line."""
    with lines() as stream:
        Log(Level.INFO).info("{text}", text="a\n2026 ERROR b\r\x1b[31m\u2028\u202e\x85")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith(r"a\n2026 ERROR b\r\x1b[31m\u2028\u202e\x85" + "\n")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour(
    stream: io.StringIO,
    environ: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is colour on a terminal alone, and not with NO_COLOR; it wraps the level only."""
    monkeypatch.setattr(os, "environ", environ)
    LineObserver(stream)({"log_time": 0.0, "nodepass_level": Level.WARN, "log_format": "m"})
    assert stream.getvalue().endswith("  \x1b[33mWARN\x1b[0m  m\n" if coloured else "  WARN  m\n")


def test_ordinary_twisted_events_are_not_shown() -> None:
    """Twisted's own chatter stays out; its warnings and errors come through."""
    twisted_logger = Logger(namespace="twisted.somewhere")
    with lines() as stream:
        twisted_logger.debug("chatter")
        twisted_logger.info("Starting factory")
        legacy_log.msg("old chatter")
        twisted_logger.warn("beware")
        twisted_logger.error("broken")
        twisted_logger.critical("very broken")
    assert LINE.findall(stream.getvalue()) == [
        ("WARN", "beware"),
        ("ERROR", "broken"),
        ("ERROR", "very broken"),
    ]


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (Level.DEBUG, ["beware", "broken"]),
        (Level.ERROR, ["broken"]),
        (Level.EVENT, []),
        (Level.NONE, []),
    ],
)
def test_level_of_foreign_events(level: Level, shown: list[str]) -> None:
    """`log=none` silences Twisted too, and no level brings its chatter in."""
    with lines(level=level) as stream:
        Logger().info("chatter")
        Logger().warn("beware")
        Logger().error("broken")
    assert [text for _, text in LINE.findall(stream.getvalue())] == shown


class FailureTests(SynchronousTestCase):
    """Unexpected failures; trial wants each logged error to be accounted for."""

    def test_traceback_once_at_error_level(self) -> None:
        """A failure is one ERROR line with its traceback below, keys masked in both."""
        with lines() as stream:
            Log(Level.ERROR).failure(
                "Session {n} failed", Failure(ValueError("server://hush@:1/t:2")), n=7
            )
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        first, *rest = stream.getvalue().splitlines()
        self.assertTrue(first.endswith("  ERROR  Session 7 failed"))
        self.assertIn("Traceback", rest[0])
        self.assertIn("builtins.ValueError: server://***@:1/t:2", rest[-1])
        self.assertNotIn("hush", stream.getvalue())

    def test_below_the_level(self) -> None:
        """With `log=event` a failure is not logged."""
        with lines() as stream:
            Log(Level.EVENT).failure("Failed", Failure(ValueError()))
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(stream.getvalue(), "")

    def test_unhandled_error_of_twisted(self) -> None:
        """An error that Twisted reports itself is shown with its traceback."""
        with lines() as stream:
            legacy_log.err(Failure(KeyError("lost")), "Unhandled error in Deferred")
        self.flushLoggedErrors(KeyError)
        self.assertIn("  ERROR  ", stream.getvalue())
        self.assertIn("builtins.KeyError: 'lost'", stream.getvalue())


class Broken(io.StringIO):
    """A stream that fails in a chosen way, and counts the tries."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.tries = 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "tries"),
    [(BrokenPipeError(), 1), (ValueError("closed"), 1), (OSError(28, "disk full"), 2)],
)
def test_broken_streams(error: Exception, tries: int) -> None:
    """A stream that fails raises nothing; one that is gone for good is given up."""
    stream = Broken(error)
    observer = LineObserver(stream)
    for _ in range(2):
        observer({"log_time": 0.0, "nodepass_level": Level.WARN, "log_format": "m"})
    assert stream.tries == tries


def test_closed_stream() -> None:
    """A stream closed before or after the observer was made raises nothing."""
    stream = io.StringIO()
    observer = LineObserver(stream)
    stream.close()
    event: LogEvent = {"log_time": 0.0, "nodepass_level": Level.WARN, "log_format": "m"}
    observer(event)
    LineObserver(stream)(event)


def test_encoding_of_the_stream() -> None:
    """Letters that the stream can't encode are escaped, not lost."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    LineObserver(stream)({"log_time": 0.0, "nodepass_level": Level.WARN, "log_format": "b\u00fc"})
    assert raw.getvalue().endswith(b"  WARN  b\\xfc\n")


def test_bad_format() -> None:
    """A format whose fields are missing still makes a line."""
    with lines() as stream:
        Log(Level.INFO).info("{missing}")
    assert "  INFO  " in stream.getvalue()


class FakeClock:
    """Monotonic seconds under the test's control."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_limited() -> None:
    """A key gets a line per interval, and the next line counts what was held back."""
    clock = FakeClock()
    log = Log(Level.INFO, clock=clock)
    with events() as seen:
        for _ in range(4):
            log.limited("drop", "dropped {n}", n=1)
        clock.now += 59.9
        log.limited("drop", "dropped {n}", n=2)
        clock.now += 0.1
        log.limited("drop", "dropped {n}", n=3)
        clock.now += 60.0
        log.limited("drop", "dropped {n}", n=4)
    assert texts(seen) == ["dropped 1", "dropped 3 (4 more since)", "dropped 4"]


def test_limited_by_key() -> None:
    """Keys do not hold each other back; interval and level are the caller's choice."""
    clock = FakeClock()
    log = Log(Level.INFO, clock=clock)
    with events() as seen:
        log.limited("a", "a", level=Level.INFO, interval=5.0)
        log.limited("b", "b", level=Level.DEBUG)
        log.limited("c", "c", level=Level.ERROR)
        clock.now += 5.0
        log.limited("a", "a", level=Level.INFO, interval=5.0)
    assert texts(seen) == ["a", "c", "a"]


def test_limited_is_bounded() -> None:
    """When a peer makes up keys, the surplus counts as one key, and memory stays bounded."""
    clock = FakeClock()
    log = Log(Level.INFO, clock=clock)
    with events() as seen:
        for number in range(3 * logs.MAX_KEYS):
            log.limited(number, "{n}", n=number)
    assert len(seen) == logs.MAX_KEYS + 1
    assert len(log._limited) <= logs.MAX_KEYS + 1
    clock.now += 60.0
    with events() as seen:
        log.limited("new", "new")
        log.limited("other", "other")
    assert texts(seen) == ["new", "other"]
    assert len(log._limited) == 2


def test_once_and_forget() -> None:
    """A cause is logged once until it is forgotten, however often it strikes."""
    log = Log(Level.INFO)
    with events() as seen:
        log.once("refused", "first")
        log.once("refused", "second")
        log.once("other", "other", level=Level.ERROR)
        log.forget("refused")
        log.forget("never seen")
        log.once("refused", "third")
    assert texts(seen) == ["first", "other", "third"]


def test_once_is_bounded() -> None:
    """Beyond the bound the oldest cause is forgotten."""
    log = Log(Level.INFO)
    with events() as seen:
        for number in range(logs.MAX_KEYS + 1):
            log.once(number, "line")
        log.once(logs.MAX_KEYS, "known")
        log.once(0, "oldest")
    assert len(log._once) == logs.MAX_KEYS
    assert texts(seen)[logs.MAX_KEYS + 1 :] == ["oldest"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("nothing here", "nothing here"),
        ("me@example.org", "me@example.org"),
        ("server://:1/t:2", "server://:1/t:2"),
        ("server://hush@:1/t:2", "server://***@:1/t:2"),
        ("server://hush:hush@:1/t:2", "server://***@:1/t:2"),
        ("client://hush%40hush@h:1/t:2 up", "client://***@h:1/t:2 up"),
        ("at 'client://hush@h:1/t:2', again", "at 'client://***@h:1/t:2', again"),
        ("server://hush@a:1/b:2 and client://hush@c:1/d:2", None),
        ("server://hush@a:1/b:2\nclient://hush@c:1/d:2", None),
        ("server://hu@sh@h:1/t:2", "server://***@h:1/t:2"),
        ("server://hush/hush@h:1/t:2", "server://***@h:1/t:2"),
        ("server://hush?hush@h:1/t:2", "server://***@h:1/t:2"),
        ("server://hush#hush@h:1/t:2", "server://***@h:1/t:2"),
        ("server://hush@hush/hush@h:1/t:2", "server://***@h:1/t:2"),
        ("server://hush hush@h:1/t:2", "server://***@h:1/t:2"),
        ("https://hush@h/", "https://***@h/"),
        ("a://h:1/t:2?oldkey=hush&min=1", "a://h:1/t:2?oldkey=***&min=1"),
        ("a://h:1/t:2?min=1&oldkey=hush", "a://h:1/t:2?min=1&oldkey=***"),
    ],
)
def test_mask(text: str, masked: str | None) -> None:
    """Keys and passwords of URLs are hidden wherever the URLs stand; the rest stays."""
    assert "hush" not in mask(text)
    if masked is not None:
        assert mask(text) == masked
    assert mask(mask(text)) == mask(text)


@given(st.text(min_size=1), st.text())
def test_mask_of_encoded_keys(key: str, around: str) -> None:
    """No percent-encoded key survives, whatever it was and whatever stands around the URL."""
    key = "QX" + quote(key, safe="", errors="replace") + "XQ"
    text = f"{around} server://{key}@:1/t:2 {around}"
    assert key not in mask(text)


def test_fields_are_masked_for_all_observers() -> None:
    """An observer that knows nothing of keys, such as twistd's own, gets none to see."""
    with events() as seen:
        Log(Level.INFO).info("Started {url}", url="server://hush@:1/t:2")
    assert texts(seen) == ["Started server://***@:1/t:2"]
    assert "hush" not in repr(seen)


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("plain text", "plain text"),
        ("b\u00fccher", "b\u00fccher"),
        ("a\nb\tc\x1b[0m\x7f", r"a\nb\tc\x1b[0m\x7f"),
        ("\u202eevil", r"\u202eevil"),
        ("\udcff", r"\udcff"),
        (b"b\xc3\xbccher\xff\r\n", "b\u00fccher\\xff\\r\\n"),
        ("{braces}", "{braces}"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
        (b"x" * 1_000_000, "x" * 197 + "..."),
    ],
)
def test_printable(given_text: str | bytes, shown: str) -> None:
    """A peer's text is readable, escaped where it could deceive, and cut where it is long."""
    assert printable(given_text) == shown


@given(st.text() | st.binary(), st.integers(3, 50))
def test_printable_bounds(text: str | bytes, limit: int) -> None:
    """Whatever comes, the result is one printable line within the limit."""
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
