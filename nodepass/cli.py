"""The ``nodepass`` command.

Exit status: 0 after a clean stop, 2 for a command line or file that can't be used, 1 for what
retrying can't mend.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nodepass import help
from nodepass.errors import ConfigError, NodePassError
from nodepass.logs import mask

__all__ = ["console", "main"]

USAGE = """\
Usage: nodepass [--key-file FILE] URL [URL...]   run tunnels, one URL each
       nodepass key                              print a new random key
       nodepass tap URL... [-o FILE]             save the tunnels for twistd -f
       nodepass demo [--once]                    show a tunnel on this machine
       nodepass --help | --version
"""


def console() -> NoReturn:
    """Run the command with the process's own arguments, and exit."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run the command that ``arguments`` ask for and return the exit status."""
    if not arguments:
        print(f"{help.version()}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    command = COMMANDS.get(arguments[0])
    try:
        if command is not None:
            return command(arguments[1:])
        return run(arguments)
    except ConfigError as error:
        return complain(error)


def complain(error: NodePassError) -> int:
    """Print one line about ``error`` on stderr and return the exit status for its kind."""
    print(f"nodepass: {error}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def run(arguments: Sequence[str]) -> int:
    """``nodepass URL...``: run tunnels until a signal ends them or one can't go on."""
    from nodepass.process import hide_keys

    hide_keys("nodepass", arguments)
    configs = parse_urls(Parser("nodepass").parse_args(arguments))

    # Not at the top: these install the reactor, which --help and the other commands don't need.
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from nodepass.logs import LineObserver
    from nodepass.service import makeService

    # Before the roles are made: what these log then already has its place.
    quietest = min(config.log for config in configs)
    globalLogBeginner.beginLoggingTo(
        [LineObserver(sys.stdout, level=quietest)], redirectStandardIO=False
    )
    return serve([makeService(config) for config in configs], reactor)


def serve(roles: Sequence[Any], reactor: Any) -> int:
    """Run ``roles`` in ``reactor`` until it stops, and return the exit status.

    SIGINT and SIGTERM stop them gracefully; a second one ends the process at once.
    """
    from nodepass.process import RoleGroup, end_at_next_signal

    group = RoleGroup(roles, reactor)
    reactor.addSystemEventTrigger("before", "shutdown", end_at_next_signal)
    reactor.addSystemEventTrigger("before", "shutdown", group.stopService)
    group.privilegedStartService()
    group.startService()
    reactor.run()
    return 0 if group.failure is None else complain(group.failure)


def print_key(arguments: Sequence[str]) -> int:
    """``nodepass key``: print a new key."""
    from nodepass.keys import new_key

    Parser("nodepass key", urls=False).parse_args(arguments)
    print(new_key())
    return 0


def save_tap(arguments: Sequence[str]) -> int:
    """``nodepass tap``: save tunnels as an application for ``twistd -f``."""
    from nodepass.process import hide_keys

    hide_keys("nodepass tap", arguments)
    parser = Parser("nodepass tap")
    parser.add_argument("-o", "--output", metavar="FILE", default="nodepass.tap")
    options = parser.parse_args(arguments)
    configs = parse_urls(options)

    from nodepass.tap import write_tap

    write_tap(configs, options.output)
    print(f"{options.output} holds the key, readable for you alone")
    print(f"start it with: twistd -f {options.output}")
    return 0


def show_demo(arguments: Sequence[str]) -> int:
    """``nodepass demo``: a tunnel with everything around it on this machine."""
    from nodepass.demo import main as demo

    return demo(list(arguments))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": show_demo,
    "key": print_key,
    "tap": save_tap,
}


def parse_urls(options: argparse.Namespace) -> list[Any]:
    """Return the configurations of the URLs on the command line.

    Raises:
        ConfigError: one of them, or the key file, can't be used.
    """
    from nodepass.config import parse_url
    from nodepass.keys import outside_key

    key = outside_key(options.key_file, os.environ)
    return [parse_url(url, key=key) for url in options.urls]


class Parser(argparse.ArgumentParser):
    """Options of one command; whatever is wrong with them is one line and status 2.

    Args:
        program: the command's name in its help.
        urls: whether it takes URLs and the options about their keys.
    """

    def __init__(self, program: str, *, urls: bool = True) -> None:
        super().__init__(
            prog=program, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add_argument("--version", action="version", version=help.version())
        if urls:
            self.add_argument("urls", metavar="URL", nargs="+")
            self.add_argument("--key-file", metavar="FILE", help="its only line is the key")

    def format_help(self) -> str:
        """Return one text for the whole command: there is little enough of it."""
        return "\n".join([help.version(), "", USAGE, help.reference(), help.EXAMPLES])

    def error(self, message: str) -> NoReturn:
        """End with status 2 and ``message`` alone, without argparse's usage lines above it."""
        self.exit(2, f"nodepass: {mask(message)}; see: nodepass --help\n")
