"""The ``nodepass`` command.

Exit status: 0 after a clean stop, 2 for a command line or file that can't be used, 1 for what
retrying can't mend.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from nodepass.errors import ConfigError, NodePassError
from nodepass.lean import import_pake, import_twisted
from nodepass.loading import load_as_it_is, load_lean

# All else is imported where it is used, after `import_twisted`, and no command brings what another
# one needs.

__all__ = ["console", "main"]

#: What was meant for a command; short, as a key that "nodepass key" made must not be repeated.
_WORD = "[A-Za-z]{1,12}"


#: What shells report of a program that Ctrl-C ended, here before its reactor could hear of it.
INTERRUPTED = 130


def console() -> NoReturn:
    """Run the command with the process's own arguments, and exit."""
    status = main(sys.argv[1:])
    # On its way out the interpreter gives up handlers. A signal that is repeated, as `timeout` and
    # shells do, must not take the place of the status then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def main(arguments: Sequence[str]) -> int:
    """Run the command that ``arguments`` ask for and return the exit status."""
    if not arguments:
        from nodepass.commandline import USAGE
        from nodepass.help import version

        print(f"{version()}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    command = COMMANDS.get(arguments[0])
    try:
        if command is not None:
            return command(arguments[1:])
        if re.fullmatch(_WORD, arguments[0]):
            raise ConfigError(
                f"{arguments[0]}: neither a URL nor a command; accepted: server://..., "
                f"client://..., master://... or one of {', '.join(sorted(COMMANDS))}; "
                "see: nodepass --help"
            )
        return run(arguments)
    except NodePassError as error:
        return complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def complain(error: NodePassError) -> int:
    """Print one line about ``error`` on stderr and return the exit status for its kind."""
    print(f"nodepass: {error}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def run(arguments: Sequence[str]) -> int:
    """``nodepass URL...``: run tunnels until a signal ends them or one can't go on."""
    load_lean()
    try:
        return _run(arguments)
    finally:
        load_as_it_is()  # where no tunnel came to run


def _run(arguments: Sequence[str]) -> int:
    import_twisted()
    from nodepass.process import hide_keys

    hide_keys("nodepass", arguments)
    configs = read_urls(arguments)
    if any(_proves_key(config) for config in configs):
        import_pake()
    modules = [module for config in configs if (module := _worker_module(config))]
    if modules:
        from nodepass.master.forker import prepare

        prepare(*modules)  # before there is a reactor, which workers can't share

    from twisted.logger import globalLogBeginner

    from nodepass.lines import BackgroundStream
    from nodepass.logs import LineObserver
    from nodepass.reactor import install_reactor
    from nodepass.service import makeService

    reactor = install_reactor()  # which the other commands don't need

    output: Any = sys.stdout
    with suppress(AttributeError, OSError, ValueError):  # there is none, or it is no file
        output = BackgroundStream(sys.stdout)
        reactor.addSystemEventTrigger("after", "shutdown", output.close)
    reactor.callWhenRunning(_settle)
    # Before the roles are made: what these log then already has its place.
    quietest = min(config.log for config in configs)
    globalLogBeginner.beginLoggingTo(
        [LineObserver(output, level=quietest)], redirectStandardIO=False
    )
    return serve([makeService(config) for config in configs], reactor)


def _proves_key(config: Any) -> bool:
    """Whether it may have to prove a key as the native wire does."""
    from nodepass.config import Mode
    from nodepass.dialects import NATIVE

    if config.core == "master" or (config.core == "client" and config.mode is Mode.ONE):
        return False  # nothing joins it, nor does it join anything
    return NATIVE in config.dialects


def _worker_module(config: Any) -> str:
    """What the worker processes of a URL run; empty where it has none."""
    if config.core == "master":
        return "nodepass.master.worker"
    return "nodepass.workers.worker" if config.workers != 1 else ""


def _settle() -> None:
    """What there is at the start is there to stay: the garbage collector need not look at it again
    and again, which would take 20 ms each time."""
    load_as_it_is()
    gc.collect()
    gc.freeze()


def serve(roles: Sequence[Any], reactor: Any) -> int:
    """Run ``roles`` in ``reactor`` until it stops, and return the exit status.

    SIGINT and SIGTERM stop them gracefully; a second one ends the process at once.
    """
    from nodepass.process import RoleGroup, stop_at_signals
    from nodepass.reactor import steady_clock

    steady_clock(reactor)
    group = RoleGroup(roles, reactor)
    stop_at_signals(reactor)
    reactor.addSystemEventTrigger("before", "shutdown", group.stopService)
    group.privilegedStartService()
    group.startService()
    reactor.run()
    return 0 if group.failure is None else complain(group.failure)


def print_key(arguments: Sequence[str]) -> int:
    """``nodepass key``: print a new key, or a master's API key."""
    from nodepass.commandline import Parser
    from nodepass.help import KEY
    from nodepass.keys import new_key

    parser = Parser("nodepass key", KEY, urls=False)
    parser.add_argument("--master", action="store_true")
    parser.add_argument("--renew", action="store_true")
    options = parser.read(arguments)
    if options.renew and not options.master:
        parser.error("--renew: goes with --master")
    print(_master_key(renew=options.renew) if options.master else new_key())
    return 0


def _master_key(*, renew: bool) -> str:
    from nodepass.master.offline import read_identity, renew_key
    from nodepass.master.records import new_api_key
    from nodepass.master.settings import state_path

    path = state_path(os.environ)
    if renew:
        renew_key(path, new_api_key())
    return read_identity(path).key


def save_tap(arguments: Sequence[str]) -> int:
    """``nodepass tap``: save tunnels as an application for ``twistd -f``."""
    from nodepass.commandline import Parser
    from nodepass.help import TAP
    from nodepass.process import hide_keys

    hide_keys("nodepass tap", arguments)
    parser = Parser("nodepass tap", TAP)
    parser.add_argument("-o", "--output", metavar="FILE", default="nodepass.tap")
    options = parser.read(arguments)
    configs = parse_urls(options.urls, options.key_file)
    # Whoever starts the application may not be there to read them.
    for config in configs:
        for warning in config.warnings:
            print(f"nodepass: warning: {warning}", file=sys.stderr)

    from nodepass.tap import write_tap

    replaced = write_tap(configs, options.output)
    done = "replaced" if replaced else "written"
    print(f"{options.output} {done}; keys are in it, so it is readable for you alone")
    print(f"start it with: twistd -f {options.output}")
    return 0


def show_demo(arguments: Sequence[str]) -> int:
    """``nodepass demo``: a tunnel with everything around it on this machine."""
    from nodepass.demo import main as demo

    return demo(list(arguments))


def control(arguments: Sequence[str]) -> int:
    """``nodepass ctl``: look after the tunnels of a master."""
    from nodepass.ctl import main as ctl

    return ctl(list(arguments))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "ctl": control,
    "demo": show_demo,
    "key": print_key,
    "tap": save_tap,
}


def read_urls(arguments: Sequence[str]) -> list[Any]:
    """Return the configurations of what is on the command line of ``nodepass`` itself.

    :raises ConfigError: one of the URLs, or the key file, can't be used.
    """
    if not any(argument.startswith("-") for argument in arguments):
        return parse_urls(arguments)
    from nodepass.commandline import Parser, general_help

    options = Parser("nodepass", general_help()).read(arguments)
    return parse_urls(options.urls, options.key_file)


def parse_urls(urls: Sequence[str], key_file: str | None = None) -> list[Any]:
    """Return the configurations of URLs.

    :param key_file: what the option of that name gave.
    :raises ConfigError: one of them, or the key file, can't be used.
    """
    from nodepass.config import parse_url
    from nodepass.keys import outside_key

    key = outside_key(key_file, os.environ)
    return [parse_url(url, key=key) for url in urls]
