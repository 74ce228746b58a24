"""Loads: what is put on a tunnel, with which program, and how its output reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from .processes import Failed

#: Seconds that a load may take beyond its own time: its connections, its warm-up, its farewell.
GRACE = 10.0
#: An iperf3 that serves takes one client at a time, and through a tunnel hears of its end a little
#: late: so often, and after so many seconds, is the next one sent again.
BUSY, PAUSE = 5, 0.3
# What it says then; and who comes right after somebody has seen whether it is there, as is done
# before a load, may be cut off, with or without a tunnel.
_NOT_YET = ("busy", "Connection reset by peer", "control socket has closed unexpectedly")


@frozen(kw_only=True)
class Load:
    """One kind of load.

    :param kind: as the Go program in ``load/`` knows it; its opening comment says what each does.
    :param parallel: visitors, or datagrams, at a time.
    :param unit: what is counted, and `scale` how many of a program's counts make one of it.
    :param cost_unit: what CPU time is given of, and `cost_scale` how many counts make one of it,
        in what part of a second.
    """

    key: str
    name: str
    kind: str
    parallel: int
    unit: str
    scale: float = 1.0
    cost_unit: str
    cost_scale: float = 1e-6

    @property
    def udp(self) -> bool:
        """Whether it is made of datagrams."""
        return self.kind == "udp"


LOADS = (
    Load(key="requests", name="HTTP keep-alive, 64 connections", kind="requests", parallel=64,
         unit="requests/s", cost_unit="CPU us/request"),
    Load(key="connections", name="new connections", kind="connections", parallel=32,
         unit="connections/s", cost_unit="CPU us/connection"),
    Load(key="bulk1", name="bulk, one stream", kind="bulk", parallel=1,
         unit="GB/s", scale=1e9, cost_unit="CPU s/GB", cost_scale=1e9),
    Load(key="bulk8", name="bulk, eight streams", kind="bulk", parallel=8,
         unit="GB/s", scale=1e9, cost_unit="CPU s/GB", cost_scale=1e9),
    Load(key="udp", name="UDP echo, window of 32, 200 B", kind="udp", parallel=32,
         unit="datagrams/s", cost_unit="CPU us/datagram"),
    Load(key="latency", name="light load, 4 connections", kind="latency", parallel=4,
         unit="requests/s", cost_unit="CPU us/request"),
)  # fmt: skip


@frozen(kw_only=True)
class Counted:
    """What a program has done.

    :param counted: of what the load counts, in `seconds`.
    :param total: the same with what came before and after, as CPU time is taken of all.
    :param p50: seconds that half of the requests took at most; None where that isn't known. `p99`
        is of 99 %.
    """

    counted: float
    seconds: float
    total: float
    p50: float | None = None
    p99: float | None = None


class Driver(ABC):
    """A program that makes loads, and the target that goes with it."""

    name: str
    kinds: frozenset[str]

    @abstractmethod
    def target(self, directory: Path, port: int) -> list[str]:
        """The command of the target."""

    @abstractmethod
    def command(self, load: Load, visit: str, seconds: float) -> list[str]:
        """The command of the visitors."""

    @abstractmethod
    def read(self, output: str) -> Counted:
        """Understand what the visitors' program printed."""

    def run(self, load: Load, visit: str, seconds: float) -> Counted:
        """Put the load on a tunnel once.

        :param visit: where visitors arrive, ``host:port``.
        :raises Failed: it did not come through.
        """
        command = self.command(load, visit, seconds)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=GRACE + 2 * seconds
            )
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{load.name}: {self.name} did not end in {late.timeout:.0f} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise Failed(f"{load.name}: {self.name} failed: {' '.join(said)}")
        return self.read(done.stdout)


class Generator(Driver):
    """The Go program in ``load/``, which makes all kinds, for several visitors' ports in turn where
    they are given with commas."""

    name = "load"
    kinds = frozenset({"requests", "connections", "bulk", "udp", "latency"})

    def __init__(self, program: str) -> None:
        self.program = program

    def target(self, directory: Path, port: int) -> list[str]:
        return [self.program, "-listen", f"127.0.0.1:{port}"]

    def command(self, load: Load, visit: str, seconds: float) -> list[str]:
        return [self.program, "-visit", visit, "-kind", load.kind,
                "-parallel", str(load.parallel), "-for", f"{seconds}s"]  # fmt: skip

    def idle(self, visit: str, count: int) -> list[str]:
        """The command of visitors that say a word and then nothing, until it is ended."""
        return [self.program, "-visit", visit, "-kind", "idle",
                "-parallel", str(count)]  # fmt: skip

    def read(self, output: str) -> Counted:
        result = json.loads(output)
        if not result["counted"]:
            raise Failed("nothing came through")
        return Counted(**result)


