"""A program that subscribes to a master's events many times over: ``subscribers PORT COUNT LAST``.

The API key is in the environment as ``KEY``. It says ``subscribed`` once all are, and ends when
each has seen the change ``LAST``, with what they saw as JSON: how many different streams
there were, and how late an event was at most, by the
monotonic time in an instance's tag, as in ``"change":"7 at 12.5"``.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import sys
import time
import zlib
from collections.abc import Callable

_INITIAL = b'event: instance\ndata: {"type":"initial",'
_CHANGE = re.compile(rb'"change":"([0-9]+) at ([0-9.]+)"')


class Subscriber:
    """One connection.

    :ivar there: whether it has been told of all that there was.
    :ivar latest: the number of the latest change; each is to be the one after that before it.
    :ivar complete: whether that was the last one.
    :ivar digest: of all events from the first change to the last.
    """

    def __init__(self, port: int, key: bytes, last: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(
            b"GET /api/v1/events HTTP/1.0\r\nX-API-Key: %s\r\n\r\n" % key,
        )
        self.there = False
        self.complete = False
        self._last = last
        self.latest = -1
        self.late = 0.0
        self.events = 0
        self.digest = 0
        self._rest = b""

    def read(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, "the stream has ended"
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            if block.startswith(_INITIAL):
                self.there = True
            elif block.startswith(b"event: "):
                self._event(block)

    def _event(self, block: bytes) -> None:
        # It is near the end of a long event.
        change = _CHANGE.search(block, max(0, len(block) - 300))
        # What an instance reports shows it as it was left by the latest change.
        if change is not None and int(change[1]) != self.latest:
            assert int(change[1]) == self.latest + 1, (change[1], self.latest)
            self.latest += 1
            self.late = max(self.late, time.monotonic() - float(change[2]))
        if 0 <= self.latest and not self.complete:
            self.events += 1
            self.digest = zlib.crc32(block, self.digest)
        self.complete = self.latest == self._last


def main(port: int, count: int, last: int) -> None:
    selector = selectors.DefaultSelector()
    subscribers = [Subscriber(port, os.environ["KEY"].encode(), last) for _ in range(count)]
    for each in subscribers:
        selector.register(each.socket, selectors.EVENT_READ, each)

    def read_until(done: Callable[[Subscriber], bool]) -> None:
        while not all(map(done, subscribers)):
            for ready, _ in selector.select():
                ready.data.read()

    read_until(lambda each: each.there)
    print("subscribed", flush=True)
    read_until(lambda each: each.complete)
    told = {
        "streams": len({(each.events, each.digest) for each in subscribers}),
        "events": subscribers[0].events,
        "late": max(each.late for each in subscribers),
    }
    print("told " + json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
