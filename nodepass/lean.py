"""What Twisted imports and a tunnel has no use for stays out of the process.

The core of Twisted imports asyncio, web clients with all of ``email``, certificate helpers and
more, for corners of its interface that are never touched here, and so do pyOpenSSL and ``spake2``:
10 MB of each process, and a sixth of the time that it takes to start. While the functions of
this module import them, stand-ins take these modules' places. They are gone from
``sys.modules`` afterwards, so that whoever imports such a module later gets it; and one that is
asked for what it has not got imports the module after all.

Only the ``nodepass`` command does this, whose process is its own. A program that uses the package
has Twisted as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import CoroutineType, ModuleType
from typing import Any

__all__ = ["import_pake", "import_twisted", "import_x509"]

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


class _Hashed:
    """``hashlib.sha256``, as far as ``spake2`` goes, from the OpenSSL that is there anyway."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def digest(self) -> bytes:
        from nodepass.digests import sha256

        return sha256(self._data)

    def hexdigest(self) -> str:
        return self.digest().hex()


_ABSENT = object()

#: The modules, and of each what Twisted takes by name and so has to be there.
_SPARED: dict[str, Mapping[str, object]] = {
    "asyncio": {
        "AbstractEventLoop": _Annotated,
        "Future": _Annotated,
        "iscoroutine": _is_coroutine,
    },
    "calendar": {},
    "cryptography.x509": {},
    "email.utils": {"parseaddr": _later("email.utils", "parseaddr")},
    "html": {"escape": _later("html", "escape")},
    "http": {"cookiejar": _ABSENT},
    "http.cookiejar": {},
    "pathlib": {"PureWindowsPath": _later("pathlib", "PureWindowsPath")},
    "pickle": {},
    "twisted.internet.ssl": {},
    "twisted.internet.threads": {
        "deferToThreadPool": _later("twisted.internet.threads", "deferToThreadPool"),
    },
    "twisted.internet.unix": {},
    "twisted.persisted.sob": {},
    "twisted.python.filepath": {
        name: _later("twisted.python.filepath", name)
        for name in ("_asFilesystemBytes", "_coerceToFilesystemEncoding")
    },
    "twisted.python.modules": {"getModule": _later("twisted.python.modules", "getModule")},
    "twisted.python.threadpool": {"ThreadPool": _later("twisted.python.threadpool", "ThreadPool")},
}
if os.name != "nt":
    # Twisted asks it for this alone, which only Windows has.
    _SPARED["ctypes"] = {"WinError": _ABSENT}

#: The same for `spake2`, and for what certificates are made with.
_SPARED_BY_PAKE: dict[str, Mapping[str, object]] = {"hashlib": {"sha256": _Hashed}}
_SPARED_BY_X509: dict[str, Mapping[str, object]] = {
    "email.utils": _SPARED["email.utils"],
    "hashlib": {},
    "hmac": {},
}


class _StandIn(ModuleType):
    """Takes the place of a module until something else of it is wanted."""

    def __init__(self, name: str, content: Mapping[str, object]) -> None:
        super().__init__(name)
        self._absent = {key for key, value in content.items() if value is _ABSENT}
        self.__dict__.update({key: content[key] for key in content.keys() - self._absent})

    def __getattr__(self, name: str) -> Any:
        # The import system asks for names like "__path__".
        if name.startswith("__") or name in self._absent:
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return import_module(name)


def import_twisted() -> None:
    """Import the core of Twisted, unless that has been done; no reactor is installed."""
    if "twisted.internet.defer" not in sys.modules:
        _import(_CORE, _SPARED)


def import_pake() -> None:
    """Import what the native wire proves a key with, unless that has been done."""
    if "spake2" not in sys.modules:
        _import(("spake2",), _SPARED_BY_PAKE)


def import_x509() -> None:
    """Import what a server makes its certificate with, unless that has been done."""
    if "cryptography.x509" not in sys.modules:
        _import(("cryptography.x509",), _SPARED_BY_X509)


def _import(modules: Sequence[str], spared: Mapping[str, Mapping[str, object]]) -> None:
    for name, content in spared.items():
        if name not in sys.modules:
            sys.modules[name] = _StandIn(name, content)
    try:
        for name in modules:
            import_module(name)
    finally:
        for name in spared:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
