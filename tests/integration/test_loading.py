"""What modules are without when the command loads them, and that it changes nothing else."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nodepass.loading import INSTEAD, load_as_it_is, load_lean

from .test_lean import run

_MODULE = '''
"""Of a module."""

class Thing:
    """Of a class."""
    size = 5

    def method(self):
        """Of a method."""
        return [word for word in ("a", "b")]

class Bare:
    size = 6

def same():
    """Of a function, and its value."""
    return "Of a function, and its value."

def bare():
    return "Of a function, and its value."

def outer():
    """Of one that has another."""
    def inner():
        """Of the other."""
        return "value"
    return inner
'''

_ANNOTATED = """
class Thing:
    size: int = 5

    @property
    def prop(self) -> int: ...

    @classmethod
    def of_class(cls) -> int: ...

    @staticmethod
    def static(a: int) -> int: ...

    def method(self) -> int: ...

def function(a: int = 7) -> int:
    return a

seen = []

def register(function):
    seen.append(dict(function.__annotations__))
    return function

@register
def registered(a: int): ...
"""

_READER = '''
class Failed(Exception):
    """It failed."""

    def __str__(self):
        return self.__doc__
'''


@pytest.fixture(autouse=True)
def lean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loads modules as the command does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    load_lean()
    try:
        yield
    finally:
        load_as_it_is()


def loaded(directory: Path, name: str, source: str) -> ModuleType:
    """A module that consists of this."""
    (directory / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[name]


def test_docstrings(tmp_path: Path) -> None:
    """Those of modules, classes and functions are left out, and all else is as it was."""
    module = loaded(tmp_path, "some_with_docstrings", _MODULE)
    thing = module.Thing
    documented = (module, thing, thing.method, module.outer, module.outer())
    assert [each.__doc__ for each in documented] == [INSTEAD] * 5
    assert thing.size == 5 and thing().method() == ["a", "b"]
    assert module.Bare.__doc__ is None and module.bare.__doc__ is None
    assert module.same() == module.bare() == "Of a function, and its value."
    assert module.outer()() == "value"


def test_a_docstring_that_is_set_late(tmp_path: Path) -> None:
    """It is a name among many then, and stays."""
    names = "".join(f"name{number} = {number}\n" for number in range(300))
    module = loaded(tmp_path, "some_with_many_names", f"{names}__doc__ = str(name299)\n")
    assert module.__doc__ == "299"


def test_docstrings_that_are_read(tmp_path: Path) -> None:
    """A module that reads docstrings has them."""
    assert str(loaded(tmp_path, "some_that_reads", _READER).Failed()) == "It failed."


def test_annotations(tmp_path: Path) -> None:
    """Those of functions are forgotten, once decorators have seen them; those of classes are not,
    nor are those of another module's functions."""
    module = loaded(tmp_path, "some_with_annotations", _ANNOTATED)
    thing = module.Thing
    functions = (thing.prop.fget, thing.of_class, thing.static, thing.method, module.function)
    assert not any(each.__annotations__ for each in (*functions, module.registered))
    assert thing.__annotations__ == {"size": int} and module.seen == [{"a": int}]
    assert module.function() == 7
    other = loaded(tmp_path, "some_other", "from tests.integration.test_loading import loaded")
    assert other.loaded is loaded and loaded.__annotations__


def test_afterwards(tmp_path: Path) -> None:
    """What is imported later has its docstrings."""
    load_as_it_is()
    assert loaded(tmp_path, "some_later", _MODULE).Thing.__doc__ == "Of a class."


def test_after_a_command_that_could_not_run() -> None:
    """Where no tunnel comes to run, what is imported later has its docstrings all the same."""
    run(
        "from nodepass.cli import main\n"
        "assert main(['server://?']) == 2\n"
        "import twisted.protocols.basic as later\n"
        f"assert later.LineReceiver.__doc__ != {INSTEAD!r}\n"
    )


def test_attributes_by_name() -> None:
    """A class of attrs has its attributes by number and by name, as with a class for them."""
    run(
        "from nodepass.loading import load_lean\n"
        "load_lean()\n"
        "from attrs import evolve, fields, frozen\n"
        "@frozen\n"
        "class Thing:\n"
        "    a: int\n"
        "    b: int = 2\n"
        "attributes = fields(Thing)\n"
        "assert attributes.a is attributes[0] and attributes.b.default == 2\n"
        "assert len(attributes) == 2 and not hasattr(attributes, 'c')\n"
        "assert evolve(Thing(1), b=3) == Thing(1, 3) and repr(Thing(1)) == 'Thing(a=1, b=2)'\n"
    )


_TEXTS = """
from attrs import define, field, frozen

class Outer:
    @frozen
    class Thing:
        a: int
        key: str = field(default="secret", repr=False)
        word: str = field(default="word", repr=str.upper)

@define(slots=False)
class Knot:
    itself: object = None
    later: int = field(init=False)

def local():
    @frozen
    class Within:
        a: str = "'"
    return Within()

knot = Knot()
knot.itself = [knot]
for thing in (Outer.Thing(1), knot, local()):
    print(thing)
"""


def test_texts() -> None:
    """What is of a class of attrs has the text that it has without the command: without secrets,
    and where it knows itself."""
    as_they_are, lean = (
        subprocess.run(
            [sys.executable, "-c", first + _TEXTS],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for first in ("", "from nodepass.loading import load_lean; load_lean()")
    )  # fmt: skip
    assert "Outer.Thing(a=1, word=WORD)" in lean and "Within" in lean
    assert lean == as_they_are


def test_texts_of_errors() -> None:
    """Errors of Twisted and of ours that take their texts from docstrings say the same."""
    run(
        "from nodepass.loading import load_as_it_is, load_lean\n"
        "load_lean()\n"
        "from nodepass.lean import import_twisted; import_twisted()\n"
        "from nodepass.resolver import LookupTimeout\n"
        "from twisted.internet import error, tcp\n"
        "load_as_it_is()\n"
        "assert str(error.ConnectionDone()) == 'Connection was closed cleanly.'\n"
        "assert LookupTimeout.__doc__ == 'No name server answered in time.'\n"
        f"assert tcp.Port.__doc__ == {INSTEAD!r}\n"
        "import attr._make, typing\n"
        "assert not hasattr(typing, 'compile') and attr._make.eval is exec\n"
    )
