"""Events of the master: their bytes, who gets which, and what is kept for those who come back."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodepass.logs import Level
from nodepass.master import hub as hub_module
from nodepass.master.hosting import LogLine
from nodepass.master.hub import CUT, EventHub, log_event_text
from nodepass.master.models import MASTER_ID, Instance, Meta, Peer

KEY = Instance(id=MASTER_ID, url="0123456789abcdef0123456789abcdef")
ONE = Instance(id="00000001", type="server", status="running", url="server://:1/:2?a=1&b=<2>")
TWO = Instance(id="00000002", type="client", status="stopped")

WHEN = 1_700_000_000.25
COLOURS = re.compile("\x1b\\[[0-9;]*m")


class Named(Instance, weakref=True, frozen=True, kw_only=True):
    """An instance whose end can be noticed."""


class Bench:
    """A hub with three instances."""

    def __init__(self) -> None:
        self.instances = [KEY, ONE, TWO]
        self.hub = EventHub(lambda: self.instances, lambda: WHEN)

    def subscribe(self, **options: object) -> tuple[list[bytes], list[bytes]]:
        """Subscribe; return the backlog, and the list that later events are added to."""
        events: list[bytes] = []
        subscription = self.hub.subscribe(events.append, **options)  # type: ignore[arg-type]
        return list(subscription.backlog), events


def fields(event: bytes) -> dict[str, str]:
    """The fields of an event; it has each once and ends as events do."""
    assert event.endswith(b"\n\n")
    lines = event[:-2].decode().split("\n")
    pairs = dict(line.split(": ", 1) for line in lines)
    assert len(pairs) == len(lines)
    return pairs


def data(event: bytes) -> dict[str, object]:
    """What an event says."""
    result: dict[str, object] = json.loads(fields(event)["data"])
    return result


def kinds(events: list[bytes]) -> list[tuple[object, object]]:
    """Type and instance of each event."""
    result = []
    for event in events:
        said = data(event)
        instance = said["instance"]
        result.append((said["type"], instance["id"] if isinstance(instance, dict) else None))
    return result


@pytest.fixture
def bench() -> Bench:
    """A hub."""
    return Bench()


def test_bytes_of_an_event(bench: Bench) -> None:
    """An event is two lines and a blank one; its JSON has no blanks and keys in their order."""
    _, events = bench.subscribe()
    bench.hub.publish("update", ONE)
    when = datetime.fromtimestamp(WHEN).astimezone().isoformat(timespec="milliseconds")
    assert events == [
        b'event: instance\ndata: {"type":"update","time":"' + when.encode() + b'","instance":'
        b'{"id":"00000001","alias":"","type":"server","status":"running",'
        b'"url":"server://:1/:2?a=1\\u0026b=\\u003c2\\u003e","config":"","restart":false,'
        b'"meta":{"peer":{"sid":"","type":"","alias":""},"tags":{}},"mode":0,"ping":0,"pool":0,'
        b'"tcps":0,"udps":0,"tcprx":0,"tcptx":0,"udprx":0,"udptx":0},"logs":""}\n\n'
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", when)


def test_shutdown_has_no_instance(bench: Bench) -> None:
    """The event before the end has null for the instance, and reaches those who filter, too."""
    _, events = bench.subscribe(types=frozenset(["log"]), instance="00000001", resume=True)
    bench.hub.publish("shutdown", None)
    assert data(events[0]) | {"time": ""} == {
        "type": "shutdown", "time": "", "instance": None, "logs": ""
    }  # fmt: skip
    assert list(fields(events[0])) == ["event", "data"]


def test_initial_comes_first_as_it_was(bench: Bench) -> None:
    """The backlog has all instances in their order, as they were when it was asked for."""
    events: list[bytes] = []
    subscription = bench.hub.subscribe(events.append)
    bench.instances = [KEY]
    bench.hub.publish("delete", ONE)
    backlog = list(subscription.backlog)
    assert kinds(backlog) == [("initial", each.id) for each in (KEY, ONE, TWO)]
    assert kinds(events) == [("delete", ONE.id)]


def test_everybody_gets_the_same_object(bench: Bench) -> None:
    """An event is encoded once, however many get it."""
    streams = [bench.subscribe()[1] for _ in range(3)]
    with_id = [bench.subscribe(resume=True)[1] for _ in range(3)]
    bench.hub.publish("update", ONE)
    assert len({id(events[0]) for events in streams}) == 1
    assert len({id(events[0]) for events in with_id}) == 1


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"types": frozenset({"initial"})}])
def test_backlogs_share_their_instances(options: dict[str, Any]) -> None:
    """Many subscribers who read nothing hold the instances once, also where some have changed."""
    made: list[weakref.ref[Named]] = []
    numbers = [0, 0]

    def instances() -> Iterator[Instance]:
        for place, number in enumerate(numbers):
            instance = Named(id=f"0000000{place}", tcprx=number)
            made.append(weakref.ref(instance))
            yield instance

    hub = EventHub(instances)
    subscriptions = []
    for number in (0, 7):
        numbers[1] = number
        for _ in range(5):
            subscription = hub.subscribe(lambda event: None, **options)
            next(subscription.backlog)
            subscriptions.append(subscription)
    gc.collect()
    assert sum(reference() is not None for reference in made) == 3
    seen = [data(event) for each in subscriptions for event in each.backlog]
    assert [each["instance"]["tcprx"] for each in seen] == [0] * 5 + [7] * 5  # type: ignore[index]


def test_filters(bench: Bench) -> None:
    """A subscriber gets the types and the instance that it asked for, of the backlog as well."""
    backlog, logs = bench.subscribe(types=frozenset(["log", "create"]))
    assert backlog == []
    backlog, ones = bench.subscribe(instance=ONE.id)
    assert kinds(backlog) == [("initial", ONE.id)]
    for type, instance in [("create", TWO), ("update", ONE), ("log", ONE), ("log", TWO)]:
        bench.hub.publish(type, instance)
    assert kinds(logs) == [("create", TWO.id), ("log", ONE.id), ("log", TWO.id)]
    assert kinds(ones) == [("update", ONE.id), ("log", ONE.id)]


def test_cancelled_subscription_gets_nothing(bench: Bench) -> None:
    """After `cancel`, even in the middle of an event, a sink is left alone; others are not."""
    first: list[bytes] = []
    second: list[bytes] = []
    subscriptions = [bench.hub.subscribe(lambda event: (first.append(event), cancel()))]  # type: ignore[func-returns-value]
    bench.hub.subscribe(second.append)

    def cancel() -> None:
        subscriptions[0].cancel()

    bench.hub.publish("update", ONE)
    bench.hub.publish("update", TWO)
    subscriptions[0].cancel()
    assert (len(first), len(second), bench.hub.subscribers) == (1, 2, 1)


def test_nothing_after_close(bench: Bench) -> None:
    """A closed hub gives nobody anything."""
    _, events = bench.subscribe()
    bench.hub.close()
    bench.hub.publish("update", ONE)
    bench.hub.publish("shutdown", None)
    assert events == []


def test_ids_only_where_asked_for(bench: Bench) -> None:
    """Without resume no event has an id, with it the last of `initial` and all after it have."""
    backlog, events = bench.subscribe(last_id="x")
    bench.hub.publish("update", ONE)
    assert all("id" not in fields(event) for event in [*backlog, *events])
    backlog, events = bench.subscribe(resume=True)
    bench.hub.publish("update", ONE)
    ids = [fields(event).get("id", "") for event in [*backlog, *events]]
    assert ids[:2] == ["", ""]
    boot, number = re.fullmatch("([0-9a-f]{8})-([0-9]+)", ids[2]).groups()  # type: ignore[union-attr]
    assert ids[3] == f"{boot}-{int(number) + 1}"
    assert events[0].startswith(b"id: ")


def test_resume_replays_what_was_missed(bench: Bench) -> None:
    """Whoever comes back with an id gets what followed it, with the same ids, and no `initial`."""
    _, events = bench.subscribe(resume=True)
    for type in ("create", "update", "log"):
        bench.hub.publish(type, ONE)
    bench.hub.publish("shutdown", None)
    last = fields(events[0])["id"]
    again, more = bench.subscribe(resume=True, last_id=last)
    assert again == events[1:3]
    bench.hub.publish("update", TWO)
    assert kinds(more) == [("update", TWO.id)]
    # What is filtered is filtered here, too.
    again, _ = bench.subscribe(resume=True, last_id=last, types=frozenset(["log"]))
    assert again == events[2:3]


def test_resume_from_initial(bench: Bench) -> None:
    """The id of the last `initial` event stands for all that came before."""
    bench.hub.publish("update", ONE)
    backlog, _ = bench.subscribe(resume=True)
    bench.hub.publish("update", TWO)
    again, _ = bench.subscribe(resume=True, last_id=fields(backlog[-1])["id"])
    assert kinds(again) == [("update", TWO.id)]


@pytest.mark.parametrize(
    "last", [None, "", "x", "-1", "{boot}", "{boot}-", "{boot}-x", "{boot}-99", "{boot}--1",
             "{boot}-" + "9" * 5000, "00000000-1"]
)  # fmt: skip
def test_unknown_id_gets_initial(bench: Bench, last: str | None) -> None:
    """An id of another boot, of the future or of nobody's making is answered with `initial`."""
    _, events = bench.subscribe(resume=True)
    bench.hub.publish("update", ONE)
    boot = fields(events[0])["id"].partition("-")[0]
    last = None if last is None else last.replace("{boot}", boot)
    backlog, _ = bench.subscribe(resume=True, last_id=last)
    assert len(backlog) == 3 and all(data(event)["type"] == "initial" for event in backlog)


