"""``nodepass ctl``: its commands against a master in memory, and what they print."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from nodepass import cli, process
from nodepass.client import MasterClient, MasterError, NotAMaster, Refused, Trust
from nodepass.client.models import Event, Instance
from nodepass.ctl import commands, show
from nodepass.ctl.contexts import Context, Contexts, Target, read_contexts, write_contexts
from nodepass.ctl.options import make_parser, parse
from nodepass.ctl.output import Output
from nodepass.ctl.transfer import load
from nodepass.errors import ConfigError
from tests.fakemaster import KEY, FakeMaster


class Case(SynchronousTestCase):
    """A master in memory with two tunnels, and commands on it."""

    ours = True

    def setUp(self) -> None:
        self.fake = FakeMaster(ours=self.ours)
        self.fake.add("1a2b3c4d", "server://geheim@:1/:2?tls=1", alias="web", tcprx=1536)
        self.fake.add("1a2b0000", "client://:1/:2", alias="x\x1b[2J")
        self.agent = RequestTraversalAgent(self.fake)
        self.clock = Clock()
        self.target = Target("http://m", KEY, Trust(), "--key")
        self.out = io.StringIO()
        self.notes = io.StringIO()

    def directory(self) -> Path:
        """A directory for this test alone."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return Path(directory.name)

    def begin(self, *arguments: str) -> tuple[commands.Run, Deferred[None]]:
        """Start a command."""
        self.out.truncate(self.out.seek(0))
        self.notes.truncate(self.notes.seek(0))
        options = parse(arguments)
        master = MasterClient("http://m", self.fake.key, reactor=self.clock, agent=self.agent)
        run = commands.Run(master, self.target, options, Output(self.out, self.notes), self.clock)
        task = Deferred.fromCoroutine(commands.COMMANDS[options.command](run))
        self.agent.flush()
        return run, task

    def run_command(self, *arguments: str, status: int = 0) -> str:
        """Run a command to its end and return what it printed."""
        run, task = self.begin(*arguments)
        self.successResultOf(task)
        self.assertEqual(run.status, status, self.notes.getvalue())
        return self.out.getvalue()

    def fail_command(self, kind: type[Exception], *arguments: str) -> str:
        """Run a command that fails, and return why."""
        _, task = self.begin(*arguments)
        return str(self.failureResultOf(task, kind).value)

    def bodies(self) -> list[Any]:
        """The bodies that were sent."""
        return [body for _, _, body in self.fake.requests if body is not None]


