"""Which master is meant, and with which key: options, environment, file of contexts.

The file, ``ctl.toml``, holds named masters::

    default = "home"

    [contexts.home]
    api = "https://tunnels.example.org:10101"
    key = "0123456789abcdef0123456789abcdef"
    fingerprint = "..."

What a context says about key and certificate is for its own address only, so that a key never goes
to a master that it was not written down for.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import tomli_w
from attrs import field, frozen
from msgspec import Struct

from nodepass.client.address import parse_address
from nodepass.client.trust import Trust, parse_fingerprint
from nodepass.errors import ConfigError
from nodepass.keys import outside_key
from nodepass.logs import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Context",
    "Contexts",
    "Target",
    "check_context",
    "contexts_path",
    "read_contexts",
    "replace_key",
    "resolve",
    "write_file",
]

API_VARIABLE = "NODEPASS_API"
KEY_VARIABLE = "NODEPASS_API_KEY"

#: Most bytes of the file of contexts; anything longer is another file.
MOST_BYTES = 1 << 20


class Context(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One master. The members are those of the options of the same names."""

    api: str
    key: str = ""
    ca: str = ""
    fingerprint: str = ""
    insecure: bool = False


class Contexts(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is in the file."""

    default: str = ""
    contexts: dict[str, Context] = {}


@frozen
class Target:
    """The master that a command is for.

    :ivar key_from: where the key was found: an option, a variable or a context.
    :ivar contexts: the file of contexts, where the key is from there.
    """

    api: str
    key: str = field(repr=False)
    trust: Trust
    key_from: str
    contexts: Path | None = None


def contexts_path(environ: Mapping[str, str]) -> Path:
    """Return where the file is: ``nodepass/ctl.toml`` in ``$XDG_CONFIG_HOME``, else ``~/.config``.

    :raises ConfigError: there is no home directory.
    """
    home = environ.get("XDG_CONFIG_HOME")
    try:
        base = Path(home) if home else Path.home() / ".config"
    except RuntimeError:
        raise ConfigError(
            "no home directory to look for contexts in; set XDG_CONFIG_HOME"
        ) from None
    return base / "nodepass" / "ctl.toml"


def read_contexts(path: Path) -> Contexts:
    """Read the file; one that is not there holds no contexts.

    :raises ConfigError: it can't be used, or others than its owner may read the keys in it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MOST_BYTES)
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    try:
        found = msgspec.convert(tomllib.loads(data.decode("utf-8")), Contexts)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {printable(str(error))}; accepted: TOML of contexts") from None
    keys = any(context.key for context in found.contexts.values())
    # Windows keeps others out of a user's profile by other means, and has no such modes.
    if keys and os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path}: holds keys and others may read it (mode {stat.S_IMODE(mode):04o}); "
            f"chmod 600 {path}, and nodepass ctl key rotate if somebody did"
        )
    return found


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Replace the file, readable for its owner alone.

    :raises ConfigError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{path.parent}: {error.strerror or error}") from None
    write_file(str(path), tomli_w.dumps(msgspec.to_builtins(contexts)))


def write_file(path: str, text: str) -> None:
    """Write a file with keys: readable for its owner alone, and after a power cut too either
    complete or what was there before.

    :raises ConfigError: it can't be written.
    """
    directory = os.path.dirname(path) or "."
    try:
        # mkstemp makes the file with mode 0600, before the keys are in it.
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=".nodepass-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                # Before it takes the name: that may reach the disk first.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_directory(directory)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _sync_directory(path: str) -> None:
    """Make the names in a directory durable, where the system has a way to."""
    if os.name != "posix":
        return
    # Some file systems know no such thing, and this user may not list it. The file is whole anyway.
    with suppress(OSError):
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def replace_key(path: Path, old: str, new: str) -> str:
    """Write a new key into all contexts that have the old one; return their names.

    :raises ConfigError: the file can't be read or written.
    """
    contexts = read_contexts(path)
    names = [name for name, context in contexts.contexts.items() if context.key == old]
    for name in names:
        contexts.contexts[name].key = new
    write_contexts(path, contexts)
    return ", ".join(map(printable, names))


def resolve(options: argparse.Namespace, environ: Mapping[str, str]) -> Target:
    """Find out which master is meant.

    The address is the first of ``--api``, the context of ``--context``, ``NODEPASS_API``, and the
    default context. The key is the first of ``--key``, ``--key-file``, that of the context, if one
    gave the address, and ``NODEPASS_API_KEY``.

    :raises ConfigError: there is no address or no key, or they can't be used.
    """
    context, name = _context(options, environ)
    parse_address(context.api)
    contexts = None
    if options.key is not None:
        key, key_from = options.key, "--key"
    elif options.key_file is not None:
        key, key_from = outside_key(options.key_file, {}) or "", f"--key-file {options.key_file}"
    elif context.key:
        contexts = contexts_path(environ)
        key, key_from = context.key, f"context {name} in {contexts}"
    else:
        key, key_from = environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
    if not key:
        raise ConfigError(
            f"no API key: give --key-file FILE or --key KEY, or set {KEY_VARIABLE}; the master "
            "prints it at its first start, nodepass key --master shows it on its machine"
        )
    return Target(context.api, key, _trust(options, context), key_from, contexts)


def _context(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Context, str]:
    """The context that gives the address, one of no name where the address is given by itself."""
    if options.api is not None and options.context is not None:
        raise ConfigError("--api and --context: both say which master is meant; give one of them")
    if options.api is not None:
        return Context(options.api), ""
    if options.context is None and environ.get(API_VARIABLE):
        return Context(environ[API_VARIABLE]), ""
    path = contexts_path(environ)
    found = read_contexts(path)
    name = options.context or found.default
    if not name:
        raise ConfigError(
            f"no master: give --api URL, set {API_VARIABLE}, or name one in {path}: "
            "nodepass ctl --api URL --key-file FILE context set NAME"
        )
    return found_context(found, name, path), name


def found_context(found: Contexts, name: str, path: Path) -> Context:
    """Return the context of a name.

    :raises ConfigError: there is none.
    """
    if name not in found.contexts:
        known = ", ".join(sorted(found.contexts)) or "none"
        raise ConfigError(f"context {printable(name)}: not in {path}; there: {printable(known)}")
    return found.contexts[name]


def _trust(options: argparse.Namespace, context: Context) -> Trust:
    """What is asked of the certificate: by the options about it, else by the context."""
    ca, fingerprint, insecure = options.ca, options.fingerprint, options.insecure
    if ca is None and fingerprint is None and not insecure:
        ca, fingerprint, insecure = context.ca, context.fingerprint, context.insecure
    return _one_trust(ca, fingerprint, insecure)


def _one_trust(ca: str | None, fingerprint: str | None, insecure: bool) -> Trust:
    if sum(map(bool, (ca, fingerprint, insecure))) > 1:
        raise ConfigError("--ca, --fingerprint and --insecure: only one of them can hold")
    return Trust(
        ca=ca or None,
        fingerprint=parse_fingerprint(fingerprint) if fingerprint else None,
        insecure=insecure,
    )


def check_context(context: Context) -> None:
    """Make sure that a context can be used.

    :raises ConfigError: its address or what it says of the certificate can't.
    """
    trust = _one_trust(context.ca, context.fingerprint, context.insecure)
    trust.check(parse_address(context.api))