def test_journal_is_bounded_in_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many events are kept; an id that is older gets `initial`."""
    monkeypatch.setattr(hub_module, "JOURNAL_EVENTS", 5)
    _, events = bench.subscribe(resume=True)
    for _ in range(8):
        bench.hub.publish("update", ONE)
    ids = [fields(event)["id"] for event in events]
    # The five last are kept, so that the third is the oldest that can be gone on from.
    assert bench.subscribe(resume=True, last_id=ids[2])[0] == events[3:]
    assert len(bench.subscribe(resume=True, last_id=ids[1])[0]) == 3
    assert bench.subscribe(resume=True, last_id=ids[7])[0] == []


def test_journal_is_bounded_in_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long events push out more of the old ones than short ones."""
    monkeypatch.setattr(hub_module, "JOURNAL_BYTES", 10_000)
    _, events = bench.subscribe(resume=True)
    for _ in range(5):
        bench.hub.publish("update", ONE)
    bench.hub.publish("log", ONE, "x" * 9000)
    bench.hub.publish("log", ONE, "x" * 9000)
    assert sum(len(entry.data) for entry in bench.hub._journal) <= 10_000
    ids = [fields(event)["id"] for event in events]
    assert bench.subscribe(resume=True, last_id=ids[5])[0] == events[6:]
    assert len(bench.subscribe(resume=True, last_id=ids[4])[0]) == 3