class Listing(Case):
    """``list`` and ``info``."""

    def test_table(self) -> None:
        """A line for each tunnel, with units, without keys, and nothing that moves a terminal."""
        head, first, second = self.run_command("list").splitlines()
        self.assertTrue(head.startswith("ID        ALIAS"))
        self.assertIn("1.5 KiB", first)
        self.assertIn("server://***@:1/:2?tls=1", first)
        self.assertIn("x\\x1b[2J", second)
        self.assertNotIn("\x1b", second)
        self.assertNotIn(KEY, self.out.getvalue())
        self.assertIn("geheim@", self.run_command("list", "--show-keys"))

    def test_json(self) -> None:
        """Exact figures and whole URLs, in the form of the API."""
        found = json.loads(self.run_command("list", "--json"))
        self.assertEqual([one["id"] for one in found], ["1a2b3c4d", "1a2b0000"])
        self.assertEqual((found[0]["tcprx"], found[0]["url"][:15]), (1536, "server://geheim"))

    def test_json_moves_no_terminal(self) -> None:
        """What encoders of JSON leave as it is, and terminals obey, is escaped; data stay."""
        alias = "\x9b2J\u202e\U000e0041 caf\xe9\n"
        self.fake.instances["1a2b0000"]["alias"] = alias
        out = self.run_command("list", "--json")
        self.assertTrue(out.removesuffix("\n").isprintable(), ascii(out))
        self.assertEqual(json.loads(out)[1]["alias"], alias)
        self.assertIn("caf\xe9", out)

    def test_watch(self) -> None:
        """The table is drawn again when events have changed it, once for many of them."""
        _, task = self.begin("list", "--watch")
        for id in self.fake.instances:
            self.fake.event("initial", id)
        self.agent.flush()
        self.clock.advance(commands.REDRAW_AFTER)
        self.assertEqual(self.out.getvalue().count("URL"), 1)
        self.assertIn("web", self.out.getvalue())
        self.clock.pump([commands.REDRAW_AFTER] * 3)
        self.assertEqual(self.out.getvalue().count("URL"), 1)
        self.fake.event("delete", "1a2b3c4d")
        self.agent.flush()
        self.clock.advance(commands.REDRAW_AFTER)
        self.assertNotIn("web", self.out.getvalue().rpartition("URL")[2])

        # What went away while the stream was lost goes away here too.
        self.fake.streams[0].transport.loseConnection()
        self.agent.flush()
        self.assertIn("trying again in", self.notes.getvalue())
        self.clock.pump([1] * 5)
        self.agent.flush()
        self.fake.event("initial", "1a2b3c4d")
        self.agent.flush()
        self.clock.advance(commands.REDRAW_AFTER)
        last = self.out.getvalue().rpartition("URL")[2]
        self.assertIn("web", last)
        self.assertNotIn("1a2b0000", last)

        task.cancel()
        self.agent.flush()
        self.failureResultOf(task)
        self.assertEqual(self.fake.streams, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_watched_by_nobody(self) -> None:
        """A picture that can't be written ends the watching."""
        _, task = self.begin("list", "--watch")
        self.fake.event("initial", "1a2b3c4d")
        self.agent.flush()
        self.out.write = _broken  # type: ignore[method-assign]
        self.clock.advance(commands.REDRAW_AFTER)
        self.failureResultOf(task, BrokenPipeError)
        self.agent.flush()
        self.assertEqual(self.fake.streams, [])

    def test_info(self) -> None:
        """Figures in units, or exact."""
        self.assertIn("version    v1.10.0\n", self.run_command("info"))
        self.assertEqual(json.loads(self.run_command("info", "--json"))["mem_used"], 1536)


class Changing(Case):
    """Commands that change something."""

    def test_create(self) -> None:
        """The new id alone is printed, for scripts."""
        url = "server://:1/:2"
        self.assertEqual(
            self.run_command("create", "--alias", "n", "--no-restart", url), "00000002\n"
        )
        # One request, so that nothing can come between the two halves of it.
        self.assertEqual(self.bodies(), [{"url": url, "alias": "n", "restart": False}])
        message = self.fail_command(Refused, "create", "x://y")
        self.assertIn("refused: Invalid URL scheme: scheme x: unknown; accepted: server", message)

    def test_actions(self) -> None:
        """By alias, by id, by the beginning of an id."""
        out = self.run_command("stop", "web", "1a2b00")
        self.assertEqual(out, "1a2b3c4d (web) stopping\n1a2b0000 (x\\x1b[2J) stopping\n")
        # It is asked all the same: it may be about to start.
        self.assertEqual(self.run_command("stop", "web"), "1a2b3c4d (web) is stopped already\n")
        self.assertEqual(self.bodies()[-1], {"action": "stop"})
        self.assertIn(") starting\n", self.run_command("start", "web"))
        self.assertIn(") is running already\n", self.run_command("start", "web"))
        for name, action in (("start", "start"), ("restart", "restart"), ("reset", "reset")):
            self.run_command(name, "1A2B3")
            self.assertEqual(self.bodies()[-1], {"action": action})
        self.run_command("delete", "web")
        self.assertEqual(list(self.fake.instances), ["1a2b0000"])

    def test_names(self) -> None:
        """A name that fits none or several is an error before anything is done."""
        message = self.fail_command(MasterError, "delete", "web", "1a2b")
        self.assertIn("could be any of 1a2b3c4d (web), 1a2b0000", message)
        self.assertIn("no such instance", self.fail_command(MasterError, "delete", "web", "y"))
        self.assertIn("no such instance", self.fail_command(MasterError, "delete", ""))
        self.assertEqual(len(self.fake.instances), 2)
        # An alias that looks like the beginning of an id goes before it.
        self.fake.add("cccccccc", alias="1a2b")
        self.run_command("delete", "1a2b")
        self.assertNotIn("cccccccc", self.fake.instances)

    def test_one_of_several_fails(self) -> None:
        """The rest is done, and the status says that not all was."""
        answer = b'{"error":"no \\u001b"}'
        self.fake.answers["/api/v1/instances/1a2b3c4d"] = (409, "application/json", answer)
        out = self.run_command("stop", "web", "1a2b0", status=1)
        self.assertIn("1a2b0000", out)
        self.assertIn(
            "nodepass: 1a2b3c4d (web): http://m/api: refused: no \\x1b", self.notes.getvalue()
        )

    def test_edit(self) -> None:
        """Tags and peer are added to those that are there; a URL is put last."""
        self.fake.instances["1a2b3c4d"]["meta"] = {
            "peer": {"sid": "1", "type": "2", "alias": ""},
            "tags": {"a": "b", "c": "d"},
        }
        self.run_command(
            *["edit", "web", "--alias", "n", "--restart", "--tag", "a=x=y", "--tag", "e="],
            *["--untag", "c", "--peer", "alias=z", "--url", "client://:3/:4"],
        )
        change, put = self.bodies()
        peer = {"sid": "1", "type": "2", "alias": "z"}
        meta = {"tags": {"a": "x=y", "e": ""}, "peer": peer}
        self.assertEqual(change, {"alias": "n", "restart": True, "meta": meta})
        self.assertEqual(put, {"url": "client://:3/:4"})
        self.run_command("edit", "n", "--no-restart")
        self.assertEqual(self.bodies()[-1], {"restart": False})

    def test_edit_url(self) -> None:
        """The URL that it has is no error; one that can't be used is, with what is accepted."""
        same = ["edit", "web", "--url", "server://geheim@:1/:2?tls=1"]
        self.assertEqual(self.run_command(*same), "")
        note = "nodepass: 1a2b3c4d (web): that is its URL already\n"
        self.assertEqual(self.notes.getvalue(), note)
        self.assertEqual(self.run_command(*same, "--alias", "n"), "1a2b3c4d (web) changed\n")
        self.assertEqual(self.notes.getvalue(), note)
        path = "/api/v1/instances/1a2b0000"
        self.fake.answers[path] = (400, "application/json", b'{"error":"Invalid URL format"}')
        message = self.fail_command(Refused, "edit", "1a2b0", "--url", "x")
        self.assertIn("accepted: server://, client://", message)

    def test_edit_refused(self) -> None:
        """What can't be done is said before the master is asked."""
        for arguments, words in (
            (["web"], "nothing to change"),
            (["web", "--tag", "a"], "NAME=VALUE"),
            (["web", "--tag", "=a"], "NAME=VALUE"),
            (["web", "--peer", "x=1"], "sid, type or alias"),
            (["web", "--alias", ""], "not take it away"),
        ):
            self.assertIn(words, self.fail_command(ConfigError, "edit", *arguments))
        self.assertEqual(self.fake.requests, [])

    def test_key_rotate(self) -> None:
        """The new key is printed, and what to do with it where the old one was found."""
        for options, words in (
            (["--key", KEY], "from now on: --key NEW_KEY"),
            (["--key-file", "a b"], "now: (umask 077; echo NEW_KEY > 'a b')"),
            ([], "now: export NODEPASS_API_KEY=NEW_KEY"),
        ):
            self.assertEqual(self.run_command("key", "rotate", *options), "f" * 32 + "\n")
            self.assertIn(words, self.notes.getvalue())
        answer = json.dumps({"id": "********", "url": "\x1b[2Jkey"}).encode()
        path = "/api/v1/instances/********"
        self.fake.answers[path] = (200, "application/json", answer)
        self.assertEqual(self.run_command("key", "rotate"), "\\x1b[2Jkey\n")

    def test_key_in_contexts(self) -> None:
        """Whoever had the old key from a context has the new one from there."""
        path = self.directory() / "ctl.toml"
        self.target = Target("http://m", KEY, Trust(), "context home in ctl.toml", path)
        contexts = {
            "home": Context("http://m", KEY),
            "inside": Context("http://n", KEY),
            "else": Context("http://o", "other"),
        }
        write_contexts(path, Contexts("home", contexts))
        self.run_command("key", "rotate")
        self.assertIn(f"the new one is in {path}: home, inside\n", self.notes.getvalue())
        found = read_contexts(path).contexts
        self.assertEqual([one.key for one in found.values()], ["f" * 32, "f" * 32, "other"])

        path.write_text("x")
        self.assertEqual(self.run_command("key", "rotate", status=1), "f" * 32 + "\n")
        self.assertIn("put the new one there, context home in", self.notes.getvalue())


class Streams(Case):
    """``logs`` and ``events``."""

    def test_logs(self) -> None:
        """Lines without colours and without anything else that moves a terminal."""
        self.fake.lines = ["a \x1b[31mWARN\x1b[0m \x1b[2Jb"]
        self.assertEqual(self.run_command("logs", "web", "-n", "3"), "a WARN \\x1b[2Jb\n")
        self.assertIn("lines=3", self.fake.requests[-1][1])

    def test_follow(self) -> None:
        """New lines are printed as they come; a stream that ends is told, with the status."""
        _, task = self.begin("logs", "-f", "web")
        self.fake.send(b"more\n")
        self.agent.flush()
        self.assertEqual(self.out.getvalue(), f"{self.fake.lines[0]}\nmore\n")
        self.fake.streams[0].finish()
        self.agent.flush()
        message = str(self.failureResultOf(task, MasterError).value)
        self.assertIn("1a2b3c4d (web): its log broke off, but the master is there", message)

    def test_end_of_a_followed_log(self) -> None:
        """The reason is asked for: the instance is gone, or the key, or the connection was cut."""

        def delete() -> None:
            del self.fake.instances["1a2b3c4d"]
            self.fake.streams[0].finish()

        def renew() -> None:
            self.fake.key = "f" * 32
            self.fake.streams[0].finish()

        def cut() -> None:
            self.fake.streams[0].transport.loseConnection()

        for happen, words in (
            (cut, "broke off, but the master is there"),
            (delete, "1a2b3c4d (web): it was deleted"),
            (
                renew,
                "broke off: http://m/api: the API key is wrong; it is another master's, or was",
            ),
        ):
            _, task = self.begin("logs", "-f", "1a2b3" if happen is not renew else "1a2b0")
            happen()
            self.agent.flush()
            self.assertIn(words, str(self.failureResultOf(task, MasterError).value))

    def test_types_of_events(self) -> None:
        """A type that there is not would be waited for in vain: the master is not asked."""
        message = self.fail_command(ConfigError, "events", "--types", "log,foo")
        self.assertIn("--types foo: accepted: initial, create, update, delete, log, shut", message)
        self.assertEqual(self.fake.requests, [])

    def test_traffic(self) -> None:
        """A line for each step, with units; times behind now, in seconds for the master."""
        self.clock.advance(100_000)
        head, line = self.run_command("traffic", "web").splitlines()
        self.assertEqual(head.split("  ")[0], "TIME")
        self.assertTrue(line.endswith("  1 B     2 B     3 B     4 B"), line)
        self.assertTrue(self.fake.requests[-1][1].endswith("/traffic?since=96400"))
        out = self.run_command("traffic", "web", "--since", "1d", "--step", "5m", "--json")
        self.assertEqual(json.loads(out)["points"], [[100, 1, 2, 3, 4]])
        self.assertTrue(self.fake.requests[-1][1].endswith("/traffic?since=13600&step=300"))
        path = "/api/v1/instances/1a2b3c4d/traffic"
        for points in (b"[[99999999999999999,1,1,1,1]]", b"[]"):
            answer = b'{"id":"1a2b3c4d","step":5,"points":' + points + b"}"
            self.fake.answers[path] = (200, "application/json", answer)
            self.run_command("traffic", "web")
        self.assertIn("(web): no traffic in this time", self.notes.getvalue())

    def test_events(self) -> None:
        """A line for each; keys are not in it, the API key least of all."""
        _, task = self.begin("events", "web", "--types", "update, log")
        self.assertIn("types=log%2Cupdate", self.fake.requests[-1][1])
        task.cancel()
        self.agent.flush()
        self.failureResultOf(task)

        self.fake.instances["********"] = {"id": "********", "url": KEY, "alias": "home"}
        for arguments in ([], ["--json"]):
            _, task = self.begin("events", *arguments)
            self.fake.event("initial", "********")
            self.fake.event("log", "1a2b3c4d", logs="\x1b[32mINFO\x1b[0m hi")
            self.fake.event("update", "1a2b3c4d")
            self.fake.event("shutdown")
            self.agent.flush()
            first, log, update, shutdown = self.out.getvalue().splitlines()
            self.assertNotIn(KEY, first)
            self.assertIn("home", first)
            if arguments:
                self.assertEqual(json.loads(update)["instance"]["url"][:15], "server://geheim")
                self.assertIsNone(json.loads(shutdown)["instance"])
            else:
                self.assertTrue(log.endswith("log       1a2b3c4d  INFO hi"), log)
                self.assertIn("server://***@", update)
            task.cancel()
            self.agent.flush()
            self.failureResultOf(task)


class Transfer(Case):
    """``export`` and ``import``."""

    def setUp(self) -> None:
        super().setUp()
        self.file = self.directory() / "file"

    def test_export(self) -> None:
        """To stdout, or into a file for its owner alone, in the form that its name asks for."""
        found = load(self.run_command("export"), "stdout")
        self.assertEqual(found.instances[0].url, "server://geheim@:1/:2?tls=1")
        self.assertEqual(json.loads(self.run_command("export", "--format", "json"))["format"], 1)
        path = f"{self.file}.json"
        self.assertEqual(self.run_command("export", "-o", path), "")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assertEqual(json.loads(Path(path).read_text())["instances"][0]["alias"], "web")
        self.assertIn("instances: 2; keys are in it", self.notes.getvalue())

    def test_moved(self) -> None:
        """Everything is the same on another master, and a second import changes nothing."""
        self.fake.instances["1a2b3c4d"] |= {"status": "stopped", "restart": False}
        self.fake.instances["1a2b3c4d"]["meta"]["tags"] = {"a": "b"}
        self.run_command("export", "-o", str(self.file))
        before = self.fake.instances
        self.fake.instances = {}

        out = self.run_command("import", "--dry-run", str(self.file))
        self.assertEqual(self.fake.instances, {})
        self.assertIn("+ 1a2b3c4d (web) server://***@:1/:2?tls=1\n", out)
        self.assertIn("2 to create, 0 to change, 0 the same", self.notes.getvalue())

        self.run_command("import", str(self.file))
        self.assertEqual(self.fake.instances, before)
        post = next(body for body in self.bodies() if "url" in body)
        self.assertEqual(set(post), {"url", "alias", "id", "restart", "meta", "totals"})
        out = self.run_command("import", str(self.file))
        self.assertEqual(out, "= 1a2b3c4d (web)\n= 1a2b0000 (x\\x1b[2J)\n")

    def test_changes(self) -> None:
        """What differs is shown as old -> new, without keys, and then made so."""
        self.run_command("export", "-o", str(self.file))
        one = self.fake.instances["1a2b3c4d"]
        wanted = json.dumps(one)
        one |= {"url": "server://other@:1/:3", "alias": "old", "restart": False}
        one["meta"] = {"peer": {"sid": "", "type": "", "alias": ""}, "tags": {"k": "v"}}
        out = self.run_command("import", str(self.file))
        self.assertEqual(
            out.splitlines()[:5],
            [
                "~ 1a2b3c4d (web)",
                "    url: server://***@:1/:3 -> server://***@:1/:2?tls=1",
                "    alias: old -> web",
                "    restart: no -> yes",
                "    tag k: v -> -",
            ],
        )
        self.assertEqual(self.fake.instances["1a2b3c4d"], json.loads(wanted))

    def test_refused(self) -> None:
        """One that the master refuses does not keep the rest back."""
        self.file.write_text(
            "format = 1\n[[instances]]\nurl = 'ftp://x'\n[[instances]]\nurl = 'server://:7/:8'\n"
        )
        self.run_command("import", str(self.file), status=1)
        self.assertIn("entry 1, ftp://x: scheme ftp: unknown", self.notes.getvalue())
        self.assertIn("1 created", self.notes.getvalue())
        url = "server://:1/:2?max=many"
        self.file.write_text(f"format = 1\n[[instances]]\nurl = '{url}'\nalias = 'n'\n")
        self.run_command("import", "--dry-run", str(self.file), status=1)
        self.assertIn("n: max=many: accepted: an integer", self.notes.getvalue())
        self.assertIn("0 to create", self.notes.getvalue())
        # What is there already is none of this version's business.
        self.fake.instances["1a2b0000"] |= {"url": url, "alias": "n"}
        self.run_command("import", str(self.file))

    def test_refused_by_the_master(self) -> None:
        """What looks good here and not there does not keep the rest back either."""
        self.file.write_text(
            "format = 1\n[[instances]]\nurl = 'server://:5/:6'\nid = '1a2b3c4d'\n"
            "[[instances]]\nurl = 'server://:7/:8'\n"
        )
        answer = (400, "application/json", b'{"error":"not here"}')
        self.fake.answers["/api/v1/instances/1a2b3c4d"] = answer
        self.run_command("import", str(self.file), status=1)
        self.assertIn("1a2b3c4d: http://m/api: refused: not here", self.notes.getvalue())
        self.assertIn("1 created", self.notes.getvalue())

    def test_refused_by_name(self) -> None:
        """What a document says moves no terminal, and shows no key, when it is told as an error."""
        for entry, shown in (
            ('alias = "y\\u001b[2J"', "y\\x1b[2J: "),
            ('id = "y\\u009b2J"', "y\\x9b2J: "),
            ("", "entry 1, ftp://***@x: "),
        ):
            self.file.write_text(f"format = 1\n[[instances]]\nurl = 'ftp://geheim@x'\n{entry}\n")
            self.run_command("import", str(self.file), status=1)
            self.assertIn(f"nodepass: {shown}", self.notes.getvalue())

    def test_unusable_files(self) -> None:
        """A file that can't be read is named, and the master is not asked."""
        self.assertIn("nowhere", self.fail_command(ConfigError, "import", "/nowhere"))
        self.file.write_bytes(b"\xff")
        self.assertIn("not a text", self.fail_command(ConfigError, "import", str(self.file)))
        self.assertIn("/n/x", self.fail_command(ConfigError, "export", "-o", "/n/x"))


class ToAnother(Case):
    """``export`` and ``import`` with a master of the Go implementation."""

    ours = False

    def test_both_ways(self) -> None:
        """What it knows is kept by second requests, and what it can't keep is told."""
        self.fake.instances["1a2b3c4d"] |= {"status": "stopped", "restart": False}
        file = self.directory() / "file"
        self.run_command("export", "-o", str(file))
        text = file.read_text().replace('alias = "web"', 'alias = "web"\nmeta.tags.a = "b"')
        file.write_text(text)
        self.fake.instances = {}
        out = self.run_command("import", str(file))
        self.assertIn(
            "    its id is 00000000, tags and peer were not kept, totals were not kept\n", out
        )
        one = self.fake.instances["00000000"]
        self.assertEqual((one["status"], one["restart"], one["alias"]), ("stopped", False, "web"))

    def test_create(self) -> None:
        """What it takes no notice of is asked for again, once the new id is known."""
        url = "server://:1/:2"
        self.assertEqual(self.run_command("create", "--no-restart", url), "00000002\n")
        self.assertEqual(self.bodies(), [{"url": url, "restart": False}, {"restart": False}])
        path = "/api/v1/instances/00000003"
        self.fake.answers[path] = (400, "application/json", b'{"error":"no"}')
        self.fail_command(Refused, "create", "--no-restart", url)
        self.assertEqual(self.out.getvalue(), "00000003\n")


def _broken(_: str) -> int:
    raise BrokenPipeError


def test_not_a_master() -> None:
    """Only refusals of one instance let the others go on."""
    assert not issubclass(NotAMaster, Refused)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (2**64, "16.0 EiB"),
        (2**74, "16384.0 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    """Bytes are shown in the largest unit that leaves a whole one."""
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (3600, "1h 0m"), (90061, "1d 1h"), (61, "1m 1s")]
)
def test_span(seconds: int, text: str) -> None:
    """Times are shown in their two largest units."""
    assert show.span(seconds) == text


def test_width() -> None:
    """On a terminal lines are cut to its width; elsewhere they are whole."""
    one = Instance(id="a" * 8, url="server://" + "x" * 500)
    assert max(map(len, show.instance_table([one], show_keys=True, width=80))) == 80
    assert len(show.instance_table([one], show_keys=True, width=None)[1]) > 300
    assert show.instance_table([], show_keys=True, width=80) != []


def test_terminal() -> None:
    """A watched list clears a terminal, and what the encoding lacks is escaped."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    raw = io.BytesIO()
    out = Output(Terminal(raw, encoding="ascii"))
    out.clear()
    out.line("caf\xe9")
    assert raw.getvalue() == b"\x1b[H\x1b[Jcaf\\xe9\n"
    assert out.width() is not None


def test_event_without_instance() -> None:
    """A shutdown has none."""
    event = Event(type="shutdown", time="now", instance=None, logs="")
    assert show.event_line(event, show_keys=False) == "now  shutdown"


def test_key_leaves_the_process_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API key goes, in both ways to write it, and the keys of tunnels too."""
    titles: list[str] = []
    monkeypatch.setattr(process.setproctitle, "setproctitle", titles.append)
    monkeypatch.setattr(process.setproctitle, "setthreadtitle", lambda _: None)
    process.hide_keys("n", ["--key", "a", "--key=b", "list", "--key"], ("--key",))
    process.hide_keys("n", ["create", "server://k@:1/:2"], ("--key",))
    process.hide_keys("n", ["list", "--key-file", "x"], ("--key",))
    assert titles == ["n --key *** --key=*** list --key", "n create server://***@:1/:2"]


def test_options_on_both_sides() -> None:
    """Options about the master may stand before the command and behind it."""
    before = parse(["--api", "x", "--insecure", "list", "--json"])
    assert (before.api, before.insecure, before.key, before.json) == ("x", True, None, True)
    after = parse(["--key", "1", "list", "--api", "y", "--key", "2"])
    assert (after.api, after.insecure, after.key) == ("y", False, "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["list", "--jsn"], "--jsn"),
        (["stop"], "ID"),
        (["logs", "x", "-n", "10001"], "0 to 10000"),
        (["create", "server://geheim@:1/:2", "more://geheim@x"], "more://***@x"),
        (["key", "show"], "rotate"),
        (["traffic", "x", "--since", "1y"], "such as 90s"),
        (["traffic", "x", "--step", "0"], "such as 90s"),
    ],
)
def test_bad_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr and status 2; keys are not repeated."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["ctl", *arguments])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("nodepass: ") and err.count("\n") == 1
    assert words in err and "geheim" not in err


def test_every_command_is_there() -> None:
    """Every command that the parser knows is one that is done, and has a help."""
    text = make_parser().format_help()
    for name in [*commands.COMMANDS, "context", "completion"]:
        assert re.search(rf"^    {name}  +\w", text, flags=re.M), name
    [listed] = [action.choices for action in make_parser()._actions if action.dest == "command"]
    assert set(listed or ()) == {*commands.COMMANDS, "context", "completion"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets its script, and no master is asked for it."""
    assert cli.main(["ctl", "completion", shell]) == 0
    out = capsys.readouterr().out
    assert "nodepass" in out and "ctl" in out and "import" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("c", {"ctl"}),
        ("ctl im", {"import"}),
        ("ctl import --dr", {"--dry-run"}),
        ("ctl --ap", {"--api"}),
        ("ctl key ", {"rotate"}),
        ("ctl import tun", {"tunnels.toml"}),
        ("ctl --key-file tun", {"tunnels.toml"}),
        ("ctl list --ca tun", {"tunnels.toml"}),
        ("ctl --context h", {"home"}),
        ("ctl list --context ", {"home", "work-2"}),
        ("ctl context use w", {"work-2"}),
    ],
)
def test_completed_by_bash(
    words: str, expected: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The script does in a real shell what it is for."""
    (tmp_path / "tunnels.toml").touch()
    contexts = {"home": Context("http://h", "k"), "work-2": Context("http://w")}
    write_contexts(tmp_path / "nodepass" / "ctl.toml", Contexts("home", contexts))
    cli.main(["ctl", "completion", "bash"])
    script = capsys.readouterr().out
    typed = ["nodepass", *words.split(" ")]
    done = subprocess.run(
        ["bash", "--norc"],
        input=f"""{script}
COMP_WORDS=({" ".join(map(repr, typed))}) COMP_CWORD={len(typed) - 1}
$(complete -p nodepass | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert "-o default" in script
    assert expected <= {line.strip() for line in done.stdout.splitlines()}, done.stderr


def ctl(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    return subprocess.run(
        [sys.executable, "-m", "nodepass", "ctl", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_unreachable() -> None:
    """A master that is not there: one line, status 1, no traceback."""
    done = ctl("list", NODEPASS_API="http://127.0.0.1:1", NODEPASS_API_KEY="k")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nodepass: http://127.0.0.1:1/api: connection refused")
    assert done.stderr.count("\n") == 1


def test_no_master() -> None:
    """No address at all is bad usage."""
    done = ctl("list")
    assert done.returncode == 2
    assert "--api URL" in done.stderr and done.stderr.count("\n") == 1


def test_closed_pipe() -> None:
    """Nobody reads the output: it ends without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nodepass", "ctl", "completion", "bash"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
