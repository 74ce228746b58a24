"""How modules are loaded in the process that is the ``nodepass`` command: 5 MB less at two ends.

Docstrings are left out. ``python -OO`` does so too, and leaves out assertions with them, but needs
bytecode files of its own, which no installation has; and Twisted's errors take their texts from
docstrings. Here modules are loaded from the files that there are, and those which read docstrings
keep theirs.

Annotations of functions are forgotten when their module has been loaded: decorators that look at
them have done so by then.

attrs makes no class for the attributes of each class; these are found by name in a tuple of one.
Nor does it compile for each what makes its text, but uses one function for all.

attrs and typing are kept from calling ``compile``, which makes a class for each kind of node that a
syntax tree may have. ``exec`` does not.

What is imported once the tunnels run is as it is.
"""

from __future__ import annotations

import sys
import typing
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from opcode import hasconst, opmap
from reprlib import recursive_repr
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["load_as_it_is", "load_lean"]

#: What is there in place of a docstring: to be empty or None means other things to zope.interface
#: and dataclasses.
INSTEAD = "left out"

_NAME = "__doc__"
_CO_OPTIMIZED = 0x1  # a function's, not a class' nor a module's
_FIRST_CONSTANT = [bytes((operation, 0)) for operation in hasconst]


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        if code is None or _reads_docstrings(code):
            return code
        # A class of ours may be an error whose text Twisted takes from its docstring.
        return _without_docstrings(code, classes=not fullname.startswith("nodepass."))

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "attr._make":
            vars(module).update(compile=_compile, eval=exec)
        super().exec_module(module)
        if module.__name__ == "attr._make":
            # Another release may have other functions for it; then it does as it always does.
            for name, ours in _OF_ATTRS.items():
                if name in vars(module):
                    vars(module)[name] = ours
        _forget_annotations(module)


class _Attributes(tuple[Any, ...]):
    """The attributes of an attrs class."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        for attribute in self:
            if attribute.name == name:
                return attribute
        raise AttributeError(name)


def _repr_script(*_: object) -> tuple[str, dict[str, object]]:
    """The source of a class' ``__repr__``, and what is global to it."""
    return "def __repr__(self): return show(self)", {"show": _show}


@recursive_repr()
def _show(thing: Any) -> str:
    """The text of what is of an attrs class, as attrs itself has it."""
    from attr import NOTHING

    fields = []
    for attribute in thing.__attrs_attrs__:
        if attribute.repr:
            show = repr if attribute.repr is True else attribute.repr
            fields.append(f"{attribute.name}={show(getattr(thing, attribute.name, NOTHING))}")
    return f"{type(thing).__qualname__.rpartition('>.')[2]}({', '.join(fields)})"


_OF_ATTRS = {
    "_make_attr_tuple_class": lambda *_: _Attributes,
    "_make_repr_script": _repr_script,
}


def _forget_annotations(module: ModuleType) -> None:
    for thing in list(vars(module).values()):
        if isinstance(thing, (type, FunctionType)) and thing.__module__ == module.__name__:
            for each in (thing, *vars(thing).values()):
                function = _function(each)
                if function is not None:
                    del function.__annotations__


def _function(thing: object) -> FunctionType | None:
    """What is called of a function, a method or a property."""
    if isinstance(thing, (classmethod, staticmethod)):
        thing = thing.__func__
    elif isinstance(thing, property):
        thing = thing.fget
    return thing if isinstance(thing, FunctionType) else None


def _compile(source: str, *_: object) -> str:
    # As text it can be executed and evaluated too.
    return source


_hook = FileFinder.path_hook(
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (_Loader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def load_lean() -> None:
    """Load modules without all that from now on."""
    if _hook not in sys.path_hooks:
        sys.path_hooks.insert(0, _hook)
        sys.path_importer_cache.clear()
        vars(typing)["compile"] = _compile


def load_as_it_is() -> None:
    """Load modules as they are from now on."""
    if _hook in sys.path_hooks:
        sys.path_hooks.remove(_hook)
        sys.path_importer_cache.clear()
        del vars(typing)["compile"]


def _reads_docstrings(code: CodeType) -> bool:
    if code.co_flags & _CO_OPTIMIZED and _NAME in code.co_names:
        return True
    return any(type(each) is CodeType and _reads_docstrings(each) for each in code.co_consts)


def _without_docstrings(code: CodeType, *, classes: bool) -> CodeType:
    constants = [
        _without_docstrings(each, classes=classes) if type(each) is CodeType else each
        for each in code.co_consts
    ]
    place = _place(code, classes=classes)
    if place is not None and type(constants[place]) is str:
        constants[place] = INSTEAD
    if all(new is old for new, old in zip(constants, code.co_consts, strict=True)):
        return code
    return code.replace(co_consts=tuple(constants))


def _place(code: CodeType, *, classes: bool) -> int | None:
    """Which of its constants is the docstring of a function, class or module, if any is."""
    operations = code.co_code
    if code.co_flags & _CO_OPTIMIZED:
        # The first is, unless it is a value too, or this is a comprehension.
        used = any(each in operations for each in _FIRST_CONSTANT)
        return None if used or not code.co_consts or code.co_name.startswith("<") else 0
    if _NAME not in code.co_names or not (classes or code.co_name == "<module>"):
        return None
    # Where its name is one of many, it is stored somewhere later and is no docstring.
    store = opmap["STORE_NAME"], code.co_names.index(_NAME)
    for at in range(2, len(operations), 2):
        if (operations[at], operations[at + 1]) == store:
            return operations[at - 1] if operations[at - 2] == opmap["LOAD_CONST"] else None
    return None
