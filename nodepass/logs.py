"""Log lines: what an instance says, and how it looks.

`Log` is what the rest of the package writes to. It filters by its own level before anything is
emitted, so that instances with different ``log=`` share a process and any observer, twistd's
own included, sees just what was asked for. `LineObserver` writes the lines of the command::

    2026-01-31 12:00:00.000  INFO  message

Keys never reach a line: `mask` hides them in every text on its way out.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Hashable
from datetime import datetime
from enum import IntEnum
from typing import Protocol, cast

from attrs import define
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Level", "LineObserver", "LineStream", "Log", "format_line", "mask", "printable"]

#: Keys that `Log.limited` and `Log.once` each remember. They are causes and places in the code,
#: of which there are dozens; the bound is for keys that a peer can make up, such as addresses.
MAX_KEYS = 1024

#: Longest piece of a peer's text in a line: enough to recognise it by.
PRINTABLE_LIMIT = 200


class Level(IntEnum):
    """The values of ``log=``, lowest first: a level shows its own lines and those above it."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    EVENT = 50
    NONE = 60

    @classmethod
    def parse(cls, text: str) -> Level:
        """Return the level that ``log=<text>`` asks for; ValueError where there is none."""
        for level in cls:
            if text == level.name.lower():
                return level
        raise ValueError("not a level")


# Events are routine news for programs that read logs, such as checkpoints. To a foreign
# observer they are "info": "critical" would have monitoring call somebody at night.
_TWISTED_LEVELS = {
    Level.DEBUG: LogLevel.debug,
    Level.INFO: LogLevel.info,
    Level.WARN: LogLevel.warn,
    Level.ERROR: LogLevel.error,
    Level.EVENT: LogLevel.info,
}

_LEVELS = {
    LogLevel.debug: Level.DEBUG,
    LogLevel.info: Level.INFO,
    LogLevel.warn: Level.WARN,
    LogLevel.error: Level.ERROR,
    LogLevel.critical: Level.ERROR,
}

# Everything that may be a user name: up to the last "@" of the word, as a key that was not
# percent-encoded can hold any of "/", "?", "#" and "@"; and up to the last "@" before a "/", as
# it can hold blanks. That hides too much of a URL with an "@" further on, never too little.
_USER = re.compile(r"(?<=://)(?=[^\n]*@)(?:[^/\n]*@)?(?:\S*@)?")
_SECRET_PARAMETER = re.compile(r"(?<=[?&]oldkey=)[^&\s#]+")


def mask(text: str) -> str:
    """Return ``text`` with ``***`` for the keys and passwords of all URLs in it."""
    if "://" not in text:
        return text
    text = _USER.sub(lambda match: "***@" if match[0] else "", text)
    return _SECRET_PARAMETER.sub("***", text)


def printable(text: str | bytes, limit: int = PRINTABLE_LIMIT) -> str:
    """Return text that a stranger supplied, fit for one log line or message.

    :param text: bytes are read as UTF-8.
    :param limit: most characters returned; ``...`` at the end shows that some were cut.
    """
    # Nothing past the limit can show, except that it is there.
    head = text[: 4 * limit + 4] if isinstance(text, bytes) else text[: limit + 1]
    if isinstance(head, bytes):
        head = head.decode("utf-8", "backslashreplace")
    escaped = _escape(head)
    return escaped if len(escaped) <= limit else escaped[: max(0, limit - 3)] + "..."


