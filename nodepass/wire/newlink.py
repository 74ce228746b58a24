"""A data link of a client's before it is ready: from its connect until its peer has it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from nodepass.errors import PeerError
from nodepass.relay.tcp import tune

__all__ = ["NewLink"]


class NewLink(Protocol):
    """A data link that is being made; each dialect says what there is to be done.

    :ivar ready: fires when the peer has the link, or with what kept it from that. Who cancels it is
        to `abort` as well.
    :cvar late: what to say where that takes too long.
    """

    transport: Any
    late: str

    def __init__(self) -> None:
        # Without a canceller: they would know each other for as long as there is either.
        self.ready: Deferred[None] = Deferred()
        self._timed_out = False

    def time_out(self) -> None:
        """The server took too long."""
        self._timed_out = True
        self.abort()

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abortConnection()

    def fail(self) -> None:
        """Give the link up, because of the exception that is being handled."""
        self.ready.errback(Failure())
        self.abort()

    def connectionMade(self) -> None:
        tune(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ready.called:
            self.ready.errback(Failure(PeerError(self.late)) if self._timed_out else reason)
