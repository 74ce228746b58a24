"""``nodepass demo``: a tunnel with everything around it, in this one process.

A small web site and a UDP echo are the targets, a client and a server lead to them. The demo visits
both through the tunnel, says what it measured, and stays up to be tried by hand.
"""

from __future__ import annotations

import shlex
import socket
import sys
import time
import zlib
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import which
from typing import Any

import treq
from attrs import define, field, frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, FirstError, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.server import Site

from nodepass import __version__
from nodepass.address import Endpoint
from nodepass.config import parse_role_url
from nodepass.keys import new_key
from nodepass.logs import Level, LineObserver
from nodepass.process import stop_at_signals
from nodepass.service import RoleService, makeService
from nodepass.tuning import Tuning

from .ends import PAGE, ShortVisit, UdpEcho, UdpVisitor, WebSite, bulk_checksum

HOST = "127.0.0.1"

#: What is fetched in bulk: enough that its time can be measured, little enough to wait for.
BULK_BYTES = 200_000_000

#: Visitors that connect, ask and leave; and how many of them are there at a time.
VISITORS = 200
VISITORS_AT_ONCE = 20

#: Datagrams echoed.
DATAGRAMS = 1000

#: Seconds after which a step has failed, many times what a slow machine needs.
PATIENCE = 60.0

#: Free TCP ports tried for one whose number is free for UDP too.
PORT_TRIES = 20

#: Ctrl-C need not wait long for whoever is just looking at the page.
TUNING = Tuning(shutdown_timeout=1.0)

log = Logger()


class DemoError(Exception):
    """A step of the demo did not turn out as it should."""


@frozen
class Row:
    """One line of the table."""

    ok: bool
    step: str
    outcome: str

    def __str__(self) -> str:
        return f"  {'ok' if self.ok else 'FAILED':<8}{self.step:<26}{self.outcome}"


@define(eq=False)
class Demo:
    """Targets, tunnel and visitors.

    :ivar say: prints a line.
    :ivar rows: what came of the steps so far.
    :ivar complete: whether all steps have been gone through.
    """

    reactor: Any
    say: Callable[[str], None]
    services: MultiService = field(factory=MultiService)
    ports: list[Any] = field(factory=list)
    rows: list[Row] = field(factory=list)
    complete: bool = False
    stopping: bool = False
    #: What `start` finds out: where the targets are, and where visitors reach them.
    target: Endpoint = field(init=False)
    visitor: Endpoint = field(init=False)

    @property
    def held(self) -> bool:
        """Whether every step so far turned out well."""
        return all(row.ok for row in self.rows)

    async def run(self) -> None:
        """Set all up and visit the targets; `rows` tell how it went."""
        self.services.startService()
        self.say(f"nodepass {__version__}: a tunnel to a web site and a UDP echo, on this machine")
        self.say("")
        await self.step("tunnel", self.start)
        if self.held:
            await self.step("page fetched", self.fetch_page)
            await self.step("datagrams echoed", self.echo_datagrams)
            await self.step("visitors served", self.serve_visitors)
            await self.step("bulk fetched", self.fetch_bulk)
        self.complete = True

    async def step(self, name: str, action: Callable[[], Coroutine[Any, Any, str]]) -> None:
        """Run one step and print its row."""
        running = Deferred.fromCoroutine(action())
        try:
            row = Row(True, name, await running.addTimeout(PATIENCE, self.reactor, _too_slow))
        except Exception as error:
            if self.stopping:
                raise
            row = Row(False, name, _reason(error))
        self.rows.append(row)
        self.say(str(row))

    async def stop(self) -> None:
        """Close all that was opened; what fails from now on is no news."""
        self.stopping = True
        await gatherResults(
            [
                *(maybeDeferred(port.stopListening) for port in self.ports),
                maybeDeferred(self.services.stopService),
            ]
        )

    # The steps: each returns its outcome.

    async def start(self) -> str:
        """Targets, server and client, until the client has joined."""
        began = time.perf_counter()
        self.target = self._listen()
        key = new_key()
        server = self._node(f"server://{key}@{HOST}:0/{HOST}:0?tls=1")
        address = server.tunnel_address
        if address is None:
            raise DemoError("the server could not listen")
        client = self._node(f"client://{key}@{address}/{self.target}")
        await gatherResults([server.whenReady(), client.whenReady()], consumeErrors=True)
        assert server.visitor_address is not None
        self.visitor = server.visitor_address
        return f"server and client joined, TLS 1.3, in {_show(time.perf_counter() - began)}"

    def _node(self, url: str) -> RoleService:
        config = parse_role_url(f"{url}{'&' if '?' in url else '?'}log=none")
        node = makeService(config, tuning=TUNING)
        node.setServiceParent(self.services)  # type: ignore[no-untyped-call]
        return node

    def _listen(self) -> Endpoint:
        """Start both targets on one port number, as a tunnel's target has one for TCP and UDP."""
        site = Site(WebSite().app.resource())
        site.noisy = False
        for last in [False] * (PORT_TRIES - 1) + [True]:
            tcp = self.reactor.listenTCP(0, site, interface=HOST)
            number = tcp.getHost().port
            try:
                udp = self.reactor.listenUDP(number, UdpEcho(), interface=HOST)
            except CannotListenError:
                tcp.stopListening()
                if last:
                    raise
            else:
                self.ports += [tcp, udp]
                return Endpoint(HOST, number)
        raise AssertionError("not reached")

    async def _get(self, path: str) -> Any:
        """The response to an HTTP request through the tunnel."""
        pool = HTTPConnectionPool(self.reactor, persistent=False)
        url = f"http://{self.visitor}{path}"
        response = await treq.get(url, agent=Agent(self.reactor, pool=pool), unbuffered=True)
        if response.code != 200:
            raise DemoError(f"the web site answered {response.code}")
        return response

    async def fetch_page(self) -> str:
        """The page, over HTTP."""
        began = time.perf_counter()
        if await treq.text_content(await self._get("/")) != PAGE:
            raise DemoError("the page came out different")
        return f"{len(PAGE)} bytes over HTTP in {_show(time.perf_counter() - began)}"

    async def echo_datagrams(self) -> str:
        """Datagrams there and back, each of them whole."""
        began = time.perf_counter()
        visitor = UdpVisitor(self.visitor, DATAGRAMS)
        port = self.reactor.listenUDP(0, visitor, interface=HOST)
        self.ports.append(port)
        await visitor.over
        took = time.perf_counter() - began
        return f"{DATAGRAMS} of {DATAGRAMS} in {_show(took)} = {DATAGRAMS / took:,.0f} a second"

    async def serve_visitors(self) -> str:
        """Many short connections, each with its own request."""
        began = time.perf_counter()
        numbers = iter(range(VISITORS))
        endpoint = TCP4ClientEndpoint(self.reactor, *self.visitor)

        async def visit() -> None:
            for _ in numbers:
                one = await connectProtocol(endpoint, ShortVisit())
                if not (await one.over).endswith(PAGE.encode()):
                    raise DemoError("a visitor got another page")

        await gatherResults(
            [Deferred.fromCoroutine(visit()) for _ in range(VISITORS_AT_ONCE)], consumeErrors=True
        )
        took = time.perf_counter() - began
        return f"{VISITORS} connections in {_show(took)} = {VISITORS / took:,.0f} a second"

    async def fetch_bulk(self) -> str:
        """Many bytes, checked."""
        began = time.perf_counter()
        size = checksum = 0

        def collect(data: bytes) -> None:
            nonlocal size, checksum
            size += len(data)
            checksum = zlib.crc32(data, checksum)

        await treq.collect(await self._get(f"/bulk/{BULK_BYTES}"), collect)
        took = time.perf_counter() - began
        if size != BULK_BYTES or checksum != bulk_checksum(BULK_BYTES):
            raise DemoError(f"{size} bytes came, not the {BULK_BYTES} that were sent")
        megabytes = BULK_BYTES / 1e6
        return f"{megabytes:.0f} MB in {_show(took)} = {megabytes / took:.0f} MB/s, each byte right"

    def say_what_to_try(self) -> None:
        """Tell how to go on by hand."""
        key = new_key()
        tunnel, visitors = free_ports(2)
        program = _started_as()
        for line in (
            "",
            "It stays up until Ctrl-C. From another terminal:",
            f"  curl http://{self.visitor}/",
            "",
            "Another tunnel to the same web site, of commands, each in a terminal of its own:",
            f'  {program} "server://{key}@{HOST}:{tunnel}/{HOST}:{visitors}?mode=1&tls=1"',
            f'  {program} "client://{key}@{HOST}:{tunnel}/{self.target}?mode=2&tls=1"',
            f"  curl http://{HOST}:{visitors}/",
            f"On two machines, put the server's address before :{tunnel} in the client's URL, and "
            "none there in its own.",
        ):
            self.say(line)


