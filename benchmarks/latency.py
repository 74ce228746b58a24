"""A tunnel over a line of 100 ms that loses 0.1 % of its packets: `python -m benchmarks.latency`.

Visitor and server are at one end of the line, client and target at the other, each in a network
namespace of its own; beside the tunnel, in turn with it, the visitor connects to the target
directly. Measured are how much a single stream carries, and when a new visitor has the target's
first byte, in round trips. Needs root, on Linux.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import NamedTuple

from .line import LOSS, RTT, Line, Namespace, lacking
from .pair import Pair
from .processes import Failed

#: A stream through the tunnel carries at least this share of what a direct connection carries: what
#: loss does to one and the next connection differs more.
GOAL = 0.9
#: Most round trips until a new visitor has the first byte. The line is exact to a millisecond.
GOAL_TRIPS = 1.1
#: Seconds that a stream has to find its pace before it is measured.
WARM = 3.0
#: Seconds without a byte after which a connection is given up.
PATIENCE = 120.0
#: Bytes sent at a time.
BLOCK = 256 * 1024

#: Serves one connection.
Serve = Callable[[socket.socket], None]


class Target:
    """Does what a visitor's first byte asks for.

    `e`: sends everything back. `d` and `u`: sends, or takes, until the other end has had enough;
    what it took in each tenth of a second is the answer. What speaks first is on another port.
    """

    def __init__(self, where: Namespace) -> None:
        self.port = self._listen(where, self._serve)
        self.greeting_port = self._listen(where, lambda line: line.sendall(b"welcome"))

    def _listen(self, where: Namespace, serve: Serve) -> int:
        listener = where.socket()
        listener.bind(("0.0.0.0", 0))
        listener.listen(256)
        threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        while True:
            line, _ = listener.accept()
            line.settimeout(PATIENCE)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._one, args=(line, serve), daemon=True).start()

    def _one(self, line: socket.socket, serve: Serve) -> None:
        try:
            with line:
                serve(line)
        except OSError:
            pass  # the visitor sees it

    def _serve(self, line: socket.socket) -> None:
        asked = line.recv(1)
        if asked == b"d":
            supply(line, float(line.recv(16)))
        elif asked == b"u":
            line.sendall(json.dumps(take(line)).encode())
        else:
            while asked:
                line.sendall(asked)
                asked = line.recv(65536)


def supply(line: socket.socket, seconds: float) -> None:
    """Send for so long, then FIN."""
    block = bytes(BLOCK)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        line.sendall(block)
    line.shutdown(socket.SHUT_WR)


def take(line: socket.socket) -> list[float]:
    """Read up to FIN; returns MB by tenth of a second since the first byte."""
    buffer = bytearray(BLOCK)
    tenths = list[float]()
    began = 0.0
    while size := line.recv_into(buffer):
        now = time.monotonic()
        began = began or now
        tenth = int((now - began) * 10)
        tenths.extend(0.0 for _ in range(tenth - len(tenths) + 1))
        tenths[tenth] += size / 1e6
    return tenths


class Pace(NamedTuple):
    """What a stream carries, in MB a second: at first, and when it has found its pace."""

    first: float
    kept: float


class Way:
    """A way to the target.

    :param where: the visitor's namespace.
    :param stream: where a visitor connects to be served; greeted: to be greeted.
    """

    def __init__(
        self, name: str, where: Namespace, stream: tuple[str, int], greeted: tuple[str, int]
    ) -> None:
        self.name = name
        self._where = where
        self._stream = stream
        self._greeted = greeted

    def connect(self, address: tuple[str, int] | None = None) -> socket.socket:
        """Connect as a visitor."""
        line = self._where.socket()
        line.settimeout(PATIENCE)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.connect(address or self._stream)
        return line

    def carry(self, direction: str, seconds: float, streams: int) -> list[Pace]:
        """How much so many streams carry at a time."""
        paces = list[Pace]()

        def one() -> None:
            paces.append(self._carry(direction, WARM + seconds))

        threads = [threading.Thread(target=one) for _ in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(paces) < streams:
            raise Failed(f"{self.name}: a stream broke")
        return paces

    def _carry(self, direction: str, seconds: float) -> Pace:
        with self.connect() as line:
            if direction == "down":
                line.sendall(f"d{seconds}".encode())
                tenths = take(line)
            else:
                line.sendall(b"u")
                supply(line, seconds)
                tenths = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
        first, kept = tenths[: int(WARM * 10)], tenths[int(WARM * 10) : int(seconds * 10)]
        return Pace(10 * fmean(first), 10 * fmean(kept))

    def first_byte(self, kind: str) -> float:
        """Seconds from a visitor's connect to the first byte from the target."""
        began = time.monotonic()
        with self.connect(self._greeted if kind == "greeted" else None) as line:
            if kind == "asks":
                line.sendall(b"hello")
            if not line.recv(1):
                raise EOFError("the visitor got nothing")
            return time.monotonic() - began


