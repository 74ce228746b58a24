"""UDP for the mixed load: visitors whose datagrams come back from a target that echoes."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter

from attrs import define, field

#: Seconds after the last datagram in which answers are awaited.
LINGER = 3.0
#: Seconds between two datagrams of a flow.
PAUSE = 0.05

_HEAD = struct.Struct("!QI")


@define
class Datagrams:
    """What has become of all datagrams so far. Fields are counted under `lock`.

    :ivar wrong: answers that were never asked for, twice there, or changed on the way.
    """

    flows: int = 0
    sent: int = 0
    answered: int = 0
    wrong: int = 0
    bytes: int = 0
    lock: threading.Lock = field(factory=threading.Lock)


class Echo:
    """A target that sends each datagram back."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                data, where = self._socket.recvfrom(65536)
                self._socket.sendto(data, where)
            except OSError:
                continue  # what ICMP had to say of an earlier one


def flow(where: tuple[str, int], number: int, count: int, total: Datagrams) -> None:
    """Send datagrams of all sizes, empty ones among them, and look at what comes back."""
    with socket.socket(type=socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        line.connect(where)
        wanted = Counter[bytes]()
        answered = wrong = size = 0

        def hear(until: float) -> None:
            nonlocal answered, wrong, size
            while wanted and (left := until - time.monotonic()) > 0:
                line.settimeout(left)
                try:
                    data = line.recv(65536)
                except TimeoutError:
                    return
                if data in wanted:
                    wanted[data] -= 1
                    if not wanted[data]:
                        del wanted[data]
                    answered += 1
                    size += len(data)
                else:
                    wrong += 1

        for turn in range(count):
            data = _datagram(number, turn)
            wanted[data] += 1
            line.send(data)
            hear(time.monotonic() + PAUSE)
        hear(time.monotonic() + LINGER)
    with total.lock:
        total.flows += 1
        total.sent += count
        total.answered += answered
        total.wrong += wrong
        total.bytes += 2 * size


def _datagram(number: int, turn: int) -> bytes:
    if turn % 10 == 9:
        return b""
    size = random.choice((1, 40, 200, 1200, 1400, 9000))
    return _HEAD.pack(number, turn) + random.randbytes(size)
