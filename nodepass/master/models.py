"""What the HTTP interface takes and gives, as typed records.

They are the single source for reading requests, writing answers and describing both in the OpenAPI
document. Field order is the order of JSON keys, which clients rely on.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta as About
from msgspec import Struct, field

__all__ = [
    "EVENT_TYPES",
    "MASTER_ID",
    "ErrorAnswer",
    "Event",
    "GivenTotals",
    "Info",
    "InfoChange",
    "Instance",
    "InstanceChange",
    "Meta",
    "MetaChange",
    "NewInstance",
    "NewURL",
    "Peer",
    "PeerChange",
    "Tcping",
    "Traffic",
    "decode",
    "encode",
]

#: The id under which the API key is listed as an instance.
MASTER_ID = "********"

#: What events there are; ``shutdown`` comes whatever is asked for.
EVENT_TYPES = ("initial", "create", "update", "delete", "log", "shutdown")

Count = Annotated[int, About(ge=0)]

#: Of an instance; what makes it a good one is not a matter of its form.
URL = Annotated[
    str,
    About(
        description="server://... or client://...",
        examples=["server://KEY@:10102/127.0.0.1:8080?mode=2&tls=1"],
    ),
]


class Peer(Struct, frozen=True):
    """The node at the other end of an instance, as a dashboard noted it."""

    sid: str = ""
    type: str = ""
    alias: str = ""


class Meta(Struct, frozen=True):
    """What dashboards keep with an instance."""

    peer: Peer = Peer()
    tags: dict[str, str] = field(default_factory=dict)


class Instance(Struct, frozen=True, kw_only=True):
    """An instance as clients see it."""

    id: Annotated[str, About(description="8 hex digits; ******** stands for the API key")]
    alias: str = ""
    type: Annotated[str, About(description="server or client; empty for the API key")] = ""
    status: Annotated[str, About(description="running, stopped or error")] = ""
    url: Annotated[str, About(description="the URL as it was given")] = ""
    config: Annotated[str, About(description="the URL with every parameter spelled out")] = ""
    restart: Annotated[bool, About(description="whether it starts with the master")] = False
    meta: Meta = Meta()
    mode: Annotated[int, About(description="run mode in effect")] = 0
    ping: Annotated[int, About(description="delay of the peer, ms")] = 0
    pool: Annotated[int, About(description="idle links")] = 0
    tcps: Annotated[int, About(description="TCP sessions under way")] = 0
    udps: Annotated[int, About(description="UDP sessions under way")] = 0
    tcprx: Annotated[int, About(description="bytes read, TCP")] = 0
    tcptx: Annotated[int, About(description="bytes written, TCP")] = 0
    udprx: Annotated[int, About(description="bytes read, UDP")] = 0
    udptx: Annotated[int, About(description="bytes written, UDP")] = 0


class NewURL(Struct, frozen=True):
    """Body of ``PUT /instances/{id}``."""

    url: URL


class PeerChange(Struct, frozen=True):
    """A new peer; members that are null or absent become empty."""

    sid: str | None = None
    type: str | None = None
    alias: str | None = None


class MetaChange(Struct, frozen=True):
    """What is given replaces what was; the rest stays."""

    peer: PeerChange | None = None
    tags: dict[str, str | None] | None = None


class GivenTotals(Struct, frozen=True):
    """Bytes that an instance has counted elsewhere."""

    tcprx: Count = 0
    tcptx: Count = 0
    udprx: Count = 0
    udptx: Count = 0


class NewInstance(Struct, frozen=True):
    """Body of ``POST /instances``. All but the first two are for instances that move here."""

    url: URL
    alias: str | None = None
    id: Annotated[str, About(description="taken where it is free, else a new one")] | None = None
    restart: bool | None = None
    meta: MetaChange | None = None
    totals: GivenTotals | None = None


#: Described, but not read as such: what a wrong one is answered with names it.
_ACTIONS = {"enum": ["start", "stop", "restart", "reset"]}


class InstanceChange(Struct, frozen=True):
    """Body of ``PATCH /instances/{id}``: all of it is done, or nothing."""

    alias: str | None = None
    action: Annotated[str, About(examples=["restart"], extra_json_schema=_ACTIONS)] | None = None
    restart: bool | None = None
    meta: MetaChange | None = None


class InfoChange(Struct, frozen=True):
    """Body of ``POST /info``."""

    alias: str | None = None


class Info(Struct, frozen=True, kw_only=True):
    """The master and the machine that it runs on."""

    alias: str
    arch: Annotated[str, About(description="amd64, arm64, 386 or arm")]
    cpu: Annotated[int, About(description="percent in use, -1 where unknown")]
    crt: str
    diskr: Annotated[Count, About(description="bytes read from whole disks since boot")]
    diskw: Annotated[Count, About(description="bytes written to whole disks since boot")]
    key: str
    log: str
    mem_free: Annotated[Count, About(description="bytes")]
    mem_total: Annotated[Count, About(description="bytes")]
    mem_used: Annotated[Count, About(description="bytes")]
    mid: Annotated[str, About(description="16 hex digits, the same after a restart")]
    name: Annotated[str, About(description="the host of the master's URL")]
    netrx: Annotated[Count, About(description="bytes since boot")]
    nettx: Annotated[Count, About(description="bytes since boot")]
    os: Annotated[str, About(description="linux, darwin or windows")]
    swap_free: Annotated[Count, About(description="bytes")]
    swap_total: Annotated[Count, About(description="bytes")]
    swap_used: Annotated[Count, About(description="bytes")]
    sysup: Annotated[Count, About(description="seconds since boot")]
    tls: str
    uptime: Annotated[Count, About(description="seconds since the master started")]
    ver: Annotated[str, About(description="v<major>.<minor>.<patch>")]


class Tcping(Struct, frozen=True, kw_only=True):
    """What became of one TCP connect."""

    target: str
    connected: bool
    latency: Annotated[int, About(description="ms")]
    error: str | None


class Traffic(Struct, frozen=True, kw_only=True):
    """How many bytes moved when."""

    id: str
    step: Annotated[int, About(description="seconds that a point stands for")]
    points: Annotated[
        list[tuple[int, int, int, int, int]],
        About(description="[unix time, tcprx, tcptx, udprx, udptx], oldest first", max_length=2000),
    ]


class Event(Struct, frozen=True, kw_only=True):
    """One event of the stream."""

    type: Annotated[str, About(description="initial, create, update, delete, log or shutdown")]
    time: Annotated[str, About(description="RFC 3339 with offset")]
    instance: Instance | None
    logs: str


class ErrorAnswer(Struct, frozen=True):
    """Every error."""

    error: str


T = TypeVar("T")

_UNSAFE = re.compile(rb"[&<>]")
_ESCAPES = {b"&": rb"\u0026", b"<": rb"\u003c", b">": rb"\u003e"}


def encode(value: Any) -> bytes:
    """Write a record as JSON: no blanks, and ``&``, ``<``, ``>`` as escapes; no line end.

    Scripts cut URLs out of answers with patterns that were written against this form.
    """
    # None of the three occurs outside strings, so they can be replaced in the finished text.
    return _UNSAFE.sub(lambda match: _ESCAPES[match[0]], msgspec.json.encode(value))


def decode(body: bytes, kind: type[T]) -> T:
    """Read a request body. Members that are unknown are ignored.

    :raises msgspec.DecodeError: it is not JSON, or a member has the wrong type.
    """
    return msgspec.json.decode(body, type=kind)
