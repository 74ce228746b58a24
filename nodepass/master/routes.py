"""The one table of routes: dispatch, reading of requests, and both descriptions come from it."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from msgspec import Struct

from .models import (
    ErrorAnswer,
    Event,
    Info,
    InfoChange,
    Instance,
    InstanceChange,
    NewInstance,
    NewURL,
    Tcping,
    Traffic,
)

__all__ = ["ROUTES", "Answer", "Query", "Route"]


@frozen
class Query:
    """A parameter behind the ``?``.

    :ivar type: what it is read as: int, str or bool (``0`` or ``1``).
    :ivar default: what counts where it is absent.
    :ivar least, most: bounds of a number.
    """

    name: str
    description: str
    type: type[int] | type[str] | type[bool] = str
    required: bool = False
    default: int | str | bool | None = None
    least: int | None = None
    most: int | None = None


@frozen
class Answer:
    """One thing that a route can answer.

    :ivar model: what the body is, None for a body without form or none at all.
    :ivar media: its Content-Type, empty for an answer without a body.
    :ivar example: a body, shown in the description.
    """

    status: int
    description: str
    model: Any = None
    media: str = "application/json"
    example: Any = None


@frozen
class Route:
    """One method of one path.

    :ivar path: behind ``<prefix>/v1``, such as ``/instances/{id}``.
    :ivar handler: the name of what serves it.
    :ivar summary: a few words.
    :ivar description: what there is to know besides; paragraphs are separated by an empty line.
    :ivar request: what the body is read as.
    :ivar answers: what it can answer, but for the refusals that every route has in common.
    :ivar protected: whether it asks for the API key.
    """

    method: str
    path: str
    handler: str
    summary: str
    description: str = ""
    request: type[Struct] | None = None
    query: tuple[Query, ...] = ()
    answers: tuple[Answer, ...] = ()
    protected: bool = True


def _json(status: int, description: str, model: Any, example: Any = None) -> Answer:
    return Answer(status, description, model, example=example)


def _error(status: int, *messages: str) -> Answer:
    return Answer(status, "; ".join(messages), ErrorAnswer, example=ErrorAnswer(messages[0]))


_INVALID_BODY = "Invalid request body"
_NOT_FOUND = _error(404, "Instance not found")
_NOT_SAVED = _error(503, "the state can't be written; nothing was changed")

#: Every route, in the order of the reference.
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/instances",
        "list_instances",
        "All instances",
        "The API key first, as the instance `********`, then the others by creation.",
        answers=(_json(200, "the instances", list[Instance]),),
    ),
    Route(
        "POST",
        "/instances",
        "create_instance",
        "Make an instance and start it",
        "The answer comes when the instance is saved; it starts behind it.",
        request=NewInstance,
        answers=(
            _json(201, "the instance", Instance),
            _error(
                400,
                _INVALID_BODY,
                "Invalid URL format",
                "Invalid URL scheme",
                "what is wrong with the URL",
                "Instance alias exceeds maximum length 256",
            ),
            _NOT_SAVED,
        ),
    ),
    Route(
        "GET",
        "/instances/{id}",
        "get_instance",
        "One instance",
        answers=(_json(200, "the instance", Instance), _NOT_FOUND),
    ),
    Route(
        "PATCH",
        "/instances/{id}",
        "change_instance",
        "Change an instance, start, stop, restart or reset it",
        "All of it is done, or nothing. `reset` zeroes the counters. `restart` of the instance "
        "`********` makes a new API key, which the answer has; all else leaves that one as it is.",
        request=InstanceChange,
        answers=(
            _json(200, "the instance after the change was accepted", Instance),
            _error(
                400,
                _INVALID_BODY,
                "Invalid action: ...",
                "... exceeds maximum length 256",
                "Meta tags exceed maximum number 64",
            ),
            _NOT_FOUND,
            _NOT_SAVED,
        ),
    ),
    Route(
        "PUT",
        "/instances/{id}",
        "replace_instance",
        "Give an instance another URL",
        "It is stopped and started with the new URL, whose type may differ.",
        request=NewURL,
        answers=(
            _json(200, "the instance", Instance),
            _error(
                400,
                _INVALID_BODY,
                "Invalid URL format",
                "Invalid URL scheme",
                "what is wrong with the URL",
            ),
            _error(403, "Forbidden: API Key"),
            _NOT_FOUND,
            _error(409, "Instance URL conflict"),
            _NOT_SAVED,
        ),
    ),
    Route(
        "DELETE",
        "/instances/{id}",
        "delete_instance",
        "Stop an instance and forget it",
        answers=(
            Answer(204, "it is gone", media=""),
            _error(403, "Forbidden: API Key"),
            _NOT_FOUND,
            _NOT_SAVED,
        ),
    ),
    Route(
        "GET",
        "/instances/{id}/traffic",
        "get_traffic",
        "Traffic of an instance over time",
        "Bytes of each step, oldest first; steps without traffic are left out. The last hour is "
        "kept in steps of 5 seconds, the last day by minutes, the last year by hours.",
        query=(
            Query("since", "Unix time, seconds", int, least=0),
            Query("until", "Unix time, seconds; now unless given", int, least=0),
            Query("step", "seconds of a point", int, least=1),
        ),
        answers=(
            _json(200, "the points", Traffic),
            _error(400, "what is wrong with the range"),
            _NOT_FOUND,
        ),
    ),
    Route(
        "GET",
        "/instances/{id}/logs",
        "get_logs",
        "The last lines of an instance's log",
        "Without colour, the newest last.",
        query=(
            Query("lines", "how many", int, default=100, least=0, most=10_000),
            Query(
                "follow", "1 keeps the connection open for the lines to come", bool, default=False
            ),
        ),
        answers=(
            Answer(200, "one line each", str, "text/plain"),
            _error(400, "what is wrong with a parameter"),
            _NOT_FOUND,
            _error(503, "too many open streams"),
        ),
    ),
    Route(
        "GET",
        "/events",
        "get_events",
        "The stream of events",
        "Server-sent events: first `initial` for each instance, then `create`, `update`, `delete` "
        "and `log` as they come, and `shutdown` at the end. The data of each is one event as "
        "below. A connection that ends without `shutdown` was cut: come back.",
        query=(
            Query(
                "resume",
                "1 gives events an id; Last-Event-ID then continues from there",
                bool,
                default=False,
            ),
            Query("types", "only these types, separated by commas"),
            Query("instance", "only this instance"),
        ),
        answers=(
            Answer(200, "events", Event, "text/event-stream"),
            _error(400, "what is wrong with a parameter"),
            _error(503, "too many open streams"),
        ),
    ),
    Route(
        "GET",
        "/info",
        "get_info",
        "The master and its machine",
        answers=(_json(200, "the figures", Info),),
    ),
    Route(
        "POST",
        "/info",
        "change_info",
        "Name the master",
        request=InfoChange,
        answers=(
            _json(200, "the figures", Info),
            _error(400, _INVALID_BODY, "Master alias exceeds maximum length 256"),
            _NOT_SAVED,
        ),
    ),
    Route(
        "GET",
        "/tcping",
        "tcping",
        "Try a TCP connection from the master's machine",
        "At most 10 at once; 5 seconds each.",
        query=(Query("target", "host:port", required=True),),
        answers=(
            _json(200, "what became of it", Tcping),
            _error(400, "Target address required"),
        ),
    ),
    Route(
        "GET",
        "/openapi.json",
        "get_openapi",
        "This description",
        answers=(Answer(200, "OpenAPI 3.1", dict[str, Any]),),
        protected=False,
    ),
    Route(
        "GET",
        "/docs",
        "get_docs",
        "This description as a page to try things on",
        answers=(Answer(200, "HTML", str, "text/html"),),
        protected=False,
    ),
)
