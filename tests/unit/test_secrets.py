"""Keys are in no text of a record: such texts end up in logs."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import attrs
import pytest

import nodepass

SECRET = ("key", "oldkey", "rejoin")
#: Importing it runs the command.
_LEFT_OUT = ("nodepass.__main__",)


def records() -> Iterator[type]:
    """The attrs classes of all modules."""
    for module in pkgutil.walk_packages(nodepass.__path__, "nodepass."):
        if module.name not in _LEFT_OUT:
            for thing in vars(import_module(module.name)).values():
                if isinstance(thing, type) and thing.__module__ == module.name and attrs.has(thing):
                    yield thing


@pytest.mark.parametrize("name", SECRET)
def test_no_text_of_a_record_has_a_key(name: str) -> None:
    holders = [each for each in records() if name in attrs.fields_dict(each)]
    assert holders
    shown = [each.__qualname__ for each in holders if attrs.fields_dict(each)[name].repr]
    assert not shown
