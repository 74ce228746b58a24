"""Directives that take their content from the code, so that manual and code can't drift apart.

===================  ==============================================================
``np-parameters``    the parameters of a URL, for the core given as its argument
``np-variables``     the ``NP_*`` variables
``np-log-lines``     every line that the code logs, of the levels given as arguments
``np-constants``     every bound that the code names, with the reason beside it
``np-changelog``     the project's change log
===================  ==============================================================

The functions that collect log lines and constants have no part in Sphinx: the tests use them too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nodepass"

_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "error": "error",
    "failure": "error",
    "critical": "error",
    "event": "event",
    "limited": "warn",
    "once": "warn",
    "trouble": "warn",
}


class LogLine(NamedTuple):
    """A line that the code can log: its level and its format."""

    level: str
    format: str


class Constant(NamedTuple):
    """A named bound: where it is, what it is, and the comment that gives the reason."""

    module: str
    about: str
    name: str
    value: str
    reason: str


def _sources() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.is_relative_to(PACKAGE / "testing"):
            continue  # its nodes are test doubles: nobody runs one, or reads its log
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path.read_text(encoding="utf-8")


def log_lines() -> list[LogLine]:
    """Return every line that a call of a log method writes, without repeats."""
    found = {}
    for module, source in _sources():
        if module in ("nodepass.logs", "nodepass.demo"):
            continue  # the one passes on what others say, the other is no part of a tunnel
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            method = node.func.attr
            owner = ast.unparse(node.func.value)
            if method not in _LEVELS or not re.search(r"(log|health)(\)|$)", owner):
                continue
            texts = [
                each.value
                for each in node.args
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            if method in ("limited", "once", "trouble"):
                # The first argument is the key that repeats are told by.
                texts = texts[1:] if isinstance(node.args[0], ast.Constant) else texts
            if texts:
                found[LogLine(_LEVELS[method], texts[0])] = None
    return list(found)


def causes() -> list[str]:
    """Return what nodes complain of about each other: the fixed parts of each such message.

    They stand behind "can't join the server:" and "access denied to ...:" in the log.
    """
    kinds = {"HandshakeError", "ProofError"}
    found = {}
    for _, source in _sources():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if not isinstance(node.func, ast.Name) or node.func.id not in kinds:
                continue
            text = node.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            fixed = [str(each.value) for each in parts if isinstance(each, ast.Constant)]
            if fixed:
                found[max(fixed, key=len).strip()] = None
    return list(found)


def constants() -> list[Constant]:
    """Return every number in upper case in a module that has a ``#:`` comment above it."""
    found = []
    for module, source in _sources():
        if module == "nodepass.demo":
            continue  # its numbers bound the show, not tunnels
        tree = ast.parse(source)
        about = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
        lines = source.splitlines()
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.AnnAssign):
                target = node.target
            if not isinstance(target, ast.Name) or not re.fullmatch("_?[A-Z][A-Z0-9_]+", target.id):
                continue
            value = getattr(node, "value", None)
            text = "" if value is None else ast.unparse(value)
            reason = _comment_above(lines, node.lineno)
            if reason and re.fullmatch(r"[-\d\s*+<().]+|timedelta\(.*\)", text):
                found.append(Constant(module, about, target.id, text, reason))
    return found


def _comment_above(lines: list[str], number: int) -> str:
    """The ``#:`` comment above a line; of several names under one comment each has it."""
    at = number - 2
    while at >= 0 and re.match(r"[A-Z_]+\s*=\s*[-\d]", lines[at]):
        at -= 1
    comment: list[str] = []
    while at >= 0 and lines[at].startswith("#:"):
        comment.insert(0, lines[at][2:].strip())
        at -= 1
    return " ".join(comment)


# What follows is for Sphinx alone.


def _code(text: str) -> str:
    return f"``{text}``"


