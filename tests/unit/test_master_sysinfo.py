"""The machine's figures: which counters count, and that none is ever an error."""

from __future__ import annotations

import time
from types import SimpleNamespace as Record
from typing import Any

import msgspec
import pytest

from nodepass.master import models
from nodepass.master.sysinfo import (
    CPU_PERIOD,
    Figures,
    Machine,
    architecture,
    os_name,
    outer_interfaces,
    whole_disks,
)


class Source:
    """A machine like psutil sees one."""

    def __init__(self) -> None:
        self.percents = [0.0, 41.6, 99.9]

    def cpu_percent(self, interval: None) -> float:
        assert interval is None  # else it would block
        return self.percents.pop(0)

    def virtual_memory(self) -> Any:
        return Record(total=100, available=60, used=20, free=5)

    def swap_memory(self) -> Any:
        return Record(total=50, used=20, free=30)

    def net_io_counters(self, *, pernic: bool) -> Any:
        assert pernic
        return {
            "lo": Record(bytes_recv=1000, bytes_sent=1000),
            "eth0": Record(bytes_recv=1, bytes_sent=10),
            "wg0": Record(bytes_recv=2, bytes_sent=20),
            "veth12ab": Record(bytes_recv=1000, bytes_sent=1000),
        }

    def disk_io_counters(self, *, perdisk: bool) -> Any:
        assert perdisk
        return {
            "sda": Record(read_bytes=3, write_bytes=30),
            "sda1": Record(read_bytes=1000, write_bytes=1000),
            "dm-0": Record(read_bytes=1000, write_bytes=1000),
        }

    def boot_time(self) -> float:
        return 900.5


class Nothing:
    """A machine that shows nothing: each question fails, and each in another way."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = [
            OSError("hidden"), ValueError("odd"), NotImplementedError(), KeyError("x"),
            AttributeError(), RuntimeError(), PermissionError(), FileNotFoundError(),
        ]  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def fail(*_: object, **__: object) -> None:
            raise self.errors.pop(0)

        return fail


def test_figures() -> None:
    """Each figure comes from its counters; memory that can be given up is free."""
    now = [0.0]
    machine = Machine(Source(), clock=lambda: now[0], wall=lambda: 1000.0)
    figures = machine.figures()
    assert (figures.mem_total, figures.mem_used, figures.mem_free) == (100, 40, 60)
    assert (figures.swap_total, figures.swap_used, figures.swap_free) == (50, 20, 30)
    assert (figures.netrx, figures.nettx) == (3, 30)
    assert (figures.diskr, figures.diskw) == (3, 30)
    assert figures.sysup == 99
    assert all(type(getattr(figures, name)) is int for name in Figures.__slots__
               if name not in ("os", "arch", "__weakref__"))  # fmt: skip


def test_cpu_is_measured_over_a_while() -> None:
    """It is unknown at first, and then stays as measured until the next period is over."""
    now = [0.0]
    machine = Machine(Source(), clock=lambda: now[0])
    assert machine.figures().cpu == -1
    now[0] = CPU_PERIOD
    assert machine.figures().cpu == 42
    now[0] += CPU_PERIOD / 2
    assert machine.figures().cpu == 42
    now[0] += CPU_PERIOD / 2
    assert machine.figures().cpu == 100


def test_what_cannot_be_had_is_zero() -> None:
    """A machine that answers no question has figures all the same: 0, and -1 for the CPU."""
    now = [0.0]
    machine = Machine(Nothing(), clock=lambda: now[0])
    now[0] = CPU_PERIOD
    figures = machine.figures()
    assert figures == Figures(os=figures.os, arch=figures.arch)
    assert figures.cpu == -1


def test_partial_records() -> None:
    """A member that a platform lacks, and no counters at all, are 0 too."""
    source = Source()
    source.virtual_memory = lambda: Record(total=7)  # type: ignore[method-assign]
    source.net_io_counters = lambda pernic: None  # type: ignore[method-assign]
    source.boot_time = lambda: 2000.0  # type: ignore[method-assign]
    figures = Machine(source, wall=lambda: 1000.0).figures()
    assert (figures.mem_total, figures.mem_free, figures.netrx, figures.sysup) == (7, 0, 0, 0)


def test_this_machine() -> None:
    """On a real machine there is memory and time since boot, and it takes milliseconds."""
    machine = Machine()
    machine.figures()
    began = time.perf_counter()
    for _ in range(10):
        figures = machine.figures()
    assert time.perf_counter() - began < 1
    assert figures.mem_total > 0 and figures.sysup > 0


def test_names_are_those_of_the_info() -> None:
    """Each figure is a member of the record that the API answers with."""
    members = {field.name for field in msgspec.structs.fields(models.Info)}
    assert {name for name in Figures.__slots__ if name != "__weakref__"} <= members


def test_interfaces() -> None:
    """What never left the machine, or is counted elsewhere too, is left out."""
    inner = ["lo", "lo0", "veth0a", "docker0", "docker_gwbridge", "podman1", "br-12", "virbr0-nic",
             "Loopback Pseudo-Interface 1"]  # fmt: skip
    outer = ["eth0", "wlan0", "enp3s0", "wg0", "br0", "long0", "Ethernet 2"]
    assert outer_interfaces([*inner, *outer]) == outer


@pytest.mark.parametrize(
    ("devices", "disks"),
    [
        (["sda", "sda1", "sda2", "sdb"], ["sda", "sdb"]),
        (["nvme0n1", "nvme0n1p1", "nvme0n1p12", "nvme1n1"], ["nvme0n1", "nvme1n1"]),
        (["mmcblk0", "mmcblk0p1", "vda", "vda15"], ["mmcblk0", "vda"]),
        (["loop0", "ram0", "zram0", "dm-0", "md0", "md127p1", "sr0", "zd16", "fd0"], []),
        (["disk0", "disk1"], ["disk0", "disk1"]),
        (["PhysicalDrive0", "PhysicalDrive1"], ["PhysicalDrive0", "PhysicalDrive1"]),
        # Some clouds show a partition without its disk.
        (["xvda1", "xvdb"], ["xvda1", "xvdb"]),
    ],
)
def test_disks(devices: list[str], disks: list[str]) -> None:
    """Each disk is counted once: no partitions of it, and nothing that is made of it."""
    assert whole_disks(devices) == disks


def test_platforms() -> None:
    """Systems and processors go by the names that dashboards know."""
    assert [os_name(each) for each in ("linux", "darwin", "win32", "freebsd14")] == [
        "linux", "darwin", "windows", "freebsd",
    ]  # fmt: skip
    machines = ("x86_64", "AMD64", "aarch64", "arm64", "i686", "x86", "armv7l", "riscv64")
    assert [architecture(each) for each in machines] == [
        "amd64", "amd64", "arm64", "arm64", "386", "386", "arm", "riscv64",
    ]  # fmt: skip
