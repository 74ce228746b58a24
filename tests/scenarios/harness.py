"""Tunnels to try things on: both nodes in this process, or each in one of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from typing import Any

import pytest
from attrs import define, evolve, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from nodepass.address import Endpoint
from nodepass.config import parse_url
from nodepass.service import RoleService, makeService
from nodepass.tuning import Tuning

KEY = "an-honest-key-of-good-length"

#: Short times, so that what depends on them shows within a test's patience.
QUICK = Tuning(
    report_interval=0.5,
    service_cooldown=0.3,
    shutdown_timeout=1.0,
    portable_relay=os.environ.get("NP_RELAY") == "portable",
)

#: Both nodes share the process with visitors and targets. On a busy machine these may keep them
#: from their pings for a second, which must not pass for the other's silence or end: that would
#: cost sessions, and new flows their datagrams.
PATIENT = evolve(QUICK, report_interval=5.0)

#: Each session has a data link of its own, as between nodes that are far from each other.
APART = evolve(QUICK, share_within=0.0)

#: For scenarios whose sessions must behave alike on a link that they share and on one of their own.
either_link = pytest.mark.usefixtures("links")
#: For one among these that has no peer, and so no links.
no_links = pytest.mark.parametrize("links", ["shared"], indirect=True)


def sleep(seconds: float) -> Deferred[None]:
    """Let the reactor run for a while."""
    return deferLater(reactor, seconds)


async def until(condition: Any, timeout: float = 10.0, what: str = "the condition") -> None:
    """Wait until `condition()` is true."""
    deadline = reactor.seconds() + timeout
    while not condition():
        if reactor.seconds() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout} s")
        await sleep(0.01)


@define(eq=False)
class Tunnel:
    """Two nodes in this process."""

    server: RoleService
    client: RoleService

    @property
    def visitor(self) -> Endpoint:
        """Where visitors connect."""
        address = self.server.visitor_address or self.client.visitor_address
        assert address is not None
        return address

    async def stop(self) -> None:
        """Stop both nodes."""
        forget(self)
        await gatherResults(
            [d for d in (self.client.stopService(), self.server.stopService()) if d is not None]
        )


async def tunnel(
    target: Endpoint | str,
    *,
    flow: str = "-",
    tls: int = 0,
    server: str = "",
    client: str = "",
    host: str = "127.0.0.1",
    key: str = KEY,
    tuning: Tuning = QUICK,
    files: tuple[str, str, str] | None = None,
) -> Tunnel:
    """A tunnel to a target, ready for visitors.

    `server` and `client` are more parameters, such as "slot=3"; `files` are crt, key and ca for
    tls=2, whose certificate must name `host`.
    """
    if os.environ.get("NP_SHARE_WITHIN") == "0":  # as nodes in processes of their own take it
        tuning = evolve(tuning, share_within=0.0)
    here = f"[{host}]:0" if ":" in host else f"{host}:0"
    at_server, at_client = (here, str(target)) if flow == "-" else (str(target), here)
    mode = 1 if flow == "-" else 2
    more_server, more_client = "", ""
    if tls == 2:
        assert files is not None
        more_server, more_client = f"&crt={files[0]}&key={files[1]}", f"&tls=2&ca={files[2]}"
    elif tls == 1:
        more_client = "&tls=1"
    log = os.environ.get("SCENARIO_LOG", "none")
    one = makeService(
        parse_url(f"server://{key}@{here}/{at_server}?log={log}&mode={mode}&tls={tls}"
                  f"{more_server}&{server}"),
        tuning=tuning,
    )  # fmt: skip
    one.startService()
    try:
        two = makeService(
            parse_url(f"client://{key}@{one.tunnel_address}/{at_client}?log={log}&mode=2"
                      f"{more_client}&{client}"),
            tuning=tuning,
        )  # fmt: skip
        two.startService()
        try:
            await gatherResults([one.whenReady(), two.whenReady()])
        except BaseException:
            await two.stopService()
            raise
    except BaseException:
        await one.stopService()
        raise
    both = Tunnel(one, two)
    running_here.append(both)
    return both


# What was started and has not ended, so that a scenario that fails leaves nothing behind: in this
# process, with a `stop`, and in processes of their own.
running_here: list[Any] = []
running: list[Node] = []


def forget(one: Any) -> None:
    """It is about to be stopped."""
    if one in running_here:
        running_here.remove(one)


@define
class Node(ProcessProtocol):
    """A node in a process of its own: `nodepass URL`."""

    lines: list[str] = field(factory=list)
    ended: Deferred[int] = field(factory=Deferred)
    _rest: str = ""
    _waiting: list[tuple[re.Pattern[str], Deferred[re.Match[str]]]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.transport: Any = None

    @property
    def pid(self) -> int:
        """The process id."""
        return int(self.transport.pid)

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode()).split("\n")
        for line in lines:
            self.lines.append(line)
            for entry in list(self._waiting):
                match = entry[0].search(line)
                if match:
                    self._waiting.remove(entry)
                    entry[1].callback(match)

    errReceived = outReceived

    def connectionMade(self) -> None:
        running.append(self)

    def processEnded(self, reason: Failure) -> None:
        running[:] = [other for other in running if other is not self]
        status = 0
        if not reason.check(ProcessDone):
            assert isinstance(reason.value, ProcessTerminated)
            status = reason.value.exitCode if reason.value.exitCode is not None else -1
        for _, waiting in self._waiting:
            waiting.errback(AssertionError("the node ended:\n" + "\n".join(self.lines[-20:])))
        self._waiting.clear()
        self.ended.callback(status)

    def line(self, pattern: str, timeout: float = 20.0) -> Deferred[re.Match[str]]:
        """The first line, said already or still to come, that has `pattern` in it."""
        compiled = re.compile(pattern)
        result: Deferred[re.Match[str]] = Deferred()
        for line in self.lines:
            match = compiled.search(line)
            if match:
                result.callback(match)
                return result
        self._waiting.append((compiled, result))
        return result.addTimeout(timeout, reactor)

    async def port(self, what: str = "visitors") -> int:
        """The port on which it listens for `visitors` or `clients`."""
        return int((await self.line(rf"listening for {what} on \S*:(\d+)"))[1])

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status, -1 where a signal ended it."""
        if not self.ended.called:
            self.send_signal(number)
        return await self.ended


def node(*arguments: str, env: dict[str, str] | None = None, netns: str | None = None) -> Node:
    """Start a node. Its log is read; stop it before the test ends."""
    protocol = Node()
    command = [sys.executable, "-m", "nodepass", *arguments]
    if netns is not None:
        command = ["ip", "netns", "exec", netns, *command]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = shutil.which(command[0])
    assert program is not None
    quick = {"NP_REPORT_INTERVAL": "500ms", "NP_SERVICE_COOLDOWN": "300ms"}
    reactor.spawnProcess(
        protocol, program, command, env={**os.environ, **quick, "PYTHONPATH": root, **(env or {})}
    )
    return protocol
