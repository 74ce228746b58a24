"""Lines for a reader who may stop reading: nothing waits for them, and none is lost unsaid."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from typing import TextIO

import pytest

from nodepass.lines import MOST_WAITING, BackgroundStream
from nodepass.logs import Level, LineObserver

LINE = "x" * 999 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The reading end of a pipe and a stream onto the other."""
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="ascii") as stream:
        yield read, stream


def rest(read: int) -> str:
    """All that is still in a pipe that nobody writes to any more."""
    with os.fdopen(read, "rb") as file:
        return file.read().decode()


def finish(lines: BackgroundStream, stream: TextIO) -> None:
    """Let all be written, and let the reader come to the end."""
    lines.close(10)
    lines._file.close()
    stream.close()


def test_order_and_end(pipe: tuple[int, TextIO]) -> None:
    """All lines arrive in order, behind what the stream was given before."""
    read, stream = pipe
    stream.write("before\n")
    lines = BackgroundStream(stream)
    for number in range(500):
        lines.write(f"{number}\n")
    finish(lines, stream)
    assert rest(read) == "before\n" + "".join(f"{number}\n" for number in range(500))


def test_letters_that_the_stream_lacks(pipe: tuple[int, TextIO]) -> None:
    """They are escaped as in any line."""
    read, stream = pipe
    lines = BackgroundStream(stream)
    lines.write("b\u00fc\n")
    finish(lines, stream)
    assert rest(read) == "b\\xfc\n"


def test_nobody_reads(pipe: tuple[int, TextIO]) -> None:
    """A reader who stops holds nobody up; once he goes on he gets what waited, and one line in
    the place of the rest. The end of the process waits for him a moment, and no longer."""
    read, stream = pipe
    lines = BackgroundStream(stream)
    given = 2 * MOST_WAITING // len(LINE)
    for _ in range(given):
        lines.write(LINE)
    assert lines._size <= MOST_WAITING
    lines.close(0.01)
    assert lines._thread.is_alive()
    seen = b""
    while b"lost" not in seen:
        seen += os.read(read, 1 << 16)
    finish(lines, stream)
    text = (seen + rest(read).encode()).decode()
    kept = text.count(LINE)
    (count,) = re.findall(r"  WARN  (\d+) lines of the log were lost: ", text)
    assert kept + int(count) == given
    assert text.endswith("no room for them\n")


def test_goes_on_after_a_gap(pipe: tuple[int, TextIO]) -> None:
    """The line about a gap stands in its place: before it what waited, behind it what is new."""
    read, stream = pipe
    lines = BackgroundStream(stream)
    for _ in range(2 * MOST_WAITING // len(LINE)):
        lines.write(LINE)
    seen = b""
    while b"lost" not in seen:
        seen += os.read(read, 1 << 16)
    lines.write("new\n")
    finish(lines, stream)
    text = seen.decode() + rest(read)
    assert text.endswith("no room for them\nnew\n")
    assert text.count("lost") == 1


def test_nobody_reads_any_more(pipe: tuple[int, TextIO]) -> None:
    """A pipe without a reader is given up, quietly."""
    read, stream = pipe
    os.close(read)
    lines = BackgroundStream(stream)
    lines.write(LINE)
    lines._thread.join(10)
    with pytest.raises(BrokenPipeError):
        lines.write(LINE)
    LineObserver(lines)({"log_time": 0.0, "nodepass_level": Level.WARN, "log_format": "m"})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_full_disk() -> None:
    """A disk without room costs lines, not the process; the thread neither ends nor spins."""
    with open("/dev/full", "w", encoding="ascii") as stream:
        lines = BackgroundStream(stream)
        for _ in range(3):
            lines.write(LINE)
        assert lines._thread.is_alive()
        lines.close(10)
    assert lines._lost == 3
    assert not lines._thread.is_alive()


def test_non_blocking_descriptor(pipe: tuple[int, TextIO]) -> None:
    """Where another program made the descriptor non-blocking, no part of a line is lost."""
    read, stream = pipe
    os.set_blocking(stream.fileno(), False)
    lines = BackgroundStream(stream)
    for _ in range(100):
        lines.write(LINE)
    seen = b""
    while len(seen) < 100 * len(LINE):
        seen += os.read(read, 1 << 16)
    finish(lines, stream)
    assert seen.decode() + rest(read) == 100 * LINE


def test_after_the_end(pipe: tuple[int, TextIO]) -> None:
    """What the interpreter's last moments log is written at once."""
    read, stream = pipe
    lines = BackgroundStream(stream)
    lines.close()
    lines.write("last\n")
    assert os.read(read, 100) == b"last\n"
    finish(lines, stream)


def test_no_descriptor() -> None:
    """A stream that is no file is refused, for the caller to use it as it is."""
    with pytest.raises(OSError):
        BackgroundStream(io.StringIO())
