"""The table of UDP flows at one end: which are there, which fell silent, which is given up first.

Pure: it never looks at a clock, and holds whatever object stands for a flow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from attrs import define

K = TypeVar("K", bound=Hashable)
F = TypeVar("F")


@define(eq=False)
class _Entry(Generic[F]):
    flow: F
    last: float


class FlowTable(Generic[K, F]):
    """Flows by key, in the order of their last activity.

    The key is the visitor's address where visitors arrive, and the link with the flow's number at
    the other end. Every ``now`` is in seconds and never goes backwards.
    """

    __slots__ = ("_entries", "_unanswered")

    def __init__(self) -> None:
        # Longest silent first, so that expiry looks only at what it takes away.
        self._entries: OrderedDict[K, _Entry[F]] = OrderedDict()
        # Oldest first.
        self._unanswered: OrderedDict[K, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def flows(self) -> list[F]:
        """Every flow, longest silent first."""
        return [entry.flow for entry in self._entries.values()]

    def add(self, key: K, flow: F, now: float) -> None:
        """Enter a new flow, not answered yet.

        :raises KeyError: a flow of that key is there already.
        """
        if key in self._entries:
            raise KeyError(key)
        self._entries[key] = _Entry(flow, now)
        self._unanswered[key] = None

    def get(self, key: K) -> F | None:
        """The flow of that key, without counting as activity."""
        entry = self._entries.get(key)
        return None if entry is None else entry.flow

    def touch(self, key: K, now: float) -> F | None:
        """Note a datagram towards the target; return the flow, None when there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.last = now
        self._entries.move_to_end(key)
        return entry.flow

    def answered(self, key: K, now: float) -> F | None:
        """Note a datagram from the target; return the flow, None when there is none."""
        self._unanswered.pop(key, None)
        return self.touch(key, now)

    def remove(self, key: K) -> F | None:
        """Take a flow out; return it, None when there is none."""
        entry = self._entries.pop(key, None)
        self._unanswered.pop(key, None)
        return None if entry is None else entry.flow

    def expire(self, now: float, idle: float, most: int) -> list[tuple[K, F]]:
        """Take out and return flows that were silent for ``idle`` seconds or longer.

        :param most: no more than this many at a time, the longest silent ones.
        """
        expired: list[tuple[K, F]] = []
        while self._entries and len(expired) < most:
            key, entry = next(iter(self._entries.items()))
            if entry.last + idle > now:
                break
            self.remove(key)
            expired.append((key, entry.flow))
        return expired

    def next_expiry(self, idle: float) -> float | None:
        """When the next flow can expire at the earliest; None without flows."""
        for entry in self._entries.values():
            return entry.last + idle
        return None

    def choose_victim(self) -> K | None:
        """The flow to give up when there is no room for a new one.

        :returns: the key of the oldest flow that never got an answer; None when all have been
            answered, for a working flow is not sacrificed to a new one.
        """
        return next(iter(self._unanswered), None)
