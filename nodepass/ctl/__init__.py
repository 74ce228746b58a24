"""``nodepass ctl``: looks after the tunnels of a master over its API.

Exit status: 0 when all was done, 1 when something was not, 2 for a command line or file that can't
be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nodepass.errors import ConfigError, NodePassError
from nodepass.process import hide_keys

from .options import parse

if TYPE_CHECKING:
    from .commands import Run

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run ``nodepass ctl`` with what stands behind it, and return the exit status.

    :raises ConfigError: the command line, or a file that it names, can't be used.
    """
    options = parse(arguments)
    try:
        if options.command == "completion":
            return print_completion(options.shell)
        hide_keys("nodepass ctl", arguments, ("--key",))
        if options.command == "context":
            from .contextcommands import run_context

            return run_context(options, os.environ)
        return ask_master(options)
    except BrokenPipeError:
        # Whoever read it had enough. What is left in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def print_completion(shell: str) -> int:
    """``completion``."""
    from nodepass.cli import COMMANDS

    from .completion import script

    print(script(sorted(set(COMMANDS) - {"ctl"}), shell))
    sys.stdout.flush()
    return 0


def ask_master(options: argparse.Namespace) -> int:
    """Run a command that needs the master."""
    from .contexts import resolve

    target = resolve(options, os.environ)

    # Not at the top: these install the reactor, which --help and completion don't need.
    from twisted.internet import reactor

    from nodepass.client import MasterClient

    from .commands import COMMANDS, Run
    from .output import Output

    master = MasterClient(target.api, target.key, trust=target.trust, reactor=reactor)
    run = Run(master, target, options, Output(), reactor)
    return run_until_done(perform(run, COMMANDS[options.command]), run, reactor)


async def perform(run: Run, command: Any) -> None:
    """Run a command and close what it leaves."""
    try:
        await command(run)
    finally:
        await run.master.close()


def run_until_done(work: Coroutine[Any, Any, None], run: Run, reactor: Any) -> int:
    """Run the reactor for as long as ``work`` takes, and return the exit status.

    :raises Exception: what ``work`` raised, but for what was not done, which is printed.
    """
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    failures: list[BaseException] = []

    def begin() -> None:
        task = Deferred.fromCoroutine(work)
        # Ctrl-C: the streams are closed, and nobody waits for what is under way.
        reactor.addSystemEventTrigger("before", "shutdown", task.cancel)
        task.addErrback(keep)
        task.addCallback(end)

    def keep(failure: Failure) -> None:
        if failure.value is not None:
            failures.append(failure.value)

    def end(_: object) -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    reactor.callWhenRunning(begin)
    reactor.run()
    if not failures:
        return run.status
    [error] = failures
    if isinstance(error, CancelledError):
        raise KeyboardInterrupt
    if isinstance(error, NodePassError) and not isinstance(error, ConfigError):
        run.failed(str(error))
        return run.status
    raise error
