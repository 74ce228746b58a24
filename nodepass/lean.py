"""What Twisted imports and a tunnel has no use for stays out of the process.

The core of Twisted imports asyncio, web clients with all of ``email``, certificate helpers and
more, for corners of its interface that are never touched here, and so do attrs, pyOpenSSL,
setproctitle and ``spake2``: 12 MB of each process, and a fifth of the time that it takes to start.
While :func:`import_twisted` and :func:`import_pake` import them, stand-ins take these modules'
places. They are gone from ``sys.modules`` afterwards, so that whoever imports such a module later
gets it; and one that is asked for what it has not got imports the module after all.

Only the ``nodepass`` command does this, whose process is its own. A program that uses the package
has Twisted as it is.
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from types import CoroutineType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

__all__ = ["import_pake", "import_twisted"]

#: Importing these imports all of Twisted that every role needs; none of them installs a reactor.
_CORE = (
    "twisted.application.service",
    "twisted.internet.posixbase",
    "twisted.protocols.tls",
    "setproctitle",
)


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


def _signature(function: Callable[..., Any], **named: Any) -> Any:
    # attrs asks for the annotations of converters, and can do without.
    if sys._getframe(1).f_globals["__name__"] == "attr._compat":
        raise ValueError(function)
    return _real("inspect").signature(function, **named)


def _among(options: Collection[object]) -> Callable[[object, Any, object], None]:
    """A validator, as attrs has it."""

    def check(_: object, attribute: Any, value: object) -> None:
        if value not in options:
            raise ValueError(f"{attribute.name} must be in {options}, not {value!r}")

    return check


def _dataclass(**options: Any) -> Callable[[Any], Any]:
    """Makes a class a dataclass when its first instance is made, if ever."""

    def decorated(cls: Any) -> Any:
        def __init__(self: Any, *arguments: Any, **named: Any) -> None:
            del cls.__init__
            _real("dataclasses").dataclass(**options)(cls)
            cls.__init__(self, *arguments, **named)

        cls.__init__ = __init__
        return cls

    return decorated


class _Nothing(dict[str, Any]):
    """Takes what is put in, and forgets it."""

    def setdefault(self, key: str, default: Any = None) -> Any:
        return default


def _makes_coroutines(thing: object) -> bool:
    return isinstance(thing, FunctionType) and bool(thing.__code__.co_flags & 0x80)


def _current_frame() -> FrameType:
    return sys._getframe(1)


class _Logger:
    """A logger that is there once it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(_real("logging").getLogger(self._name), name)


def _implementation() -> str:
    # As platform has it, of which only PyPy matters.
    return {"cpython": "CPython", "pypy": "PyPy"}.get(sys.implementation.name, "")


def _reap() -> None:
    # Before the module is there, no process has been started.
    if "twisted.internet.process" in sys.modules:
        import_module("twisted.internet.process").reapAllProcesses()


def _as_it_is(thing: Any) -> Any:
    return thing


def _type_variable(name: str, *arguments: Any, default: object = None, **named: Any) -> Any:
    # Its default is for those who check types.
    return typing.TypeVar(name, *arguments, **named)


#: What Twisted and pyOpenSSL take from typing_extensions; hints, and warnings of what nobody uses
#: here.
_TYPING: Mapping[str, object] = {
    "Concatenate": typing.Concatenate,
    "ParamSpec": typing.ParamSpec,
    "Self": _Annotated,
    "TypeAlias": typing.TypeAlias,
    "TypeVar": _type_variable,
    "deprecated": lambda *arguments, **named: _as_it_is,
    "override": _as_it_is,
}


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

#: What reads and writes events and states that no tunnel keeps.
_JSON: Mapping[str, object] = {name: _later("json", name) for name in ("dumps", "loads")}

#: A library's version, which nobody here asks for, and which it reads from JSON.
_VERSION: Mapping[str, object] = {"get_versions": lambda: {"version": "left out"}}

