"""The registry of instances and the accounts of their traffic: order, durability, events."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from nodepass.config import MasterConfig, parse_url
from nodepass.logs import Level, Log
from nodepass.master.accounts import GATHERING, RETRY
from nodepass.master.errors import ApiError
from nodepass.master.hosting import LogLine
from nodepass.master.hub import EventHub
from nodepass.master.logtail import LogTail
from nodepass.master.models import (
    GivenTotals,
    InstanceChange,
    MetaChange,
    NewInstance,
    PeerChange,
)
from nodepass.master.records import Record, Totals
from nodepass.master.registry import MAX_INSTANCES, Registry
from nodepass.master.running import RESTART_PAUSE
from nodepass.master.store import StoreError
from nodepass.meter import Stats

URL = "client://127.0.0.1:0/127.0.0.1:9?mode=1"
T = TypeVar("T")


class FakeStore:
    """Remembers what is durable; writes wait while it is slow, and fail while it is full."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.full = False
        self.slow = False
        self.waiting: list[tuple[Deferred[None], Any]] = []

    def put(self, record: Record) -> Deferred[None]:
        return self._write(lambda: self.records.__setitem__(record.id, record))

    def remove(self, id: str) -> Deferred[None]:
        return self._write(lambda: self.records.pop(id))

    def put_totals(self, totals: Mapping[str, Totals]) -> Deferred[None]:
        totals = dict(totals)

        def write() -> None:
            for id, each in totals.items():
                if id in self.records:
                    old = self.records[id]
                    self.records[id] = Record(
                        id=id, url=old.url, alias=old.alias, restart=old.restart,
                        meta=old.meta, totals=each,
                    )  # fmt: skip

        return self._write(write)

    def _write(self, change: Any) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.waiting.append((done, change))
        if not self.slow:
            self.work()
        return done

    def work(self) -> None:
        """Do what waits."""
        waiting, self.waiting = self.waiting, []
        for done, change in waiting:
            if self.full:
                done.errback(StoreError("the disk is full; make room"))
            else:
                change()
                done.callback(None)


class FakeHost:
    """Hosts instances on paper."""

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}
        self.urls: list[str] = []
        self.released: list[str] = []

    def host(self, id: str, url: str, source: str) -> int:
        self.urls.append(url)
        self.runs[id] = len(self.urls)
        return self.runs[id]

    def release(self, id: str) -> Deferred[None]:
        self.released.append(id)
        self.runs.pop(id, None)
        return succeed(None)


class Case:
    """A registry."""

    def __init__(self, url: str = "master://127.0.0.1:1") -> None:
        config = parse_url(url)
        assert isinstance(config, MasterConfig)
        self.clock = Clock()
        self.store = FakeStore()
        self.host = FakeHost()
        self.forgotten: list[str] = []
        self.history: list[Mapping[str, Totals]] = []
        self.hub = EventHub(lambda: ())
        store: Any = self.store
        self.registry = Registry(
            config,
            store,
            self.hub,
            LogTail(),
            self.clock,
            Log(Level.NONE),
            self.history.append,
            self.forgotten.append,
        )
        self.seen: list[tuple[str, str]] = []
        self.hub.subscribe(self._told)
        host: Any = self.host
        self.registry.start(host)

    def _told(self, data: bytes) -> None:
        event = msgspec.json.decode(data.partition(b"data: ")[2])
        self.seen.append((event["type"], event["instance"]["status"]))

    def create(self, **more: Any) -> str:
        return result(self.registry.create(NewInstance(url=URL, **more))).id

    def up(self, id: str) -> None:
        """Its run is up."""
        self.registry.status(id, self.host.runs[id], None)

    def report(self, id: str, count: int, run: int | None = None) -> None:
        """Its run has counted so much since it began."""
        stats = Stats(mode=1, tcp_rx=count, tcps=3)
        self.registry.counted([(id, run or self.host.runs[id], stats)])

    def change(self, id: str, **change: Any) -> Any:
        return result(self.registry.change(id, InstanceChange(**change)))


def result(awaitable: Awaitable[T]) -> T:
    """What a coroutine that does not wait returns."""
    found: list[Any] = []
    Deferred.fromCoroutine(awaitable).addBoth(found.append)  # type: ignore[arg-type]
    assert found, "it waits"
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]  # type: ignore[no-any-return]


