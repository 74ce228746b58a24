"""Scripts by which shells complete ``nodepass``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

import shtab

from .options import make_completion_parser

__all__ = ["script"]

# Names that need quotes in the file are left out. To start Python for each Tab would be slow.
_CONTEXTS = r"""
_nodepass_contexts() {
  local file="${XDG_CONFIG_HOME:-$HOME/.config}/nodepass/ctl.toml"
  compgen -W "$(sed -n 's/^\[contexts\.\([A-Za-z0-9_-]*\)\]$/\1/p' "$file" 2>/dev/null)" -- "$1"
}
"""

# The line that has bash use the script; its options differ among versions of shtab.
_COMPLETE = re.compile(r"^complete .*(-F \w+ nodepass)$", re.MULTILINE)


def script(others: Iterable[str], shell: str) -> str:
    """Return what a shell is to read.

    :param others: commands beside ``ctl``.
    :param shell: ``bash``, ``zsh`` or ``tcsh``.
    """
    parser = make_completion_parser(others)
    _mark(parser)
    text = shtab.complete(parser, shell, preamble=_CONTEXTS if shell == "bash" else "")
    # Where nothing is known, as behind "nodepass tap -o", it is most likely a file.
    return _COMPLETE.sub(r"complete -o bashdefault -o default \1", text)


def _mark(parser: argparse.ArgumentParser) -> None:
    """Say which arguments are files, and which are contexts."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in set(action.choices.values()):
                _mark(command)
        elif action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in ("context", "name"):
            action.complete = {"bash": "_nodepass_contexts"}  # type: ignore[attr-defined]
