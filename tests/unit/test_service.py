"""The life of a tunnel's service: started, ready, failed, stopped, and started again."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from nodepass.config import MasterConfig, parse_url
from nodepass.errors import ConfigError, FatalError
from nodepass.logs import Level, Log
from nodepass.meter import Stats
from nodepass.service import RoleService, _key_warnings, makeService

URL = "client://127.0.0.1:1/127.0.0.1:2?mode=1&log=none"


class FakeReactor(Clock):
    """Runs already."""

    def callWhenRunning(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class FakeRole:
    """A role that notes what is asked of it, and stops when the test says so."""

    def __init__(self) -> None:
        self.log = Log(Level.NONE)
        self.told: list[str] = []
        self.released: Deferred[None] = succeed(None)
        self.stopped: Deferred[None] = Deferred()
        self.stats = Stats()

    def bind(self) -> None:
        self.told.append("bind")

    def start(self) -> None:
        self.told.append("start")

    async def release(self) -> None:
        self.told.append("release")
        await self.released

    async def stop(self) -> None:
        self.told.append("stop")
        await self.stopped


class FakeRoles(RoleService):
    """A service whose roles are fakes, kept as they are made.

    @ivar broken: a file that its roles need can't be read.
    """

    def __init__(self) -> None:
        super().__init__(parse_url(URL), reactor=FakeReactor())
        self.made: list[FakeRole] = []
        self.broken = False

    def _make_role(self, *arguments: Any) -> Any:
        if self.broken:
            raise ConfigError("the certificate can't be read")
        self.made.append(FakeRole())
        return self.made[-1]


def outcome(deferred: Deferred[Any]) -> Any:
    """What a Deferred has fired with: a result, a failure's exception, or "waits"."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    if not results:
        return "waits"
    return results[0].value if isinstance(results[0], Failure) else results[0]


def test_starting_as_root_builds_once() -> None:
    """privilegedStartService, however often, and startService make one role and bind it once."""
    service = FakeRoles()
    service.privilegedStartService()
    service.privilegedStartService()
    service.startService()
    (role,) = service.made
    assert role.told == ["bind", "start"]


def test_a_failed_service_can_be_started_again() -> None:
    """What stopped it for good may have been mended: a new start makes a new role."""
    service = FakeRoles()
    service.startService()
    service._failed(FatalError("no such address"))
    assert isinstance(outcome(service.whenReady()), FatalError)
    stopping = service.stopService()
    assert stopping is not None
    service.made[0].stopped.callback(None)
    assert outcome(stopping) is None
    service.startService()
    first, second = (role.told for role in service.made)
    assert first == ["bind", "start", "release", "stop"]
    assert second == ["bind", "start"]
    ready = service.whenReady()
    service._now_ready()
    assert outcome(ready) is None


def test_stopping_before_it_is_ready() -> None:
    """Who waits for a tunnel that is stopped instead learns of it, and may wait for the next."""
    service = FakeRoles()
    service.startService()
    ready, given_up = service.whenReady(), service.whenReady()
    again: list[Deferred[None]] = []

    def stopped(_: Failure) -> None:
        given_up.cancel()
        again.append(service.whenReady())

    ready.addErrback(stopped)
    service.stopService()
    assert outcome(ready) is None
    assert isinstance(outcome(given_up), CancelledError)
    service.startService()
    service._now_ready()
    assert outcome(again[0]) is None
    service.stopService()


def test_when_ready_tells_of_a_stop() -> None:
    """whenReady fails with CancelledError when the service is stopped first."""
    service = FakeRoles()
    service.startService()
    ready = service.whenReady()
    service.stopService()
    assert isinstance(outcome(ready), CancelledError)


def test_when_failed_waits_through_a_stop() -> None:
    """A stop is no failure; one after the next start is told to who asked before the first."""
    service = FakeRoles()
    failed, given_up = service.whenFailed(), service.whenFailed()
    given_up.cancel()
    assert isinstance(outcome(given_up), CancelledError)
    service.startService()
    service.stopService()
    assert not failed.called
    service.startService()
    error = FatalError("no such address")
    service._failed(error)
    assert outcome(failed) is error
    assert outcome(service.whenFailed()) is error


