"""The OpenAPI document: what of each row of the table of routes is in it, and that it is one."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from nodepass.master.models import (
    ErrorAnswer,
    Event,
    Instance,
    InstanceChange,
    Meta,
    Tcping,
    encode,
)
from nodepass.master.openapi import COMMON, document
from nodepass.master.routes import ROUTES, Answer, Query, Route

TABLE = (
    Route(
        "GET", "/instances", "list_instances", "List",
        answers=(Answer(200, "All of them.", list[Instance]),),
    ),
    Route(
        "PATCH", "/instances/{id}", "change_instance", "Change",
        description="All or nothing.",
        request=InstanceChange,
        answers=(
            Answer(200, "It is so.", Instance, example=Instance(id="01234567", meta=Meta())),
            Answer(400, "The body is none.", ErrorAnswer),
            Answer(400, "A text is too long.", ErrorAnswer),
            Answer(404, "There is none of this id.", ErrorAnswer),
        ),
    ),
    Route("DELETE", "/instances/{id}", "delete_instance", "Delete",
          answers=(Answer(204, "It is gone.", media=""),)),
    Route(
        "GET", "/instances/{id}/logs", "logs", "Read the log",
        query=(
            Query("lines", "how many", int, default=100, least=0, most=10000),
            Query("follow", "whether to go on", bool, default=False),
        ),
        answers=(Answer(200, "Lines.", media="text/plain"),),
    ),
    Route("GET", "/events", "events", "Follow events",
          answers=(Answer(200, "The stream.", Event, "text/event-stream"),)),
    Route("GET", "/tcping", "tcping", "Connect",
          query=(Query("target", "host:port", required=True),),
          answers=(Answer(200, "What became of it.", Tcping),)),
    Route("GET", "/openapi.json", "openapi", "This", protected=False,
          answers=(Answer(200, "This.", dict[str, Any]),)),
)  # fmt: skip

DOCUMENT = document(TABLE, "/admin", "1.2.3")


def operation(method: str, path: str) -> dict[str, Any]:
    """One operation of the document."""
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


@pytest.mark.parametrize("routes", [TABLE, ROUTES, ()], ids=["sample", "real", "empty"])
def test_it_is_an_openapi_document(routes: tuple[Route, ...]) -> None:
    """It is valid, the real one as well as one with a row of each kind."""
    text = json.loads(encode(document(routes, "/api", "1.2.3")))
    OpenAPIV31SpecValidator(text).validate()


def test_head() -> None:
    """It names version, base path, and how to show the key."""
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert DOCUMENT["servers"] == [{"url": "/admin/v1"}]
    assert DOCUMENT["components"]["securitySchemes"]["apiKey"] == {
        "type": "apiKey", "in": "header", "name": "X-API-Key",
    }  # fmt: skip
    assert DOCUMENT["security"] == [{"apiKey": []}]


def test_it_is_the_same_each_time() -> None:
    """Two masters of one version have the same document to the byte, in the table's order."""
    assert encode(document(TABLE, "/admin", "1.2.3")) == encode(DOCUMENT)
    assert list(DOCUMENT["paths"]) == list(dict.fromkeys(route.path for route in TABLE))
    schemas = list(DOCUMENT["components"]["schemas"])
    assert schemas == sorted(schemas)


def test_keyless() -> None:
    """What needs no key says so, and has no answer about keys."""
    assert operation("get", "/openapi.json")["security"] == []
    assert "401" not in operation("get", "/openapi.json")["responses"]
    assert "security" not in operation("get", "/instances")


def test_common_answers() -> None:
    """Each operation has the refusals that can meet it, and no other."""
    assert list(operation("get", "/instances")["responses"]) == ["200", "401", "405"]
    assert list(operation("delete", "/instances/{id}")["responses"]) == ["204", "401", "404", "405"]
    change = operation("patch", "/instances/{id}")["responses"]
    assert list(change) == ["200", "400", "401", "404", "405", "413"]
    for answer in COMMON:
        content = change[str(answer.status)]["content"]
        assert content["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")


