"""What a process of tunnels does beyond them: open files, title, signals, and how it ends.

The entry points share it: the ``nodepass`` command, ``twistd nodepass`` and a saved ``.tap``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import setproctitle
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from nodepass.errors import NodePassError
from nodepass.logs import mask
from nodepass.openfiles import raise_open_files

if TYPE_CHECKING:
    from nodepass.master.service import MasterService
    from nodepass.service import RoleService

# How shells report a process that a signal ended.
_SIGNAL_STATUS = 128


def hide_keys(program: str, arguments: Sequence[str], options: Collection[str] = ()) -> None:
    """Rewrite the command line that ``ps`` shows, if it holds a key: ``***`` takes its place.

    A command line is public to every user of the machine, unlike the environment. The rewriting is
    left to setproctitle because each system keeps the command line in a place of its own.

    :param program: the name to show first.
    :param arguments: what followed it on the command line.
    :param options: those whose values are keys.
    """
    masked = [mask(argument) for argument in arguments]
    for place, argument in enumerate(arguments):
        name, separator, _ = argument.partition("=")
        if name in options and separator:
            masked[place] = f"{name}=***"
        elif name in options and place + 1 < len(masked):
            masked[place + 1] = "***"
    if masked != list(arguments):
        setproctitle.setproctitle(" ".join([program, *masked]))
        # On Linux the title is also made the thread's name, which "pgrep -x" and "top" match.
        setproctitle.setthreadtitle(program)


#: Seconds in which a signal that is repeated is the same one: ``timeout``, shells and service
#: managers send it to the process and to its group.
SAME_SIGNAL = 0.3


def stop_at_signals(reactor: Any) -> None:
    """Let SIGINT and SIGTERM stop ``reactor`` gracefully, and the next one end this process at
    once, without any clean-up, for whoever does not want to wait.

    In the place of Twisted's own handlers, for which the second of two that come before the reactor
    had its turn is an error.
    """

    def stop(_number: int, _frame: object) -> None:
        end_at_next_signal()
        reactor.callFromThread(stop_reactor)

    def stop_reactor() -> None:
        with suppress(ReactorNotRunning):  # it is stopping for another reason
            reactor.stop()

    # Twisted's are installed just before.
    reactor.callWhenRunning(_handle_signals, stop)
    reactor.addSystemEventTrigger("before", "shutdown", end_at_next_signal)


def end_at_next_signal() -> None:
    """Make the next SIGINT or SIGTERM end this process at once, without any clean-up.

    A handler of ours rather than the default action, which does not exist for process 1 of a
    container.
    """
    began = time.monotonic()

    def end(number: int, _frame: object) -> None:
        if time.monotonic() - began >= SAME_SIGNAL:
            os._exit(_SIGNAL_STATUS + number)

    _handle_signals(end)


def _handle_signals(handler: Callable[[int, object], None]) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def on_hangup(reactor: IReactorFromThreads, action: Callable[[], object]) -> Callable[[], object]:
    """Call ``action`` in the reactor at every SIGHUP, where the platform has that signal.

    :returns: A callable that puts back what SIGHUP did before.
    """
    if not hasattr(signal, "SIGHUP"):
        return lambda: None
    before = signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(action))
    return partial(signal.signal, signal.SIGHUP, signal.SIG_DFL if before is None else before)


class RoleGroup(MultiService):
    """The roles of one process: they start together, and what ends one for good ends all.

    It pickles as its roles do, as configuration alone.

    :param roles: services made by ``nodepass.service.makeService``.
    :param reactor: stopped when a role fails for good; the global one unless given.
    """

    log = Logger()

    #: Why the group ended by itself; None while it has not.
    failure: NodePassError | None = None

    _reactor: Any = None
    _restore_hangup: Callable[[], object] | None = None

    def __init__(
        self, roles: Iterable[RoleService | MasterService], reactor: IReactorCore | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        for role in roles:
            role.setServiceParent(self)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, object]:
        state: dict[str, object] = super().__getstate__()  # type: ignore[no-untyped-call]
        for transient in ("failure", "_reactor", "_restore_hangup"):
            state.pop(transient, None)
        return state

    def privilegedStartService(self) -> None:
        """Bind what needs privileges, while the process still has them."""
        raise_open_files()
        self._attempt(super().privilegedStartService)

    def startService(self) -> None:
        """Start every role, and reload them at SIGHUP from now on."""
        if self.failure is not None:
            return
        self._attempt(super().startService)
        for role in self:
            role.whenFailed().addCallback(self.failed)
        self._restore_hangup = on_hangup(self._get_reactor(), self.reload)

    def stopService(self) -> Deferred[Any]:
        """Stop the roles side by side. Fires when the last one has stopped; never fails."""
        if not self.running:
            return succeed(None)
        self.running = 0
        if self._restore_hangup is not None:
            self._restore_hangup()
        return DeferredList(
            [
                maybeDeferred(role.stopService).addErrback(self._complain, "Stopping failed")
                for role in self
            ]
        )

    def reload(self) -> None:
        """Let every role read its certificate files again; one that can't keeps what it has."""
        for role in self:
            maybeDeferred(role.reload).addErrback(self._complain, "Reloading failed")

    def failed(self, error: NodePassError) -> None:
        """Stop the reactor: retrying can't mend ``error``. The first one is kept as the reason."""
        if self.failure is not None:
            return
        self.failure = error
        reactor = self._get_reactor()
        reactor.callWhenRunning(reactor.stop)

    def _attempt(self, start: Callable[[], object]) -> None:
        try:
            start()
        except NodePassError as error:
            self.failed(error)

    def _complain(self, failure: Failure, what: str) -> None:
        self.log.failure(what, failure)

    def _get_reactor(self) -> Any:
        if self._reactor is None:
            # Not at the top: importing it installs it, and a saved group must not hold one.
            from twisted.internet import reactor

            self._reactor = reactor
        return self._reactor