def test_a_second_stop_waits_for_the_first() -> None:
    """Both callers get the Deferred that fires when all is closed; afterwards there is none."""
    service = FakeRoles()
    service.startService()
    first = service.stopService()
    assert first is not None
    assert service.stopService() is first and not first.called
    service.made[0].stopped.callback(None)
    assert outcome(first) is None
    assert service.stopService() is None


@pytest.mark.parametrize(("value", "key"), [("", None), ("a secret", "a secret")])
def test_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, key: str | None
) -> None:
    """A URL without a key takes the environment's; an empty one counts as none."""
    monkeypatch.setenv("NODEPASS_KEY", value)
    url = "client://127.0.0.1:1/127.0.0.1:2?mode=2&log=none"
    assert makeService(url).config.key == key


def test_released_while_sessions_go_on() -> None:
    """Its ports are free before it has stopped; its counters are kept."""
    service = FakeRoles()
    assert outcome(service.whenReleased()) is None
    service.startService()
    (role,) = service.made
    role.released = Deferred()
    role.stats = Stats(tcp_rx=5)
    early = service.whenReleased()
    stopping = service.stopService()
    assert stopping is not None
    released = service.whenReleased()
    assert not released.called and not early.called
    role.released.callback(None)
    assert outcome(released) is None and outcome(early) is None
    assert not stopping.called and service.stats.tcp_rx == 5
    role.stopped.callback(None)
    assert outcome(stopping) is None
    assert service.stats == Stats() and service.last_stats.tcp_rx == 5


def test_retrying_after_a_failure() -> None:
    """A new role takes the place of the one that failed, counters go on, and the trouble stays
    until the new one is well."""
    service = FakeRoles()
    told: list[str | None] = []
    service._health._changed = told.append
    service.startService()
    service.made[0].stats = Stats(tcp_rx=5)
    service._health.trouble("port", "no such address")
    service._failed(FatalError("no such address"))
    retrying = service.retry()
    service.made[0].stopped.callback(None)
    assert outcome(retrying) is None
    service.made[1].stats = Stats(tcp_rx=2)
    assert service.stats.tcp_rx == 7 and told == ["no such address"] == [service.trouble]
    assert not service.whenFailed().called
    service.stopService()
    assert service.trouble is None


def test_counters_while_it_can_not_be_built_anew() -> None:
    """They never fall: whoever adds up what they grow by would count the same traffic again."""
    service = FakeRoles()
    service.startService()
    service.made[0].stats = Stats(tcp_rx=1000, tcps=3)
    service._failed(FatalError("no such address"))
    service.broken = True
    retrying = service.retry()
    service.made[0].stopped.callback(None)
    assert outcome(retrying) is None and outcome(service.whenFailed()).args
    assert service.stats == Stats(tcp_rx=1000)
    service.retry()
    assert service.stats == Stats(tcp_rx=1000)
    service.broken = False
    service.retry()
    assert service.stats.tcp_rx == 1000
    service.made[1].stats = Stats(tcp_rx=1)
    assert service.stats.tcp_rx == 1001
    service.broken = True
    service.retry()
    service.made[1].stopped.callback(None)
    service.stopService()
    assert service.stats == Stats() and service.last_stats.tcp_rx == 1001


def test_stopped_while_it_is_retried() -> None:
    """Nothing is built any more."""
    service = FakeRoles()
    service.startService()
    service._failed(FatalError("no such address"))
    service.retry()
    stopping = service.stopService()
    assert stopping is not None and not stopping.called
    service.made[0].stopped.callback(None)
    assert outcome(stopping) is None and len(service.made) == 1


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("client://h:443/t:2", "no key"),
        ("client://:443/t:2?mode=1", None),
        ("client://short@h:443/t:2", "the key is short"),
        ("client://long-enough@h:443/t:2", None),
        # An end that speaks no native has the old nodes' key alone.
        ("client://h:443/t:2?wire=native,1.14&oldkey=long-enough", "no key"),
        ("client://h:443/t:2?wire=1.14&oldkey=long-enough", None),
        ("client://long-enough@h:443/t:2?wire=1.14&oldkey=short", "the key is short"),
    ],
)
def test_weak_keys(url: str, warned: str | None) -> None:
    """No key and a short one draw a warning, about the key that the node uses."""
    config = parse_url(url)
    assert not isinstance(config, MasterConfig)
    warnings = _key_warnings(config)
    assert [warning.startswith(warned or "") for warning in warnings] == [True] * bool(warned)
