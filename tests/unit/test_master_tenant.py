"""One run of an instance: whatever happens to it stays with it, and is tried again."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import succeed
from twisted.internet.task import Clock

from nodepass.errors import ConfigError, FatalError
from nodepass.health import Health
from nodepass.logs import Level
from nodepass.master import tenant as tenant_module
from nodepass.master.commands import Count, End, Record, Status, decode_records
from nodepass.master.outbox import Outbox
from nodepass.master.tenant import LONGEST_PAUSE, Tenant
from nodepass.meter import Stats
from nodepass.service import RoleService
from nodepass.tuning import Tuning

URL = "client://127.0.0.1:1/127.0.0.1:2?mode=1&log=none"


class Reactor(Clock):
    """Runs already."""

    def callWhenRunning(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class Role:
    """A role whose port can be bound or not; each counts ten bytes."""

    def __init__(self, case: Case, health: Health, failed: Any) -> None:
        self.case, self.health, self.failed = case, health, failed
        self.log = health.log
        self.stats = Stats(mode=1, tcp_rx=10)
        case.made += 1

    def bind(self) -> None:
        pass

    def start(self) -> None:
        if self.case.bug is not None:
            raise self.case.bug
        if self.case.fatal is None:
            self.health.well("port")
        else:
            self.health.trouble("port", "{error}", level=Level.ERROR, error=self.case.fatal)
            self.failed(FatalError(self.case.fatal))

    async def release(self) -> None:
        self.case.told.append("release")

    async def stop(self) -> None:
        self.case.told.append("stop")


class Case:
    """A tenant on a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fatal: str | None = None
        self.bug: Exception | None = None
        self.bad_file: str | None = None
        self.made = 0
        self.told: list[str] = []
        self.got: list[Record] = []
        self.over: list[Tenant] = []
        self.clock = Reactor()

        def make_role(service: RoleService, *_: Any) -> Any:
            if self.bad_file is not None:
                raise ConfigError(self.bad_file)
            return Role(self, service._health, service._failed)

        monkeypatch.setattr(RoleService, "_make_role", make_role)
        monkeypatch.setattr(tenant_module, "JITTER", 0.0)
        outbox = Outbox(self.send)
        self.tenant = Tenant(
            5, URL, tuning=Tuning(service_cooldown=3.0), reactor=self.clock, outbox=outbox,
            ended=self.over.append,
        )  # fmt: skip

    def send(self, batch: bytes) -> Any:
        self.got += decode_records(batch)
        return succeed(None)

    @property
    def statuses(self) -> list[str | None]:
        """The statuses that were reported."""
        return [record.trouble for record in self.got if isinstance(record, Status)]

    def stop(self) -> None:
        """Release it, and find nothing left."""
        assert self.tenant.release().called
        assert self.over == [self.tenant] and isinstance(self.got[-1], End)
        assert not self.clock.getDelayedCalls()


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(monkeypatch)


def test_from_start_to_end(case: Case) -> None:
    """It says that it is up, what it counts, and at the end what it had counted."""
    case.tenant.start()
    assert case.statuses == [None]
    assert case.tenant.stats().tcp_rx == 10
    case.stop()
    assert case.told == ["release", "stop"]
    assert case.got[1:] == [Count(5, mode=1, tcp_rx=10), End(5)]


def test_what_retrying_can_not_mend_is_retried(case: Case) -> None:
    """With growing pauses, for ever, the status telling why until it is over; counters go on."""
    case.fatal = "no such address"
    case.tenant.start()
    assert case.statuses == ["no such address"]
    made_at = [case.clock.seconds()]
    while len(made_at) < 8:
        case.clock.advance(0.5)
        if case.made > len(made_at):
            made_at.append(case.clock.seconds())
    pauses = [later - earlier for earlier, later in pairwise(made_at)]
    assert pauses == [3, 6, 12, 24, 48, LONGEST_PAUSE, LONGEST_PAUSE]
    assert case.statuses == ["no such address"]
    case.fatal = None
    case.clock.advance(LONGEST_PAUSE)
    assert case.statuses == ["no such address", None]
    assert case.tenant.stats().tcp_rx == 90
    assert not case.clock.getDelayedCalls()
    case.stop()
    assert Count(5, mode=1, tcp_rx=90) in case.got


def test_after_it_was_well_pauses_are_short_again(case: Case) -> None:
    """What happened long ago does not count."""
    case.fatal = "no"
    case.tenant.start()
    case.clock.advance(3)
    case.fatal = None
    case.clock.advance(6)
    assert case.tenant._failures == 0
    case.stop()


def test_a_file_that_can_not_be_read(case: Case) -> None:
    """Nothing could be built; when it can be, it is."""
    case.bad_file = "crt=x.pem: no such file"
    case.tenant.start()
    case.clock.advance(3)
    assert case.statuses == ["crt=x.pem: no such file"] and case.made == 0
    case.bad_file = None
    case.clock.advance(6)
    assert case.statuses == ["crt=x.pem: no such file", None] and case.made == 1
    case.stop()


def test_a_fault_of_ours(case: Case) -> None:
    """What nobody foresaw is a trouble like others."""
    case.bug = ZeroDivisionError("division by zero")
    case.tenant.start()
    case.clock.advance(3)
    assert case.statuses == ["unexpected: division by zero"]
    case.bug = None
    case.clock.advance(6)
    assert case.statuses == ["unexpected: division by zero", None]
    case.stop()


def test_released_while_it_waits(case: Case) -> None:
    """It is not tried again."""
    case.fatal = "no"
    case.tenant.start()
    case.stop()
    case.clock.advance(100)
    assert case.made == 1


def test_released_before_it_was_started(case: Case) -> None:
    """It never starts."""
    case.stop()
    case.tenant.start()
    assert case.made == 0 and case.statuses == []


def test_workers_are_the_masters_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    """`workers` of an instance is ignored, and a warning says so."""
    made: list[RoleService] = []
    case = Case(monkeypatch)
    original = RoleService.startService
    monkeypatch.setattr(
        RoleService, "startService", lambda service: (made.append(service), original(service))
    )
    tenant = Tenant(
        1,
        f"{URL}&workers=4",
        tuning=Tuning(),
        reactor=case.clock,
        outbox=Outbox(lambda batch: succeed(None)),
        ended=case.over.append,
    )
    tenant.start()
    (service,) = made
    assert service.config.workers == 1
    assert any("parameter workers: ignored" in line for line in service.config.warnings)
