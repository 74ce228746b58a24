"""The process around the roles: title, signals, group."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock

from nodepass import process
from nodepass.errors import ConfigError, FatalError
from nodepass.process import RoleGroup
from nodepass.reactor import steady_clock
from tests.fakes import FakeReactor, FakeRole


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The process titles that were set."""
    made: list[str] = []
    monkeypatch.setattr(process.setproctitle, "setproctitle", made.append)
    monkeypatch.setattr(process.setproctitle, "setthreadtitle", lambda name: None)
    return made


def test_title_hides_keys(titles: list[str]) -> None:
    """A key on the command line is replaced in the title; the rest of the line stays."""
    process.hide_keys("nodepass", ["server://s3cret@:1/:2?tls=1", "client://a:3/b:4"])
    assert titles == ["nodepass server://***@:1/:2?tls=1 client://a:3/b:4"]


def test_title_left_alone(titles: list[str]) -> None:
    """A command line without a key is shown as the user wrote it."""
    process.hide_keys("nodepass", ["--key-file", "k", "client://a:3/b:4"])
    assert titles == []


def test_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once stopping, a further SIGTERM ends the process at once with the shell's usual status; one
    that comes with the first, as ``timeout`` sends it, is the same."""
    handlers = {}
    ended: list[int] = []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "_exit", ended.append)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    process.end_at_next_signal()
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert ended == []
    now += 2 * process.SAME_SIGNAL
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    handlers[signal.SIGINT](signal.SIGINT, None)
    assert ended == [143, 130]


class Stopping:
    """A reactor that is busy: what signals ask of it waits for `turn`."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []
        self.stopped = False

    def callWhenRunning(self, call: Callable[..., None], *arguments: object) -> None:
        """It runs."""
        call(*arguments)

    def addSystemEventTrigger(self, phase: str, event: str, call: object) -> None:
        """It is not called here."""

    def callFromThread(self, call: Callable[[], None]) -> None:
        """Later."""
        self.asked.append(call)

    def stop(self) -> None:
        """Once."""
        if self.stopped:
            raise ReactorNotRunning
        self.stopped = True

    def turn(self) -> None:
        """Do what was asked."""
        for call in self.asked:
            call()


def test_signals_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stop the reactor once, also where it is stopping already; a later one ends the process
    even if the reactor has not had its turn."""
    handlers: dict[int, Callable[[int, object], None]] = {}
    ended: list[int] = []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "_exit", ended.append)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reactor = Stopping()
    process.stop_at_signals(reactor)
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    handlers[signal.SIGINT](signal.SIGINT, None)
    assert len(reactor.asked) == 1
    assert not reactor.stopped
    reactor.turn()
    assert reactor.stopped
    reactor.turn()
    assert ended == []
    now += 2 * process.SAME_SIGNAL
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert ended == [143]


def group_of(*roles: FakeRole) -> tuple[RoleGroup, FakeReactor]:
    reactor = FakeReactor()
    return RoleGroup(roles, reactor), reactor


def test_group_starts_and_stops() -> None:
    """Every role is bound, started and stopped with the group, whose stop waits for all."""
    one, two = FakeRole(), FakeRole()
    group, reactor = group_of(one, two)
    group.privilegedStartService()
    group.startService()
    two.stopping = Deferred()
    stopped = group.stopService()
    assert one.told == two.told == ["privileged", "start", "stop"]
    assert not stopped.called
    two.stopping.callback(None)
    assert stopped.called
    assert reactor.stopped == 0


def test_group_stop_survives_failure() -> None:
    """A role that fails to stop keeps neither the others nor the process from ending."""
    one, two = FakeRole(), FakeRole()
    group, _ = group_of(one, two)
    logged: list[str] = []
    group.log = type("Log", (), {"failure": lambda self, what, why: logged.append(what)})()
    group.startService()
    one.stopping = fail(OSError("no"))
    stopped = group.stopService()
    assert stopped.called
    assert "stop" in two.told
    assert logged == ["Stopping failed"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the platform has no SIGHUP")
def test_group_reloads_on_hangup() -> None:
    """SIGHUP reloads every role while the group runs, and is as before when it has stopped."""
    role = FakeRole()
    group, _ = group_of(role)
    before = signal.getsignal(signal.SIGHUP)
    group.startService()
    os.kill(os.getpid(), signal.SIGHUP)
    group.stopService()
    assert role.told == ["start", "reload", "stop"]
    assert signal.getsignal(signal.SIGHUP) == before


def test_group_ends_on_failure() -> None:
    """What one role can't mend stops the reactor, once; the first reason is kept."""
    one, two = FakeRole(), FakeRole()
    group, reactor = group_of(one, two)
    group.startService()
    first = FatalError("no permission to bind :80")
    one.failing.callback(first)
    two.failing.callback(FatalError("later"))
    group.stopService()
    assert group.failure is first
    assert reactor.stopped == 1


def test_group_refused_at_binding() -> None:
    """A role that fails while it binds stops the reactor, and nothing is started after that."""
    role = FakeRole()
    role.refuses = ConfigError("crt=missing.pem: no such file")
    group, reactor = group_of(role)
    group.privilegedStartService()
    group.startService()
    assert group.stopService().called
    assert group.failure is role.refuses
    assert role.told == ["privileged"]
    assert reactor.stopped == 1


def test_group_pickles() -> None:
    """A group pickles as its roles' configurations, though it has run and holds a reactor."""
    group, _ = group_of(FakeRole("one"), FakeRole("two"))
    group.startService()
    group.stopService()
    copy = pickle.loads(pickle.dumps(group))
    assert [role.config for role in copy] == ["one", "two"]
    assert copy._reactor is None
    assert not copy.running


def test_timers_follow_a_steady_clock() -> None:
    """The time of day may be set back without holding anything up; timers that run already keep
    the clock that they were made by."""
    clock = Clock()
    steady_clock(clock)
    assert clock.seconds() != 0
    clock = Clock()
    clock.callLater(5, lambda: None)
    steady_clock(clock)
    assert clock.seconds() == 0
