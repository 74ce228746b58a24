"""The habits of shell scripts: what curl sends unless told otherwise, and what sed finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.utils import getProcessOutputAndValue

from tests.scenarios.harness import KEY
from tests.scenarios.masters import Running, master
from tests.scenarios.programs import program

URL = f"server://{KEY}@127.0.0.1:0/127.0.0.1:9?mode=2&log=none"

#: A script as people have them: a base address with a slash too many, no Content-Type, ids by
#: sed, curl's words for what failed.
SCRIPT = r"""
set -e
api() { method=$1 path=$2; shift 2; curl -sS -X "$method" -H "X-API-Key: $KEY" "$@" "$BASE$path"; }
id=$(api POST /v1/instances -d '{"url":"'"$URL"'"}' | sed -n 's/^{"id":"\([0-9a-f]\{8\}\)".*/\1/p')
echo "made $id"
api PATCH /v1/instances/$id -d '{"alias":"by a script"}' | grep -o '"alias":"[^"]*"' | head -1
api GET /v1/instances | sed 's/},{"id"/},\n{"id"/g' | grep -c '"id":"........"'
api GET /v1/instances | grep -o '"url":"[0-9a-f]*"' | sed 's/.*:"\(.*\)"/\1/'
api GET /v1/instances/$id | tr , '\n' | sed -n 's/^"url":"\(.*\)"$/\1/p' | sed 's/\\u0026/\&/g'
api PUT /v1/instances/$id -d '{"url":"'"$URL&max=7"'"}' -o /dev/null \
  -w '%{http_code} %{content_type}\n'
api DELETE /v1/instances/$id -w '%{http_code} %{size_download}\n'
api DELETE /v1/instances/$id -w '%{http_code}\n'
curl -sS -f -X POST -H "X-API-Key: wrong" -d '{}' "$BASE/v1/instances" 2>/dev/null ||
  echo "failed with $?"
head -c 2000 /dev/zero | tr '\0' ' ' | api POST /v1/instances --data-binary @- \
  -H 'Expect: 100-continue'
"""


async def run(running: Running, script: str, *options: str) -> list[str]:
    """Run a script; the lines that it prints. `options` go to every curl."""
    base = f"http://127.0.0.1:{running.api.port}/api/"
    home = running.state / "home"
    home.mkdir(exist_ok=True)
    (home / ".curlrc").write_text("\n".join(options))
    program("curl")
    out, err, status = await getProcessOutputAndValue(
        "/bin/sh",
        ["-c", script],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "BASE": base,
            "KEY": running.api.key or "",
            "URL": URL,
        },
    )
    assert (status, err) == (0, b""), (out, err)
    return out.decode().splitlines()


@pytest.mark.parametrize("version", ["http1.1", "http1.0"])
@pytest_twisted.ensureDeferred
async def test_a_shell_script(tmp_path: Path, version: str) -> None:
    """Bodies in the form type, a doubled slash, ids and URLs cut out by sed, over both versions of
    HTTP: all as it was."""
    running = await master(tmp_path)
    made, *lines = await run(running, SCRIPT, version)
    id = made.removeprefix("made ")
    assert len(id) == 8
    assert lines == [
        '"alias":"by a script"',
        "2",
        running.api.key,
        URL,
        "200 application/json",
        "204 0",
        '{"error":"Instance not found"}',
        "404",
        "failed with 22",
        '{"error":"Invalid request body"}',
    ]
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_events_of_old(tmp_path: Path) -> None:
    """A stream over HTTP/1.0 has no chunks between its lines, and none where a script asks for
    `Connection: close` or compressed answers, which streams never are."""
    running = await master(tmp_path)
    script = 'curl -sSN -m 1 -H "X-API-Key: $KEY" "$BASE/v1/events" || echo "ended with $?"'
    for options in (["http1.0"], ["header = Connection: close"], ["compressed"]):
        lines = await run(running, script.replace("||", "2>/dev/null ||"), *options)
        assert lines[:3] == ["retry: 3000", "", "event: instance"], options
        assert lines[3].startswith('data: {"type":"initial","time":"')
        assert lines[4:] == ["", "ended with 28"]
    await running.stop()
