"""``nodepass demo`` as a process."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from nodepass.demo.ends import PAGE

STEPS = ["tunnel", "page fetched", "datagrams echoed", "visitors served", "bulk fetched"]


def demo(*arguments: str, before: str = "") -> subprocess.Popen[str]:
    """Start the demo; `before` is a statement that changes something in it first."""
    code = f"import nodepass.demo, sys; {before}\nsys.exit(nodepass.demo.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(output: str) -> dict[str, str]:
    """Each step's state."""
    rows = re.findall(r"^ {2}(ok|FAILED) +(\w+(?: \w+)?) {2,}", output, re.MULTILINE)
    return {step: state for state, step in rows}


def test_demo_once() -> None:
    """Once: every step holds, nothing but the table is printed, and the status is 0."""
    program = demo("--once")
    output, errors = program.communicate(timeout=100)
    assert (program.returncode, errors) == (0, ""), output
    assert table(output) == dict.fromkeys(STEPS, "ok")
    assert "200 MB in" in output
    assert "1000 of 1000" in output


def fetched(url: str) -> str:
    """What is there, as soon as somebody listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def wait_for(port: int) -> None:
    """Go on when somebody listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 30).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_demo_stays_up() -> None:
    """Until it is told to stop the page can be fetched from the address printed, and by another
    tunnel, as the commands printed make it. Signals that come together are one."""
    program = demo()
    output = ""
    nodes = []
    assert program.stdout is not None
    try:
        for line in program.stdout:
            output += line
            if "On two machines" in line:
                break
        own, other = re.findall(r"curl (http://\S+)", output)
        assert fetched(own) == PAGE
        for printed in re.findall(r'^  (.* ".*://.*")$', output, re.MULTILINE):
            command = shlex.split(printed)
            url = command[-1]
            command[-1] += "&log=warn"
            nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            if url.startswith("server"):
                wait_for(int(re.search(r":(\d+)/", url)[1]))  # type: ignore[index]
        assert fetched(other) == PAGE
        for node in reversed(nodes):
            node.terminate()
            said, _ = node.communicate(timeout=30)
            assert node.returncode == 0
            assert not re.search("WARN|ERROR", said)
        program.send_signal(signal.SIGTERM)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=30)
        assert (program.returncode, errors) == (0, "")
    finally:
        for one in (program, *nodes):
            one.kill()
            one.communicate()


@pytest.mark.parametrize(
    ("before", "failing"),
    [
        ("nodepass.demo.PAGE += 'x'", ["page fetched", "visitors served"]),
        ("nodepass.demo.bulk_checksum = lambda size: 0", ["bulk fetched"]),
    ],
)
def test_demo_reports_failure(before: str, failing: list[str]) -> None:
    """A step that fails is named in one line, the others still run, and the status is 1."""
    program = demo(before=before)
    output, errors = program.communicate(timeout=100)
    assert (program.returncode, errors) == (1, "")
    expected = {step: "FAILED" if step in failing else "ok" for step in STEPS}
    assert table(output) == expected, output
