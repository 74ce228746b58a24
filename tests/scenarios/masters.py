"""Masters to try things on: in this process, with worker processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import treq
from attrs import define, evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers

from nodepass.config import parse_url
from nodepass.master.service import MasterService
from nodepass.master.settings import MasterSettings
from nodepass.tuning import Tuning
from tests.scenarios.harness import QUICK, forget, running_here, until

#: A tunnel key for instances.
KEY = "an-honest-key-of-good-length"


@define
class Answer:
    """What came back."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        values = self.headers.getRawHeaders(name) or [""]
        return values[0]


@define
class Caller:
    """A client of a master's API that looks at the bytes."""

    port: int
    key: str | None
    prefix: str = "/api"
    host: str = "127.0.0.1"
    agent: Any = None

    def __attrs_post_init__(self) -> None:
        self.agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask for a path behind ``<prefix>/v1``; ``body`` is JSON or bytes."""
        given = dict(headers or {})
        used = self.key if key == "" else key
        if used is not None:
            given["X-API-Key"] = used
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        response = await treq.request(
            method,
            f"http://{self.host}:{self.port}{self.prefix}/v1{path}",
            headers=given,
            data=data,
            agent=self.agent,
        )
        return Answer(response.code, response.headers, await response.content())

    async def create(self, url: str, **more: Any) -> dict[str, Any]:
        """Make an instance."""
        answer = await self.call("POST", "/instances", {"url": url, **more})
        assert answer.status == 201, answer
        return dict(answer.json())

    async def get(self, id: str) -> dict[str, Any]:
        """Show an instance."""
        answer = await self.call("GET", f"/instances/{id}")
        assert answer.status == 200, answer
        return dict(answer.json())

    async def becomes(self, id: str, status: str, timeout: float = 15.0) -> dict[str, Any]:
        """Wait until an instance has a status."""
        deadline = reactor.seconds() + timeout
        while (shown := await self.get(id))["status"] != status:
            assert reactor.seconds() < deadline, shown
        return shown

    async def events(self, query: str = "", last_id: str | None = None) -> Listener:
        """Subscribe."""
        headers = {"X-API-Key": self.key or ""}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        response = await treq.request(
            "GET",
            f"http://{self.host}:{self.port}{self.prefix}/v1/events{query}",
            headers=headers,
            agent=self.agent,
            unbuffered=True,
        )
        assert response.code == 200
        listener = Listener(response)
        response.deliverBody(listener)
        return listener


class Listener(Protocol):
    """Reads a stream of events.

    :ivar ended: fires with whether the end was a clean one.
    """

    def __init__(self, response: Any) -> None:
        self.response = response
        self.raw = b""
        self.ended: Deferred[bool] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.raw += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(reason.check(ResponseDone) is not None)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far."""
        found = []
        for block in self.raw.split(b"\n\n")[:-1]:
            lines = block.split(b"\n")
            data = [line[6:] for line in lines if line.startswith(b"data: ")]
            if data:
                found.append(json.loads(data[0]))
        return found

    def of(self, id: str) -> list[tuple[str, str]]:
        """Type and status of each event of an instance, but for log lines."""
        return [
            (event["type"], event["instance"]["status"])
            for event in self.events
            if event["instance"] and event["instance"]["id"] == id and event["type"] != "log"
        ]

    async def sees(self, condition: Any, timeout: float = 15.0) -> None:
        """Wait until `condition(events)` is true."""
        await until(lambda: condition(self.events), timeout, "the event")

    async def close(self) -> None:
        """Hang up."""
        if not self.ended.called:
            self.transport.loseConnection()  # type: ignore[union-attr]
            await self.ended


@define(eq=False)
class Running:
    """A master in this process."""

    service: MasterService
    api: Caller
    state: Path

    async def stop(self) -> None:
        """Stop it."""
        forget(self)
        await self.service.stopService()


async def master(
    state: Path,
    query: str = "",
    *,
    prefix: str = "/api",
    workers: int = 1,
    tuning: Tuning = QUICK,
) -> Running:
    """Start a master whose state is in a directory, and wait until its API answers."""
    log = os.environ.get("SCENARIO_LOG", "none")
    config = parse_url(f"master://127.0.0.1:0{prefix}?log={log}&{query}")
    # The test's own taste: instances have it from the master's URL only where that says so.
    config = evolve(config, given=config.given - {"log"} | ({"log"} if "log=" in query else set()))
    settings = MasterSettings(state=state / "nodepass.db", workers=workers, worker_memory=1 << 30)
    service = MasterService(config, settings=settings, tuning=tuning)
    service.startService()
    try:
        await service.whenReady()
    except BaseException:
        await service.stopService()
        raise
    assert service.address is not None
    port = int(service.address.rpartition(":")[2])
    api = Caller(port, service.key, prefix.rstrip("/") or "/api")
    running_here.append(Running(service, api, state))
    return running_here[-1]
