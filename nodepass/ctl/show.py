"""How things look on a terminal: tables, units, and nothing that a stranger could do to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime

from nodepass.client.models import Event, Info, Instance, Traffic
from nodepass.logs import mask, printable

__all__ = [
    "clean_line",
    "event_line",
    "info_lines",
    "instance_table",
    "named",
    "plain_json",
    "plain_toml",
    "size",
    "table",
    "traffic_table",
]

#: Most characters of a cell. URLs are the longest; a list of a hundred targets need not be shown.
MOST_CELL = 300

#: Most characters of a log line shown; masters cut theirs at 64 KiB.
MOST_LINE = 1 << 16

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_COLUMNS = (
    "ID",
    "ALIAS",
    "TYPE",
    "STATUS",
    "AUTO",
    "PING",
    "POOL",
    "TCP",
    "UDP",
    "RX",
    "TX",
    "URL",
)
_NUMBERS = frozenset(("PING", "POOL", "TCP", "UDP", "RX", "TX"))


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves a whole one: ``1.5 MiB``."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        # What would be rounded to 1024.0 is the next unit's.
        if abs(value) < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def span(seconds: int) -> str:
    """Return a time in its two largest units: ``3d 4h``."""
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, seconds = divmod(seconds, length)
        if amount or parts:
            parts.append(f"{amount}{name}")
    return " ".join(parts[:2]) or "0s"


def table(
    names: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str], width: int | None
) -> list[str]:
    """Return the lines of a table: head and rows, columns two blanks apart.

    :param right: names of columns whose cells stand at the right.
    :param width: the last column is cut to fit into so many characters; None: it is not.
    """
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = []
    for row in [names, *rows]:
        cells = [
            cell.rjust(wide) if name in right else cell.ljust(wide)
            for name, cell, wide in zip(names, row, widths, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        if width is not None and len(line) > width:
            line = line[: max(width - 3, 0)] + "..."
        lines.append(line)
    return lines


def instance_table(
    instances: Sequence[Instance], *, show_keys: bool, width: int | None
) -> list[str]:
    """Return the lines of a table of instances."""
    rows = [
        [
            *map(cell, (one.id, one.alias, one.type, one.status)),
            "yes" if one.restart else "no",
            f"{one.ping} ms",
            *map(str, (one.pool, one.tcps, one.udps)),
            size(one.tcprx + one.udprx),
            size(one.tcptx + one.udptx),
            cell(one.url if show_keys else mask(one.url)),
        ]
        for one in instances
    ]
    return table(_COLUMNS, rows, _NUMBERS, width)


def traffic_table(traffic: Traffic) -> list[str]:
    """Return the lines of a table of an instance's traffic; times are local."""
    names = ("TIME", "TCP RX", "TCP TX", "UDP RX", "UDP TX")
    rows = [[_local_time(time), *map(size, counts)] for time, *counts in traffic.points]
    return table(names, rows, frozenset(names[1:]), None)


def _local_time(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        # No calendar goes that far, but a server may.
        return str(seconds)


def cell(text: str) -> str:
    """Return a stranger's text, fit for a table; ``-`` where there is none."""
    return printable(text, MOST_CELL) or "-"


def named(instance: Instance) -> str:
    """Return what a line calls an instance: its id, and its alias where it has one."""
    alias = f" ({printable(instance.alias)})" if instance.alias else ""
    return printable(instance.id) + alias


def clean_line(line: str) -> str:
    """Return a log line without colours, and with escapes for what else is not plain to see."""
    return printable(_COLOUR.sub("", line), MOST_LINE)


def plain_json(text: str) -> str:
    """Return the same JSON with escapes for what is not plain to see.

    Encoders leave the controls above ASCII and direction marks as they are, and terminals obey
    them, be it behind a pipe.
    """
    return _plain(text, lambda char: json.dumps(char)[1:-1])


def plain_toml(text: str) -> str:
    """Return the same TOML with escapes for what is not plain to see, as `plain_json`."""
    return _plain(text, _toml_escape)


def _plain(text: str, escape: Callable[[str], str]) -> str:
    # Line feeds are the document's own: encoders escape those inside of strings.
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else escape(char) for char in text)


def _toml_escape(char: str) -> str:
    # Unlike JSON's, these are code points, so that there are no surrogates.
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def event_line(event: Event, *, show_keys: bool) -> str:
    """Return one line about an event."""
    head = f"{printable(event.time)}  {printable(event.type):<8}"
    one = event.instance
    if one is None:
        return head.rstrip()
    if event.type == "log":
        return f"{head}  {printable(one.id)}  {clean_line(event.logs)}"
    if not one.type:
        # The one that stands for the API key: its URL is the key.
        return f"{head}  {printable(one.id)}  {cell(one.alias)}"
    url = cell(one.url if show_keys else mask(one.url))
    return f"{head}  {named(one)}  {printable(one.status)}  {url}"


def info_lines(info: Info) -> list[str]:
    """Return a line for each group of figures of a master."""
    cpu = "unknown" if info.cpu < 0 else f"{info.cpu} %"
    rows = [
        ("alias", cell(info.alias)),
        ("version", cell(info.ver)),
        ("master id", cell(info.mid)),
        ("host", f"{cell(info.name)}, {cell(info.os)} {cell(info.arch)}"),
        ("up", f"{span(info.uptime)}, machine {span(info.sysup)}"),
        ("log", cell(info.log)),
        ("tls", " ".join(filter(None, map(printable, (info.tls, info.crt, info.key)))) or "-"),
        ("cpu", cpu),
        ("memory", f"{size(info.mem_used)} of {size(info.mem_total)} used"),
        ("swap", f"{size(info.swap_used)} of {size(info.swap_total)} used"),
        ("network", f"{size(info.netrx)} received, {size(info.nettx)} sent"),
        ("disk", f"{size(info.diskr)} read, {size(info.diskw)} written"),
    ]
    return [f"{name:<10} {value}" for name, value in rows]
