"""The event stream of a whole master: what is told, in which order, and how it ends."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor

from nodepass.address import Endpoint
from tests.scenarios.harness import sleep
from tests.scenarios.masters import KEY, Listener, master
from tests.scenarios.programs import connect, echo, listen

FORWARDER = "client://127.0.0.1:0/127.0.0.1:9?mode=1"
LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\s+([A-Z]+)\s+(.*)$")


def restart_of(listener: Listener, id: str) -> tuple[datetime, datetime]:
    """When an instance was shown as stopped, and when as running after it."""
    stopped = None
    for event in listener.events:
        if event["type"] == "update" and event["instance"]["id"] == id:
            when = datetime.fromisoformat(event["time"])
            if event["instance"]["status"] == "stopped":
                stopped = stopped or when
            elif stopped is not None:
                return stopped, when
    raise AssertionError("it was not restarted")


@pytest_twisted.ensureDeferred
async def test_from_create_to_delete(tmp_path: Path) -> None:
    """A subscriber first gets all there is, the API key first; then an instance is created, runs,
    is restarted (stopped, and a quarter second later running), gets another URL the same way, and
    is stopped before it is deleted, after which nothing more comes of it."""
    running = await master(tmp_path)
    api = running.api
    other = (await api.create(FORWARDER))["id"]
    await api.becomes(other, "running")
    listener = await api.events()
    await listener.sees(lambda events: len(events) >= 2)
    assert listener.raw.startswith(b"retry: 3000\n\nevent: instance\ndata: {")
    assert b"\nid:" not in listener.raw
    headers = listener.response.headers
    assert headers.getRawHeaders("Content-Type") == ["text/event-stream"]
    assert headers.getRawHeaders("Cache-Control") == ["no-cache"]
    first = [(event["type"], event["instance"]["id"]) for event in listener.events[:2]]
    assert first == [("initial", "********"), ("initial", other)]
    assert list(listener.events[0]) == ["type", "time", "instance", "logs"]

    id = (await api.create(FORWARDER))["id"]

    def told(*expected: tuple[str, str]) -> bool:
        # Checkpoints show an instance as it is, and may come at any time.
        kept: list[tuple[str, str]] = []
        for step in listener.of(id):
            if not (kept and step == kept[-1]):
                kept.append(step)
        return kept == list(expected)

    began = [("create", "stopped"), ("update", "running")]
    await listener.sees(lambda _: told(*began))
    await api.call("PATCH", f"/instances/{id}", {"action": "restart"})
    again = [*began, ("update", "stopped"), ("update", "running")]
    await listener.sees(lambda _: told(*again))
    stopped, started = restart_of(listener, id)
    assert 0.25 <= (started - stopped).total_seconds() < 2
    url = FORWARDER + "&slot=9"
    await api.call("PUT", f"/instances/{id}", {"url": url})
    swapped = [*again, *again[2:]]
    await listener.sees(lambda _: told(*swapped))
    urls = [
        event["instance"]["url"]
        for event in listener.events
        if event["type"] == "update" and event["instance"]["id"] == id
    ]
    assert urls[-1] == url
    await api.call("DELETE", f"/instances/{id}")
    await listener.sees(lambda _: told(*swapped, ("update", "stopped"), ("delete", "stopped")))
    await sleep(0.6)
    assert listener.of(id)[-1] == ("delete", "stopped")
    logs = [event for event in listener.events if event["type"] == "log"]
    assert logs
    for event in logs:
        assert LINE.match(re.sub("\x1b\\[[0-9;]*m", "", event["logs"]))
        assert "CHECK_POINT" not in event["logs"]
    await running.stop()
    assert await listener.ended is True
    assert listener.events[-1]["type"] == "shutdown"
    assert listener.events[-1]["instance"] is None


@pytest_twisted.ensureDeferred
async def test_each_change_is_one_event(tmp_path: Path) -> None:
    """Alias, restart policy, meta and reset: an update each, though one request asks for all; each
    shows the instance as it was then."""
    running = await master(tmp_path)
    api = running.api
    id = (await api.create(FORWARDER))["id"]
    await api.becomes(id, "running")
    await api.call("PATCH", f"/instances/{id}", {"action": "stop"})
    listener = await api.events(f"?instance={id}&types=update")
    change = {"alias": "a", "restart": False, "meta": {"tags": {"x": "y"}}, "action": "reset"}
    assert (await api.call("PATCH", f"/instances/{id}", change)).status == 200
    await listener.sees(lambda events: len(events) == 4)
    shown = [event["instance"] for event in listener.events]
    assert [each["restart"] for each in shown] == [True, False, False, False]
    assert [bool(each["meta"]["tags"]) for each in shown] == [False, False, True, True]
    await sleep(0.3)
    assert len(listener.events) == 4
    await listener.close()
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_key_rotation(tmp_path: Path) -> None:
    """The answer has the new key; subscribers get it in an update, then shutdown, and their stream
    ends as complete. The old key is of no use any more, nor after a restart."""
    running = await master(tmp_path)
    api = running.api
    old = api.key
    listener = await api.events()
    await listener.sees(lambda events: len(events) == 1)
    answer = await api.call("PATCH", "/instances/********", {"action": "restart"})
    new = answer.json()["url"]
    assert re.fullmatch("[0-9a-f]{32}", new) and new != old
    assert await listener.ended is True
    told = [(event["type"], (event["instance"] or {}).get("url")) for event in listener.events[1:]]
    assert told == [("update", new), ("shutdown", None)]
    assert (await api.call("GET", "/info", key=old)).status == 401
    assert (await api.call("GET", "/info", key=new)).status == 200
    await running.stop()
    running = await master(tmp_path)
    assert running.api.key == new
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_resumption(tmp_path: Path) -> None:
    """With resume=1 events have ids, and who comes back with the last one gets what came since
    instead of everything; an id of another life of the master counts for nothing."""
    running = await master(tmp_path)
    api = running.api
    id = (await api.create(FORWARDER))["id"]
    await api.becomes(id, "running")
    await api.call("PATCH", f"/instances/{id}", {"action": "stop"})
    await sleep(0.3)
    listener = await api.events("?resume=1")
    await listener.sees(lambda events: len(events) == 2)
    last = re.findall(rb"\nid: (\S+)\n", b"\n" + listener.raw)[-1].decode()
    await listener.close()
    await api.call("PATCH", f"/instances/{id}", {"alias": "since"})
    again = await api.events("?resume=1", last)
    await again.sees(lambda events: len(events) == 1)
    assert again.events[0]["type"] == "update"
    assert again.events[0]["instance"]["alias"] == "since"
    await again.close()
    await running.stop()
    running = await master(tmp_path)
    late = await running.api.events("?resume=1", last)
    await late.sees(lambda events: len(events) >= 1)
    assert late.events[0]["type"] == "initial"
    await late.close()
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_traffic_counts_for_good(tmp_path: Path) -> None:
    """What visitors move shows in the totals and the history, survives stop, start and the master,
    and is zeroed by reset alone."""
    target = listen(echo)
    running = await master(tmp_path)
    api = running.api
    id = (await api.create(f"client://{KEY}@127.0.0.1:0/{target.endpoint}?mode=1"))["id"]
    await api.becomes(id, "running")
    text = (await api.call("GET", f"/instances/{id}/logs")).body.decode()
    found = re.search(r"listening for visitors on 127\.0\.0\.1:(\d+)", text)
    assert found is not None
    size = 100_000
    visitor = await connect(Endpoint("127.0.0.1", int(found[1])))
    visitor.write(b"x" * size)
    assert len(await visitor.read(size)) == size
    visitor.finish()
    await visitor.read_all()
    await visitor.end()

    async def totals() -> tuple[int, int]:
        shown = await api.get(id)
        return shown["tcprx"], shown["tcptx"]

    deadline = reactor.seconds() + 10
    while (await totals())[0] < size:
        assert reactor.seconds() < deadline
    counted = await totals()
    await api.call("PATCH", f"/instances/{id}", {"action": "restart"})
    await api.becomes(id, "running")
    assert await totals() == counted
    history = (await api.call("GET", f"/instances/{id}/traffic")).json()
    assert history["id"] == id and list(history) == ["id", "step", "points"]
    assert sum(point[1] for point in history["points"]) == counted[0]
    assert (await api.call("GET", f"/instances/{id}/traffic?since=9&until=8")).status == 400
    await running.stop()
    running = await master(tmp_path)
    api = running.api
    assert await totals() == counted
    answer = await api.call("PATCH", f"/instances/{id}", {"action": "reset"})
    assert answer.json()["tcprx"] == 0
    await running.stop()
    await target.stop()
