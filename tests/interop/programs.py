"""The Go programs that a run is given, and what they are."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache

from nodepass.parameters import TLSLevel
from nodepass.wire import Flow
from tests.interop.ends import client
from tests.interop.nodes import Program, dialect_of

#: Bytes of a link's number in `1.6-raw`.
_RAW = 4


@cache
def program(path: str) -> Program:
    """Ask a Go program for its version; it tells when it is started without a URL.

    :raises ValueError: it tells none, or one that ours can't speak to.
    """
    told = subprocess.run([path], capture_output=True, timeout=10, check=False)
    text = (told.stdout + told.stderr).decode(errors="replace")
    match = re.search(r"(?:nodepass-|Version: )(\S+)", text)
    if match is None:
        raise ValueError(f"{path} does not tell its version")
    found = Program(path, match[1], dialect_of(match[1]))
    if found.dialect == "1.6" and _writes_raw_numbers(found):
        return Program(path, match[1], "1.6-raw")
    return found


def _writes_raw_numbers(go: Program) -> bool:
    """Its version does not tell, so see what it writes on a link."""
    with client(go, Flow.REVERSE, TLSLevel.PLAIN) as (end, _):
        return len(end.connect().recv(2 * _RAW)) == _RAW


def programs() -> list[Program]:
    """The Go programs that ``NODEPASS_GO`` names, with what separates paths here between them."""
    paths = os.environ.get("NODEPASS_GO", "").split(os.pathsep)
    return [program(path) for path in paths if path]
