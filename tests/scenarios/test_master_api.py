"""The HTTP interface, row by row, with what dashboards and scripts rely on byte by byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.scenarios.harness import sleep
from tests.scenarios.masters import KEY, Caller, Running, master

INSTANCE_KEYS = (
    "id alias type status url config restart meta mode ping pool tcps udps tcprx tcptx udprx udptx"
).split()
INFO_KEYS = (
    "alias arch cpu crt diskr diskw key log mem_free mem_total mem_used mid name netrx nettx os "
    "swap_free swap_total swap_used sysup tls uptime ver"
).split()
SERVER = f"server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1"
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, PATCH, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, X-API-Key, Cache-Control",
}


def error(message: str) -> bytes:
    return b'{"error":"%s"}\n' % message.encode()


@pytest_twisted.ensureDeferred
async def test_instances_are_made_and_listed(tmp_path: Path) -> None:
    """POST answers at once with the instance, whose keys have their order; the list has the API
    key first; bodies are compact, end in one line feed, and hide &, < and > as escapes."""
    running = await master(tmp_path)
    api = running.api
    url = SERVER + "&read=1h"
    answer = await api.call("POST", "/instances", {"url": url, "alias": "<a&b>", "unknown": [1]})
    assert answer.status == 201
    assert answer.header("Content-Type") == "application/json"
    assert answer.body.endswith(b"}\n") and answer.body.count(b"\n") == 1
    assert b'"alias":"\\u003ca\\u0026b\\u003e"' in answer.body
    assert re.match(rb'\{"id":"[0-9a-f]{8}","alias":', answer.body)
    made = answer.json()
    assert list(made) == INSTANCE_KEYS
    assert (made["url"], made["type"], made["restart"]) == (url, "server", True)
    assert made["meta"] == {"peer": {"sid": "", "type": "", "alias": ""}, "tags": {}}
    assert made["config"].startswith(f"server://{KEY}@127.0.0.1:0/127.0.0.1:0?log=info&tls=0&")
    shown = await api.becomes(made["id"], "running")
    assert not any(isinstance(value, float) or value is None for value in shown.values())
    second = await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1")
    listed = (await api.call("GET", "/instances")).json()
    assert [each["id"] for each in listed] == ["********", made["id"], second["id"]]
    key = listed[0]
    assert list(key) == INSTANCE_KEYS
    assert (key["url"], key["type"], key["status"]) == (api.key, "", "")
    assert re.fullmatch("[0-9a-f]{32}", key["url"])
    assert re.fullmatch("[0-9a-f]{16}", key["config"])
    assert (await api.get("********")) == key
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_refusals(tmp_path: Path) -> None:
    """Each refusal has its status and its text; nothing was applied."""
    running = await master(tmp_path)
    api = running.api
    id = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1"))["id"]
    while (before := await api.becomes(id, "running"))["mode"] == 0:
        await sleep(0.02)  # its mode comes with its first counters
    long = "x" * 257
    body = "Invalid request body"
    rows: list[tuple[str, str, Any, int, str]] = [
        ("POST", "/instances", b"{", 400, body),
        ("POST", "/instances", b"[]", 400, body),
        ("POST", "/instances", b"null", 400, body),
        ("POST", "/instances", b"", 400, body),
        ("POST", "/instances", {"url": 7}, 400, body),
        ("POST", "/instances", {"url": SERVER, "alias": []}, 400, body),
        ("POST", "/instances", {}, 400, body),
        ("POST", "/instances", {"url": "hello"}, 400, "Invalid URL format"),
        ("POST", "/instances", {"url": "master://:1"}, 400, "Invalid URL scheme"),
        ("POST", "/instances", {"url": "http://a:1/b:2"}, 400, "Invalid URL scheme"),
        (
            "POST", "/instances", {"url": "server://:1/:2?mode=7"}, 400,
            "mode=7: accepted: 0, 1 or 2",
        ),
        (
            "POST", "/instances", {"url": SERVER, "alias": long}, 400,
            "Instance alias exceeds maximum length 256",
        ),
        ("PATCH", f"/instances/{id}", b"[1]", 400, body),
        ("PATCH", f"/instances/{id}", {"alias": "n", "action": "fly"}, 400, "Invalid action: fly"),
        ("PATCH", f"/instances/{id}", {"alias": "new", "restart": "no"}, 400, body),
        (
            "PATCH", f"/instances/{id}", {"alias": "new", "meta": {"tags": {long: ""}}}, 400,
            "Meta tag key exceeds maximum length 256",
        ),
        (
            "PATCH", f"/instances/{id}", {"meta": {"tags": {"a": long}}}, 400,
            "Meta tag value exceeds maximum length 256",
        ),
        (
            "PATCH", f"/instances/{id}", {"meta": {"peer": {"sid": long}}}, 400,
            "Meta peer.sid exceeds maximum length 256",
        ),
        ("PATCH", f"/instances/{id}", {"meta": {"peer": {"type": 1}}}, 400, body),
        ("PUT", f"/instances/{id}", {}, 400, body),
        ("PUT", f"/instances/{id}", {"url": "x"}, 400, "Invalid URL format"),
        ("PUT", f"/instances/{id}", {"url": before["url"]}, 409, "Instance URL conflict"),
        ("PUT", "/instances/********", {"url": SERVER}, 403, "Forbidden: API Key"),
        ("PUT", "/instances/********", b"[", 403, "Forbidden: API Key"),
        ("DELETE", "/instances/********", None, 403, "Forbidden: API Key"),
        ("GET", "/instances/", None, 400, "Instance ID is required"),
        ("GET", "/instances/00000000", None, 404, "Instance not found"),
        ("POST", "/instances/00000000", None, 404, "Instance not found"),
        ("GET", f"/instances/{id}/", None, 404, "Instance not found"),
        ("GET", f"/instances/{id}/more", None, 404, "Instance not found"),
        ("GET", "/instances/00000000/logs", None, 404, "Instance not found"),
        ("POST", f"/instances/{id}", None, 405, "Method not allowed"),
        ("DELETE", "/instances", None, 405, "Method not allowed"),
        ("PUT", "/info", None, 405, "Method not allowed"),
        ("POST", "/info", b"[", 400, body),
        ("POST", "/info", {"alias": long}, 400, "Master alias exceeds maximum length 256"),
        ("GET", "/tcping", None, 400, "Target address required"),
        ("GET", f"/instances/{id}/logs?lines=x", None, 400,
         "Invalid lines: an integer from 0 to 10000 is accepted"),
    ]  # fmt: skip
    for method, path, sent, status, message in rows:
        answer = await api.call(method, path, sent)
        assert (answer.status, answer.body) == (status, error(message)), (method, path, sent)
        assert answer.header("Content-Type") == "application/json"
        for name, value in CORS.items():
            assert answer.header(name) == value
    assert await api.get(id) == before
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_order_of_checks(tmp_path: Path) -> None:
    """OPTIONS needs no key; then the key, then whether it is there, then the method. What has no
    route is a plain 404, and doubled slashes make no difference."""
    running = await master(tmp_path, prefix="/a/b/")
    api = running.api
    assert api.prefix == "/a/b"
    for path in ("/instances", "/instances/x", "/events", "/info", "/docs/swagger-ui.css"):
        answer = await api.call("OPTIONS", path, key=None)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.header("Access-Control-Allow-Headers") == CORS["Access-Control-Allow-Headers"]
    required, invalid = "Unauthorized: API key required", "Unauthorized: Invalid API key"
    for method, path in (("GET", "/instances"), ("PATCH", "/instances/no"), ("PUT", "/info")):
        answer = await api.call(method, path, key=None)
        assert (answer.status, answer.body) == (401, error(required))
        answer = await api.call(method, path, key="0" * 32)
        assert (answer.status, answer.body) == (401, error(invalid))
    for path in ("/nothing", "/info/", "/instance"):
        answer = await api.call("GET", path, key=None)
        assert answer.status == 404
        assert not answer.header("Content-Type").startswith("application/json")
    doubled = Caller(api.port, api.key, "//a//b/")
    assert (await doubled.call("GET", "//instances")).status == 200
    for path in ("/openapi.json", "/docs", "/docs/swagger-ui.css"):
        assert (await api.call("GET", path, key=None)).status == 200
    document = (await api.call("GET", "/openapi.json", key=None)).json()
    assert document["servers"] == [{"url": "/a/b/v1"}]
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_changes(tmp_path: Path) -> None:
    """PATCH changes what it names and nothing else; null is absent; tags and peer replace."""
    running = await master(tmp_path)
    api = running.api
    id = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="one"))["id"]
    await api.becomes(id, "running")

    async def change(**body: Any) -> dict[str, Any]:
        answer = await api.call("PATCH", f"/instances/{id}", body)
        assert answer.status == 200, answer
        return dict(answer.json())

    assert (await change())["alias"] == "one"
    assert (await change(alias="", restart=None))["alias"] == "one"
    shown = await change(alias="two", restart=False, meta={"tags": {"a": "1", "b": None}})
    assert (shown["alias"], shown["restart"], shown["meta"]["tags"]) == ("two", False, {"a": "1"})
    shown = await change(meta={"peer": {"sid": "s", "type": None}})
    assert shown["meta"] == {"peer": {"sid": "s", "type": "", "alias": ""}, "tags": {"a": "1"}}
    shown = await change(meta={"tags": {}})
    assert shown["meta"] == {"peer": {"sid": "s", "type": "", "alias": ""}, "tags": {}}
    assert (await change(action="stop"))["status"] == "stopped"
    assert (await change(action="stop"))["status"] == "stopped"
    await change(action="restart")
    await api.becomes(id, "running")
    await change(action="stop")
    await change(action="start")
    await api.becomes(id, "running")
    assert (await change(action="reset"))["tcprx"] == 0
    unchanged = await api.get("********")
    answer = await api.call("PATCH", "/instances/********", {"alias": "x", "action": "stop"})
    assert (answer.status, answer.json()) == (200, unchanged)
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_replacing_and_deleting(tmp_path: Path) -> None:
    """PUT swaps the URL, the type included, keeps the rest, and takes the same port at once;
    DELETE answers 204 with nothing, and the port is free."""
    running = await master(tmp_path)
    api = running.api
    made = await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="kept")
    await api.becomes(made["id"], "running")
    replaced = await api.call("PUT", f"/instances/{made['id']}", {"url": SERVER})
    assert replaced.status == 200
    shown = await api.becomes(made["id"], "running")
    assert (shown["url"], shown["type"], shown["alias"]) == (SERVER, "server", "kept")
    answer = await api.call("DELETE", f"/instances/{made['id']}")
    assert (answer.status, answer.body) == (204, b"")
    assert (await api.call("GET", f"/instances/{made['id']}")).status == 404
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_info_and_alias(tmp_path: Path) -> None:
    """The keys of /info in their order, with strings and integers only; POST names the master,
    and the API key's instance shows the name."""
    running = await master(tmp_path, "tls=0")
    api = running.api
    answer = await api.call("GET", "/info")
    info = answer.json()
    assert list(info) == INFO_KEYS
    for name, value in info.items():
        kind = str if name in "alias crt key log name ver os arch mid tls".split() else int
        assert type(value) is kind, name
    assert re.fullmatch(r"v\d+\.\d+\.\d+", info["ver"])
    assert tuple(map(int, info["ver"][1:].split("."))) >= (1, 10, 0)
    assert (info["name"], info["tls"], info["os"]) == ("127.0.0.1", "0", "linux")
    named = await api.call("POST", "/info", {"alias": "home"})
    assert named.json()["alias"] == "home" and list(named.json()) == INFO_KEYS
    assert (await api.get("********"))["alias"] == "home"
    mid = info["mid"]
    await running.stop()
    running = await master(tmp_path)
    info = (await running.api.call("GET", "/info")).json()
    assert (info["alias"], info["mid"]) == ("home", mid)
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_tcping(tmp_path: Path) -> None:
    """A port that answers, one that does not, and text that is no address: all 200."""
    running = await master(tmp_path)
    api = running.api
    answer = await api.call("GET", f"/tcping?target=127.0.0.1:{api.port}")
    assert list(answer.json()) == ["target", "connected", "latency", "error"]
    assert answer.json()["connected"] is True and answer.json()["error"] is None
    answer = await api.call("GET", "/tcping?target=127.0.0.1:1")
    assert answer.json()["connected"] is False and answer.json()["error"]
    assert (await api.call("GET", "/tcping?target=nonsense")).json()["connected"] is False
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_state_survives(tmp_path: Path) -> None:
    """Instances, their order, aliases, policies and meta, and the API key are there after a
    restart; those that start with the master run, the others do not."""
    running = await master(tmp_path)
    api, key = running.api, running.api.key
    first = await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", alias="first")
    second = await api.create(SERVER)
    await api.call("PATCH", f"/instances/{second['id']}", {"restart": False,
                   "meta": {"tags": {"a": "b"}}})  # fmt: skip
    await running.stop()
    running = await master(tmp_path)
    api = running.api
    assert api.key == key
    listed = (await api.call("GET", "/instances")).json()[1:]
    assert [each["id"] for each in listed] == [first["id"], second["id"]]
    assert listed[0]["alias"] == "first" and listed[1]["meta"]["tags"] == {"a": "b"}
    await api.becomes(first["id"], "running")
    assert (await api.get(second["id"]))["status"] == "stopped"
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_status_tells_of_trouble(tmp_path: Path) -> None:
    """An instance whose port is taken is in error, and runs by itself once it is free."""
    running = await master(tmp_path)
    api = running.api
    one = await api.create(f"client://127.0.0.1:{api.port}/127.0.0.1:9?mode=1")
    await api.becomes(one["id"], "error")
    holder = await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1&log=debug")
    await api.becomes(holder["id"], "running")
    text = (await api.call("GET", f"/instances/{holder['id']}/logs")).body.decode()
    found = re.search(r"listening for visitors on 127\.0\.0\.1:(\d+)", text)
    assert found is not None, text
    url = f"client://127.0.0.1:{found[1]}/127.0.0.1:9?mode=1"
    await api.call("PUT", f"/instances/{one['id']}", {"url": url})
    await api.becomes(one["id"], "error")
    await api.call("DELETE", f"/instances/{holder['id']}")
    await api.becomes(one["id"], "running")
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_logs(tmp_path: Path) -> None:
    """The last lines as plain text, newest last; follow=1 goes on with those to come."""
    running: Running = await master(tmp_path)
    api = running.api
    id = (await api.create("client://127.0.0.1:0/127.0.0.1:9?mode=1"))["id"]
    await api.becomes(id, "running")
    await sleep(0.3)
    answer = await api.call("GET", f"/instances/{id}/logs?lines=1")
    assert answer.header("Content-Type").startswith("text/plain")
    form = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\s+([A-Z]+)\s+(.*)\n"
    assert re.fullmatch(form, answer.body.decode()) and b"\x1b" not in answer.body
    assert (await api.call("GET", f"/instances/{id}/logs?lines=0")).body == b""
    await running.stop()


@pytest.mark.parametrize("length, status", [(1 << 20, 400), ((1 << 20) + 1, 413)])
@pytest_twisted.ensureDeferred
async def test_large_bodies(tmp_path: Path, length: int, status: int) -> None:
    """A body of more than 1 MiB is refused as such."""
    running = await master(tmp_path)
    answer = await running.api.call("POST", "/instances", b"[" + b" " * (length - 1))
    assert answer.status == status
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_two_changes_of_the_master_at_once(tmp_path: Path) -> None:
    """A new key and a new alias, asked for side by side: both last."""
    running = await master(tmp_path)
    api = running.api
    rotating = Deferred.fromCoroutine(
        api.call("PATCH", "/instances/********", {"action": "restart"})
    )
    naming = Deferred.fromCoroutine(api.call("POST", "/info", {"alias": "home"}))
    key = (await rotating).json()["url"]
    assert (await naming).status == 200
    answer = await api.call("GET", "/info", key=key)
    assert (answer.status, answer.json()["alias"]) == (200, "home")
    await running.stop()
    running = await master(tmp_path)
    assert running.api.key == key
    assert (await running.api.call("GET", "/info")).json()["alias"] == "home"
    await running.stop()