class Wrk(Driver):
    """wrk against nginx, for requests."""

    name = "wrk"
    kinds = frozenset({"requests", "connections"})

    def __init__(self, wrk: str, nginx: str) -> None:
        self.wrk, self.nginx = wrk, nginx

    def target(self, directory: Path, port: int) -> list[str]:
        configuration = directory / "nginx.conf"
        configuration.write_text(
            "daemon off; master_process off; error_log stderr;\n"
            f"pid {directory}/nginx.pid; events {{ worker_connections 8192; }}\n"
            "http { access_log off; keepalive_requests 100000000; keepalive_timeout 1h;\n"
            + "".join(
                f"{kind}_temp_path {directory}/nginx;\n"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            + f"server {{ listen 127.0.0.1:{port} backlog=4096;\n"
            + f'location / {{ return 200 "{"x" * 200}"; }} }} }}\n'
        )
        return [self.nginx, "-p", str(directory), "-c", str(configuration)]

    def command(self, load: Load, visit: str, seconds: float) -> list[str]:
        again = ["-H", "Connection: close"] if load.kind == "connections" else []
        return [self.wrk, "-t1", f"-c{load.parallel}", f"-d{max(1, round(seconds))}s", "--latency",
                *again, f"http://{visit}/"]  # fmt: skip

    def read(self, output: str) -> Counted:
        done = re.search(r"(\d+) requests in ([\d.]+)s", output)
        if done is None or not int(done[1]):
            raise Failed("wrk: nothing came through")
        errors = re.search(r"Socket errors: (.*)", output)
        if errors and sum(map(int, re.findall(r"\d+", errors[1]))) > int(done[1]) / 100:
            raise Failed(f"wrk: errors: {errors[1]}")
        units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
        took = {
            share: float(value) * units[unit]
            for share, value, unit in re.findall(r"(50|99)% +([\d.]+)(us|ms|s)", output)
        }
        count = float(done[1])
        return Counted(counted=count, seconds=float(done[2]), total=count,
                       p50=took.get("50"), p99=took.get("99"))  # fmt: skip


class Iperf(Driver):
    """iperf3, for bulk."""

    name = "iperf3"
    kinds = frozenset({"bulk"})

    def __init__(self, program: str) -> None:
        self.program = program

    def target(self, directory: Path, port: int) -> list[str]:
        return [self.program, "-s", "-B", "127.0.0.1", "-p", str(port)]

    def command(self, load: Load, visit: str, seconds: float) -> list[str]:
        host, _, port = visit.partition(":")
        return [self.program, "-c", host, "-p", port, "-P", str(load.parallel),
                "-t", str(max(1, round(seconds))), "-J"]  # fmt: skip

    def run(self, load: Load, visit: str, seconds: float) -> Counted:
        for _ in range(BUSY):
            try:
                return super().run(load, visit, seconds)
            except Failed as failure:
                if not any(sign in str(failure) for sign in _NOT_YET):
                    raise
            time.sleep(PAUSE)
        return super().run(load, visit, seconds)

    def read(self, output: str) -> Counted:
        result = json.loads(output)
        received = result["end"].get("sum_received", {"bytes": 0})
        if not received["bytes"]:
            raise Failed(f"iperf3: {result.get('error', 'nothing came through')}")
        size = float(received["bytes"])
        return Counted(counted=size, seconds=received["seconds"], total=size)


def find(generator: Generator, *, alone: bool = False) -> list[Driver]:
    """The drivers there are here, the most known first.

    :param alone: leave out all but `generator`.
    """
    drivers: list[Driver] = []
    if not alone:
        if (wrk := shutil.which("wrk")) and (nginx := shutil.which("nginx")):
            drivers.append(Wrk(wrk, nginx))
        if iperf := shutil.which("iperf3"):
            drivers.append(Iperf(iperf))
    return [*drivers, generator]


def driver_for(load: Load, drivers: Sequence[Driver]) -> Driver:
    """The first that makes this load; the last makes all."""
    return next(driver for driver in drivers if load.kind in driver.kinds)