#: The modules, and of each what Twisted takes by name and so has to be there.
_SPARED: dict[str, Mapping[str, object]] = {
    "asyncio": {
        "AbstractEventLoop": _Annotated,
        "Future": _Annotated,
        "iscoroutine": _is_coroutine,
    },
    "attr.validators": {"in_": _among},
    "attrs.validators": {},
    "base64": {"b16encode": _later("base64", "b16encode")},
    "calendar": {},
    "constantly._version": _VERSION,
    # With the names of all identifiers that there are.
    "cryptography.hazmat._oid": {
        "ObjectIdentifier": _later("cryptography.hazmat.bindings._rust", "ObjectIdentifier")
    },
    "cryptography.x509": {},
    "dataclasses": {"dataclass": _dataclass},
    "dis": {"findlinestarts": _later("dis", "findlinestarts")},
    "email.utils": {"parseaddr": _later("email.utils", "parseaddr")},
    "html": {"escape": _later("html", "escape")},
    "http": {"cookiejar": _ABSENT},
    "http.cookiejar": {},
    "inspect": {
        "currentframe": _current_frame,
        "getmro": lambda of: of.__mro__,
        "isclass": lambda thing: isinstance(thing, type),
        "iscoroutinefunction": _makes_coroutines,
        "isfunction": lambda thing: isinstance(thing, FunctionType),
        "isgenerator": lambda thing: isinstance(thing, GeneratorType),
        "ismethod": lambda thing: isinstance(thing, MethodType),
        "signature": _signature,
    },
    # attrs keeps the sources of the methods there that it makes, for debuggers.
    "linecache": {"cache": _Nothing()},
    "json": _JSON,
    "logging": {
        "CRITICAL": 50,
        "DEBUG": 10,
        "ERROR": 40,
        "INFO": 20,
        "WARNING": 30,
        "getLevelName": {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}.get,
        "getLogger": _Logger,
    },
    "pathlib": {"PureWindowsPath": _later("pathlib", "PureWindowsPath")},
    "pickle": {},
    "platform": {"python_implementation": _implementation},
    "random": {},
    "selectors": {},
    "traceback": {"format_stack": _later("traceback", "format_stack")},
    "twisted.internet.process": {"reapAllProcesses": _reap},
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
    "typing_extensions": _TYPING,
    # As a UUID has its digits.
    "uuid": {"UUID": str.lower},
}
if os.name != "nt":
    # Twisted asks it for this alone, which only Windows has.
    _SPARED["ctypes"] = {"WinError": _ABSENT}

#: The same for `spake2`.
_SPARED_BY_PAKE: dict[str, Mapping[str, object]] = {
    "hashlib": {"sha256": _Hashed},
    "json": _JSON,
    "spake2._version": _VERSION,
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
        _import_datetime()
        # Ciphers of the last century, for files that no tunnel reads.
        os.environ.setdefault("CRYPTOGRAPHY_OPENSSL_NO_LEGACY", "1")
        _import(_CORE, _SPARED)


def _import_datetime() -> None:
    # As it is from Python 3.12 on: its second form, in Python, is not defined first.
    if sys.version_info < (3, 12) and "datetime" not in sys.modules:
        module = ModuleType("datetime")
        content = vars(import_module("_datetime"))
        vars(module).update({name: thing for name, thing in content.items() if name[:2] != "__"})
        sys.modules["datetime"] = module


def import_pake() -> None:
    """Import what the native wire proves a key with, unless that has been done."""
    if "spake2" not in sys.modules:
        _import(("spake2",), _SPARED_BY_PAKE)


def _import(modules: Sequence[str], spared: Mapping[str, Mapping[str, object]]) -> None:
    for name, content in spared.items():
        if name not in sys.modules:
            sys.modules[name] = _StandIn(name, content)
    try:
        for name in modules:
            import_module(name)
    finally:
        # What directories hold, of which most will not be imported from again.
        sys.path_importer_cache.clear()
        for name in spared:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
