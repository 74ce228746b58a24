"""The last lines of each instance's log, in memory, and those who follow them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

from attrs import define, field

from .hosting import LogLine

__all__ = ["MOST_LINES", "LogTail"]

#: Lines kept of an instance's log: what one request may ask for.
MOST_LINES = 10_000
#: Bytes kept of an instance's log: 10,000 lines of usual length.
INSTANCE_BYTES = 1 << 20
#: Bytes kept of all logs together, whatever the number of instances. The longest gives way first,
#: so that an instance that says much does not push out what others said.
TOTAL_BYTES = 16 << 20
#: Bytes of a line; a longer one is cut.
LINE_BYTES = 16 << 10

_CUT = b"...\n"


@define(eq=False)
class _Follower:
    """Somebody who follows a log."""

    write: Callable[[bytes], object]
    end: Callable[[], object]


@define(eq=False)
class _Tail:
    """What is kept of one log."""

    lines: deque[bytes] = field(factory=deque)
    size: int = 0
    followers: list[_Follower] = field(factory=list)

    def drop(self, room: int) -> int:
        """Drop the oldest lines until ``room`` bytes are left; return how many bytes went."""
        before = self.size
        while self.size > room:
            self.size -= len(self.lines.popleft())
        return before - self.size


class LogTail:
    """Keeps the tails of all instances' logs."""

    def __init__(self) -> None:
        self._tails: dict[str, _Tail] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def append(self, id: str, line: LogLine) -> None:
        """Keep a line, and hand it to those who follow the log."""
        data = _plain(line)
        tail = self._tails.setdefault(id, _Tail())
        tail.lines.append(data)
        tail.size += len(data)
        self._size += len(data)
        if len(tail.lines) > MOST_LINES:
            self._size -= tail.drop(tail.size - len(tail.lines[0]))
        self._size -= tail.drop(INSTANCE_BYTES)
        if self._size > TOTAL_BYTES:
            # A quarter, so that looking for the longest is not done for each line.
            longest = max(self._tails.values(), key=lambda tail: tail.size)
            self._size -= longest.drop(longest.size * 3 // 4)
        for follower in list(tail.followers):
            follower.write(data)

    def tail(self, id: str, lines: int) -> bytes:
        """Return the last lines of an instance's log, newest last."""
        tail = self._tails.get(id)
        if tail is None:
            return b""
        return b"".join(islice(tail.lines, max(0, len(tail.lines) - lines), None))

    def follow(
        self, id: str, write: Callable[[bytes], object], end: Callable[[], object]
    ) -> Callable[[], None]:
        """Hand each line to come to ``write``.

        :param end: called when the instance is gone for good.
        :returns: Ends it; may be called more than once.
        """
        follower = _Follower(write, end)
        followers = self._tails.setdefault(id, _Tail()).followers
        followers.append(follower)

        def unfollow() -> None:
            if follower in followers:
                followers.remove(follower)

        return unfollow

    def forget(self, id: str) -> None:
        """The instance is gone for good: drop its lines, and tell those who follow them."""
        tail = self._tails.pop(id, None)
        if tail is not None:
            self._size -= tail.size
            for follower in list(tail.followers):
                follower.end()


def _plain(line: LogLine) -> bytes:
    """Write a line without colour; what can't be encoded is escaped."""
    data = f"{line.stamp()}  {line.level.name}  {line.text}\n".encode("utf-8", "backslashreplace")
    if len(data) <= LINE_BYTES:
        return data
    # Not inside a character.
    return data[: LINE_BYTES - len(_CUT)].decode("utf-8", "ignore").encode() + _CUT
