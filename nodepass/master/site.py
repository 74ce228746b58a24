"""The HTTP server: twisted.web's, with a bound on its connections and no log of requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Site

from nodepass.logs import Log, printable

from .channel import IDLE_TIMEOUT, LINGER, MasterChannel
from .request import MasterRequest

__all__ = ["MOST_CONNECTIONS", "MasterSite"]

#: Connections at a time: all streams that may be open, and as many callers again. Beyond it
#: the one that has idled longest makes room.
MOST_CONNECTIONS = 2048


class MasterSite(Site):
    """Makes connections, as many as there may be.

    :param resource: answers the requests.
    :param most: how many connections there may be.
    :param knows: tells whether who sends a key, None for no key, may say something that counts;
        the bodies of others are read and thrown away.
    """

    noisy = False
    protocol: Any = MasterChannel

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        log: Log,
        most: int = MOST_CONNECTIONS,
        knows: Callable[[bytes | None], bool] = lambda key: True,
    ) -> None:
        super().__init__(
            resource, requestFactory=MasterRequest, timeout=IDLE_TIMEOUT, reactor=reactor
        )
        self._master_log = log
        self.knows = knows
        self._most = most
        self._connections: dict[MasterChannel, None] = {}
        # Those that wait for a request or receive one, longest first.
        self._waiting: dict[MasterChannel, None] = {}

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if len(self._connections) >= self._most:
            oldest = next(iter(self._waiting), None)
            self._master_log.limited(
                "connections",
                "{most} connections to the API are open: each new one replaces the one that has "
                "idled longest, or is refused",
                most=self._most,
            )
            if oldest is None:
                return None
            # Its place is free at once, whenever it hears of it.
            self.lost(oldest)
            oldest.abort()
        channel = super().buildProtocol(addr)
        self._connections[channel] = None
        return channel

    def startFactory(self) -> None:
        """Nothing to open: there is no access log."""

    def stopFactory(self) -> None:
        """Nothing to close."""

    def log(self, request: Any) -> None:
        """Nothing: requests are not logged."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    def close(self) -> Deferred[None]:
        """Close all connections, those that are written to when all is written.

        Fires when they are gone, within `LINGER` seconds.
        """
        channels = list(self._connections)
        gone = gatherResults([channel.when_lost() for channel in channels])
        for channel in channels:
            channel.close()
        late = [self.reactor.callLater(LINGER, channel.abort) for channel in channels]

        def over(_: object) -> None:
            for call in late:
                if call.active():
                    call.cancel()

        return gone.addCallback(over)

    # What connections tell

    def idle(self, channel: MasterChannel) -> None:
        """A connection waits for a request."""
        if channel in self._connections:
            self._waiting[channel] = None

    def busy(self, channel: MasterChannel) -> None:
        """A connection's request is being answered."""
        self._waiting.pop(channel, None)

    def lost(self, channel: MasterChannel) -> None:
        """A connection is gone."""
        self._waiting.pop(channel, None)
        self._connections.pop(channel, None)

    def failed(self, request: MasterRequest, reason: Failure) -> None:
        """A handler failed unexpectedly."""
        self._master_log.failure(
            "a request failed unexpectedly: {method} {path}",
            reason,
            method=printable(request.method),
            path=printable(request.path),
        )
