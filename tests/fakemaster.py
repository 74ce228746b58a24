"""A master's API in memory, without tunnels: what a client can be tried on."""

from __future__ import annotations

import json
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

KEY = "0123456789abcdef0123456789abcdef"

COUNTERS = ("tcprx", "tcptx", "udprx", "udptx")


class FakeMaster(Resource):
    """Answers as the contract says.

    @ivar instances: by id, in the order of creation.
    @ivar requests: method, path and body of each request that had the right key.
    @ivar streams: requests for streams that are open.
    @ivar answers: path -> what is answered instead: status, Content-Type, body.
    @ivar ours: whether it knows what other implementations don't: logs, traffic, `restore`, meta.
    """

    isLeaf = True

    def __init__(self, *, ours: bool = True) -> None:
        super().__init__()
        self.key = KEY
        self.instances: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[Any] = []
        self.streams: list[Any] = []
        self.answers: dict[str, tuple[int, str, bytes]] = {}
        self.ours = ours
        self.lines: list[str] = ["2026-01-31 12:00:00.000  INFO  started"]

    def add(self, id: str, url: str = "server://:1/:2", **members: Any) -> dict[str, Any]:
        """An instance that is there."""
        one: dict[str, Any] = {"id": id, "alias": "", "type": url.partition(":")[0]}
        one |= {"status": "running", "url": url, "restart": True}
        one |= dict.fromkeys(("mode", "ping", "pool", "tcps", "udps", *COUNTERS), 0)
        if self.ours:
            one |= {"config": url, "meta": _empty_meta()}
        self.instances[id] = one | members
        return self.instances[id]

    def send(self, data: bytes) -> None:
        """Write to all open streams."""
        for request in self.streams:
            request.write(data)

    def event(self, type: str, id: str | None = None, *, number: str = "", logs: str = "") -> None:
        """Send an event to all open streams."""
        instance = None if id is None else self.instances[id]
        body = {"type": type, "time": "2026-01-31T12:00:00+01:00", "instance": instance}
        line = f"id: {number}\n" if number else ""
        self.send(f"{line}event: instance\ndata: {json.dumps(body | {'logs': logs})}\n\n".encode())

    def render(self, request: Any) -> Any:
        path = request.path.decode()
        request.setHeader("Content-Type", "application/json")
        if path in self.answers:
            status, kind, body = self.answers[path]
            request.setHeader("Content-Type", kind)
            request.setResponseCode(status)
            return body
        if request.getHeader("X-API-Key") != self.key:
            return _error(request, 401, "Unauthorized: Invalid API key")
        body = request.content.read()
        self.requests.append(
            (request.method.decode(), request.uri.decode(), json.loads(body) if body else None)
        )
        self.headers.append(request.requestHeaders)
        if not path.startswith("/api/v1/"):
            request.setHeader("Content-Type", "text/plain; charset=utf-8")
            request.setResponseCode(404)
            return b"404 page not found\n"
        return self._route(request, path.removeprefix("/api/v1/").split("/"), self.requests[-1][2])

    def _route(self, request: Any, parts: list[str], body: Any) -> Any:
        method = request.method
        if parts == ["info"]:
            return _json({"ver": "v1.10.0", "os": "linux", "tls": "0", "cpu": 7, "mem_used": 1536})
        if parts == ["tcping"]:
            target = request.args[b"target"][0].decode()
            return _json({"target": target, "connected": True, "latency": 3, "error": None})
        if parts == ["events"]:
            request.setHeader("Content-Type", "text/event-stream")
            return self._stream(request, b"retry: 3000\n\n")
        if parts == ["instances"] and method == b"GET":
            key = {"id": "********", "url": self.key, "type": "", "status": "", "alias": ""}
            return _json([key, *self.instances.values()])
        if parts == ["instances"] and method == b"POST":
            return self._create(request, body)
        if parts == ["instances", "********"]:
            self.key = "f" * 32
            return _json({"id": "********", "url": self.key})
        one = self.instances.get(parts[1])
        if one is None or (len(parts) > 2 and not self.ours):
            return _error(request, 404, "Instance not found")
        if len(parts) > 2:
            return self._additions(request, parts[1], parts[2])
        return self._instance(request, one, body)

    def _create(self, request: Any, body: Any) -> bytes:
        if not body["url"].startswith(("server:", "client:")):
            return _error(request, 400, "Invalid URL scheme")
        id = f"{len(self.instances):08x}"
        if self.ours and body.get("id", "") not in ("", *self.instances):
            id = body["id"]
        one = self.add(id, body["url"], alias=body.get("alias", ""))
        if self.ours:
            one |= {name: body[name] for name in ("restart", "meta") if name in body}
            one |= body.get("totals", {})
        request.setResponseCode(201)
        return _json(one)

    def _instance(self, request: Any, one: dict[str, Any], body: Any) -> bytes:
        if request.method == b"DELETE":
            del self.instances[one["id"]]
            request.setResponseCode(204)
            return b""
        if request.method == b"PUT":
            if body["url"] == one["url"]:
                return _error(request, 409, "Instance URL conflict")
            one["url"] = body["url"]
        if request.method == b"PATCH":
            action = body.get("action")
            if action not in (None, "start", "stop", "restart", "reset"):
                return _error(request, 400, f"Invalid action: {action}")
            if action in ("start", "stop", "restart"):
                one["status"] = "stopped" if action == "stop" else "running"
            one |= {name: body[name] for name in ("alias", "restart") if name in body}
            if self.ours:
                one["meta"] |= body.get("meta", {})
        return _json(one)

    def _additions(self, request: Any, id: str, what: str) -> Any:
        if what == "traffic":
            return _json({"id": id, "step": 5, "points": [[100, 1, 2, 3, 4]]})
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        text = "".join(f"{line}\n" for line in self.lines).encode()
        if request.args.get(b"follow") == [b"1"]:
            return self._stream(request, text)
        return text

    def _stream(self, request: Any, first: bytes) -> Any:
        request.write(first)
        self.streams.append(request)
        request.notifyFinish().addBoth(lambda _: self.streams.remove(request))
        return NOT_DONE_YET


def _empty_meta() -> dict[str, Any]:
    return {"peer": {"sid": "", "type": "", "alias": ""}, "tags": {}}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _error(request: Any, status: int, text: str) -> bytes:
    request.setResponseCode(status)
    return _json({"error": text})
