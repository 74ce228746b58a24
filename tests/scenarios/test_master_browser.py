"""What a browser makes of a master: its own EventSource through nginx, and the page to try things
on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytest_twisted

from nodepass.master.routes import ROUTES
from tests.ports import HERE
from tests.scenarios.harness import KEY, until
from tests.scenarios.masters import Caller, master
from tests.scenarios.proxied import PASSWORD, USER, Proxied, proxied

CHROMIUM = shutil.which("chromium")
URL = f"server://{KEY}@127.0.0.1:0/127.0.0.1:9?mode=2&log=none"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no browser here; on Debian: apt install chromium"
)

#: Tells nginx, whose log the test reads, of all that an EventSource does.
PAGE = """
<!DOCTYPE html>
<title>events</title>
<script>
let number = 0, last = Promise.resolve();
const tell = (...what) => {
  // One after the other, as nginx notes them.
  const path = "/seen/" + [number++, ...what].map(encodeURIComponent).join("/");
  last = last.then(() => fetch(location.origin + path)).catch(() => {});
};
const source = new EventSource("/events");
source.onopen = () => tell("open");
source.onerror = () => tell("error", source.readyState);
source.addEventListener("instance", (message) => {
  const event = JSON.parse(message.data);
  tell(event.type, event.instance ? event.instance.id : "");
});
</script>
"""


@contextmanager
def browser(directory: Path, *arguments: str) -> Iterator[Path]:
    """Have Chromium running, which asks no other machine for anything; where its output is."""
    assert CHROMIUM is not None
    output = directory / "chromium"
    quiet = "--no-first-run --disable-gpu --disable-dev-shm-usage --disable-background-networking"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [
                *[CHROMIUM, "--headless=new", "--no-sandbox", *quiet.split()],
                *[
                    f"--user-data-dir={directory}/profile",
                    "--enable-logging=stderr",
                    "--log-level=0",
                ],
                f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE {HERE}",
                *arguments,
            ],
            env={**os.environ, "HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield output
    finally:
        # It is many processes, all in one group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def told(there: Proxied) -> list[str]:
    """What the page has told so far, such as ``create/1f2e3d4c``."""
    lines = there.seen.read_text().splitlines() if there.seen.exists() else []
    return [unquote(line).split("/", 3)[3] for line in lines]


@pytest_twisted.ensureDeferred
async def test_event_source_through_nginx(tmp_path: Path) -> None:
    """A browser's own EventSource gets each event; when the master is killed it sees an error and
    comes back by itself to all that there is; when it is stopped, after `shutdown`."""
    async with proxied(tmp_path) as there:
        (there.pages / "events.html").write_text(PAGE)
        api = Caller(there.web, there.key, host=HERE)
        page = f"http://{USER}:{PASSWORD}@{HERE}:{there.web}/pages/events.html"
        with browser(tmp_path, page):
            start = time.monotonic()
            await until(lambda: told(there) == ["open", "initial/********"], what="the page")
            print(f"subscribed after {time.monotonic() - start:.1f} s")
            id = (await api.create(URL))["id"]
            await api.becomes(id, "running")
            assert (await api.call("DELETE", f"/instances/{id}")).status == 204
            await until(lambda: f"delete/{id}" in told(there))
            seen = [what for what in told(there) if id in what]
            assert seen[0] == f"create/{id}" and f"update/{id}" in seen
            kept = (await api.create(URL))["id"]
            await until(lambda: f"create/{kept}" in told(there))

            before = len(told(there))
            await there.master.stop(signal.SIGKILL)
            # 0: connecting again, by itself.
            await until(lambda: told(there)[before:].count("error/0") >= 1, what="an error")
            assert "shutdown/" not in told(there)
            # It has tried at least once while nginx had nobody to ask.
            await until(lambda: told(there)[before:].count("error/0") >= 2, what="another error")
            await there.start_again()
            start = time.monotonic()
            await until(lambda: f"initial/{kept}" in told(there)[before:], what="the way back")
            print(f"back after {time.monotonic() - start:.1f} s")

            assert await there.master.stop() == 0
            await until(lambda: "shutdown/" in told(there), what="shutdown")
            assert "error/2" not in told(there)


@pytest_twisted.ensureDeferred
async def test_swagger_ui(tmp_path: Path) -> None:
    """The page shows every route of the description, with nothing but the master to ask; the
    browser complains of nothing, neither of the script nor of what the page may not do."""
    running = await master(tmp_path)
    page = f"http://127.0.0.1:{running.api.port}/api/v1/docs"
    with browser(tmp_path, "--virtual-time-budget=20000", "--dump-dom", page) as output:
        await until(lambda: "</html>" in output.read_text(), 20, "the page")
        text = output.read_text()
    assert [line for line in text.splitlines() if "CONSOLE" in line] == []
    for route in ROUTES:
        assert re.search(f'opblock-{route.method.lower()}"[^>]* id="[^"]*{route.handler}"', text)
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]* (?:src|href)="([^"]*)"', text)
    assert loaded and not [address for address in loaded if "//" in address]
    await running.stop()
