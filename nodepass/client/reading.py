"""Answers of masters of all ages, read as records: what is missing or null gets its default."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from nodepass.master.models import Event, Info, Instance

__all__ = ["read", "read_list"]

T = TypeVar("T", bound=msgspec.Struct)

_EMPTY: dict[Any, Any] = {str: "", int: 0, bool: False}


def read(body: bytes | str, kind: type[T]) -> T:
    """Read one record.

    :raises msgspec.DecodeError: it is not JSON, or a member has the wrong type.
    """
    return _record(msgspec.json.decode(body), kind)


def read_list(body: bytes, kind: type[T]) -> list[T]:
    """Read a list of records; null is an empty one.

    :raises msgspec.DecodeError: it is not JSON, or a member has the wrong type.
    """
    values = msgspec.json.decode(body, type=list[Any] | None)
    return [_record(value, kind) for value in values or []]


def _record(value: Any, kind: type[T]) -> T:
    if not isinstance(value, dict):
        raise msgspec.ValidationError("an object was expected")
    value = _without_nulls(value)
    if kind is Instance:
        _old_tags(value)
    elif kind is Info:
        # 0 would mean that the machine idles.
        value.setdefault("cpu", -1)
    elif kind is Event and "instance" in value:
        value["instance"] = _record(value["instance"], Instance)
    if kind is not Instance:
        _fill(value, kind)
    return msgspec.convert(value, kind)


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """A null means that there is none, at any depth."""
    return {
        name: _without_nulls(member) if isinstance(member, dict) else member
        for name, member in value.items()
        if member is not None
    }


def _old_tags(value: dict[str, Any]) -> None:
    """The oldest masters have a list of tags beside the rest, and no ``meta``."""
    tags = value.get("tags")
    if "meta" not in value and isinstance(tags, list):
        value["meta"] = {
            "tags": {
                str(tag["key"]): str(tag.get("value", ""))
                for tag in tags
                if isinstance(tag, dict) and "key" in tag
            }
        }


def _fill(value: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """Add what an older master does not tell."""
    for field in msgspec.structs.fields(kind):
        plain = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
        if NoneType in get_args(plain):
            value.setdefault(field.name, None)
        elif field.required and plain in _EMPTY:
            value.setdefault(field.name, _EMPTY[plain])
