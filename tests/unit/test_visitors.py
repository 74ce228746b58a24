"""The visitors' address before it is bound: names, and another try when it fails."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, DNSLookupError
from twisted.internet.task import Clock

from nodepass.address import Address
from nodepass.config import ServerConfig, parse_url
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.meter import Meter
from nodepass.relay.binding import literal
from nodepass.relay.flow import FlowLimits
from nodepass.relay.session import SessionContext
from nodepass.roles.visitors import VisitorPorts, server_mode, why
from nodepass.slots import Slots

COOLDOWN = 3.0


class SaidLog(Log):
    """A log that keeps its lines, each behind its level."""

    def __init__(self, level: Level) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def info(self, format: str, /, **fields: object) -> None:
        self.lines.append("info " + format.format(**fields))

    def warn(self, format: str, /, **fields: object) -> None:
        self.lines.append("warn " + format.format(**fields))


class FakePort:
    def __init__(self, address: Address) -> None:
        self.host = IPv4Address("TCP", address.host, address.port)

    def getHost(self) -> IPv4Address:
        return self.host

    def stopListening(self) -> None:
        pass


class Bench:
    """Ports for visitors; the system beneath them does as it is told.

    @ivar tried: the hosts that were to be bound.
    @ivar asked: the look-ups that were made, in the order made.
    @ivar error: what binding fails with; None when it works.
    """

    def __init__(self, host: str, url: str = "server://:1/:2") -> None:
        self.clock = Clock()
        self.tried: list[str] = []
        self.asked: list[Deferred[tuple[str, ...]]] = []
        self.error: int | None = None
        self.opened = 0
        self.failed: list[FatalError] = []
        log = Log(Level.NONE)
        self.health = Health(log)
        instance: Any = SimpleNamespace(
            config=parse_url(url),
            context=SessionContext(clock=self.clock, log=log, meter=Meter(), read=0.0),
            flow_limits=FlowLimits(slots=Slots(0), idle=60.0),
            log=log,
            health=self.health,
            reactor=self.clock,
            relay=self,
            resolver=self,
            tuning=SimpleNamespace(service_cooldown=COOLDOWN, udp_buffer=1500),
        )

        def opened() -> None:
            self.opened += 1

        self.ports = VisitorPorts(
            instance, Address(host, 80), Any, opened=opened, failed=self.failed.append
        )

    def listen_tcp(self, address: Address, accepted: object) -> FakePort:
        self.tried.append(address.host)
        if self.error is not None:
            raise CannotListenError(address.host, address.port, OSError(self.error, "no"))
        return FakePort(address)

    def listen_udp(self, address: Address, receiver: object, limit: int) -> FakePort:
        return FakePort(address)

    def lookup(self, host: str) -> Deferred[tuple[str, ...]]:
        self.asked.append(Deferred())
        return self.asked[-1]


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What look-ups that block find; those that were made are under "asked"."""
    known = {"asked": ""}

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        known["asked"] += f"{host} "
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (known[host], port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "fe80::1%eth0", ""])
def test_addresses_are_not_looked_up(blocking: dict[str, str], host: str) -> None:
    """An IP address is bound as it is, and so is every interface."""
    assert literal(Address(host, 80)) == Address(host, 80)
    assert blocking["asked"] == ""


@pytest.mark.parametrize("host", ["web1", "0x7f000001"])
def test_names_that_end_in_a_digit(blocking: dict[str, str], host: str) -> None:
    """A name is looked up whatever it ends in; that it has no address is a failure to listen."""
    with pytest.raises(CannotListenError, match="not known"):
        literal(Address(host, 80))
    blocking[host] = "192.0.2.1"
    assert literal(Address(host, 80)) == Address("192.0.2.1", 80)


def test_a_name_that_can_be_none() -> None:
    """What can't even be asked for is a failure to listen, too."""
    with pytest.raises(CannotListenError):
        literal(Address("ü" * 63, 80))


def test_localhost_is_known() -> None:
    """It means the address that dialing it tries first, whatever the system's order."""
    assert literal(Address("localhost", 80)) == Address("127.0.0.1", 80)


def test_a_name_is_looked_up_once(blocking: dict[str, str]) -> None:
    """While the port is in use, tries go on with the address that was found at first."""
    bench = Bench("a.test")
    blocking["a.test"] = "192.0.2.1"
    bench.error = errno.EADDRINUSE
    with pytest.raises(CannotListenError):
        bench.ports.bind()
    bench.ports.start()
    blocking["a.test"] = "192.0.2.2"
    bench.clock.advance(COOLDOWN)
    bench.error = None
    bench.clock.advance(COOLDOWN)
    assert bench.tried == ["192.0.2.1"] * 4
    assert (blocking["asked"], bench.asked, bench.opened) == ("a.test ", [], 1)


