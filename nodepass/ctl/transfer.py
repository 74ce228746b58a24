"""All instances of a master as one document, and what a document would change on another.

Pure: reading, writing and comparing. `nodepass.ctl.moving` does what the comparison says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import tomli_w
from attrs import field, frozen
from msgspec import Struct

from nodepass.client.models import Instance, Meta
from nodepass.errors import ConfigError
from nodepass.logs import printable

from .show import plain_json, plain_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Document", "Entry", "Step", "Totals", "document", "dump", "load", "plan", "same_url"]

#: The form of documents that this version writes and reads.
FORMAT = 1

#: What a master fills in where a posted URL lacks it.
_FILLED_IN = frozenset(("log", "tls", "crt", "key"))


class Totals(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Bytes moved so far."""

    tcprx: int = 0
    tcptx: int = 0
    udprx: int = 0
    udptx: int = 0


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One instance. An ``id`` that is missing is chosen by the master."""

    id: str = ""
    alias: str = ""
    url: str
    status: str = ""
    restart: bool | None = None
    meta: Meta = Meta()
    totals: Totals = Totals()


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """All instances of one master."""

    format: int
    instances: list[Entry] = []


@frozen
class Step:
    """What is to be done about one entry.

    :ivar id: the instance that is changed, or that is as it should be; None: one is made.
    :ivar changes: ``(member, old, new)`` for each difference, in words.
    """

    entry: Entry
    id: str | None = None
    changes: tuple[tuple[str, str, str], ...] = field(default=())

    @property
    def sign(self) -> str:
        """``+`` for an instance that is made, ``~`` for a change, ``=`` for none."""
        if self.id is None:
            return "+"
        return "~" if self.changes else "="

    @property
    def puts_url(self) -> bool:
        """Whether the master is given the entry's URL."""
        return self.id is None or any(name == "url" for name, _, _ in self.changes)


def document(instances: Sequence[Instance]) -> Document:
    """Return what an export of ``instances`` holds."""
    return Document(
        FORMAT,
        [
            Entry(
                id=one.id,
                alias=one.alias,
                url=one.url,
                status=one.status,
                restart=one.restart,
                meta=one.meta,
                totals=Totals(one.tcprx, one.tcptx, one.udprx, one.udptx),
            )
            for one in instances
        ],
    )


def dump(content: Document, form: str) -> str:
    """Return a document as text; ``form`` is ``toml`` or ``json``.

    What is not plain to see is escaped, as the text may be shown on a terminal.
    """
    plain = msgspec.to_builtins(content)
    plain["instances"] = [_without_empty(entry) for entry in plain["instances"]]
    if form == "json":
        return plain_json(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()) + "\n"
    head = "# Tunnels of a nodepass master. Their keys are in it.\n"
    return head + plain_toml(tomli_w.dumps(plain))


def _without_empty(members: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing, at any depth; neither is there a null in TOML."""
    # A tag may well have an empty value.
    kept = {
        name: _without_empty(member) if isinstance(member, dict) and name != "tags" else member
        for name, member in members.items()
    }
    return {name: member for name, member in kept.items() if member not in ("", {}, None)}


def load(text: str, name: str) -> Document:
    """Read a document, TOML or JSON.

    :param name: the file, for errors.
    :raises ConfigError: it is none.
    """
    try:
        if text.lstrip().startswith("{"):
            found = msgspec.json.decode(text, type=Document)
        else:
            found = msgspec.convert(tomllib.loads(text), Document)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{name}: {printable(str(error))}; accepted: what nodepass ctl export writes"
        ) from None
    if found.format != FORMAT:
        raise ConfigError(f"{name}: format {found.format}; this version reads format {FORMAT}")
    ids = [entry.id for entry in found.instances if entry.id]
    for id in ids:
        if ids.count(id) > 1:
            raise ConfigError(f"{name}: id {printable(id)} stands there more than once")
    return found


def plan(existing: Sequence[Instance], wanted: Sequence[Entry]) -> list[Step]:
    """Compare what a master has with what it should have. Instances not wanted are left alone.

    An entry is the instance of its id; else one of the same URL and alias, as a master may have
    chosen another id at an earlier import; else, where it has no id, the only one of its alias.
    """
    free = {one.id: one for one in existing}
    found: dict[int, Instance] = {}
    # All ids first: an entry without its own must not take another's.
    for number, entry in enumerate(wanted):
        if entry.id in free:
            found[number] = free.pop(entry.id)
    for number, entry in enumerate(wanted):
        if number not in found:
            match = _alike(entry, list(free.values()))
            if match is not None:
                found[number] = free.pop(match.id)
    return [
        Step(entry, found[number].id, tuple(_changes(found[number], entry)))
        if number in found
        else Step(entry)
        for number, entry in enumerate(wanted)
    ]


def _alike(entry: Entry, candidates: Sequence[Instance]) -> Instance | None:
    for one in candidates:
        if one.alias == entry.alias and same_url(entry.url, one.url):
            return one
    if entry.id or not entry.alias:
        return None
    same = [one for one in candidates if one.alias == entry.alias]
    return same[0] if len(same) == 1 else None


def _changes(old: Instance, new: Entry) -> list[tuple[str, str, str]]:
    changes = []
    if not same_url(new.url, old.url):
        changes.append(("url", old.url, new.url))
    # The API can't take an alias away.
    if new.alias and new.alias != old.alias:
        changes.append(("alias", old.alias, new.alias))
    if new.restart is not None and new.restart != old.restart:
        changes.append(("restart", _word(old.restart), _word(new.restart)))
    for name in ("sid", "type", "alias"):
        before, after = getattr(old.meta.peer, name), getattr(new.meta.peer, name)
        if before != after:
            changes.append((f"peer {name}", before, after))
    for tag in sorted({*old.meta.tags, *new.meta.tags}):
        before, after = old.meta.tags.get(tag, ""), new.meta.tags.get(tag, "")
        if before != after or (tag in old.meta.tags) != (tag in new.meta.tags):
            changes.append((f"tag {tag}", before, after))
    return changes


def _word(restart: bool) -> str:
    return "yes" if restart else "no"


def same_url(wanted: str, stored: str) -> bool:
    """Whether a master that was given ``wanted`` may have stored it as ``stored``.

    The order of parameters does not count, nor the case of the scheme, nor what a master fills in
    from its own URL.
    """
    scheme, base, query, fragment = _parts(wanted)
    stored_scheme, stored_base, stored_query, stored_fragment = _parts(stored)
    if (scheme, base, fragment) != (stored_scheme, stored_base, stored_fragment):
        return False
    # Those with an empty value are left out: they say nothing, and the master may fill them in.
    ours = sorted(parse_qsl(query))
    names = {name for name, _ in ours}
    theirs = sorted(
        (name, value)
        for name, value in parse_qsl(stored_query)
        if name in names or name not in _FILLED_IN
    )
    return ours == theirs


def _parts(url: str) -> tuple[str, str, str, str]:
    """Scheme, address, query and fragment, where a master sees their bounds."""
    rest, _, fragment = url.strip().partition("#")
    rest, _, query = rest.partition("?")
    scheme, _, base = rest.partition("://")
    return scheme.lower(), base, query, fragment
