"""Processes of a benchmark: their output, what they cost, and their end."""

from __future__ import annotations

import compileall
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

import nodepass

#: Seconds that a program has for coming up.
PATIENCE = 20.0
#: Seconds that it has for ending when asked to, before it is killed.
FAREWELL = 3.0

_PROC = Path("/proc")
# How programs colour what they log.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def as_installed() -> None:
    """Compile the package, as an installation is: a process that does so itself takes 1 MB more."""
    compileall.compile_dir(os.path.dirname(nodepass.__file__), quiet=1)


class Failed(Exception):
    """Something that is measured did not do its part; the text says what."""


class Process:
    """A child process, with those that it starts itself.

    :param log: where its output goes.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = command
        self.log = log
        with log.open("wb") as output:
            # A group of its own: whatever it starts ends with it.
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.child.poll() is None

    def wait_for_port(self, port: int) -> None:
        """Return once something listens on TCP port ``port`` of 127.0.0.1.

        :raises Failed: the process has ended, or time is up.
        """
        for _ in self.attempts():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
        raise self.failure()

    def attempts(self, patience: float = PATIENCE) -> Iterator[None]:
        """Turns at something that it can't do yet, until its time is up or it has ended."""
        deadline = time.monotonic() + patience
        while self.alive and time.monotonic() < deadline:
            yield
            time.sleep(0.05)

    def failure(self) -> Failed:
        """What to raise when it did not come up."""
        text = _COLOUR.sub("", self.log.read_text(errors="replace"))
        last = text.strip().splitlines()[-3:]
        return Failed(f"{Path(self.command[0]).name} did not come up: {' / '.join(last)}")

    def cpu(self) -> float:
        """Seconds of CPU time so far, 0 where the system does not tell."""
        return sum(map(cpu_of, tree(self.child.pid)))

    def stop(self) -> None:
        """End it."""
        self.child.terminate()
        try:
            self.child.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            pass
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    children: list[int] = []
    with suppress(OSError):
        for thread in (_PROC / str(pid) / "task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    return [pid, *(other for child in children for other in tree(child))]


def cpu_of(pid: int) -> float:
    """Seconds of CPU time of one process so far; 0 where it is gone."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@frozen
class Memory:
    """What some processes that belong together have in memory, in bytes.

    :param own: what they alone have; it moves only when they take more.
    :param files: programs and libraries, counted once, as if none else on the machine had them.
    """

    own: int
    files: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.own + self.files


def memory(processes: Iterable[Process]) -> Memory:
    """Of processes with their children; nothing where the system does not tell."""
    own = files = 0
    for process in processes:
        for pid in tree(process.child.pid):
            with suppress(OSError):
                rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
                sizes = {
                    name: int(size) * 1024
                    for name, size in re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.M)
                }
                # Proportional: what a child still shares with its parent counts once.
                own += sizes["Pss_Anon"]
                # Both ends run the same program, and what it is made of is there once.
                files = max(files, sizes["Rss"] - sizes["Anonymous"])
    return Memory(own, files)


def machine() -> dict[str, object]:
    """What figures were measured on, and with what."""
    model = ""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", (_PROC / "cpuinfo").read_text(), re.M)
        model = found[1] if found else ""
    congestion = ""
    with suppress(OSError):
        # BBR paces even what stays on this host, which costs most of what bulk does.
        congestion = (_PROC / "sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "nodepass": nodepass.__version__,
        # With who built it: the same release may take twice the time, see the manual.
        "python": sys.version,
        "system": platform.platform(),
        "processor": model,
        "cores": os.cpu_count(),
        "TCP congestion control": congestion,
    }


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing uses, for TCP nor UDP."""
    ports: list[int] = []
    sockets: list[socket.socket] = []
    while len(ports) < count:
        tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        sockets += (tcp, udp)
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        with suppress(OSError):
            udp.bind(("127.0.0.1", port))
            ports.append(port)
    for each in sockets:
        each.close()
    return ports