def test_a_name_not_found_is_tried_again(blocking: dict[str, str]) -> None:
    """Only the first look-up blocks; after each failure there is another one after a while."""
    bench = Bench("a.test")
    with pytest.raises(CannotListenError):
        bench.ports.bind()
    bench.ports.start()
    assert len(bench.asked) == 1
    bench.asked[0].errback(DNSLookupError("a.test: no address"))
    bench.clock.advance(COOLDOWN)
    bench.asked[1].callback(("192.0.2.1", "192.0.2.2"))
    assert bench.tried == ["192.0.2.1"]
    assert (blocking["asked"], bench.opened, bench.failed) == ("a.test ", 1, [])
    assert str(bench.ports.bound) == "192.0.2.1:80"


def test_an_address_of_another_host(blocking: dict[str, str]) -> None:
    """A name that leads to another host is given up, and not tried for ever."""
    bench = Bench("a.test")
    bench.error = errno.EADDRNOTAVAIL
    bench.ports.start()
    bench.asked[0].callback(("192.0.2.1",))
    assert len(bench.failed) == 1 and "a.test:80" in str(bench.failed[0])
    assert bench.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("server://:1/:2", ""),
        ("client://h:1/:2?mode=1", "; if that is the server, write mode=2"),
        ("client://h:1/:2?mode=2", "; if that is the target, write mode=1 at the server"),
    ],
)
def test_an_address_that_was_meant_otherwise(url: str, cure: str) -> None:
    """A client's error names the mode in which it would not listen there."""
    bench = Bench("", url)
    bench.error = errno.EADDRINUSE
    bench.ports.start()
    reason = bench.health.reason
    assert reason is not None and reason.endswith(f"give another port{cure}; trying on")
    bench.ports.stop()
    bench.error = errno.EADDRNOTAVAIL
    bench.ports.start()
    assert str(bench.failed[0]).endswith(f"none for every interface{cure}")


def test_stopped_during_a_look_up() -> None:
    """Nothing is bound or tried again after a stop, whenever it comes."""
    bench = Bench("a.test")
    bench.ports.start()
    bench.ports.stop()
    assert bench.asked[0].called
    assert (bench.tried, bench.clock.getDelayedCalls()) == ([], [])
    late = Bench("a.test")
    late.ports.start()
    late.asked[0].errback(DNSLookupError("a.test: no address"))
    late.ports.stop()
    assert (late.tried, late.clock.getDelayedCalls()) == ([], [])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("server://:1/:2?mode=1", False),
        ("client://:1/:2?mode=1", False),
        ("client://h:1/:2?mode=2", True),
    ],
)
def test_the_target_has_the_port(url: str, said: bool) -> None:
    """A client that listens as its server dials says what to write if the target is in the way."""
    bench = Bench("192.0.2.1", url)
    bench.error = errno.EADDRINUSE
    bench.ports.start()
    bench.asked[0].callback(("192.0.2.1",))
    assert bench.health.reason is not None and "ss -tunap" in bench.health.reason
    assert ("write mode=1 at the server; trying on" in bench.health.reason) is said


@pytest.mark.parametrize(
    ("obstacle", "mode", "line"),
    [
        (None, 1, "info mode=0: :2 can be bound here, so this server is mode=1"),
        (errno.EADDRNOTAVAIL, 2, "info mode=0: :2 can't be bound here, so this server is mode=2"),
        (errno.EADDRINUSE, 2, "info mode=0: :2 can't be bound here (in use by another program)"),
    ],
)
def test_what_a_server_decides(obstacle: int | None, mode: int, line: str) -> None:
    """Where its port is taken that may be a mistake, so it warns; an address of another host is
    certain."""
    bench = Bench("192.0.2.1")
    bench.error = obstacle
    log = SaidLog(Level.INFO)
    config = parse_url("server://:1/:2")
    assert isinstance(config, ServerConfig)
    assert server_mode(config, bench.ports, log).value == mode
    assert len(log.lines) == 1 and log.lines[0].startswith(line)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (OSError(errno.EADDRINUSE, "x"), "stop it, or give another port"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (DNSLookupError("no such name"), "no such name; give an address of this host"),
    ],
)
def test_why_a_port_is_not_bound(cause: Exception, words: str) -> None:
    """In words, with what there is to be done."""
    assert why(CannotListenError("", 1, cause)).endswith(words)