def _prose(comment: str) -> str:
    """A comment's text with its names as literals."""
    comment = re.sub(r":[a-z]+:`([^`]*)`", r"`\1`", comment)
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", comment)


def _term(name: str, *paragraphs: str) -> list[str]:
    lines = [name]
    for paragraph in paragraphs:
        lines += [f"   {paragraph}", ""]
    return lines


def parameters_rst(core: str) -> list[str]:
    """A definition list of a core's parameters."""
    from nodepass.parameters import PARAMETERS

    lines: list[str] = []
    for row in PARAMETERS:
        if core not in row.cores:
            continue
        default = f"Default: {_code(row.default)}." if row.default else "No default."
        lines += _term(_code(row.name), f"{row.summary}.", f"*Accepts* {row.accepts}. {default}")
    return lines


def variables_rst() -> list[str]:
    """A definition list of the environment variables."""
    from nodepass.tuning import VARIABLES

    lines: list[str] = []
    for row in VARIABLES:
        text = f"*Accepts* {row.accepts}. Default: {_code(row.default)}."
        lines += _term(_code(row.name), f"{row.summary}.", f"{text} In Python: {_code(row.field)}.")
    return lines


def log_lines_rst(levels: list[str]) -> list[str]:
    """A bullet list of log formats."""
    return [f"* {_code(line.format)}" for line in log_lines() if line.level in levels]


def constants_rst() -> list[str]:
    """Definition lists of constants, module by module."""
    lines: list[str] = []
    module = ""
    for each in constants():
        if each.module != module:
            module = each.module
            lines += ["", f".. rubric:: {module}", "", _prose(each.about), ""]
        lines += _term(_code(f"{each.name} = {each.value}"), _prose(each.reason))
    return lines


def changelog_rst() -> list[str]:
    """The change log, whose Markdown is of the plainest kind, as reStructuredText."""
    lines: list[str] = []
    for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines():
        line = re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"`\1 <\2>`__", line)
        line = re.sub(r"(?<!`)`([^`<]+)`(?![`_])", r"``\1``", line)
        heading = re.fullmatch(r"(#+) (.*)", line)
        if heading is None:
            lines.append(line)
        elif len(heading[1]) > 1:  # the page has its own title
            rule = "-" if len(heading[1]) == 2 else "~"
            lines += ["", heading[2], rule * len(heading[2]), ""]
    return lines


def split_fields(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Give each of several attributes that are described together a field of its own."""
    for number, line in enumerate(lines):
        match = re.match(r":ivar ([^:]*,[^:]*):(.*)", line)
        if match is None:
            continue
        end = number + 1
        while end < len(lines) and re.match(r"\s+\S", lines[end]):
            end += 1
        text = [match[2], *lines[number + 1 : end]]
        each = [[f":ivar {one.strip()}:{text[0]}", *text[1:]] for one in match[1].split(",")]
        lines[number:end] = ["\n".join(field) for field in each]
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Any) -> dict[str, object]:
    """Register the directives."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    def directive(make: Any, arguments: bool) -> type[SphinxDirective]:
        class FromCode(SphinxDirective):
            optional_arguments = 1 if arguments else 0
            final_argument_whitespace = True

            def run(self) -> list[nodes.Node]:
                lines = make(self.arguments[0]) if arguments else make()
                node = nodes.section()
                node.document = self.state.document
                content = StringList(lines, source=__file__)
                self.state.nested_parse(content, self.content_offset, node, match_titles=True)
                return node.children

        return FromCode

    app.add_directive("np-parameters", directive(parameters_rst, True))
    app.add_directive("np-variables", directive(variables_rst, False))
    app.add_directive("np-log-lines", directive(lambda text: log_lines_rst(text.split()), True))
    app.add_directive("np-constants", directive(constants_rst, False))
    app.add_directive("np-changelog", directive(changelog_rst, False))
    app.connect("autodoc-process-docstring", split_fields)
    return {"parallel_read_safe": True}
