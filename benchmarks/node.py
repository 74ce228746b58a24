"""One process with as many tunnels as there are URLs, and a profile of itself.

    python -m benchmarks.node FILE

The file has a URL in each line. The process prints a line of JSON with the ports of each server
once they are bound, and ``ready`` once all have joined. After that it prints, for each SIGUSR1, a
line of JSON with what it was doing since the last, or since the start: seconds of CPU time in
programs and in the system, and how many ticks of it were found in which function.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from nodepass import RoleService, makeService
from nodepass.logs import Level, LineObserver
from nodepass.reactor import steady_clock

#: Seconds of CPU time between two looks: coarse enough to cost nothing that shows.
TICK = 0.002
#: Clients that join at a time. A thousand at once would keep the server busy with proofs for longer
#: than it waits for one, and most would begin anew.
BATCH = 50


class Profile:
    """Where this process spends its CPU time.

    The system interrupts it after each `TICK` of that. Time inside a system call counts for the
    function that made it.
    """

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()
        self._times = os.times()

    def start(self) -> None:
        """Look from now on."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, TICK, TICK)

    def _look(self, signum: int, frame: FrameType | None) -> None:
        if frame is not None:
            self._seen[frame.f_globals.get("__name__", "?"), frame.f_code.co_name] += 1

    def take(self) -> dict[str, object]:
        """What was seen since the last time."""
        seen, self._seen = self._seen, Counter()
        now = os.times()
        before, self._times = self._times, now
        return {
            "user": now.user - before.user,
            "system": now.system - before.system,
            "ticks": {f"{module}:{name}": count for (module, name), count in seen.most_common()},
        }


class Node:
    """The tunnels, on a reactor."""

    def __init__(self, urls: list[str], reactor: Any) -> None:
        self.tunnels: list[RoleService] = []
        for url in urls:
            tunnel = makeService(url, reactor=reactor)
            assert isinstance(tunnel, RoleService)
            self.tunnels.append(tunnel)
        self._profile = Profile()
        self._reactor = reactor

    def start(self) -> None:
        """Start them all, say their ports, and, later, that they have joined."""
        self._profile.start()
        Deferred.fromCoroutine(self._start()).addCallbacks(self._joined, self._failed)

    async def _start(self) -> None:
        servers = [tunnel for tunnel in self.tunnels if tunnel.config.core == "server"]
        for tunnel in servers:
            launch(tunnel)
        say([[getattr(end, "port", None) for end in (tunnel.tunnel_address, tunnel.visitor_address)]
             for tunnel in servers])  # fmt: skip
        clients = [tunnel for tunnel in self.tunnels if tunnel not in servers]
        for first in range(0, len(clients), BATCH):
            some = clients[first : first + BATCH]
            for tunnel in some:
                launch(tunnel)
            await gatherResults([tunnel.whenReady() for tunnel in some])
        await gatherResults([tunnel.whenReady() for tunnel in servers])

    def _joined(self, _: object) -> None:
        # A signal wakes Twisted's reactor up, and its handler may only leave word.
        signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(self._report))
        say("ready")

    def _report(self) -> None:
        say(self._profile.take())

    def _failed(self, failure: Failure) -> None:
        say(f"failed: {failure.getErrorMessage()}")
        self._reactor.stop()


def launch(tunnel: RoleService) -> None:
    """Start a service that has no parent."""
    tunnel.privilegedStartService()
    tunnel.startService()


def say(what: object) -> None:
    """One line of output, at once."""
    print(what if isinstance(what, str) else json.dumps(what), flush=True)


def main() -> None:
    """Run the tunnels until a signal ends it."""
    from twisted.internet import reactor

    globalLogBeginner.beginLoggingTo(
        [LineObserver(sys.stderr, level=Level.WARN)], redirectStandardIO=False
    )
    steady_clock(reactor)
    node = Node(Path(sys.argv[1]).read_text().splitlines(), reactor)
    reactor.callWhenRunning(node.start)
    reactor.run()


if __name__ == "__main__":
    main()