def tunnel(line: Line, name: str, directory: Path, port: int, *, tls: int, flow: str = "-") -> Pair:
    """A tunnel with the line between its nodes, and the target at the far end.

    :param port: the target's.
    """
    return Pair(
        name,
        directory,
        f"127.0.0.1:{port}",
        flow=flow,
        tls=tls,
        wraps=(line.near.command, line.far.command),
        host=(line.near if flow == "-" else line.far).address,
    )


def streams(ways: list[Way], options: argparse.Namespace) -> bool:
    """Measure streams, each way in turn; whether all reach the goal."""
    good = True
    for direction in ("down", "up"):
        paces: dict[str, list[Pace]] = {way.name: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                paces[way.name] += way.carry(direction, options.seconds, options.streams)
        direct = mean(paces["direct"])
        for name, some in paces.items():
            found = mean(some)
            ratio = found.kept / direct.kept
            good &= ratio >= GOAL
            print(f"  {direction:<5}{name:<16}{found.kept:8.2f} MB/s {ratio:5.2f} x direct"
                  f" ({spread([one.kept for one in some])})   in the first {WARM:g} s"
                  f" {found.first / direct.first:5.2f} x", flush=True)  # fmt: skip
    return good


def mean(paces: list[Pace]) -> Pace:
    """The mean of several streams."""
    return Pace(fmean(one.first for one in paces), fmean(one.kept for one in paces))


def spread(values: list[float]) -> str:
    """Least, median and most."""
    return f"{min(values):.2f} {median(values):.2f} {max(values):.2f}"


def first_bytes(ways: list[Way], tries: int) -> bool:
    """Measure when a new visitor has the first byte; whether the tunnels reach the goal."""
    good = True
    for kind, words in (("asks", "asks"), ("greeted", "is greeted")):
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(tries):
            for way in ways:
                times[way.name].append(way.first_byte(kind) / RTT)
        for name, some in times.items():
            good &= name == "direct" or median(some) <= GOAL_TRIPS
            print(f"  a visitor who {words:<11}{name:<16}{median(some):5.2f} round trips,"
                  f" p90 {quantiles(some, n=10)[-1]:.2f}", flush=True)  # fmt: skip
    return good


def main() -> int:
    """Measure and print; status 1 where a goal is missed, 2 where it can't be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of streams [%(default)s]")
    parser.add_argument("--seconds", type=float, default=5, help="each [%(default)s]")
    parser.add_argument("--streams", type=int, default=1, metavar="N",
                        help="at a time, each on its own; what loss does to one is chance, where"
                             " TCP slows down with each loss [%(default)s]")  # fmt: skip
    parser.add_argument("--tries", type=int, default=20, help="new visitors [%(default)s]")
    parser.add_argument("--rate", type=float, default=0, help="of the line, MB/s; 0: no limit")
    parser.add_argument("--control", nargs="*", default=[], metavar="NAME",
                        help="how TCP shall respond to loss, such as bbr or reno; without it as"
                             " the system has it")  # fmt: skip
    options = parser.parse_args()
    if missing := lacking():
        print(f"benchmarks.latency: {missing}")
        return 2
    good = True
    with Line(RTT, LOSS, options.rate * 1e6) as line:
        for control in options.control or [""]:
            if control:  # sockets have it from when they are made
                for end in (line.near, line.far):
                    end.run("sysctl", "-w", f"net.ipv4.tcp_congestion_control={control}")
                print(f"{control}:")
            good &= measure(line, options)
    return int(not good)


def measure(line: Line, options: argparse.Namespace) -> bool:
    """Measure all; whether the goals are reached."""
    pairs = list[Pair]()
    with tempfile.TemporaryDirectory() as directory:
        target = Target(line.far)
        ports = (target.port, target.greeting_port)
        ways = [Way("direct", line.near, *((line.far.address, port) for port in ports))]
        try:
            for tls in (0, 1):
                two = [
                    tunnel(line, f"{tls} {port}", Path(directory), port, tls=tls) for port in ports
                ]
                pairs += two
                ways.append(Way(f"nodepass tls={tls}", line.near, two[0].visit, two[1].visit))
            return first_bytes(ways, options.tries) & streams(ways, options)
        finally:
            for pair in pairs:
                pair.stop()


if __name__ == "__main__":
    sys.exit(main())