def test_an_instance_is_there_when_it_is_durable() -> None:
    """Not before: no event, no start, no place in the list."""
    case = Case()
    case.store.slow = True
    creating = Deferred.fromCoroutine(case.registry.create(NewInstance(url=URL)))
    assert not case.seen and not list(case.registry) and not case.host.urls
    case.store.work()
    assert creating.called and case.seen == [("create", "stopped")]
    assert len(list(case.registry)) == 1 and case.host.urls == [URL]


def test_what_cannot_be_saved_does_not_happen() -> None:
    """Making, changing, replacing and deleting are refused with the reason; nothing is told."""
    case = Case()
    id = case.create()
    case.up(id)
    case.report(id, 100)
    case.clock.advance(GATHERING)
    before, seen = case.registry.get(id), list(case.seen)
    case.store.full = True
    for attempt in (
        lambda: case.registry.create(NewInstance(url=URL)),
        lambda: case.registry.change(id, InstanceChange(alias="x", action="stop")),
        lambda: case.registry.change(id, InstanceChange(action="reset")),
        lambda: case.registry.replace(id, URL + "&slot=1"),
        lambda: case.registry.delete(id),
    ):
        with pytest.raises(ApiError, match="disk is full") as caught:
            result(attempt())
        assert caught.value.status == 503
    assert case.registry.get(id) == before and case.seen == seen
    assert len(list(case.registry)) == 1 and not case.host.released


def test_a_restart_is_seen() -> None:
    """Clients see the instance stopped for a quarter second, in which it does not start."""
    case = Case()
    id = case.create()
    case.up(id)
    case.change(id, action="restart")
    assert case.seen[-1] == ("update", "stopped") and len(case.host.urls) == 1
    case.clock.advance(RESTART_PAUSE - 0.01)
    assert len(case.host.urls) == 1
    case.clock.advance(0.01)
    assert len(case.host.urls) == 2
    case.up(id)
    assert case.seen[-1] == ("update", "running")


@pytest.mark.parametrize("end", ["stop", "delete"])
def test_what_ends_in_a_restart_does_not_start(end: str) -> None:
    """No timer stays behind."""
    case = Case()
    id = case.create()
    case.up(id)
    case.change(id, action="restart")
    if end == "stop":
        case.change(id, action="stop")
    else:
        result(case.registry.delete(id))
    case.clock.advance(1)
    assert len(case.host.urls) == 1 and not case.clock.getDelayedCalls()


def test_status_is_that_of_the_present_run() -> None:
    """Late words of an earlier run change nothing; trouble is an error, and its end is not."""
    case = Case()
    id = case.create()
    case.up(id)
    old = case.host.runs[id]
    case.registry.status(id, old, "port in use")
    assert case.registry.get(id).status == "error"
    case.registry.status(id, old, None)
    assert case.registry.get(id).status == "running"
    case.change(id, action="stop")
    case.registry.status(id, old, None)
    assert case.registry.get(id).status == "stopped"


def test_start_from_error_begins_anew() -> None:
    """And start of one that runs does nothing."""
    case = Case()
    id = case.create()
    case.change(id, action="start")
    assert len(case.host.urls) == 1
    case.up(id)
    for _ in range(3):
        case.change(id, action="start")
    assert len(case.host.urls) == 1
    case.registry.status(id, case.host.runs[id], "port in use")
    case.change(id, action="start")
    case.clock.advance(1)
    assert len(case.host.urls) == 2


def test_totals_are_shown_when_they_are_durable() -> None:
    """And kept apart from the gauges, which are those of the moment."""
    case = Case()
    id = case.create()
    case.up(id)
    case.report(id, 100)
    assert case.registry.get(id).tcprx == 0 and case.registry.get(id).tcps == 3
    case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 100
    assert case.store.records[id].totals.tcprx == 100
    assert case.history == [{id: Totals(tcprx=100)}]
    case.change(id, action="stop")
    shown = case.registry.get(id)
    assert (shown.tcprx, shown.tcps) == (100, 0)


