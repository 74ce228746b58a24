"""The OpenAPI document, out of the table of routes and the models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from .models import MASTER_ID, ErrorAnswer, Event
from .routes import Answer, Query, Route

__all__ = ["COMMON", "document"]

_VERSION = "3.1.0"
_REFERENCE = "#/components/schemas/{name}"
_JSON = "application/json"

#: What any route may refuse, beside what its own row says.
COMMON: tuple[Answer, ...] = (
    Answer(401, "Unauthorized: API key required; Unauthorized: Invalid API key", ErrorAnswer),
    Answer(404, "Instance not found", ErrorAnswer),
    Answer(405, "Method not allowed", ErrorAnswer),
    Answer(413, "Request body too large", ErrorAnswer),
)

_ABOUT = """\
Runs and watches tunnels. Answers are JSON without blanks, with a line end; errors are
`{"error":"..."}`. Unknown members of a request are ignored, and `null` counts as absent. The
Content-Type of a request is not looked at.

Every answer allows any origin (CORS), and `OPTIONS` on any path is answered with 200, without a
key. All but this description and its page ask for the key in the header `X-API-Key`."""

_TAGS = {
    "Instances": "The tunnels.",
    "Events": "What changes, as it does.",
    "Master": "The master itself and its machine.",
    "Description": "This description.",
}

_TAG_OF_SEGMENT = {
    "instances": "Instances",
    "events": "Events",
    "openapi.json": "Description",
    "docs": "Description",
}

_ID = {
    "description": f"the id of an instance; `{MASTER_ID}` stands for the API key",
    "schema": {"type": "string", "pattern": r"^([0-9a-f]{8}|\*{8})$"},
}


def document(routes: Sequence[Route], prefix: str, version: str) -> dict[str, Any]:
    """Describe the interface.

    :param prefix: the path of the master's URL, such as ``/api``.
    :param version: that of nodepass.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    used = set(map(tag_of, routes))
    return {
        "openapi": _VERSION,
        "info": {
            "title": "nodepass",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": f"{prefix}/v1"}],
        "security": [{"apiKey": []}],
        "tags": [
            {"name": name, "description": about} for name, about in _TAGS.items() if name in used
        ],
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def tag_of(route: Route) -> str:
    """Return the name of the chapter that a route belongs to."""
    return _TAG_OF_SEGMENT.get(route.path.split("/")[1], "Master")


def answers_of(route: Route) -> list[Answer]:
    """Return all that a route may answer, its own answers first among those of one status."""
    applies = {
        401: route.protected,
        404: "{id}" in route.path,
        405: True,
        413: route.request is not None,
    }
    own = {answer.status for answer in route.answers}
    common = [each for each in COMMON if applies[each.status] and each.status not in own]
    return sorted([*route.answers, *common], key=lambda answer: answer.status)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "tags": [tag_of(route)],
    }
    if route.description:
        operation["description"] = route.description
    parameters = [*_path_parameters(route.path), *map(_query_parameter, route.query)]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": _reference(route.request)}},
        }
    operation["responses"] = _responses(answers_of(route))
    if not route.protected:
        operation["security"] = []
    return operation


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", path):
        about: dict[str, Any] = _ID if name == "id" else {"schema": {"type": "string"}}
        yield {"name": name, "in": "path", "required": True, **about}


def _query_parameter(query: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if query.type is int:
        schema = {"type": "integer"}
    elif query.type is bool:
        schema = {"type": "integer", "enum": [0, 1]}
    elif query.required:
        schema["minLength"] = 1  # an empty one counts as absent
    if query.least is not None:
        schema["minimum"] = query.least
    if query.most is not None:
        schema["maximum"] = query.most
    if query.default is not None:
        schema["default"] = int(query.default) if query.type is bool else query.default
    return {
        "name": query.name,
        "in": "query",
        "description": query.description,
        "required": query.required,
        "schema": schema,
    }


def _responses(answers: Iterable[Answer]) -> dict[str, Any]:
    """Answers by status; those that share one, such as several causes of 400, in one entry."""
    responses: dict[str, Any] = {}
    for answer in answers:
        entry = responses.setdefault(str(answer.status), {"description": ""})
        description = answer.description or HTTPStatus(answer.status).phrase
        entry["description"] = "\n\n".join(filter(None, [entry["description"], description]))
        content = _content(answer)
        if content is not None:
            entry.setdefault("content", {}).setdefault(answer.media, content)
    return responses


def _content(answer: Answer) -> dict[str, Any] | None:
    if answer.media == _JSON and answer.model is not None:
        content = {"schema": _reference(answer.model)}
    elif answer.media == "text/event-stream" and answer.model is not None:
        # OpenAPI 3.1 has no word for what a stream consists of.
        item = _reference(answer.model)
        content = {
            "schema": {
                "type": "string",
                "description": "Events, each one's `data` a record as described by `x-item`.",
                "x-item": item,
            }
        }
    elif answer.media and answer.media != _JSON:
        content = {"schema": {"type": "string"}}
    else:
        # A JSON document of any form, or no body.
        return None
    if answer.example is not None:
        content["example"] = msgspec.to_builtins(answer.example)
    return content


def _reference(model: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([model], ref_template=_REFERENCE)
    return schema


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    """The schemas of all that is taken or given, by name."""
    answers = [answer.model for route in routes for answer in route.answers]
    given = _components([ErrorAnswer, Event, *filter(None, answers)])
    taken = _components([route.request for route in routes if route.request is not None])
    for name, schema in given.items():
        if name not in taken and "properties" in schema:
            # What may be left out of a request is in an answer all the same.
            schema["required"] = list(schema["properties"])
            for member in schema["properties"].values():
                member.pop("default", None)
    schemas = {**taken, **given}
    _plain_lists(schemas)
    return dict(sorted(schemas.items()))


def _plain_lists(schema: Any) -> None:
    """Describe tuples of one kind as lists of a fixed length, which more programs understand."""
    if isinstance(schema, list):
        for each in schema:
            _plain_lists(each)
    elif isinstance(schema, dict):
        kinds = schema.get("prefixItems")
        if kinds and all(kind == kinds[0] for kind in kinds):
            del schema["prefixItems"]
            schema["items"] = kinds[0]
        for each in schema.values():
            _plain_lists(each)


def _components(models: Iterable[Any]) -> dict[str, Any]:
    unique = list(dict.fromkeys(models))
    return msgspec.json.schema_components(unique, ref_template=_REFERENCE)[1]
