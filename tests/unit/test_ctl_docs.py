"""What the manual says of ``nodepass ctl`` is what it has, and all of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nodepass.client
from nodepass.client import errors
from nodepass.ctl.options import make_parser, parse
from nodepass.ctl.transfer import load

DOC = Path(__file__).parents[2] / "doc"
REFERENCE = (DOC / "reference" / "ctl.rst").read_text(encoding="utf-8")
HOWTO = (DOC / "howto" / "ctl.rst").read_text(encoding="utf-8")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    [commands] = [
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(commands.choices)


def test_every_command_and_option() -> None:
    """The reference names each command, each of its options, and no others."""
    known = set()
    for name, parser in parsers().items():
        assert re.search(rf"``{name}[ `]", REFERENCE), name
        for action in parser._actions:
            known.update(action.option_strings)
    # Those of "nodepass" that are mentioned too.
    known |= {"--version", "--master"}
    written = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", REFERENCE))
    assert known - written <= {"--master"}
    assert written - known == set()


def test_examples_can_be_read() -> None:
    """The command lines of the recipes are good, and so is the document of the reference."""
    lines = re.findall(r"^   \$ nodepass ctl (.*)$", HOWTO, flags=re.M)
    assert len(lines) >= 10
    for line in lines:
        words = re.findall(r'"[^"]*"|\S+', line)
        parse([word.strip('"') for word in words])
    block = REFERENCE.partition("   format = 1")[2].partition("\nOf an")[0]
    text = "format = 1" + block.replace("\n   ", "\n")
    [entry] = load(text, "ctl.rst").instances
    assert entry.totals.tcprx == 123456789


def test_every_name_of_the_client() -> None:
    """The client's page has all that the package exports."""
    page = (DOC / "reference" / "client.rst").read_text(encoding="utf-8")
    for name in nodepass.client.__all__:
        assert re.search(rf":: {name}\b", page), name
    assert set(errors.__all__) <= set(nodepass.client.__all__)
