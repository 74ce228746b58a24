"""The sessions of the whole, counted by the kernel.

An eventfd holds the slots that are free. Taking one is an atomic step that fails at once when there
is none, in whichever process: so the limit is never exceeded, and nobody is refused while there is
a slot. A worker writes on the `board` what it holds, after it was taken and before it is given
back; what it held when it was killed is given back by the parent.
"""

from __future__ import annotations

import os

from nodepass.slots import Slots

from .board import Row

__all__ = ["SharedSlots", "SlotPool"]


class SlotPool:
    """The slots that are free, seen from the parent.

    :param limit: as for `nodepass.slots.Slots`.
    :ivar files: descriptors for workers: of all slots, and of those that flows may take; empty
        without a limit.
    """

    def __init__(self, limit: int) -> None:
        flow_limit = Slots(limit).flow_limit
        self.files: tuple[int, ...] = ()
        if flow_limit is not None:
            flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE
            self.files = (os.eventfd(limit, flags), os.eventfd(flow_limit, flags))

    def take_back(self, row: Row) -> None:
        """A worker is no more: what it held is free."""
        tcps, udps = row.tcps, row.udps
        row.tcps = row.udps = 0
        if self.files:
            slots, flows = self.files
            _give(slots, tcps + udps)
            _give(flows, udps)

    def close(self) -> None:
        """Close the descriptors."""
        for file in self.files:
            os.close(file)
        self.files = ()


class SharedSlots(Slots):
    """A worker's share in the slots of the whole; open files are its own.

    :param pool: as `SlotPool.files`.
    """

    __slots__ = ("_flows", "_row", "_slots")

    def __init__(self, limit: int, files: int | None, pool: tuple[int, ...], row: Row) -> None:
        super().__init__(limit, files)
        self._slots: int | None = None
        self._flows: int | None = None
        if pool:
            self._slots, self._flows = pool
        self._row = row

    def acquire_tcp(self) -> bool:
        if not _take(self._slots):
            return False
        if not super().acquire_tcp():
            _give(self._slots, 1)
            return False
        self._row.tcps = self.tcp
        return True

    def release_tcp(self) -> None:
        super().release_tcp()
        self._row.tcps = self.tcp
        _give(self._slots, 1)

    def acquire_udp(self) -> bool:
        if not _take(self._flows):
            return False
        if not _take(self._slots):
            _give(self._flows, 1)
            return False
        if not super().acquire_udp():
            _give(self._slots, 1)
            _give(self._flows, 1)
            return False
        self._row.udps = self.udp
        return True

    def release_udp(self) -> None:
        super().release_udp()
        self._row.udps = self.udp
        _give(self._slots, 1)
        _give(self._flows, 1)


def _take(file: int | None) -> bool:
    if file is None:
        return True
    try:
        os.eventfd_read(file)
    except BlockingIOError:
        return False
    return True


def _give(file: int | None, count: int) -> None:
    if file is not None and count:
        os.eventfd_write(file, count)