def test_totals_go_on_over_runs() -> None:
    """A run that drains counts for its instance, beside the one that took its place."""
    case = Case()
    id = case.create()
    case.up(id)
    first = case.host.runs[id]
    case.report(id, 100)
    case.change(id, action="restart")
    case.clock.advance(1)
    case.up(id)
    case.report(id, 7)
    case.report(id, 130, first)
    case.registry.ended(id, first)
    case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 137


def test_totals_never_run_backwards_on_disk() -> None:
    """A change of the alias while totals are being written does not undo them."""
    case = Case()
    id = case.create()
    case.up(id)
    case.report(id, 100)
    case.store.slow = True
    case.clock.advance(GATHERING)
    changing = Deferred.fromCoroutine(case.registry.change(id, InstanceChange(alias="x")))
    case.store.work()
    case.store.work()
    assert changing.called
    assert case.store.records[id].totals.tcprx == 100
    assert case.registry.get(id).tcprx == 100


def test_totals_wait_for_space() -> None:
    """What can't be written is tried again, with what has come since, and counted once."""
    case = Case()
    id = case.create()
    case.up(id)
    case.store.full = True
    case.report(id, 100)
    case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 0
    assert case.registry.get(id).tcps == 3 and case.seen[-1] == ("update", "running")
    case.store.full = False
    case.report(id, 150)
    case.clock.advance(RETRY)
    assert case.registry.get(id).tcprx == 150
    assert case.store.records[id].totals.tcprx == 150


def test_reset_counts_from_zero() -> None:
    """What was counted before it does not come back, whenever it is written."""
    case = Case()
    id = case.create()
    case.up(id)
    case.report(id, 100)
    assert case.change(id, action="reset").tcprx == 0
    case.clock.advance(GATHERING)
    case.report(id, 120)  # counted before the reset, for all that anybody knows
    case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 0
    case.report(id, 150)
    case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 30
    assert case.store.records[id].totals.tcprx == 30


def test_a_deleted_instance_stays_deleted() -> None:
    """Whatever is still said of it."""
    case = Case()
    id = case.create()
    case.up(id)
    run = case.host.runs[id]
    case.report(id, 5)
    result(case.registry.delete(id))
    assert case.seen[-2:] == [("update", "stopped"), ("delete", "stopped")]
    count = len(case.seen)
    case.registry.status(id, run, None)
    case.registry.counted([(id, run, Stats(tcp_rx=9))])
    case.registry.logged(id, run, LogLine(0.0, Level.INFO, "late"))
    case.registry.ended(id, run)
    case.clock.advance(RETRY)
    assert len(case.seen) == count and not case.store.records
    assert case.forgotten == [id]
    with pytest.raises(ApiError) as caught:
        case.registry.get(id)
    assert caught.value.status == 404


def test_the_next_one_waits_its_turn() -> None:
    """What is asked of one instance is done in order; who comes after the end is told so."""
    case = Case()
    id = case.create()
    case.store.slow = True
    deleting = Deferred.fromCoroutine(case.registry.delete(id))
    changing = Deferred.fromCoroutine(case.registry.change(id, InstanceChange(alias="x")))
    case.store.work()
    assert deleting.called
    failure = case_failure(changing)
    assert isinstance(failure, ApiError) and failure.status == 404


def case_failure(deferred: Deferred[Any]) -> Exception | None:
    """What a Deferred failed with."""
    found: list[Any] = []
    deferred.addErrback(found.append)
    return found[0].value if found else None  # type: ignore[no-any-return]


def test_instances_that_move_here() -> None:
    """Keep alias, policy, meta and totals, and their id where it is free."""
    case = Case()
    more: dict[str, Any] = {
        "id": "0123abcd",
        "alias": "a",
        "restart": False,
        "meta": MetaChange(peer=PeerChange(sid="s"), tags={"k": "v"}),
        "totals": GivenTotals(tcprx=5, udptx=6),
    }
    assert case.create(**more) == "0123abcd"
    shown = case.registry.get("0123abcd")
    assert (shown.alias, shown.restart, shown.tcprx, shown.udptx) == ("a", False, 5, 6)
    assert (shown.meta.peer.sid, shown.meta.tags) == ("s", {"k": "v"})
    assert case.create(**more) != "0123abcd"
    assert case.create(id="../../etc") != "../../etc"