def test_answers_of_one_status() -> None:
    """Several causes of one status are one answer that names them all; a row's own word counts."""
    change = operation("patch", "/instances/{id}")["responses"]
    assert change["400"]["description"] == "The body is none.\n\nA text is too long."
    assert change["404"]["description"] == "There is none of this id."


def test_bodies() -> None:
    """Requests and answers refer to models; an answer without a body has none; text is text."""
    change = operation("patch", "/instances/{id}")
    body = change["requestBody"]
    assert body["required"]
    reference = {"$ref": "#/components/schemas/InstanceChange"}
    assert body["content"]["application/json"]["schema"] == reference
    assert change["responses"]["200"]["content"]["application/json"] == {
        "schema": {"$ref": "#/components/schemas/Instance"},
        "example": msgspec.to_builtins(Instance(id="01234567")),
    }
    listed = operation("get", "/instances")["responses"]["200"]["content"]["application/json"]
    assert listed["schema"] == {"type": "array", "items": {"$ref": "#/components/schemas/Instance"}}
    assert "content" not in operation("delete", "/instances/{id}")["responses"]["204"]
    logs = operation("get", "/instances/{id}/logs")["responses"]["200"]["content"]
    assert logs == {"text/plain": {"schema": {"type": "string"}}}


def test_stream() -> None:
    """The event stream is text whose items are described."""
    content = operation("get", "/events")["responses"]["200"]["content"]["text/event-stream"]
    assert content["schema"]["type"] == "string"
    assert content["schema"]["x-item"] == {"$ref": "#/components/schemas/Event"}
    assert "Event" in DOCUMENT["components"]["schemas"]


def test_parameters() -> None:
    """Those of path and query have their kind, bounds and default; a flag is 0 or 1."""
    id, lines, follow = operation("get", "/instances/{id}/logs")["parameters"]
    assert (id["name"], id["in"], id["required"]) == ("id", "path", True)
    assert lines["schema"] == {"type": "integer", "minimum": 0, "maximum": 10000, "default": 100}
    assert follow["schema"] == {"type": "integer", "enum": [0, 1], "default": 0}
    assert not lines["required"]
    (target,) = operation("get", "/tcping")["parameters"]
    assert target["required"] and target["schema"] == {"type": "string", "minLength": 1}


def test_answers_leave_nothing_out() -> None:
    """All members of an answer are there; those of a request may be absent."""
    schemas = DOCUMENT["components"]["schemas"]
    for name in ("Instance", "Meta", "Peer", "Event", "ErrorAnswer", "Tcping"):
        assert schemas[name]["required"] == list(schemas[name]["properties"]), name
    assert schemas["InstanceChange"]["required"] == []


def test_points_are_plain_lists() -> None:
    """A point of the traffic is described as five integers in a way that all tools read."""
    schemas = document(ROUTES, "/api", "1")["components"]["schemas"]
    assert schemas["Traffic"]["properties"]["points"]["items"] == {
        "type": "array", "minItems": 5, "maxItems": 5, "items": {"type": "integer"},
    }  # fmt: skip


def test_operations_have_names_of_their_own() -> None:
    """Each route has its own handler, by whose name generated clients call it."""
    handlers = [route.handler for route in ROUTES]
    assert len(handlers) == len(set(handlers))


def test_the_manual_has_all_of_it() -> None:
    """The page on the interface has each route with its parameters, and each record's members."""
    doc = Path(__file__).parents[2] / "doc"
    text = "\n".join(runpy.run_path(str(doc / "_ext" / "http_interface.py"))["interface_rst"]())
    assert ".. np-http-interface::" in (doc / "reference" / "api.rst").read_text(encoding="utf-8")
    for route in ROUTES:
        after = text.partition(f"``{route.method} {route.path}``\n")[2]
        section = re.split(r"^[~-]+$", after, flags=re.M)[1]
        assert route.summary in section
        for query in route.query:
            assert f"``?{query.name}=``\n   {query.description} (" in section
        for answer in route.answers:
            assert f"*{answer.status}*" in section
    for name, schema in document(ROUTES, "/api", "1")["components"]["schemas"].items():
        record = text.partition(f".. _http-{name}:")[2].partition(".. _http-")[0]
        for member in schema["properties"]:
            assert f"``{member}``" in record
