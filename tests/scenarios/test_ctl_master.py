"""``nodepass ctl`` on masters that are processes of their own."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest_twisted

from nodepass.client import MasterClient
from tests.scenarios.ctl import Master, master
from tests.scenarios.harness import KEY, node


@pytest_twisted.ensureDeferred
async def test_life_of_a_tunnel(tmp_path: Path) -> None:
    """Made, seen, changed, stopped, started, reset and deleted, by alias and by part of its id."""
    there = await master(tmp_path)
    url = f"server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1"
    id = (await there.ctl("create", "--alias", "web", "--no-restart", url)).out.strip()
    [one] = await there.list()
    assert (one["id"], one["alias"], one["url"], one["restart"]) == (id, "web", url, False)
    table = (await there.ctl("list")).out
    assert "server://***@" in table and KEY not in table

    await there.ctl("stop", "web")
    assert (await there.list())[0]["status"] == "stopped"
    await there.ctl("start", id[:7])
    assert "started: server://***@" in (await there.ctl("logs", "web")).out
    other = url + "&read=2h"
    await there.ctl(
        *["edit", "web", "--tag", "a=b", "--peer", "sid=7", "--alias", "www", "--url", other]
    )
    [one] = await there.list()
    assert (one["alias"], one["url"], one["meta"]["tags"]) == ("www", other, {"a": "b"})
    assert one["meta"]["peer"]["sid"] == "7"
    assert "is its URL already" in (await there.ctl("edit", "www", "--url", other)).err

    bad = (await there.ctl("create", url + "&max=many", status=1)).err
    assert "max" in bad and bad.count("\n") == 1
    assert "no traffic in this time" in (await there.ctl("traffic", "www", "--step", "1m")).err
    await there.ctl("reset", "www")
    assert "www" in (await there.ctl("delete", "www")).out
    assert await there.list() == []
    assert (await there.ctl("info")).out.startswith("alias")
    await there.node.stop()


@pytest_twisted.ensureDeferred
async def test_moved_to_another_master(tmp_path: Path) -> None:
    """Everything goes along, ids and totals too, and a second import changes nothing."""
    one, two = await master(tmp_path / "1"), await master(tmp_path / "2")
    client = MasterClient(one.api, one.key)
    for number, alias in enumerate(["web", "b\u00fcro & <co>", ""]):
        await client.restore(
            f"client://127.0.0.1:0/127.0.0.1:{number + 1}?mode=1",
            alias=alias or None,
            restart=not number,
            totals={"tcprx": 2**53 + 1, "tcptx": 2, "udprx": 0, "udptx": 0},
        )
    web, office, _ = await client.list()
    await client.change(web.id, peer={"sid": "s"}, tags={"a": "", "b": "\u00fc"})
    await client.stop(office.id)
    await client.close()
    before = await one.list()

    file = str(tmp_path / "tunnels.toml")
    await one.ctl("export", "-o", file)
    shown = await two.ctl("import", "--dry-run", file)
    assert shown.out.count("+ ") == 3 and await two.list() == []
    await two.ctl("import", file)

    def lasting(instances: list[dict[str, Any]]) -> list[Any]:
        """What does not depend on whether a tunnel is up yet."""
        names = ("id", "alias", "url", "restart", "meta", "tcprx", "tcptx", "udprx", "udptx")
        return [[one[name] for name in names] for one in instances]

    after = await two.list()
    assert lasting(after) == lasting(before)
    assert after[1]["status"] == "stopped"
    again = await two.ctl("import", file)
    assert [line[0] for line in again.out.splitlines()] == ["=", "=", "="]

    await two.ctl("edit", "web", "--untag", "a", "--alias", "old", "--restart")
    text = (await two.ctl("import", "--dry-run", file)).out
    assert "alias: old -> web" in text and "tag a" in text
    await two.ctl("import", file)
    assert lasting(await two.list()) == lasting(before)
    await one.node.stop()
    await two.node.stop()


@pytest_twisted.ensureDeferred
async def test_events_across_a_restart(tmp_path: Path) -> None:
    """Whoever watches is there again when the master is, and a new key ends the watching."""
    there = await master(tmp_path)
    client = MasterClient(there.api, there.key)
    url = "client://127.0.0.1:0/127.0.0.1:9?mode=1"
    made = await client.create(url, "web")
    environ = {"NODEPASS_API": there.api, "NODEPASS_API_KEY": there.key}
    watching = node("ctl", "events", "--json", env=environ)
    await watching.line(f'"type":"initial".*"id":"{made.id}"')

    assert await there.node.stop() == 0
    await watching.line('"type":"shutdown"')
    await watching.line("^nodepass: .*trying again in")
    again = await master(tmp_path, port=there.port)
    await client.change(made.id, alias="www")
    await watching.line('"type":"update".*"alias":"www"')

    fresh = (await again.ctl("key", "rotate")).out.strip()
    assert await watching.ended == 1
    assert "API key is wrong" in watching.lines[-1]
    assert there.key not in "\n".join(watching.lines)
    again.key = fresh
    assert len(await again.list()) == 1
    await client.close()
    await again.node.stop()


@pytest_twisted.ensureDeferred
async def test_followed_log(tmp_path: Path) -> None:
    """New lines come as they are logged, and the end of the master ends them."""
    there = await master(tmp_path)
    client = MasterClient(there.api, there.key)
    made = await client.create("client://127.0.0.1:0/127.0.0.1:9?mode=1", "web")
    environ = {"NODEPASS_API": there.api, "NODEPASS_API_KEY": there.key}
    following = node("ctl", "logs", "-f", "web", env=environ)
    await following.line("started: client://")
    await client.stop(made.id)
    await following.line("stopped: client://")
    assert not any("\x1b" in line for line in following.lines)

    # Ctrl-C ends what goes on for ever, without a traceback.
    watching = node("ctl", "list", "--watch", env=environ)
    await watching.line("web +client +stopped")
    assert await watching.stop(signal.SIGINT) == 130
    assert "Traceback" not in "\n".join(watching.lines)
    await client.close()
    await there.node.stop()
    assert await following.ended == 1
    assert "its log broke off: " in following.lines[-1]


@pytest_twisted.ensureDeferred
async def test_unix_socket(tmp_path: Path) -> None:
    """A master that listens on a Unix socket has the same address for those who ask it."""
    where = f"unix:{quote(str(tmp_path / 'api.sock'), safe='')}"
    environ = {"NP_STATE": str(tmp_path / "nodepass.db"), "NP_MASTER_WORKERS": "1"}
    process = node(f"master://{where}/np", env=environ)
    key = (await process.line("API Key created: ([0-9a-f]{32})"))[1]
    await process.line("API on ")
    there = Master(process, 0, key, tls=False)
    api = {"NODEPASS_API": f"{where}/np"}
    id = (await there.ctl("create", "client://127.0.0.1:0/127.0.0.1:9?mode=1", **api)).out.strip()
    assert id in (await there.ctl("list", **api)).out
    await there.node.stop()
    gone = (await there.ctl("list", status=1, **api)).err
    assert f"{where}/np: no connection (no such file or directory)" in gone