def _started_as() -> str:
    """How to start this program again, in a shell."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py" or not program.is_file():
        return f"{shlex.quote(sys.executable)} -m nodepass"
    found = which("nodepass")
    return "nodepass" if found and program.samefile(found) else shlex.quote(str(program))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _too_slow(result: Any, seconds: float) -> Any:
    raise DemoError(f"not done after {seconds:.0f} s")


def _reason(error: BaseException | None) -> str:
    """Why a step failed, in one line."""
    if isinstance(error, FirstError):
        return _reason(error.subFailure.value)
    if isinstance(error, ResponseNeverReceived):
        return _reason(error.reasons[0].value)
    return str(error) or type(error).__name__


def _show(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def main(arguments: Sequence[str]) -> int:
    """Run the demo.

    :param arguments: the command line behind ``nodepass demo``.

    :returns: The exit status: 0 when everything held, else 1.
    """
    from nodepass import help
    from nodepass.commandline import Parser

    parser = Parser("nodepass demo", help.DEMO, urls=False)
    parser.add_argument("--once", action="store_true")
    options = parser.read(arguments)

    # Not at the top: importing it installs it.
    from twisted.internet import reactor

    globalLogBeginner.beginLoggingTo(
        [LineObserver(sys.stderr, level=Level.ERROR)], redirectStandardIO=False
    )
    return run(Demo(reactor=reactor, say=lambda line: print(line, flush=True)), once=options.once)


def run(demo: Demo, *, once: bool) -> int:
    """Run `demo` in its reactor, and return the exit status."""
    reactor = demo.reactor

    async def show() -> None:
        await demo.run()
        if once or not demo.held:
            reactor.stop()
        else:
            demo.say_what_to_try()

    def failed(failure: Failure) -> None:
        if not demo.stopping:
            log.failure("The demo itself failed", failure)
            reactor.stop()

    def begin() -> None:
        showing = Deferred.fromCoroutine(show()).addErrback(failed)

        def stop() -> Deferred[None]:
            stopped = Deferred.fromCoroutine(demo.stop())
            showing.cancel()
            return stopped

        reactor.addSystemEventTrigger("before", "shutdown", stop)

    stop_at_signals(reactor)
    reactor.callWhenRunning(begin)
    reactor.run()
    return 0 if demo.complete and demo.held else 1
