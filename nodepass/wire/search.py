"""A client's search for its server, for ever, by one dialect after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from nodepass.health import Health
from nodepass.logs import Log
from nodepass.tlswords import tls_reason

from . import Peer

__all__ = ["Pauses", "Search", "Way"]

#: Share of a pause by which it is varied, so that clients do not return all at once.
JITTER = 0.2
#: Seconds of the longest pause after a refusal that only its owner can mend, such as a wrong key.
LONGEST_PAUSE = 300.0

_CUT = "closed the connection during the handshake"
_LATE = "handshake timed out"
_UNANSWERED = "closed the connection before it had answered"
_REFUSED = "connection refused"
_1_6 = "it may have another key, or not speak 1.6"
_NO_NATIVE = (
    "if it is NodePass 1.6, write wire=1.6; else see its log: its wire= may not admit native"
)

_PORT = "is this its tunnel port, and not that of visitors or of another program?"
_ONCE_NATIVE = (
    "it spoke native before, so other dialects are not tried until this node is restarted"
)

#: A dialect, the end of what a try by it alone met, and what the cause may be.
_CURES = (
    ("native", "does not speak TLS", f"if it is NodePass 1.14, write wire=1.14; else: {_PORT}"),
    ("native", _LATE, _PORT),
    ("native", "another protocol inside TLS", "if it is NodePass 2.0, write wire=2.0"),
    ("native", _CUT, _NO_NATIVE),
    ("2.0", "does not speak TLS", "if it is NodePass 1.14, write wire=1.14"),
    ("2.0", _UNANSWERED, "it may not speak 2.0"),
    ("1.14", _UNANSWERED, "it may not speak 1.14"),
    ("1.14", "HTTP status 400: no tunnel port", "if it is NodePass 2.0, write wire=2.0"),
    ("1.6", _CUT, _1_6),
    ("1.6-raw", _CUT, _1_6),
)


class Pauses:
    """How long to wait after a try that failed.

    :param cooldown: seconds, the usual pause.
    """

    def __init__(self, cooldown: float) -> None:
        self._cooldown = cooldown
        self._hopeless = 0

    def after(self, hopeless: bool) -> float:
        """Seconds until the next try; longer each time while only an owner can mend it."""
        if not hopeless:
            self._hopeless = 0
            return self._cooldown
        self._hopeless += 1
        return min(LONGEST_PAUSE, self._cooldown * 2.0 ** min(self._hopeless - 1, 16))

    def worked(self) -> None:
        """A try has worked."""
        self._hopeless = 0


class Way(Protocol):
    """One dialect's way to a server."""

    @property
    def dialect(self) -> str:
        """Its name, as in `wire=`."""

    @property
    def peer(self) -> Peer | None:
        """The server; None before the first join."""

    @property
    def joined(self) -> bool:
        """Whether the server is there."""

    @property
    def trusted(self) -> bool:
        """Whether both ends have proved the key, so that going on with less would be a loss."""

    async def join(self) -> None:
        """Try once to join the server; raises what keeps it from it."""

    def failed(self, error: Exception) -> float:
        """A try has failed: seconds until the next one."""

    def lost(self) -> float:
        """A server that was there is not any more: seconds until the next try."""

    def stop(self) -> None:
        """There will be no more tries."""


class Search:
    """Keeps a client joined to its server.

    Rule 1: the ways are tried in the order of the URL. The one that has worked comes first from
    then on.

    Rule 2: once one has worked that proves the key both ways, the others are tried no more: whoever
    can cut the line could make the client speak something weaker.

    :param cause: names what goes wrong for `Health`.
    :param tells: whether what goes wrong is to be told now.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        clock: IReactorTime,
        health: Health,
        *,
        cause: str = "server",
        tells: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ways = list(ways)
        self._clock = clock
        self._health = health
        self._log: Log = health.log
        self._cause = cause
        self._tells = tells
        self._running: Deferred[None] | None = None
        self._lost: Deferred[None] | None = None
        # Those that have failed: when each may be tried again, and what kept it from the server.
        self._failed: dict[Way, tuple[float, Exception]] = {}
        self._weaker = False  # whether there were others, which rule 2 has ended

    def start(self) -> None:
        """Begin."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._ended)

    def stop(self) -> None:
        """Look no more. A peer that is there is left to its owner."""
        if self._running is not None:
            self._running.cancel()
        self._health.well(self._cause)
        for way in self._ways:
            way.stop()

    def lost(self) -> None:
        """The server that was there is gone, or its control link."""
        lost, self._lost = self._lost, None
        if lost is not None:
            lost.callback(None)

    def _ended(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("the search for the server ended", failure)

    async def _run(self) -> None:
        while True:
            pause = await self._try_all()
            # `random` would be imported for this alone.
            await deferLater(self._clock, pause * (1 + JITTER * os.urandom(1)[0] / 255))

    async def _try_all(self) -> float:
        """Try each way that may be tried by now, and stay with one that works until the server is
        lost.

        :returns: seconds until the next try.
        """
        for way in list(self._ways):
            due, _ = self._failed.get(way, (0.0, None))
            if self._clock.seconds() < due:
                continue
            try:
                await way.join()
            except CancelledError:
                raise
            except Exception as error:
                self._failed[way] = (self._clock.seconds() + way.failed(error), error)
                continue
            failed = [(way, error) for way, (_, error) in self._failed.items()]
            self._failed.clear()
            self._worked(way, failed)
            if way.joined:
                self._lost = Deferred()
                await self._lost
            return way.lost()
        failed = [(way, self._failed[way][1]) for way in self._ways]
        # Each has its own pause: that an owner has to mend one is no reason to miss another, nor to
        # knock with a wrong key as often as that one allows.
        pause = min(self._failed[way][0] for way in self._ways) - self._clock.seconds()
        if self._tells():
            self._health.trouble(
                self._cause,
                "can't join the server: {reason}; trying on",
                reason=_reasons(failed, self._weaker),
            )
        return max(0.0, pause)

    def _worked(self, way: Way, failed: Sequence[tuple[Way, Exception]]) -> None:
        self._health.well(self._cause)
        if failed and not way.trusted:
            self._log.warn(
                "wire {dialect} is spoken with the server, as others failed: {reason}",
                dialect=way.dialect,
                reason=_named(failed),
            )
        if way.trusted:
            self._weaker = self._weaker or len(self._ways) > 1
            self._ways = [way]
        else:
            self._ways.sort(key=lambda other: other is not way)


def _reasons(failed: Sequence[tuple[Way, Exception]], weaker: bool) -> str:
    if all(isinstance(error, ConnectionRefusedError) for _, error in failed):
        return f"{_REFUSED}: is the server started, and are host and port right?"
    if len(failed) > 1:
        return _named(failed)
    way, error = failed[0]
    reason = _words(error)
    for dialect, end, cure in _CURES:
        if dialect != way.dialect or not reason.endswith(end):
            continue
        if end == _LATE and way.peer is not None:
            return reason  # the port was right
        if weaker:
            return f"{reason}; {_ONCE_NATIVE}"
        if way.peer is not None and end in (_CUT, _UNANSWERED):
            return reason  # a server that has spoken the dialect does so too, as it starts anew
        return f"{reason}; {cure}"
    return reason


def _named(failed: Sequence[tuple[Way, Exception]]) -> str:
    return "; ".join(f"wire {way.dialect}: {_words(error)}" for way, error in failed)


def _words(error: Exception) -> str:
    """Why one way did not lead to the server."""
    if isinstance(error, ConnectionRefusedError):
        return _REFUSED
    return tls_reason(Failure(error))
