"""What is measured: two hops each, as processes of their own, all with the same target."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from attrs import define, field

#: Seconds for two nodes to come up and join.
PATIENCE = 30.0

_PROC = Path("/proc")


@define
class Process:
    """A child process whose output can be searched."""

    command: list[str]
    output: IO[bytes]
    child: subprocess.Popen[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.child = subprocess.Popen(self.command, stdout=self.output, stderr=subprocess.STDOUT)

    def wait_for(self, pattern: str) -> str:
        """The first group of the pattern's first match in the output, now or soon."""
        deadline = time.monotonic() + PATIENCE
        text = ""
        while time.monotonic() < deadline and self.child.poll() is None:
            text = Path(self.output.name).read_text()
            if found := re.search(pattern, text):
                return found[1]
            time.sleep(0.02)
        raise RuntimeError(f"{Path(self.output.name).stem} did not come up:\n{text}")

    def cpu(self) -> float | None:
        """Seconds of CPU time so far; None where the system does not tell."""
        try:
            fields = (_PROC / str(self.child.pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int | None:
        """Bytes of memory resident now; None where the system does not tell."""
        try:
            status = (_PROC / str(self.child.pid) / "status").read_text()
        except OSError:
            return None
        found = re.search(r"VmRSS:\s*(\d+) kB", status)
        return int(found[1]) * 1024 if found else None

    def stop(self) -> None:
        """End it."""
        self.child.terminate()
        self.child.wait()


class Chain(ABC):
    """Two hops from `visit` to the target.

    Args:
        directory: for what the processes print.
        target: `host:port`.
    """

    def __init__(self, name: str, directory: Path, target: str) -> None:
        self.name = name
        self.visit = ""
        self.target = target
        self.processes: list[Process] = []
        self._directory = directory

    @abstractmethod
    def start(self) -> None:
        """Start both hops, and wait until visitors can come."""

    def stop(self) -> None:
        """End both hops, first the one that visitors see."""
        for process in reversed(self.processes):
            process.stop()

    def cpu(self) -> float | None:
        """Seconds of CPU time that both hops have taken so far."""
        return _sum([process.cpu() for process in self.processes])

    def memory(self) -> float | None:
        """Bytes resident in both hops."""
        return _sum([process.memory() for process in self.processes])

    def run(self, command: list[str]) -> Process:
        """Start one process of the chain."""
        path = self._directory / f"{self.name}-{len(self.processes)}.log".replace(" ", "-")
        with path.open("wb") as output:
            process = Process(command, output)
        self.processes.append(process)
        return process


class Tunnel(Chain):
    """A nodepass server and its client: visitors at the server, the target at the client."""

    def __init__(self, name: str, directory: Path, target: str, tls: int) -> None:
        super().__init__(name, directory, target)
        self._tls = tls

    def start(self) -> None:
        key = secrets.token_urlsafe()
        command = [sys.executable, "-m", "nodepass"]
        server = self.run([*command, f"server://{key}@127.0.0.1:0/127.0.0.1:0?tls={self._tls}"])
        tunnel = server.wait_for(r"listening for clients on (\S+:\d+)")
        self.visit = server.wait_for(r"listening for visitors on (\S+:\d+)")
        client = self.run([*command, f"client://{key}@{tunnel}/{self.target}?mode=2"])
        client.wait_for("(tunnel established)")


class Yardstick(Chain):
    """Two relays in Go."""

    def __init__(self, name: str, directory: Path, target: str, program: Path, *flags: str) -> None:
        super().__init__(name, directory, target)
        self._command = [str(program), *flags]

    def start(self) -> None:
        address = self.target
        for _ in range(2):
            address = self.run([*self._command, "-to", address]).wait_for(r"(\S+:\d+)")
        self.visit = address


def _sum(values: list[float | None] | list[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
