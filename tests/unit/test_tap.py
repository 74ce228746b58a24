"""``twistd nodepass`` and saved ``.tap`` files."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService, IServiceMaker, loadApplication
from twisted.logger import LogLevel, capturedLogs
from twisted.persisted.sob import IPersistable
from twisted.plugin import IPlugin
from twisted.python import usage

from nodepass import tap
from nodepass.config import parse_url
from nodepass.errors import ConfigError, FatalError, NodePassError
from nodepass.parameters import PARAMETERS
from tests.fakes import FakeReactor, FakeRole, fake_roles
from twisted.plugins import nodepass_plugin

__all__ = ["fake_roles"]

URL = "server://s3cret@127.0.0.1:1/127.0.0.1:2"


def options_for(*arguments: str) -> tap.Options:
    options = tap.Options()
    options.parseOptions(list(arguments))
    return options


def test_options() -> None:
    """Each URL becomes one configuration, in order."""
    options = options_for(URL, "client://127.0.0.1:3/127.0.0.1:4?mode=1")
    assert [config.tunnel.port for config in options.configs] == [1, 3]


def test_options_key_file(tmp_path: Path) -> None:
    """``--key-file`` gives the key to URLs that have none, wherever it stands."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    options = options_for("-k", str(file), URL, "server://:1/:2")
    assert [config.key for config in options.configs] == ["s3cret", "from-file"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "URL"),
        (["server://:1/:2?mode=7"], "mode"),
        (["--colour", URL], "colour"),
        (["--key-file", "/nonexistent/key", URL], "/nonexistent/key"),
    ],
)
def test_options_unusable(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be used ends twistd with status 2 and one line on stderr that names it."""
    with pytest.raises(SystemExit) as ended:
        options_for(*arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("nodepass: ")
    assert err.count("\n") == 1
    assert named in err


def test_options_raise_usage_errors() -> None:
    """Between them, the options report problems as Twisted's options do."""
    options = tap.Options()
    options.parseArgs("server://:1")
    options["key-file"] = None
    with pytest.raises(usage.UsageError):
        options.postOptions()


def test_help() -> None:
    """The help of ``twistd nodepass`` has every parameter on a line of its own."""
    lines = str(tap.Options()).splitlines()
    for row in PARAMETERS:
        assert any(line.startswith(f"  {row.name} ") for line in lines), row.name
    assert any("--key-file" in line for line in lines)


def test_help_under_twistd() -> None:
    """With twistd's own words in front the synopsis is one line of usage."""
    program = usage.Options()
    program.synopsis = "Usage: twistd [options]"
    program.subCommand = "nodepass"
    options = tap.Options()
    options.parent = program
    assert options.getSynopsis().split() == [
        *("Usage:", "twistd", "[options]", "nodepass"),
        *("[--key-file", "FILE]", "URL", "[URL...]"),
    ]


def test_plugin() -> None:
    """The plugin is what twistd looks for, and leads to these options and this service."""
    plugin = nodepass_plugin.nodepass
    assert IServiceMaker.providedBy(plugin)
    assert IPlugin.providedBy(plugin)
    assert plugin.tapname == "nodepass"
    assert plugin.options is tap.Options
    assert plugin.makeService is tap.makeService


def test_make_service(fake_roles: list[FakeRole], monkeypatch: pytest.MonkeyPatch) -> None:
    """The service has a role per URL, and the process list shows no key from then on."""
    titles: list[str] = []
    monkeypatch.setattr(sys, "argv", ["/usr/bin/twistd", "-n", "nodepass", URL])
    monkeypatch.setattr("setproctitle.setproctitle", titles.append)
    monkeypatch.setattr("setproctitle.setthreadtitle", lambda name: None)
    options = options_for(URL, URL)
    assert list(tap.makeService(options)) == fake_roles
    assert [role.config for role in fake_roles] == options.configs
    assert titles == ["twistd -n nodepass server://***@127.0.0.1:1/127.0.0.1:2"]


@pytest.mark.parametrize("kind, status", [(FatalError, 1), (ConfigError, 2)])
def test_failure_under_twistd(
    monkeypatch: pytest.MonkeyPatch, kind: type[NodePassError], status: int
) -> None:
    """A role that fails for good is logged as critical, once, and leads to the status of its
    cause."""
    at_exit: list[Any] = []
    monkeypatch.setattr(tap.atexit, "register", lambda *call: at_exit.append(call))
    role, reactor = FakeRole(), FakeReactor()
    roles = tap.TwistdRoles([role, FakeRole()], reactor)
    roles.startService()
    with capturedLogs() as logged:
        role.failing.callback(kind("no permission to bind :80"))
        roles.failed(FatalError("later"))
    roles.stopService()
    assert [event["log_level"] for event in logged] == [LogLevel.critical]
    assert str(logged[0]["reason"]) == "no permission to bind :80"
    assert reactor.stopped == 1
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    ((exit_failed, *arguments),) = at_exit
    exit_failed(*arguments)
    assert ended == [status]


def test_tap_round_trip(fake_roles: list[FakeRole], tmp_path: Path) -> None:
    """A saved application has a role per configuration, and is readable for its owner alone."""
    path = tmp_path / "nodepass.tap"
    path.write_text("an older one")
    path.chmod(0o644)
    config = parse_url(URL)
    tap.write_tap([config, config], str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["nodepass.tap"]
    (group,) = IService(loadApplication(str(path), "pickle"))
    assert isinstance(group, tap.TwistdRoles)
    assert [role.config for role in group] == [config, config]


def test_tap_leaves_no_copy(
    fake_roles: list[FakeRole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving the loaded application, as ``twistd -f`` does at its end, writes nothing."""
    monkeypatch.chdir(tmp_path)
    tap.write_tap([parse_url(URL)], "nodepass.tap")
    application = loadApplication("nodepass.tap", "pickle")
    IPersistable(application).save("shutdown")
    assert os.listdir(tmp_path) == ["nodepass.tap"]


def test_tap_unwritable(fake_roles: list[FakeRole], tmp_path: Path) -> None:
    """A path that can't be written is named, and no part of a file is left."""
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path / "missing" / "nodepass.tap"):
        with pytest.raises(ConfigError, match=str(path)):
            tap.write_tap([parse_url(URL)], str(path))
    assert os.listdir(tmp_path) == ["taken"]
