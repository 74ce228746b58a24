"""What the machine does, for dashboards: a figure that can't be had is 0, and never an error.

In a container the figures are those of the machine around it, as far as it shows them.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import psutil
from attrs import frozen

__all__ = ["Figures", "Machine"]

#: Seconds over which the use of the CPU is measured at least: in less of them it is either idle
#: or busy, however little it has to do.
CPU_PERIOD = 1.0

#: Interfaces whose bytes are counted elsewhere too, or never left the machine.
_INNER_INTERFACES = re.compile(r"lo0?|Loopback.*|(veth|docker|podman|br-|virbr).*")

#: Devices that are made of others, or of memory.
_VIRTUAL_DISKS = re.compile(r"(loop|ram|zram|dm-|md|zd|bcache|drbd|sr|fd)\d.*")

_ARCHITECTURES = (
    ("amd64", re.compile("x86_64|amd64")),
    ("arm64", re.compile("aarch64.*|arm64.*")),
    ("386", re.compile("i[3-6]86|x86")),
    ("arm", re.compile("arm.*")),
)

T = TypeVar("T")


@frozen(kw_only=True)
class Figures:
    """The machine at one moment; the names are those of `nodepass.master.models.Info`.

    :ivar cpu: percent in use of all CPUs together, -1 where unknown.
    :ivar mem_total, mem_used, mem_free: bytes; what the system can give up at once is free.
    :ivar swap_total, swap_used, swap_free: bytes.
    :ivar netrx, nettx: bytes since boot, without traffic inside the machine.
    :ivar diskr, diskw: bytes since boot, each disk once.
    :ivar sysup: seconds since boot.
    """

    os: str
    arch: str
    cpu: int = -1
    mem_total: int = 0
    mem_used: int = 0
    mem_free: int = 0
    swap_total: int = 0
    swap_used: int = 0
    swap_free: int = 0
    netrx: int = 0
    nettx: int = 0
    diskr: int = 0
    diskw: int = 0
    sysup: int = 0


class Machine:
    """Measures the machine that this process runs on.

    :param source: the parts of psutil that are used.
    :param clock: monotonic seconds.
    :param wall: Unix time, seconds.
    """

    def __init__(
        self,
        source: Any = psutil,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._clock = clock
        self._wall = wall
        self._os = os_name(sys.platform)
        self._arch = architecture(platform.machine())
        self._cpu = -1
        self._measured = clock()
        # The first call says nothing: psutil counts from here on.
        self._ask(lambda: self._source.cpu_percent(None))

    def figures(self) -> Figures:
        """Measure; takes a few milliseconds and waits for nothing."""
        memory = self._ask(self._source.virtual_memory)
        swap = self._ask(self._source.swap_memory)
        networks = self._ask(lambda: self._source.net_io_counters(pernic=True)) or {}
        disks = self._ask(lambda: self._source.disk_io_counters(perdisk=True)) or {}
        booted = self._ask(self._source.boot_time)
        outer = outer_interfaces(networks)
        whole = whole_disks(disks)
        return Figures(
            os=self._os,
            arch=self._arch,
            cpu=self._cpu_percent(),
            mem_total=_member(memory, "total"),
            mem_used=max(0, _member(memory, "total") - _member(memory, "available")),
            mem_free=_member(memory, "available"),
            swap_total=_member(swap, "total"),
            swap_used=_member(swap, "used"),
            swap_free=_member(swap, "free"),
            netrx=_total(networks, outer, "bytes_recv"),
            nettx=_total(networks, outer, "bytes_sent"),
            diskr=_total(disks, whole, "read_bytes"),
            diskw=_total(disks, whole, "write_bytes"),
            sysup=0 if booted is None else max(0, int(self._wall() - booted)),
        )

    def _cpu_percent(self) -> int:
        """The use of the CPUs in the time since it was last measured."""
        now = self._clock()
        if now - self._measured >= CPU_PERIOD:
            self._measured = now
            percent = self._ask(lambda: self._source.cpu_percent(None))
            self._cpu = -1 if percent is None else round(min(max(percent, 0), 100))
        return self._cpu

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except Exception:
            # Hidden files of /proc, formats of new kernels, functions that a platform lacks: what
            # psutil raises has no common base, and a figure is not worth an error.
            return None


def outer_interfaces(names: Iterable[str]) -> list[str]:
    """Return the interfaces that carry traffic out of the machine."""
    return [name for name in names if not _INNER_INTERFACES.fullmatch(name)]


def whole_disks(names: Iterable[str]) -> list[str]:
    """Return the disks among devices: neither partitions of another one, nor made of others."""
    known = set(names)
    return sorted(
        name
        for name in known
        if not _VIRTUAL_DISKS.fullmatch(name) and _disk_of_partition(name) not in known
    )


def _disk_of_partition(name: str) -> str:
    """The disk that ``name`` is a partition of, if it is one: ``sda`` of ``sda1``."""
    match = re.fullmatch(r"(.*\d)p\d+|(.*[A-Za-z])\d+", name)
    return (match[1] or match[2]) if match else ""


def os_name(system: str) -> str:
    """Return the name that dashboards know for a value of ``sys.platform``."""
    return "windows" if system == "win32" else system.rstrip("0123456789")


def architecture(machine: str) -> str:
    """Return the name that dashboards know for a value of ``platform.machine``."""
    machine = machine.lower()
    return next((name for name, form in _ARCHITECTURES if form.fullmatch(machine)), machine)


def _member(record: object, name: str) -> int:
    return max(0, int(getattr(record, name, 0)))


def _total(counters: Mapping[str, object], names: Iterable[str], member: str) -> int:
    return sum(_member(counters[name], member) for name in names)
