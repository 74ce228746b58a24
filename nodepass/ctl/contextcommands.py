"""``nodepass ctl context``: the file of named masters, shown and written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from nodepass.errors import ConfigError
from nodepass.keys import outside_key
from nodepass.logs import printable

from .contexts import (
    Context,
    check_context,
    contexts_path,
    found_context,
    read_contexts,
    write_contexts,
)
from .show import table

__all__ = ["run_context"]


def run_context(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run ``context list``, or ``use``, ``set`` or ``delete`` with a name; return the exit status.

    :raises ConfigError: the options or the file can't be used.
    """
    path = contexts_path(environ)
    contexts = read_contexts(path)
    if options.what == "list":
        rows = [
            [
                "*" if name == contexts.default else "",
                printable(name),
                printable(context.api),
                "yes" if context.key else "no",
            ]
            for name, context in sorted(contexts.contexts.items())
        ]
        for line in table(("", "NAME", "API", "KEY"), rows, frozenset(), None):
            print(line)
        return 0
    name = options.name
    if not name:
        raise ConfigError(f"context {options.what}: needs a NAME")
    if options.what == "use":
        found_context(contexts, name, path)
        contexts.default = name
    elif options.what == "delete":
        found_context(contexts, name, path)
        del contexts.contexts[name]
        if contexts.default == name:
            contexts.default = ""
    else:
        contexts.contexts[name] = _changed(contexts.contexts.get(name), options)
        contexts.default = contexts.default or name
    write_contexts(path, contexts)
    print(
        f"{path} written, readable for you alone; default: {printable(contexts.default) or 'none'}"
    )
    return 0


def _changed(old: Context | None, options: argparse.Namespace) -> Context:
    """A context with what the options say; what they don't mention stays as it was."""
    if options.api is None and old is None:
        raise ConfigError("context set: a new context needs --api URL")
    context = old or Context(options.api)
    if options.api is not None:
        if options.api != context.api:
            # The old key and certificate are those of another master.
            context = Context(options.api)
    if options.key_file is not None:
        context.key = outside_key(options.key_file, {}) or ""
    if options.key is not None:
        context.key = options.key
    if options.ca is not None or options.fingerprint is not None or options.insecure:
        context.ca = options.ca or ""
        context.fingerprint = options.fingerprint or ""
        context.insecure = options.insecure
    check_context(context)
    return context
