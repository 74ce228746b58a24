"""The directive ``np-http-interface``: the master's routes and records, from the code.

They come from where the master itself takes them: the table of routes, and the OpenAPI document
made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: What the page says once, for all routes.
_EVERYWHERE = ("401", "405", "413")


def _document() -> dict[str, Any]:
    from nodepass import __version__
    from nodepass.master.openapi import document
    from nodepass.master.routes import ROUTES

    return document(ROUTES, "/api", __version__)


def interface_rst() -> list[str]:
    """Sections for each route, chapter by chapter, and for each record."""
    text = _document()
    operations = [
        (path, method, operation)
        for path, methods in text["paths"].items()
        for method, operation in methods.items()
    ]
    lines: list[str] = []
    for tag in text["tags"]:
        lines += _title(tag["name"], "-")
        for path, method, operation in operations:
            if tag["name"] in operation["tags"]:
                lines += _title(f"``{method.upper()} {path}``", "~")
                lines += _operation(operation)
    lines += _title("Records", "-")
    lines += ["What requests and answers consist of, as JSON objects.", ""]
    for name, schema in text["components"]["schemas"].items():
        lines += [f".. _http-{name}:", "", *_title(name, "~"), *_record(schema)]
    return lines


def _title(text: str, rule: str) -> list[str]:
    return [text, rule * len(text), ""]


def _operation(operation: dict[str, Any]) -> Iterator[str]:
    yield f"{operation['summary']}. {operation.get('description', '')}"
    yield ""
    if operation.get("security") == []:
        yield from ("Asks for no key.", "")
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "query":
            yield from _parameter(parameter)
    if "requestBody" in operation:
        yield from ("*Takes*", f"   {_body(operation['requestBody'])}", "")
    for status, answer in operation["responses"].items():
        if status not in _EVERYWHERE:
            about = answer["description"].replace("\n\n", "; ")
            body = _body(answer) if status < "400" else ""  # all errors have one form
            yield from (f"*{status}*", f"   {about}{f': {body}' if body else ''}", "")


def _parameter(parameter: dict[str, Any]) -> Iterator[str]:
    schema = parameter["schema"]
    notes = [_kind(schema)]
    if "enum" in schema:
        notes = [" or ".join(map(str, schema["enum"]))]
    if "minimum" in schema:
        notes.append(f"at least {schema['minimum']}")
    if "maximum" in schema:
        notes.append(f"at most {schema['maximum']}")
    if parameter["required"]:
        notes.append("needed")
    if "default" in schema:
        notes.append(f"{schema['default']} unless given")
    yield f"``?{parameter['name']}=``"
    yield f"   {parameter['description']} ({', '.join(notes)})"
    yield ""


def _body(place: dict[str, Any]) -> str:
    """What stands in a request or an answer: a record, or the kind of text."""
    kinds = []
    for media, content in place.get("content", {}).items():
        schema = content.get("schema", {})
        if "x-item" in schema:
            kinds.append(f"``{media}`` of {_kind(schema['x-item'])}")
        elif media == "application/json":
            kinds.append(_kind(schema))
        else:
            kinds.append(f"``{media}``")
    return ", ".join(kinds)


def _record(schema: dict[str, Any]) -> Iterator[str]:
    yield from (schema.get("description", ""), "")
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: 20 30 50", "")
    yield from ("   * - member", "     - kind", "     - meaning")
    for name, member in schema["properties"].items():
        yield from (f"   * - ``{name}``", f"     - {_kind(member)}", f"     - {_meaning(member)}")
    yield ""


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f":ref:`{name} <http-{name}>`"
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        count = f"{schema['minItems']} " if "minItems" in schema else ""
        return f"list of {count}{_kind(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object, each member {_kind(schema['additionalProperties'])}"
    return str(kind)


def _meaning(schema: dict[str, Any]) -> str:
    if "description" in schema:
        return str(schema["description"]).replace("*", r"\*")
    if "enum" in schema:
        return ", ".join(f"``{value}``" for value in schema["enum"])
    return next(filter(None, map(_meaning, schema.get("anyOf", ()))), "")


def setup(app: Any) -> dict[str, object]:
    """Register the directive."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class HttpInterface(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            node = nodes.section()
            node.document = self.state.document
            content = StringList(interface_rst(), source=__file__)
            self.state.nested_parse(content, self.content_offset, node, match_titles=True)
            return node.children

    app.add_directive("np-http-interface", HttpInterface)
    return {"parallel_read_safe": True}