def test_log_line_of_an_event() -> None:
    """A log line has its colour, and the form that clients look for without it."""
    for level, code in [(Level.DEBUG, 34), (Level.INFO, 32), (Level.WARN, 33), (Level.ERROR, 31)]:
        text = log_event_text(LogLine(WHEN, level, "joined  by 1.2.3.4"))
        stamp = datetime.fromtimestamp(WHEN)
        assert text == (
            f"{stamp:%Y-%m-%d %H:%M:%S}.250  \x1b[{code}m{level.name} \x1b[0m  joined  by 1.2.3.4"
        )
        match = re.match(
            r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\s+([A-Z]+)\s+(.*)$", COLOURS.sub("", text)
        )
        assert match is not None and match.groups() == (level.name, "joined  by 1.2.3.4")


def published(instance: Instance, logs: str) -> list[bytes]:
    """One event as two subscribers get it, without and with an id."""
    bench = Bench()
    plain, with_id = bench.subscribe()[1], bench.subscribe(resume=True)[1]
    bench.hub.publish("log", instance, logs)
    return [*plain, *with_id]


PIECES = st.sampled_from(
    ["x", "&", "\x1b[31m", "\x1b[0m", "\x00", "é", "漢", "😀", '"', "\\", "\n"]
)


def long_texts() -> st.SearchStrategy[str]:
    """Texts around and above the limit, of pieces that take from 1 to 6 bytes a character."""
    return st.builds(
        lambda pieces, times, rest: "".join(pieces) * times + rest,
        st.lists(PIECES, min_size=1, max_size=8), st.integers(8_000, 20_000), st.text(max_size=5),
    )  # fmt: skip


@given(long_texts())
@example("x" * 64_900 + "\x1b[31m" * 100)
def test_long_lines_are_cut_cleanly(text: str) -> None:
    """However long a line is, its event stays under 64 KiB, is JSON, and is cut at a character."""
    for event in published(ONE, text):
        assert len(event) < 65_536
        logs = data(event)["logs"]
        assert isinstance(logs, str)
        if logs != text:
            assert logs.endswith(CUT)
            kept = logs.removesuffix(CUT)
            assert text.startswith(kept)
            # No colour code is left half: what follows the last ESC in the text is there whole.
            code = re.compile("\x1b\\[[0-9;]*m")
            assert len(code.sub("", kept)) == len(kept) - sum(map(len, code.findall(kept)))
            assert "\x1b" not in code.sub("", kept)
            # And no more was cut than had to be.
            assert len(event) > 65_000 - 100


def huge_instances() -> Iterator[Instance]:
    """Instances that no event has room for as they are."""
    tags = {str(number): "&" * 256 for number in range(400)}
    yield Instance(id="00000001", meta=Meta(peer=Peer(alias="p"), tags=tags))
    yield Instance(id="00000001", url="server://" + "é" * 400_000)
    yield Instance(
        id="00000001", alias="&" * 256, url="&" * 500_000, config="<" * 500_000,
        meta=Meta(peer=Peer("&" * 256, "&" * 256, "&" * 256), tags=tags),
    )  # fmt: skip


@pytest.mark.parametrize("instance", list(huge_instances()))
def test_huge_instances_fit(instance: Instance) -> None:
    """A huge URL or huge tags give an event that is cut, not one that breaks its readers."""
    for event in published(instance, "x" * 100_000):
        assert len(event) < 65_536
        said = data(event)["instance"]
        assert isinstance(said, dict)
        assert said["id"] == instance.id and said["alias"] == instance.alias
        assert said["meta"]["peer"]["alias"] == instance.meta.peer.alias
        assert said["url"] == instance.url or said["url"].endswith(CUT)
