"""The HTTP interface as a Klein app: requests in, calls of the master, records out.

The table of routes says what there is; each row names the method here that serves it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from attrs import frozen
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException

from .errors import ApiError
from .master import Master, version
from .models import (
    EVENT_TYPES,
    MASTER_ID,
    Info,
    InfoChange,
    Instance,
    InstanceChange,
    NewInstance,
    NewURL,
    Tcping,
    Traffic,
    decode,
    encode,
)
from .request import MasterRequest
from .routes import ROUTES, Query, Route

__all__ = ["Api"]

#: The version of the interface, behind the prefix.
VERSION = "/v1"

#: Longest address that can be asked to be connected to: a host name has 253 characters at most.
MOST_TARGET = 512


@frozen
class Call:
    """What a request asks for, once it has been read.

    :ivar id: of the instance that it is about; empty for none.
    :ivar body: a record of the route's type.
    :ivar query: the values behind the ``?``, with their defaults.
    """

    request: MasterRequest
    id: str
    body: Any
    query: dict[str, Any]


class Api:
    """Serves a master.

    :ivar resource: to be given to a `MasterSite`.
    """

    def __init__(self, master: Master) -> None:
        self._master = master
        self._base = master.config.prefix + VERSION
        self._document = b""  # made when it is asked for
        self._app = app = Klein()
        paths: dict[str, dict[str, Route]] = {}
        for route in ROUTES:
            paths.setdefault(route.path, {})[route.method] = route
        for path, methods in paths.items():
            self._serve(path.replace("{id}", "<id>"), self._existing, methods)
        # Paths without a method of their own are served as well, in their way.
        self._serve("/instances/", self._id_missing)
        self._serve("/instances/<path:rest>", self._no_instance)
        app.route(f"{self._base}/docs/<name>", endpoint="asset")(self._asset)
        app.handle_errors(HTTPException)(self._unrouted)
        self.resource: IResource = app.resource()

    def _serve(
        self,
        path: str,
        check: Callable[..., None],
        methods: dict[str, Route] | None = None,
    ) -> None:
        """Serve all methods of a path: those that there are, and the others with a refusal."""

        def serve(request: MasterRequest, **parts: str) -> Deferred[None]:
            # Klein cancels what it is given when the client goes. What has begun is ended all the
            # same: half a change is none that anybody asked for.
            answered: Deferred[None] = Deferred(lambda _: None)
            work = Deferred.fromCoroutine(self._answer(request, check, methods or {}, parts))
            work.addErrback(request.processingFailed).addErrback(lambda _: None)
            work.chainDeferred(answered)
            return answered

        # Any method: werkzeug's own answer to a wrong one would come before the key is checked.
        self._app.route(self._base + path, methods=None, endpoint=path)(serve)

    async def _answer(
        self,
        request: MasterRequest,
        check: Callable[..., None],
        methods: dict[str, Route],
        parts: dict[str, str],
    ) -> None:
        """Check a request in the order that clients know, and answer it."""
        try:
            if request.method == b"OPTIONS":
                request.answer(200)
                return
            route = methods.get(request.method.decode("ascii", "replace"))
            protected = all(each.protected for each in methods.values())
            if protected and not await self._admitted(request):
                return
            check(**parts)
            if route is None:
                allowed = ", ".join([*methods, "OPTIONS"])
                request.setHeader("Allow", allowed)  # type: ignore[no-untyped-call]
                raise ApiError(405, "Method not allowed")
            if parts.get("id") == MASTER_ID and route.method in ("PUT", "DELETE"):
                raise ApiError(403, "Forbidden: API Key")
            handler: Callable[[Call], Awaitable[None]] = getattr(self, route.handler)
            await handler(self._read(request, route, parts.get("id", "")))
        except ApiError as error:
            request.error(error.status, str(error))

    async def _admitted(self, request: MasterRequest) -> bool:
        """Check the key; whether the request may go on, which is answered otherwise."""
        key = request.getHeader(b"X-API-Key")
        checking = self._master.access.check(key, request.address)
        request.notifyFinish().addErrback(lambda _: checking.cancel())
        try:
            refusal = await checking
        except CancelledError:
            return False
        if refusal is not None:
            request.error(401, refusal.message, close=refusal.close)
        return refusal is None

    def _existing(self, id: str = MASTER_ID) -> None:
        if id != MASTER_ID:
            self._master.registry.get(id)

    def _id_missing(self) -> None:
        raise ApiError(400, "Instance ID is required")

    def _no_instance(self, rest: str) -> None:
        raise ApiError(404, "Instance not found")

    def _unrouted(self, request: Any, failure: Failure | None = None) -> bytes:
        body = b"404 page not found\n"
        request.setResponseCode(404)
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return body

    def _read(self, request: MasterRequest, route: Route, id: str) -> Call:
        body = None
        if route.request is not None:
            try:
                body = decode(request.content.read(), route.request)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise ApiError(400, "Invalid request body") from None
        query = {each.name: _parameter(request, each) for each in route.query}
        return Call(request, id, body, query)

    # The handlers, in the order of the table.

    async def list_instances(self, call: Call) -> None:
        _reply(call, list(self._master.instances()))

    async def create_instance(self, call: Call) -> None:
        new: NewInstance = call.body
        _reply(call, await self._master.registry.create(new), 201)

    async def get_instance(self, call: Call) -> None:
        _reply(call, self._instance(call.id))

    async def change_instance(self, call: Call) -> None:
        change: InstanceChange = call.body
        if call.id != MASTER_ID:
            _reply(call, await self._master.registry.change(call.id, change))
        elif change.action == "restart":
            _reply(call, await self._master.rotate_key())
        else:
            _reply(call, self._master.key_instance())

    async def replace_instance(self, call: Call) -> None:
        new: NewURL = call.body
        _reply(call, await self._master.registry.replace(call.id, new.url))

    async def delete_instance(self, call: Call) -> None:
        await self._master.registry.delete(call.id)
        call.request.answer(204)

    async def get_traffic(self, call: Call) -> None:
        query = call.query
        try:
            step, points = await self._master.traffic.query(
                call.id, time.time(), query["since"], query["until"], query["step"]
            )
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        _reply(call, Traffic(id=call.id, step=step, points=points))

    async def get_logs(self, call: Call) -> None:
        request, lines = call.request, call.query["lines"]
        if call.query["follow"]:
            self._check_streams()
            await self._master.streams.follow(request, self._master.tails, call.id, lines)
        else:
            text = self._master.tails.tail(call.id, lines)
            request.answer(200, text, b"text/plain; charset=utf-8")

    async def get_events(self, call: Call) -> None:
        self._check_streams()
        query = call.query
        await self._master.streams.events(
            call.request,
            self._master.hub,
            types=_types(query["types"]),
            instance=query["instance"],
            resume=query["resume"],
            last_id=call.request.getHeader("Last-Event-ID"),
        )

    async def get_info(self, call: Call) -> None:
        info: Info = self._master.info()
        _reply(call, info)

    async def change_info(self, call: Call) -> None:
        change: InfoChange = call.body
        await self._master.set_alias(change.alias)
        _reply(call, self._master.info())

    async def tcping(self, call: Call) -> None:
        target = call.query["target"]
        if not target or len(target) > MOST_TARGET:
            raise ApiError(400, "Target address required")
        result: Tcping = await self._master.tcping.ping(target)
        _reply(call, result)

    async def get_openapi(self, call: Call) -> None:
        if not self._document:
            # Not at the top, as with the page: most masters are never asked for either.
            from .openapi import document

            found = document(ROUTES, self._master.config.prefix, version())
            self._document = encode(found) + b"\n"
        call.request.answer(200, self._document)

    async def get_docs(self, call: Call) -> None:
        from .swagger import page

        call.request.render(page())

    def _asset(self, request: MasterRequest, name: str) -> Any:
        from .swagger import asset

        file = asset(name)
        if file is not None and request.method == b"OPTIONS":
            return b""
        if file is None or request.method not in (b"GET", b"HEAD"):
            return self._unrouted(request)
        return file

    # What they share.

    def _instance(self, id: str) -> Instance:
        return self._master.key_instance() if id == MASTER_ID else self._master.registry.get(id)

    def _check_streams(self) -> None:
        refusal = self._master.streams.refusal
        if refusal is not None:
            raise ApiError(503, refusal)


def _reply(call: Call, record: object, status: int = 200) -> None:
    call.request.answer(status, encode(record) + b"\n")


def _types(text: str | None) -> frozenset[str] | None:
    """Read a list of event types.

    :raises ApiError: one of them is none; its reader would wait for ever.
    """
    if not text:
        return None
    types = frozenset(text.split(","))
    if not types <= set(EVENT_TYPES):
        raise ApiError(400, f"Invalid types: a list of {', '.join(EVENT_TYPES)} is accepted")
    return types


def _parameter(request: MasterRequest, query: Query) -> Any:
    """Read one value behind the ``?``; an empty one counts as absent.

    :raises ApiError: it is not what the table accepts.
    """
    values = request.args.get(query.name.encode(), [b""])
    text = values[0].decode("utf-8", "replace")
    if not text:
        return query.default
    if query.type is str:
        return text
    if query.type is bool:
        if text in ("0", "1"):
            return text == "1"
        raise ApiError(400, f"Invalid {query.name}: 0 or 1 is accepted")
    # Unix time has ten digits; no number here needs more.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else -1
    if number < (query.least or 0) or (query.most is not None and number > query.most):
        most = f" to {query.most}" if query.most is not None else ""
        raise ApiError(
            400, f"Invalid {query.name}: an integer from {query.least or 0}{most} is accepted"
        )
    return number
