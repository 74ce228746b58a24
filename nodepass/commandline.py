"""Options on the command line, and help: read only where there are any."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from nodepass import help
from nodepass.logs import mask

__all__ = ["USAGE", "Parser", "general_help"]

USAGE = """\
Usage: nodepass [--key-file FILE] URL [URL...]   run tunnels, one URL each
       nodepass key [--master [--renew]]         print a random key, or a master's
       nodepass tap URL... [-o FILE]             save the tunnels for twistd -f
       nodepass demo [--once]                    show a tunnel on this machine
       nodepass ctl COMMAND ...                  look after a master's tunnels
       nodepass --help | --version
"""


def general_help() -> str:
    """Return the help of ``nodepass`` itself: all about its commands and about URLs."""
    return "\n".join([help.version(), "", USAGE, help.reference(), help.EXAMPLES])


class Parser(argparse.ArgumentParser):
    """Options of one command; whatever is wrong with them is one line and status 2.

    :param program: the command's name.
    :param text: its whole help.
    :param urls: whether it takes URLs and the options about their keys.
    """

    def __init__(self, program: str, text: str, *, urls: bool = True) -> None:
        super().__init__(prog=program, allow_abbrev=False)
        self.text = text
        self.urls = urls
        self.add_argument("--version", action="version", version=help.version())
        if urls:
            self.add_argument("--key-file", metavar="FILE")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options, and as ``urls`` all that is none.

        URLs are not left to argparse: where one is missing it says so, and is silent about the
        misspelt option that is there.
        """
        options, rest = self.parse_known_args(arguments)
        for argument in rest:
            if argument.startswith("-") and argument != "--":
                # A value may be a key.
                self.error(f"{argument.partition('=')[0]}: unknown option")
        options.urls = [argument for argument in rest if argument != "--"]
        if self.urls and not options.urls:
            self.error("a URL is needed")
        if not self.urls and options.urls:
            self.error(f"{options.urls[0]}: not expected here")
        return options

    def format_help(self) -> str:
        """Return the command's own text."""
        return self.text

    def error(self, message: str) -> NoReturn:
        """End with status 2 and ``message`` alone, without argparse's usage lines above it."""
        self.exit(2, f"nodepass: {mask(message)}; see: {self.prog} --help\n")
