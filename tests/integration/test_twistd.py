"""The command and ``twistd`` as processes: status, log, process list, what they leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.ports import HERE, free_port

KEY = "s3cret-key-of-the-test"

# Far more than a start or a stop takes on a slow machine; reached only when the test fails.
PATIENCE = 30.0


class Program:
    """A child process whose output can be waited for, line by line."""

    def __init__(
        self, arguments: list[str], cwd: Path, more: Mapping[str, str] | None = None
    ) -> None:
        environ = {k: v for k, v in os.environ.items() if k != "NODEPASS_KEY"}
        self.child = subprocess.Popen(
            arguments,
            cwd=cwd,
            env={**environ, "NP_SHUTDOWN_TIMEOUT": "1s", **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # A process that never says what is waited for must not hang the test.
        self.deadline = threading.Timer(PATIENCE, self.child.kill)
        self.deadline.start()
        self.output = ""

    def wait_for(self, text: str) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"never said {text!r}:\n{self.output}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the status."""
        self.child.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        rest, _ = self.child.communicate()
        self.output += rest
        return self.child.returncode

    def close(self) -> None:
        self.deadline.cancel()
        if self.child.returncode is None:
            self.child.kill()
            self.child.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs in an empty directory and end those that a failed test left."""
    programs: list[Program] = []

    def start(*arguments: str, **environ: str) -> Program:
        programs.append(Program(list(arguments), tmp_path, environ))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """An empty directory that every user can reach, which those of ``tmp_path`` are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def nodepass(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nodepass", *arguments]


def twistd(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *arguments]


def server_url(port: int, key: str = KEY) -> str:
    return f"server://{key}@{HERE}:{port}/127.0.0.1:9?mode=2"


def accepts(port: int) -> bool:
    try:
        socket.create_connection((HERE, port), PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_stops_cleanly(start: Callable[..., Program], number: int) -> None:
    """The command serves its URLs until SIGINT or SIGTERM, and then its status is 0."""
    one, two = free_port(), free_port()
    program = start(*nodepass(server_url(one), server_url(two)))
    program.wait_for("started")
    program.wait_for("started")
    assert accepts(one)
    assert accepts(two)
    assert program.end(number) == 0, program.output
    assert not accepts(one)
    assert KEY not in program.output


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the platform has no /proc")
@pytest.mark.parametrize("command", [nodepass, lambda *rest: twistd("-n", "nodepass", *rest)])
def test_process_list_shows_no_key(
    start: Callable[..., Program], command: Callable[..., list[str]]
) -> None:
    """Once started, the process list shows the URL with its key masked."""
    port = free_port()
    program = start(*command(server_url(port)))
    program.wait_for("started")
    shown = Path(f"/proc/{program.child.pid}/cmdline").read_bytes().decode()
    assert f"server://***@{HERE}:{port}/" in shown
    assert KEY not in shown


def test_command_reloads(start: Callable[..., Program]) -> None:
    """SIGHUP does not end the command: it goes on serving."""
    port = free_port()
    program = start(*nodepass(server_url(port)))
    program.wait_for("started")
    program.child.send_signal(signal.SIGHUP)
    assert accepts(port)
    assert program.end() == 0, program.output


def test_command_fails_for_good(start: Callable[..., Program]) -> None:
    """An address that is not this host's ends the command with status 1 and names it."""
    program = start(*nodepass(f"server://{KEY}@192.0.2.1:{free_port()}/127.0.0.1:9?mode=2"))
    assert program.wait() == 1, program.output
    assert "192.0.2.1" in program.output
    assert "Traceback" not in program.output


def test_twistd_fails_for_good(start: Callable[..., Program], tmp_path: Path) -> None:
    """The same under twistd: status 1, a line that names it, and no pidfile left."""
    url = f"server://{KEY}@192.0.2.1:{free_port()}/127.0.0.1:9?mode=2"
    program = start(*twistd("-n", "nodepass", url))
    assert program.wait() == 1, program.output
    assert "192.0.2.1" in program.output
    assert os.listdir(tmp_path) == []


def test_twistd_serves(start: Callable[..., Program], tmp_path: Path) -> None:
    """``twistd nodepass URL`` serves the URL, and leaves no file behind when it stops."""
    port = free_port()
    program = start(*twistd("-n", "nodepass", server_url(port)))
    program.wait_for("started")
    assert accepts(port)
    # twistd ends itself by the signal that it got, after a clean stop.
    assert program.end() == -signal.SIGTERM, program.output
    assert KEY not in program.output
    assert os.listdir(tmp_path) == []


def test_twistd_refuses(start: Callable[..., Program]) -> None:
    """A URL that can't be used ends twistd with one line and status 2."""
    program = start(*twistd("-n", "nodepass", "server://:1/:2?mode=7"))
    assert program.wait() == 2
    assert program.output.count("\n") == 1
    assert "mode" in program.output


def test_saved_tap(start: Callable[..., Program], tmp_path: Path) -> None:
    """A saved .tap starts with ``twistd -f``, serves, and stopping it leaves no other file."""
    port = free_port()
    assert start(*nodepass("tap", server_url(port), "-o", "nodepass.tap")).wait() == 0
    program = start(*twistd("-n", "-f", "nodepass.tap"))
    program.wait_for("started")
    assert accepts(port)
    assert program.end() == -signal.SIGTERM, program.output
    assert os.listdir(tmp_path) == ["nodepass.tap"]
    assert KEY not in program.output


def test_tac(start: Callable[..., Program], tmp_path: Path) -> None:
    """A .tac file composes a tunnel from Python, with the public names alone."""
    port = free_port()
    (tmp_path / "tunnel.tac").write_text(
        "from twisted.application.service import Application\n"
        "from nodepass import makeService\n"
        "application = Application('tunnel')\n"
        f"makeService({server_url(port)!r}).setServiceParent(application)\n"
    )
    program = start(*twistd("-n", "-y", "tunnel.tac"))
    program.wait_for("started")
    assert accepts(port)
    assert program.end() == -signal.SIGTERM, program.output
    assert os.listdir(tmp_path) == ["tunnel.tac"]


@pytest.mark.parametrize("way", ["command", "twistd", "tap", "tac"])
def test_masters(start: Callable[..., Program], tmp_path: Path, way: str) -> None:
    """All four ways run a master: it prints its API key, answers, and stops with all of its
    workers; a second one on the same state is refused with status 2."""
    state = tmp_path / "state"
    url = "master://127.0.0.1:0?log=info"
    (tmp_path / "m.tac").write_text(
        "from twisted.application.service import Application\n"
        "from nodepass import makeService\n"
        "application = Application('master')\n"
        f"makeService({url!r}).setServiceParent(application)\n"
    )
    environ = {"NP_STATE": str(state / "nodepass.db"), "NP_MASTER_WORKERS": "1"}
    if way == "tap":
        assert start(*nodepass("tap", url, "-o", "m.tap")).wait() == 0
    arguments = {
        "command": nodepass(url),
        "twistd": twistd("-n", "nodepass", url),
        "tap": twistd("-n", "-f", "m.tap"),
        "tac": twistd("-n", "-y", "m.tac"),
    }[way]
    program = start(*arguments, **environ)
    program.wait_for("API Key created: ")
    key = program.output.rpartition("API Key created: ")[2].strip()
    program.wait_for("API on 127.0.0.1:")
    port = program.output.rpartition("API on 127.0.0.1:")[2].partition(",")[0]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/instances", headers={"X-API-Key": key}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert key in answer.read().decode()
    if way in ("command", "twistd"):
        more = ["--pidfile=second.pid"] if way == "twistd" else []
        second = start(*arguments[:-2], *more, *arguments[-2:], **environ)
        assert second.wait() == 2, second.output
        assert "NP_STATE" in second.output and "Traceback" not in second.output
    children = subprocess.check_output(["pgrep", "-P", str(program.child.pid)], text=True).split()
    assert children
    assert program.end() == (0 if way == "command" else -signal.SIGTERM), program.output
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert "Traceback" not in program.output and "_Link" not in program.output


def test_twistd_daemonizes(open_directory: Path) -> None:
    """Without ``-n`` it serves from the background, as another user, with its log and pid in the
    files asked for; SIGTERM ends it and takes the pid file away."""
    port = free_port()
    # Only root may become somebody else; anybody may become who he is.
    user = 65534 if os.getuid() == 0 else os.getuid()
    os.chown(open_directory, user, -1)
    options = ["--logfile=twistd.log", "--pidfile=twistd.pid", f"--uid={user}"]
    program = Program(twistd(*options, "nodepass", server_url(port)), open_directory)
    assert program.wait() == 0, program.output
    program.close()
    pid = int((open_directory / "twistd.pid").read_text())
    try:
        eventually(lambda: "started" in (open_directory / "twistd.log").read_text())
        assert accepts(port)
        assert int(subprocess.check_output(["ps", "-o", "uid=", "-p", str(pid)])) == user
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not (open_directory / "twistd.pid").exists())
    eventually(lambda: not accepts(port))
    log = (open_directory / "twistd.log").read_text()
    assert "stopped" in log and "Traceback" not in log and KEY not in log
    assert os.listdir(open_directory) == ["twistd.log"]


def eventually(true: Callable[[], bool]) -> None:
    """Wait until something that is not our child has come about."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
