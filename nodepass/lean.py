"""What Twisted imports and a tunnel has no use for stays out of the process.

The core of Twisted imports asyncio, web clients with all of ``email``, certificate helpers and
more, for corners of its interface that are never touched here: 6 MB of each process, and a sixth
of the time that it takes to start. While :func:`import_twisted` imports that core, stand-ins take
these modules' places. They are gone from ``sys.modules`` afterwards, so that whoever imports such a
module later gets it; and one that is asked for what it has not got imports the module after all.

Only the ``nodepass`` command does this, whose process is its own. A program that uses the package
has Twisted as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import CoroutineType, ModuleType
from typing import Any

__all__ = ["import_twisted"]

#: Importing these imports all of Twisted that every role needs; none of them installs a reactor.
_CORE = ("twisted.application.service", "twisted.internet.posixbase", "twisted.protocols.tls")


class _Annotated:
    """A class that is named in annotations alone."""

    def __class_getitem__(cls, _: object) -> type[_Annotated]:
        return cls


def _is_coroutine(result: object) -> bool:
    # As asyncio has it, for what Python itself makes.
    return isinstance(result, CoroutineType)


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function that is imported when it is called."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(_real(module), name)(*arguments, **named)

    return call


_ABSENT = object()

#: The modules, and of each what Twisted takes by name and so has to be there.
_SPARED: dict[str, Mapping[str, object]] = {
    "asyncio": {
        "AbstractEventLoop": _Annotated,
        "Future": _Annotated,
        "iscoroutine": _is_coroutine,
    },
    "email.utils": {"parseaddr": _later("email.utils", "parseaddr")},
    "html": {"escape": _later("html", "escape")},
    "http.cookiejar": {},
    "pathlib": {"PureWindowsPath": _later("pathlib", "PureWindowsPath")},
    "twisted.internet.ssl": {},
    "twisted.internet.threads": {
        "deferToThreadPool": _later("twisted.internet.threads", "deferToThreadPool"),
    },
    "twisted.internet.unix": {},
    "twisted.persisted.sob": {},
    "twisted.python.modules": {"getModule": _later("twisted.python.modules", "getModule")},
    "twisted.python.threadpool": {"ThreadPool": _later("twisted.python.threadpool", "ThreadPool")},
}
if os.name != "nt":
    # Twisted asks it for this alone, which only Windows has.
    _SPARED["ctypes"] = {"WinError": _ABSENT}


class _StandIn(ModuleType):
    """Takes the place of a module until something else of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        # The import system asks for names like "__path__".
        if name.startswith("__") or _SPARED[self.__name__].get(name) is _ABSENT:
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return import_module(name)


def import_twisted() -> None:
    """Import the core of Twisted, unless that has been done; no reactor is installed."""
    if "twisted.internet.defer" in sys.modules:
        return
    for name, content in _SPARED.items():
        if name not in sys.modules:
            stand_in = sys.modules[name] = _StandIn(name)
            stand_in.__dict__.update(
                {key: value for key, value in content.items() if value is not _ABSENT}
            )
    try:
        for name in _CORE:
            import_module(name)
    finally:
        for name in _SPARED:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
