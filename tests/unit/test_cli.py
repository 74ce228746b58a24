"""The ``nodepass`` command and the package's public names."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nodepass
from nodepass import cli, keys
from nodepass.errors import ConfigError, FatalError, NodePassError
from nodepass.parameters import PARAMETERS
from nodepass.tuning import VARIABLES
from tests.fakes import FakeReactor, FakeRole

URL = "client://127.0.0.1:1/127.0.0.1:2?mode=1"


def test_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, the command prints version, platform and usage on stderr, and its status is 2."""
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert nodepass.__version__ in err
    assert sys.platform in err.lower()
    assert "Usage: nodepass" in err


@pytest.mark.parametrize("arguments", [["-h"], ["--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help goes to stdout with status 0 and names every command, parameter and variable."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    names = [row.name for row in PARAMETERS] + [row.name for row in VARIABLES]
    for name in [*names, *cli.COMMANDS, "--key-file", "NODEPASS_KEY"]:
        assert re.search(rf"(^|\s){name}\b", out), name
    assert max(map(len, out.splitlines())) <= 82


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("key", ["NODEPASS_KEY", "umask 077"]),
        ("tap", ["-o", "--key-file", "nodepass.tap"]),
        ("demo", ["--once"]),
    ],
)
def test_help_of_a_command(
    command: str, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A command's help is its own few lines, which name its options and defaults."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith(f"Usage: nodepass {command}")
    assert len(out.splitlines()) <= 8
    for name in named:
        assert name in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints one line on stdout, with status 0."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith(f"nodepass {nodepass.__version__} (")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["server://:1/:2?mode=7"], "mode"),
        (["ftp://:1/:2"], "ftp"),
        (["bogus"], "bogus: neither a URL nor a command; accepted: server://..., client://..., "),
        (["bogus"], "ctl, demo, key"),
        ([URL, "client://nowhere"], "nowhere"),
        (["--key-file", "/nonexistent/key", URL], "/nonexistent/key"),
        (["tap", "server://:1/:2?slot=x"], "slot"),
    ],
)
def test_unusable(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be used gives status 2 and one line on stderr that names it."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nodepass: ")
    assert err.count("\n") == 1
    assert named in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--colour", URL], "--colour: unknown option; see: nodepass --help"),
        (["--colour"], "--colour: unknown option; see: nodepass --help"),
        (["--key=s3cret", URL], "--key: unknown option; see: nodepass --help"),
        (["tap"], "a URL is needed; see: nodepass tap --help"),
        (["tap", "-o"], "argument -o/--output: expected one argument; see: nodepass tap --help"),
        (
            ["key", "server://s3cret@:1/:2"],
            "server://***@:1/:2: not expected here; see: nodepass key --help",
        ),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option gives status 2 and one line that names it, and never shows a key."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err == f"nodepass: {message}\n"


def test_key(capsys: pytest.CaptureFixture[str]) -> None:
    """Each new key is random, at least 128 bits long, and needs no quoting."""
    assert cli.main(["key"]) == 0
    assert cli.main(["key"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first != second
    for key in (first, second):
        assert re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]+", key)
        assert len(key) * 6 >= 128


def test_key_never_reads_as_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that begins with a dash is drawn again."""
    drawn = iter(["-option", "-o", "plain"])
    monkeypatch.setattr(secrets, "token_urlsafe", lambda size: next(drawn))
    assert keys.new_key() == "plain"


def keys_of(*arguments: str) -> list[str | None]:
    return [config.key for config in cli.read_urls(arguments)]


def test_key_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A URL's own key goes before the key file's, and that before the environment's."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    urls = ["server://own@:1/:2", "server://:1/:2"]
    monkeypatch.delenv("NODEPASS_KEY", raising=False)
    assert keys_of(*urls) == ["own", None]
    monkeypatch.setenv("NODEPASS_KEY", "from-environment")
    assert keys_of(*urls) == ["own", "from-environment"]
    assert keys_of("--key-file", str(file), *urls) == ["own", "from-file"]
    monkeypatch.setenv("NODEPASS_KEY", "")
    assert keys_of(*urls) == ["own", None]


def test_urls_among_options(tmp_path: Path) -> None:
    """URLs may stand before, between and after options."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    url = "server://:1/:2"
    assert keys_of(url, "--key-file", str(file), "--", url) == ["from-file", "from-file"]


def test_tap_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``nodepass tap`` shows the URL's warnings on stderr, and says if it replaced a file."""
    monkeypatch.chdir(tmp_path)
    url = "server://:1/127.0.0.1:2?tsl=1"
    assert cli.main(["tap", url]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("nodepass.tap written; ")
    assert err.startswith("nodepass: warning: parameter tsl: ")
    assert err.endswith("did you mean tls?\n")
    assert cli.main(["tap", "server://:1/127.0.0.1:2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("nodepass.tap replaced; ")
    assert err == ""


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"first\nsecond\n", b"x" * 5000, b"\xff\xfe\xfd"]
)
def test_bad_key_file(tmp_path: Path, content: bytes) -> None:
    """A key file that is not one line of text is refused by name, its content never shown."""
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--key-file=.*key: ") as raised:
        keys.outside_key(str(file), {})
    assert "second" not in str(raised.value)


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's signals stay what they are."""
    monkeypatch.setattr("nodepass.process.stop_at_signals", lambda reactor: None)


@pytest.mark.usefixtures("no_signals")
def test_serve_clean() -> None:
    """The roles are bound, then started, then run; a stop that was asked for is status 0."""
    role, reactor = FakeRole(), FakeReactor()
    assert cli.serve([role], reactor) == 0
    assert role.told == ["privileged", "start"]
    assert reactor.ran
    for phase, event, trigger in reactor.triggers:
        assert (phase, event) == ("before", "shutdown")
        if getattr(trigger, "__name__", "") == "stopService":
            trigger()
    assert role.told[-1] == "stop"


@pytest.mark.usefixtures("no_signals")
@pytest.mark.parametrize(
    ("error", "status"),
    [(FatalError("no permission to bind :80"), 1), (ConfigError("crt=x: no such file"), 2)],
)
def test_serve_failed(
    error: NodePassError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """What retrying can't mend ends the process with its own status and one line on stderr."""
    role, reactor = FakeRole(), FakeReactor()
    role.failing.callback(error)
    assert cli.serve([role], reactor) == status
    assert reactor.stopped == 1
    assert capsys.readouterr().err == f"nodepass: {error}\n"
    role.parent.stopService()


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """``nodepass demo`` hands its own arguments to the demo and returns its status."""
    module = ModuleType("nodepass.demo")
    module.main = lambda arguments: 0 if arguments == ["--once"] else 9
    monkeypatch.setitem(sys.modules, "nodepass.demo", module)
    assert cli.main(["demo", "--once"]) == 0


def test_public_names() -> None:
    """The public names are these; adding or removing one is a decision, not an accident."""
    assert nodepass.__all__ == [
        "ClientConfig",
        "ConfigError",
        "FatalError",
        "MasterConfig",
        "MasterService",
        "MasterSettings",
        "NodePassError",
        "PeerError",
        "RoleService",
        "ServerConfig",
        "Stats",
        "Tuning",
        "__version__",
        "makeService",
        "parse_url",
    ]


def test_public_names_exist() -> None:
    """Every public name can be had from the package, and dir() lists it."""
    for name in nodepass.__all__:
        assert getattr(nodepass, name) is not None
        assert name in dir(nodepass)


def test_unknown_name() -> None:
    """A name that the package lacks is an ordinary AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'Tunnel'"):
        nodepass.Tunnel  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import nodepass; dir(nodepass); nodepass.parse_url",
        "import nodepass.cli; nodepass.cli.main(['key'])",
        "import nodepass.tap; str(nodepass.tap.Options())",
    ],
)
def test_installs_no_reactor(code: str) -> None:
    """Importing the package or showing help leaves the choice of the reactor to the program."""
    check = "import sys; assert 'twisted.internet.reactor' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True, capture_output=True)


def test_a_signal_on_the_way_out_leaves_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated signal that comes when the command is over is not what ended it."""
    ignored: list[tuple[int, object]] = []
    monkeypatch.setattr(cli, "main", lambda _: 0)
    monkeypatch.setattr(signal, "signal", lambda *what: ignored.append(what))
    with pytest.raises(SystemExit) as ended:
        cli.console()
    assert ended.value.code == 0
    assert ignored == [(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]


def test_an_interrupt_at_the_start_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the reactor runs ends the command with the shell's status for it."""

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "key", interrupted)
    assert cli.main(["key"]) == 130