def _escape(text: str) -> str:
    """Escape what is not plain to see: controls, line breaks, direction marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


@define
class _Allowance:
    """When a key of `Log.limited` may be logged again, and how often it has been held back."""

    until: float
    held_back: int = 0


#: Stands for all keys of `Log.limited` that the full table has no room for.
_OVERFLOW = object()


class Log:
    """What an instance logs to.

    Formats are those of `twisted.logger`: ``log.info("{peer} joined", peer=peer)``. Text that came
    from a peer goes through `printable` first.

    :param level: lines below it are not emitted.
    :param source: name of the instance where a process has several; its lines end in `` [source]``.
    :param clock: monotonic seconds, for `limited`.
    :ivar debugs: lines of `debug` are emitted; for who would make one for each session.
    """

    def __init__(
        self, level: Level, source: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.level = level
        self.debugs = level <= Level.DEBUG
        self.source = source
        self._clock = clock
        self._logger = Logger(namespace=f"nodepass.{source}" if source else "nodepass")
        self._limited: dict[Hashable, _Allowance] = {}
        self._once: dict[Hashable, None] = {}

    def debug(self, format: str, /, **fields: object) -> None:
        """Log what only someone in search of a fault wants to read."""
        self._emit(Level.DEBUG, format, fields)

    def info(self, format: str, /, **fields: object) -> None:
        """Log a step in the life of the instance."""
        self._emit(Level.INFO, format, fields)

    def warn(self, format: str, /, **fields: object) -> None:
        """Log what somebody may want to mend; the instance carries on."""
        self._emit(Level.WARN, format, fields)

    def error(self, format: str, /, **fields: object) -> None:
        """Log what keeps the instance from its work."""
        self._emit(Level.ERROR, format, fields)

    def event(self, format: str, /, **fields: object) -> None:
        """Log a line for programs that read logs, such as a checkpoint."""
        self._emit(Level.EVENT, format, fields)

    def failure(self, format: str, failure: Failure, /, **fields: object) -> None:
        """Log an unexpected failure at error level, with its traceback."""
        if self.level <= Level.ERROR:
            self._logger.failure(
                format, failure, LogLevel.error, **self._event(Level.ERROR, fields)
            )

    def limited(
        self,
        key: Hashable,
        format: str,
        /,
        *,
        level: Level = Level.WARN,
        interval: float = 60.0,
        **fields: object,
    ) -> None:
        """Log at most one line per ``key`` and ``interval`` (seconds).

        The next line says how many were held back in between. When there are more than `MAX_KEYS`
        keys at a time, the rest count as one.
        """
        if level < self.level:
            return
        now = self._clock()
        if key not in self._limited and len(self._limited) >= MAX_KEYS:
            self._drop_expired(now)
            if len(self._limited) >= MAX_KEYS:
                key = _OVERFLOW
        allowance = self._limited.get(key)
        if allowance is not None and now < allowance.until:
            allowance.held_back += 1
            return
        self._limited[key] = _Allowance(now + interval)
        if allowance is not None and allowance.held_back:
            format += " ({nodepass_held_back} more since)"
            fields["nodepass_held_back"] = allowance.held_back
        self._emit(level, format, fields)

    def _drop_expired(self, now: float) -> None:
        for key, allowance in list(self._limited.items()):
            if allowance.until <= now:
                del self._limited[key]

    def once(
        self, key: Hashable, format: str, /, *, level: Level = Level.WARN, **fields: object
    ) -> None:
        """Log a line unless ``key`` has had one since the last `forget` of it.

        One warning per cause, not per try. Beyond `MAX_KEYS` the oldest key is forgotten.
        """
        if level < self.level or key in self._once:
            return
        if len(self._once) >= MAX_KEYS:
            del self._once[next(iter(self._once))]
        self._once[key] = None
        self._emit(level, format, fields)

    def forget(self, key: Hashable, /) -> None:
        """Let the next `once` of ``key`` log again: its cause is gone."""
        self._once.pop(key, None)

    def _emit(self, level: Level, format: str, fields: dict[str, object]) -> None:
        if level >= self.level:
            self._logger.emit(_TWISTED_LEVELS[level], format, **self._event(level, fields))

    def _event(self, level: Level, fields: dict[str, object]) -> dict[str, object]:
        # Fields are masked here and not only where lines are written: other observers get them too.
        event = {
            name: mask(value) if isinstance(value, str) else value for name, value in fields.items()
        }
        return {**event, "nodepass_level": level, "nodepass_source": self.source}


RESET = "\x1b[0m"
COLOURS = {
    Level.DEBUG: "\x1b[34m",
    Level.INFO: "\x1b[32m",
    Level.WARN: "\x1b[33m",
    Level.ERROR: "\x1b[31m",
    Level.EVENT: "\x1b[35m",
}


class LineStream(Protocol):
    """What `LineObserver` asks of a text stream."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


@implementer(ILogObserver)
class LineObserver:
    """Writes a line per event to a stream; logging never fails, whatever the stream does.

    Lines of a `Log` are written as they come, having been filtered there. Of everything else, such
    as Twisted's own events, only warnings and errors are shown.

    :param stream: each line is flushed; one that blocks is best behind a
        `nodepass.lines.BackgroundStream`.
    :param level: the least level shown of events that no `Log` emitted; never below warnings.
    :param colour: whether levels are coloured; None: on a terminal, unless the
        environment has a ``NO_COLOR`` that is not empty (https://no-color.org).
    """

    def __init__(
        self, stream: LineStream, *, level: Level = Level.WARN, colour: bool | None = None
    ) -> None:
        self._stream: LineStream | None = stream
        self._level = max(level, Level.WARN)
        if colour is None:
            colour = not os.environ.get("NO_COLOR") and _is_terminal(stream)
        self._colour = colour

    def __call__(self, event: LogEvent) -> None:
        """Write ``event`` if it is to be shown."""
        if self._stream is None:
            return
        level = cast("Level | None", event.get("nodepass_level"))
        if level is None:
            level = _LEVELS.get(event.get("log_level"), Level.INFO)
            if level < self._level:
                return
        line = format_line(event, level, colour=self._colour)
        try:
            _write(self._stream, line)
        except (BrokenPipeError, ValueError):
            # Nobody reads any more, or the stream was closed: that does not change again.
            self._stream = None
        except OSError:
            # A full disk, say: later lines may find room.
            pass


def format_line(event: LogEvent, level: Level, *, colour: bool = False) -> str:
    """Return the text for ``event``: one line, and a traceback below it where there is one."""
    name, reset = (f"{COLOURS[level]}{level.name}", RESET) if colour else (level.name, "")
    when = datetime.fromtimestamp(cast(float, event.get("log_time", 0.0)))
    stamp = f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d}"
    source = event.get("nodepass_source")
    suffix = f" [{source}]" if source else ""
    line = f"{stamp}  {name}{reset}  {_escape(mask(formatEvent(event)))}{suffix}\n"
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        line += mask(failure.getTraceback().rstrip("\n")) + "\n"
    return line


def _write(stream: LineStream, line: str) -> None:
    """Write and flush, with escapes for what the stream's encoding lacks."""
    try:
        stream.write(line)
    except UnicodeEncodeError:
        stream.write(line.encode("ascii", "backslashreplace").decode("ascii"))
    stream.flush()


def _is_terminal(stream: LineStream) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
