"""Functions of a base class, as each subclass has them for itself.

At each place in a function where an attribute is looked up, CPython remembers one kind of object
(PEP 659). Where objects of several classes pass in turn through what they have inherited, that
place takes several times as long: where each message passes, this was half of all time.
"""

from __future__ import annotations

from types import FunctionType

__all__ = ["have_own"]


def have_own(cls: type, *names: str) -> None:
    """Give a class copies of what it would inherit; for its base's `__init_subclass__`."""
    for name in names:
        if name not in vars(cls):
            setattr(cls, name, _copy(getattr(cls, name)))


def _copy(function: FunctionType) -> FunctionType:
    # What the interpreter remembers is in the code.
    code = function.__code__.replace()
    own = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own
