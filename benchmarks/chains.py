"""A tunnel at work: the processes of one peer between visitors and a target."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from .loads import Generator
from .peers import Peer, Ports
from .processes import Failed, Process, free_ports, memory

#: Seconds that an echo may take while a tunnel comes up.
_ECHO = 1.0
#: Seconds for memory to settle before it is read.
SETTLE = 1.5


class Chain:
    """One peer, started.

    :param directory: for its files.
    :param target: the port of the target, one that sends back what it is sent, at least now.
    """

    def __init__(self, peer: Peer, directory: Path, target: int) -> None:
        self.peer = peer
        self.name = peer.name
        self.processes: list[Process] = []
        directory.mkdir(parents=True, exist_ok=True)
        tunnel, visit = free_ports(2)
        self.ports = Ports(tunnel, visit, target)
        self.visit = f"127.0.0.1:{visit}"
        self._directory = directory

    def start(self) -> None:
        """Start its processes, and wait until visitors are served.

        :raises Failed: that did not come about.
        """
        commands = self.peer.commands(self._directory, self.ports)
        for number, command in enumerate(commands):
            if self.processes:
                self.processes[-1].wait_for_port(self.ports.tunnel)
            self.processes.append(Process(command, self._directory / f"{number}.log"))
        last = self.processes[-1]
        for _ in last.attempts():
            if self._echoes(socket.SOCK_STREAM):
                break
        else:
            raise last.failure()
        if self.peer.udp:
            for _ in last.attempts():
                if self._echoes(socket.SOCK_DGRAM):
                    return
            raise Failed("no datagram came back")

    def _echoes(self, kind: socket.SocketKind) -> bool:
        """Whether a word comes back."""
        with suppress(OSError), socket.socket(type=kind) as visitor:
            visitor.settimeout(_ECHO)
            visitor.connect(("127.0.0.1", self.ports.visit))
            visitor.send(b"e")
            return visitor.recv(1) == b"e"
        return False

    def stop(self) -> None:
        """End its processes, first the last."""
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()

    def cpu(self) -> float:
        """Seconds of CPU time that all of it has taken so far.

        :raises Failed: part of it has ended.
        """
        for process in self.processes:
            if not process.alive:
                raise Failed(f"{self.name} ended: {process.failure()}")
        return sum(process.cpu() for process in self.processes)

    def idle_memory(self, generator: Generator, sessions: int) -> tuple[int, float]:
        """Its memory without sessions, and what each idle one adds, in bytes.

        :raises Failed: so many sessions were not to be had.
        """
        time.sleep(SETTLE)
        before = memory(self.processes)
        visitors = Process(generator.idle(self.visit, sessions), self._directory / "idle.log")
        try:
            for _ in visitors.attempts():
                if "idle" in visitors.log.read_text():
                    break
            else:
                raise visitors.failure()
            time.sleep(SETTLE)
            more = memory(self.processes).own - before.own
            return before.total, more / sessions
        finally:
            visitors.stop()
