"""``nodepass demo`` as a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from nodepass.config import Mode, TLSLevel, parse_url
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


def test_demo_stays_up() -> None:
    """Until Ctrl-C the page can be fetched from the address printed; the URLs are good."""
    program = demo()
    output = ""
    assert program.stdout is not None
    try:
        for line in program.stdout:
            output += line
            if "On two machines" in line:
                break
        address = re.search(r"curl (http://\S+)", output)
        assert address, output
        with urllib.request.urlopen(address[1], timeout=30) as answer:
            assert answer.read().decode() == PAGE
        urls = re.findall(r'nodepass "(\S+)"', output)
        server, client = (parse_url(url) for url in urls)
        assert server.tunnel == client.tunnel
        assert server.key == client.key
        assert (client.mode, client.tls) == (Mode.TWO, TLSLevel.SELF_SIGNED)
        assert f"http://{server.targets[0]}/" == address[1]
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=30)
        assert (program.returncode, errors) == (0, "")
    finally:
        program.kill()
        program.communicate()


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