def test_moved_by_its_host() -> None:
    """An instance whose worker died is shown as stopped until it runs again, with what it had
    counted."""
    case = Case()
    id = case.create()
    case.up(id)
    old = case.host.runs[id]
    case.report(id, 50)
    case.registry.moved(id, old, 77)
    assert case.registry.get(id).status == "stopped"
    case.registry.status(id, 77, None)
    assert case.registry.get(id).status == "stopped"
    case.clock.advance(RESTART_PAUSE)
    assert case.registry.get(id).status == "running"
    case.report(id, 8, 77)
    case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 58


def test_at_start() -> None:
    """Those that start with the master are hosted; a URL that can't be used any more is shown as
    an error, and can be replaced."""
    case = Case()
    case.registry.load(
        [
            Record(id="00000001", url=URL),
            Record(id="00000002", url=URL, restart=False),
            Record(id="00000003", url="client://:1/:2?mode=9"),
        ]
    )
    host: Any = case.host
    case.registry.start(host)
    assert set(case.host.runs) == {"00000001"}
    assert [each.status for each in case.registry] == ["stopped", "stopped", "error"]
    result(case.registry.replace("00000003", URL))
    case.clock.advance(1)
    assert set(case.host.runs) == {"00000001", "00000003"}


def test_there_is_a_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that runs away is stopped."""
    monkeypatch.setattr("nodepass.master.registry.MAX_INSTANCES", 2)
    assert MAX_INSTANCES > 1000
    case = Case()
    case.create()
    case.create()
    with pytest.raises(ApiError, match="delete one"):
        case.create()


def test_after_the_stop_nothing_starts() -> None:
    """Not even what was due."""
    case = Case()
    id = case.create()
    case.up(id)
    case.change(id, action="restart")
    case.registry.stop()
    case.clock.advance(1)
    assert len(case.host.urls) == 1 and not case.clock.getDelayedCalls()


def test_a_change_and_a_reset_are_one() -> None:
    """Where they can't be saved, neither is done."""
    case = Case()
    id = case.create()
    case.up(id)
    case.report(id, 100)
    case.clock.advance(GATHERING)
    case.store.full = True
    with pytest.raises(ApiError):
        case.change(id, alias="x", action="reset")
    assert (case.registry.get(id).alias, case.registry.get(id).tcprx) == ("", 100)
    case.store.full = False
    case.change(id, alias="x", action="reset")
    assert case.store.records[id].alias == "x"
    assert case.store.records[id].totals.tcprx == 0


def test_what_is_counted_in_a_reset_waits_for_it() -> None:
    """No total is written that the reset would have to undo."""
    case = Case()
    id = case.create()
    case.up(id)
    case.store.slow = True
    resetting = Deferred.fromCoroutine(case.registry.change(id, InstanceChange(action="reset")))
    case.report(id, 100)
    case.clock.advance(GATHERING)
    assert len(case.store.waiting) == 1
    case.store.work()
    case.store.work()
    assert resetting.called
    assert case.store.records[id].totals.tcprx == case.registry.get(id).tcprx == 0


def test_counters_that_fall_are_not_counted_twice() -> None:
    """A run that shows nothing for a moment goes on where it was."""
    case = Case()
    id = case.create()
    case.up(id)
    for count in (1000, 0, 1000, 1200):
        case.report(id, count)
        case.clock.advance(GATHERING)
    assert case.registry.get(id).tcprx == 1200


def test_an_id_that_is_used_again() -> None:
    """What the one before still says while it drains is not the new one's."""
    case = Case()
    case.create(id="0123abcd")
    case.up("0123abcd")
    old = case.host.runs["0123abcd"]
    case.report("0123abcd", 100)
    result(case.registry.delete("0123abcd"))
    assert case.create(id="0123abcd") == "0123abcd"
    case.report("0123abcd", 150, old)
    count = len(case.seen)
    case.registry.logged("0123abcd", old, LogLine(0.0, Level.INFO, "late"))
    case.clock.advance(GATHERING)
    assert case.registry.get("0123abcd").tcprx == 0 and len(case.seen) == count
