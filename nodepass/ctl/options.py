"""What can be written behind ``nodepass ctl``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from nodepass import help
from nodepass.logs import mask

__all__ = ["make_completion_parser", "make_parser", "parse"]


class _Parser(argparse.ArgumentParser):
    """Whatever is wrong with the options is one line and status 2."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # The examples below the general help are to stay as they are written.
        named |= {
            "allow_abbrev": False,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        super().__init__(*arguments, **named)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and ``message`` alone."""
        self.exit(2, f"nodepass: {mask(message)}; see: {self.prog} --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line. One that can't be used ends the process with status 2."""
    absent = argparse.Namespace(
        api=None, key=None, key_file=None, context=None, ca=None, fingerprint=None, insecure=False
    )
    return make_parser().parse_args(arguments, absent)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser. Which command was given is in ``command``."""
    parser = _Parser(
        prog="nodepass ctl",
        description=help.CTL,
        epilog=help.CTL_MASTER,
        parents=[_everywhere()],
    )
    _fill(parser)
    return parser


def make_completion_parser(others: Iterable[str]) -> argparse.ArgumentParser:
    """Return what completion scripts are made of: a shell completes ``nodepass``, not its ``ctl``.

    :param others: commands beside ``ctl``.
    """
    parser = _Parser(prog="nodepass")
    commands = parser.add_subparsers()
    for name in others:
        commands.add_parser(name, help=name)
    # What has no help counts as hidden.
    _fill(commands.add_parser("ctl", help="ctl", parents=[_everywhere()]))
    return parser


def _fill(parser: _Parser) -> None:
    """Add the commands."""
    parser.add_argument("--version", action="version", version=help.version())
    everywhere = _everywhere()
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[everywhere])

    one = command("list", "show all instances")
    one.add_argument("--json", action="store_true", help="exact figures, keys included, as JSON")
    one.add_argument("--watch", action="store_true", help="go on showing them as they change")
    _show_keys(one)

    one = command("create", "make an instance and print its id")
    one.add_argument("url", metavar="URL", help="what nodepass URL would run")
    one.add_argument("--alias", help="a name for it")
    one.add_argument("--no-restart", action="store_true", help="it does not start with the master")

    for name, text in (
        ("start", "start instances"),
        ("stop", "stop instances; the master keeps them"),
        ("restart", "stop and start instances"),
        ("reset", "set the byte counters of instances to 0"),
        ("delete", "stop instances and forget them"),
    ):
        one = command(name, text)
        one.add_argument("ids", metavar="ID", nargs="+", help="id, its beginning, or alias")

    one = command("edit", "change an instance")
    _id(one)
    one.add_argument("--url", help="its new URL; it is started with it")
    one.add_argument("--alias", help="its new name")
    one.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether it starts with the master",
    )
    one.add_argument("--tag", metavar="NAME=VALUE", action="append", help="add or change a tag")
    one.add_argument("--untag", metavar="NAME", action="append", help="remove a tag")
    one.add_argument(
        "--peer",
        metavar="NAME=VALUE",
        action="append",
        help="note about the other end: sid, type or alias",
    )

    one = command("logs", "print the latest lines of an instance's log")
    _id(one)
    one.add_argument("-n", "--lines", type=_count, default=100, help="how many [default 100]")
    one.add_argument("-f", "--follow", action="store_true", help="and new ones as they come")

    one = command("traffic", "print how many bytes an instance moved when")
    _id(one)
    one.add_argument(
        "--since", metavar="SPAN", type=_span, default=3600, help="as 30m, 12h or 7d [default 1h]"
    )
    one.add_argument(
        "--step", metavar="SPAN", type=_span, help="of each line [what the master keeps]"
    )
    one.add_argument("--json", action="store_true", help="exact figures, as JSON")

    one = command("events", "print what happens, until Ctrl-C")
    one.add_argument("id", metavar="ID", nargs="?", help="only of this instance")
    one.add_argument("--types", help="only these, such as create,delete,log")
    one.add_argument(
        "--json", action="store_true", help="one JSON object a line, tunnel keys included"
    )
    _show_keys(one)

    one = command("info", "print the figures of the master and its machine")
    one.add_argument("--json", action="store_true", help="exact figures, as JSON")

    one = command("export", "write all instances into one document, keys included")
    one.add_argument("-o", "--output", metavar="FILE", help="readable for you alone [stdout]")
    one.add_argument("--format", choices=("toml", "json"), help="[by the file's name, else toml]")

    one = command("import", "make or change instances as a document says")
    one.add_argument("file", metavar="FILE", help="what export wrote; - is stdin")
    one.add_argument("--dry-run", action="store_true", help="only show what would be done")
    _show_keys(one)

    one = command("key", "the API key")
    one.add_argument(
        "what", choices=("rotate",), help="make a new one; the old one is void at once"
    )

    one = command("context", "masters with names, kept in a file")
    one.add_argument(
        "what",
        choices=("list", "use", "set", "delete"),
        help="show, choose the default, write, forget",
    )
    one.add_argument("name", metavar="NAME", nargs="?", help="of all but list")

    one = command("completion", "print a script that completes commands and options")
    one.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _everywhere() -> _Parser:
    """Options about the master, which may stand before the command and behind it."""
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("the master")
    group.add_argument(
        "--api", metavar="URL", help="its address: http(s)://HOST:PORT or unix:%%2FPATH"
    )
    group.add_argument("--key", metavar="KEY", help="its API key")
    group.add_argument("--key-file", metavar="FILE", help="a file whose only line is the key")
    group.add_argument("--context", metavar="NAME", help="a master with a name")
    group.add_argument("--ca", metavar="FILE", help="PEM file of roots that its certificate is of")
    group.add_argument("--fingerprint", metavar="SHA256", help="of its certificate")
    group.add_argument("--insecure", action="store_true", help="any certificate will do")
    return parser


def _id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="id, its beginning, or alias")


def _show_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show-keys", action="store_true", help="show keys inside URLs")


def _span(text: str) -> int:
    match = re.fullmatch("([0-9]{1,9})([smhd]?)", text)
    seconds = (
        int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0
    )
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text}: a time such as 90s, 30m, 12h or 7d is accepted")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 <= int(text[:9]) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 to 10000 is accepted")
    return int(text)
