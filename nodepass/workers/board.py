"""Memory that a parent and its workers share: a row for each worker, which it alone writes.

The parent reads it whenever it likes, also after the worker was killed: what that had counted, and
which slots it held, is known then. Each entry is written in one go, so that none is ever seen half.
"""

from __future__ import annotations

import mmap
import os

from nodepass.meter import Stats

__all__ = ["Board", "Row"]

# Each row has cache lines of its own, so that no worker slows another.
_ENTRIES = 16
_SIZE = 8

_TCPS, _UDPS, _PING, _POOL, _PEERS = range(5)
_COUNTERS = 5  # and from here on what only grows
_NAMES = ("tcp_rx", "tcp_tx", "udp_rx", "udp_tx", "udp_dropped", "udp_oversized")
_PING_UNIT = 1e-6


class Row:
    """What one worker tells of itself."""

    __slots__ = ("_entries",)

    def __init__(self, entries: memoryview) -> None:
        self._entries = entries

    @property
    def tcps(self) -> int:
        """Slots that it holds for TCP sessions."""
        return self._entries[_TCPS]

    @tcps.setter
    def tcps(self, count: int) -> None:
        self._entries[_TCPS] = count

    @property
    def udps(self) -> int:
        """Slots that it holds for flows."""
        return self._entries[_UDPS]

    @udps.setter
    def udps(self, count: int) -> None:
        self._entries[_UDPS] = count

    def write(self, stats: Stats) -> None:
        """Say all but the slots, which are said when they are taken."""
        entries = self._entries
        entries[_PING] = round(stats.ping / _PING_UNIT)
        entries[_POOL] = stats.pool
        entries[_PEERS] = stats.peers
        for place, name in enumerate(_NAMES, _COUNTERS):
            entries[place] = getattr(stats, name)

    def read(self) -> Stats:
        """What it said last."""
        entries = self._entries
        counters = {name: entries[place] for place, name in enumerate(_NAMES, _COUNTERS)}
        return Stats(
            ping=entries[_PING] * _PING_UNIT,
            pool=entries[_POOL],
            peers=entries[_PEERS],
            tcps=entries[_TCPS],
            udps=entries[_UDPS],
            **counters,
        )

    def clear(self) -> None:
        """Forget the worker, which is no more."""
        for place in range(_ENTRIES):
            self._entries[place] = 0


class Board:
    """All rows.

    :ivar file: the descriptor of the memory, to be given to workers.
    :param file: that descriptor, in a worker.
    """

    def __init__(self, rows: int, file: int | None = None) -> None:
        size = rows * _ENTRIES * _SIZE
        if file is None:
            file = os.memfd_create("nodepass", os.MFD_CLOEXEC)
            os.ftruncate(file, size)
        self.file = file
        self._memory = mmap.mmap(file, size)
        self._entries = memoryview(self._memory).cast("q")

    def row(self, number: int) -> Row:
        """One of them."""
        return Row(self._entries[number * _ENTRIES : (number + 1) * _ENTRIES])

    def close(self) -> None:
        """Close the descriptor; rows stay readable."""
        os.close(self.file)
