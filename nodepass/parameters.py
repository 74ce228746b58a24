"""The parameters of a URL, as one table.

`PARAMETERS` says of each parameter where it applies, what it accepts, its value when it is absent
and what it does. Reading URLs, printing them, help texts and manuals all follow it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from attrs import frozen

from nodepass import dialects
from nodepass.dialects import NATIVE
from nodepass.duration import DURATION_EXAMPLES, format_duration, parse_duration
from nodepass.logs import Level

__all__ = ["PARAMETERS", "Mode", "Parameter", "TLSLevel", "find_parameter", "show_value"]

#: The most that any count may be: above what one process can serve, so more is a slip.
_MOST = 1_000_000

#: Most worker processes: above any machine's cores, and small enough for a worker's number in a
#: data link's preface.
MOST_WORKERS = 1024
#: The value of `workers` that asks for one process a core.
AUTO = "auto"


class TLSLevel(IntEnum):
    """How data links are protected. (The control link always is.)"""

    PLAIN = 0
    SELF_SIGNED = 1
    FILES = 2


class Mode(IntEnum):
    """Run mode: server reverse or client single-end (1), server forward or client dual-end (2)."""

    AUTO = 0
    ONE = 1
    TWO = 2


@frozen(kw_only=True)
class Parameter:
    """A parameter of a URL.

    :ivar name: as in the URL.
    :ivar cores: the schemes that it applies to.
    :ivar field: the configuration's field.
    :ivar accepts: the accepted values, in words.
    :ivar default: the value of an absent parameter, as in a URL; "" for none.
    :ivar summary: what it does, in one line.
    :ivar parse: returns the value; ValueError, whose message may give a reason, for what
        `accepts` does not cover.
    """

    name: str
    cores: tuple[str, ...]
    field: str
    accepts: str
    default: str
    summary: str
    parse: Callable[[str], Any]

    @property
    def default_value(self) -> Any:
        """The value of an absent parameter; None for none."""
        return self.parse(self.default) if self.default else None


def show_value(value: object) -> str:
    """Return ``value`` as a URL has it: the inverse of `Parameter.parse`."""
    if isinstance(value, Level):
        return value.name.lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return format_duration(value)
    return str(value)


def _choice(*values: IntEnum | bool) -> Callable[[str], IntEnum | bool]:
    choices = {show_value(value): value for value in values}

    def parse(text: str) -> IntEnum | bool:
        if text not in choices:
            raise ValueError
        return choices[text]

    return parse


def _integer(least: int, most: int = _MOST) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return parse


def _file(text: str) -> str:
    if "\0" in text:
        raise ValueError("no file name has a NUL character")
    return text


def _workers(text: str) -> int | str:
    return text if text == AUTO else _integer(1, MOST_WORKERS)(text)


_WIRES = "native, 2.0, 1.14, 1.6 or 1.6-raw, several with commas; or any"

_BOTH = ("server", "client")
_ALL = ("server", "client", "master")

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="log",
        cores=_ALL,
        field="log",
        accepts="none, debug, info, warn, error or event",
        default="info",
        summary="least level of the lines logged; event: events only",
        parse=_choice(*Level),
    ),
    Parameter(
        name="tls",
        cores=("server",),
        field="tls",
        accepts="0, 1 or 2",
        default="0",
        summary="data links: 0 plain, 1 TLS with a certificate made at start, 2 with crt and key",
        parse=_choice(*TLSLevel),
    ),
    Parameter(
        name="tls",
        cores=("master",),
        field="tls",
        accepts="0, 1 or 2",
        default="0",
        summary="the API, and servers that give none: as for a server",
        parse=_choice(*TLSLevel),
    ),
    Parameter(
        name="tls",
        cores=("client",),
        field="tls",
        accepts="0, 1 or 2",
        default="",
        summary="least level accepted from the server (default: any); 2 checks chain and name",
        parse=_choice(*TLSLevel),
    ),
    Parameter(
        name="crt",
        cores=("server", "master"),
        field="crt",
        accepts="path of a PEM file",
        default="",
        summary="certificate chain, with tls=2",
        parse=_file,
    ),
    Parameter(
        name="key",
        cores=("server", "master"),
        field="key_file",
        accepts="path of a PEM file",
        default="",
        summary="private key of the certificate, with tls=2",
        parse=_file,
    ),
    Parameter(
        name="ca",
        cores=("client",),
        field="ca",
        accepts="path of a PEM file",
        default="",
        summary="roots to trust instead of the system's, with tls=2",
        parse=_file,
    ),
    Parameter(
        name="min",
        cores=("client",),
        field="min",
        accepts=f"an integer from 1 to {_MOST}",
        default="8",
        summary="idle links that the pool keeps",
        parse=_integer(1),
    ),
    Parameter(
        name="max",
        cores=("server",),
        field="max",
        accepts=f"an integer from 1 to {_MOST}",
        default="1024",
        summary="most idle links per client",
        parse=_integer(1),
    ),
    Parameter(
        name="mode",
        cores=_BOTH,
        field="mode",
        accepts="0, 1 or 2",
        default="0",
        summary="0 auto; 1 server reverse, client single-end; 2 server forward, client dual-end",
        parse=_choice(*Mode),
    ),
    Parameter(
        name="read",
        cores=_BOTH,
        field="read",
        accepts=f"0 for none, or a duration up to 8760h, such as {DURATION_EXAMPLES}",
        default="1h",
        summary="a session silent for this long is closed",
        parse=parse_duration,
    ),
    Parameter(
        name="rate",
        cores=_BOTH,
        field="rate",
        accepts=f"Mbit/s as an integer from 0 to {_MOST}, 0 for unlimited",
        default="0",
        summary="bandwidth per direction, for the whole instance",
        parse=_integer(0),
    ),
    Parameter(
        name="slot",
        cores=_BOTH,
        field="slot",
        accepts=f"an integer from 0 to {_MOST}, 0 for unlimited",
        default="65536",
        summary="most TCP and UDP sessions at a time",
        parse=_integer(0),
    ),
    Parameter(
        name="proxy",
        cores=_BOTH,
        field="proxy",
        accepts="0 or 1",
        default="0",
        summary="1 sends a PROXY protocol v1 header to the target; counts on the node that dials",
        parse=_choice(False, True),
    ),
    Parameter(
        name="wire",
        cores=_BOTH,
        field="wire",
        accepts=_WIRES,
        default=NATIVE,
        summary="dialects spoken; a client tries them in this order",
        parse=dialects.parse,
    ),
    Parameter(
        name="wire",
        cores=("master",),
        field="wire",
        accepts=_WIRES,
        default=NATIVE,
        summary="dialects of instances that give none",
        parse=dialects.parse,
    ),
    Parameter(
        name="oldkey",
        cores=_BOTH,
        field="oldkey",
        accepts="any text",
        default="",
        summary="key for old dialects (default: the key)",
        parse=str,
    ),
    Parameter(
        name="workers",
        cores=_BOTH,
        field="workers",
        accepts=f"{AUTO}, or an integer from 1 to {MOST_WORKERS}",
        default="1",
        summary="processes that share the work, auto for one a core",
        parse=_workers,
    ),
)

_INDEX = {(core, row.name): row for row in PARAMETERS for core in row.cores}


def find_parameter(core: str, name: str) -> Parameter | None:
    """Return the parameter ``name`` of a ``core`` URL, or None where it does not apply."""
    return _INDEX.get((core, name))
