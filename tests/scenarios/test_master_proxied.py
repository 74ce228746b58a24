"""What real clients see of a master through nginx: events as they come, and how a stream ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest_twisted
from attrs import define, field
from twisted.internet import reactor

from tests.ports import HERE
from tests.scenarios.harness import KEY, Node, until
from tests.scenarios.masters import Caller
from tests.scenarios.programs import program
from tests.scenarios.proxied import PASSWORD, USER, Proxied, proxied

URL = f"server://{KEY}@127.0.0.1:0/127.0.0.1:9?mode=2&log=none"


@define
class Client:
    """A program that prints events."""

    process: Node = field(factory=Node)

    def start(self, *command: str, **environ: str) -> Client:
        reactor.spawnProcess(self.process, command[0], command, env={**os.environ, **environ})
        return self

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has printed so far."""
        lines = [line.removeprefix("data: ") for line in self.process.lines]
        return [json.loads(line) for line in lines if line.startswith('{"type":')]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def sees(self, *types: str, of: str | None = None, after: int = 0) -> None:
        """Wait until events of these types have come, in this order."""

        def there() -> bool:
            found = iter(
                event["type"]
                for event in self.events[after:]
                if of is None or (event["instance"] and event["instance"]["id"] == of)
            )
            return all(type in found for type in types)

        await until(there, what=f"{types} in {self.process.lines}")


def curl(*arguments: str) -> Client:
    """curl, which ends after 30 s at the latest."""
    return Client().start(program("curl"), "-sSN", "-m", "30", *arguments)


def curls(there: Proxied) -> list[Client]:
    """curl with a password where nginx adds the key, and curl with the key."""
    base = f"http://{HERE}:{there.web}"
    return [
        curl("-u", f"{USER}:{PASSWORD}", f"{base}/events"),
        curl("-H", f"X-API-Key: {there.key}", f"{base}//api/v1/events"),
    ]


def watcher(there: Proxied) -> Client:
    """``nodepass ctl events``."""
    return Client().start(
        *[sys.executable, "-u", "-m", "nodepass", "ctl", "events", "--json"],
        PYTHONPATH=str(Path(__file__).parents[2]),
        NODEPASS_API=f"http://{HERE}:{there.web}",
        NODEPASS_API_KEY=there.key,
    )


@pytest_twisted.ensureDeferred
async def test_events_through_nginx(tmp_path: Path) -> None:
    """curl and ``nodepass ctl events`` get each event as it happens; a master that was killed
    shows as a broken stream, and one that was stopped as a complete one; ctl comes back by itself
    and nobody without password or key sees anything."""
    async with proxied(tmp_path) as there:
        api = Caller(there.web, there.key, host=HERE)
        assert await curl("-f", f"http://{HERE}:{there.web}/events").process.ended == 22
        ctl = watcher(there)
        everybody = [*curls(there), ctl]
        for client in everybody:
            await client.sees("initial")
        id = (await api.create(URL))["id"]
        await api.becomes(id, "running")
        assert (await api.call("PATCH", f"/instances/{id}", {"alias": "a"})).status == 200
        assert (await api.call("DELETE", f"/instances/{id}")).status == 204
        for client in everybody:
            await client.sees("create", "update", "update", "delete", of=id)
        kept = (await api.create(URL))["id"]

        await there.master.stop(signal.SIGKILL)
        for client in everybody[:2]:
            # "transfer closed with outstanding read data remaining"
            assert await client.process.ended == 18
            assert "shutdown" not in client.types
        before = len(ctl.events)
        await there.start_again()
        await ctl.sees("initial", of=kept, after=before)

        again = curls(there)
        for client in again:
            await client.sees("initial", of=kept)
        assert await there.master.stop() == 0
        for client in again:
            assert await client.process.ended == 0
            assert client.types[-1] == "shutdown"
        await ctl.sees("shutdown")
        assert await ctl.process.stop(signal.SIGINT) in (0, 130)
