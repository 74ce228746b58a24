"""A long line between two network namespaces, for root on Linux.

Every packet passes through a process of its own, `python -m benchmarks.line`, which keeps it for
half a round trip and loses some: the kernel's own means for that (netem) is not in every kernel.
The process makes the namespaces and, when its standard input ends, removes them, so that none is
left behind by a parent that was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Seconds for a round trip, and the share of packets lost on each way.
RTT, LOSS = 0.1, 0.001
#: Largest packet, bytes: that of Ethernet.
MTU = 1500
#: Packets that a device may hold while the process is not on a core: 30 MB.
DEVICE_QUEUE = 20000
#: Seconds of traffic that wait where the line has a rate, beyond which packets are dropped.
QUEUE = 0.1

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


class Namespace:
    """A network namespace.

    :param name: as `ip netns` has it.
    :param address: the one that it has on the line.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def command(self, command: Sequence[str]) -> list[str]:
        """The command, to be run inside."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str) -> None:
        """Run something inside, up to its end."""
        subprocess.run(self.command(command), check=True, stdout=subprocess.DEVNULL)

    def socket(self) -> socket.socket:
        """Make a TCP socket that belongs to the namespace, wherever it is used."""
        with self._entered():
            return socket.socket()

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        # For this thread alone, and with no code of others until it is back.
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"can't enter the namespace {self.name}")
            try:
                yield
            finally:
                if libc.setns(home.fileno(), _CLONE_NEWNET):
                    os.abort()  # the thread is lost in there


class Line:
    """Two namespaces, and the process between them.

    :param rtt: seconds.
    :param loss: share of packets lost on each way.
    :param rate: bytes a second on each way; 0: no limit.
    """

    def __init__(self, rtt: float = RTT, loss: float = LOSS, rate: float = 0) -> None:
        command = [sys.executable, "-m", "benchmarks.line", f"--rtt={rtt}", f"--loss={loss}",
                   f"--rate={rate}"]  # fmt: skip
        root = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if len(words) != 4:
            self.close()
            raise OSError("there is no line; what the process says is above")
        self.near, self.far = Namespace(words[0], words[1]), Namespace(words[2], words[3])

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove both namespaces."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def lacking() -> str | None:
    """What there is not that a line needs, as a reader is told; None: nothing is missing."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun is not there: modprobe tun, or give the container the device"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "network namespaces can't be made here" if done.returncode else None


class _Way:
    """One direction: packets on their way, each with the time when it arrives."""

    def __init__(self, source: int, sink: int, delay: float, loss: float, rate: float) -> None:
        self.source = source
        self.packets: deque[tuple[float, bytes]] = deque()
        self._sink = sink
        self._delay = delay
        self._loss = loss
        self._rate = rate
        self._free = 0.0  # when the last packet has left, if the line has a rate
        self._random = random.Random(source)

    def take(self) -> None:
        """Take up all packets that wait at the source."""
        read, source, loss, chance = os.read, self.source, self._loss, self._random.random
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = read(source, MTU)
                if chance() < loss:
                    continue
                if self._rate:
                    if self._free > now + QUEUE:
                        continue
                    self._free = max(self._free, now) + len(packet) / self._rate
                    self.packets.append((self._free + self._delay, packet))
                else:
                    self.packets.append((now + self._delay, packet))

    def give(self) -> float | None:
        """Hand over what has arrived; returns when the next packet will."""
        packets, write, sink = self.packets, os.write, self._sink
        now = time.monotonic()
        while packets and packets[0][0] <= now:
            with contextlib.suppress(OSError):
                write(sink, packets.popleft()[1])
        return packets[0][0] if packets else None


def _forward(one: int, other: int, delay: float, loss: float, rate: float) -> None:
    """Pass packets both ways until standard input ends."""
    ways = [_Way(one, other, delay, loss, rate), _Way(other, one, delay, loss, rate)]
    epoll = select.epoll()
    for fd in (one, other, 0):
        epoll.register(fd, select.EPOLLIN)
    due: list[float] = []
    while True:
        wait = max(0.0, min(due) - time.monotonic()) if due else -1
        if any(fd == 0 for fd, _ in epoll.poll(wait)):
            return
        for way in ways:
            way.take()
        due = [at for at in [way.give() for way in ways] if at is not None]


def _device(name: str, namespace: str, address: str) -> int:
    """Make a device whose packets are read and written by this process."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    _ip("link", "set", name, "netns", namespace)
    for command in (f"addr add {address}/24 dev {name}",
                    f"link set {name} mtu {MTU} txqueuelen {DEVICE_QUEUE} up",
                    "link set lo up"):  # fmt: skip
        _ip("-n", namespace, *command.split())
    # What one connection has learnt of the line is not to help the next.
    _ip("netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1")
    return fd


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def main() -> int:
    """Be the line until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.line", description=__doc__)
    parser.add_argument("--rtt", type=float, default=RTT)
    parser.add_argument("--loss", type=float, default=LOSS)
    parser.add_argument("--rate", type=float, default=0)
    options = parser.parse_args()
    # The end of a line is the end of its standard input, also where a terminal interrupts all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    names = [f"npline{os.getpid()}{end}" for end in "ab"]
    addresses = ["10.213.78.1", "10.213.78.2"]
    made = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        devices = [_device(f"npl{os.getpid()}{name[-1]}", name, address)
                   for name, address in zip(names, addresses, strict=True)]  # fmt: skip
        print(names[0], addresses[0], names[1], addresses[1], flush=True)
        _forward(devices[0], devices[1], options.rtt / 2, options.loss, options.rate)
    finally:
        for name in made:
            _ip("netns", "del", name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
