"""The engine's end of accepting visitors."""

from __future__ import annotations

import select
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorTime
from zope.interface import implementer

from nodepass.address import Address, Endpoint, unmapped
from nodepass.logs import Log

from ..accepting import Accepting
from ..portable import Accepted
from ..stream import Cause
from .poller import Poller
from .stream import EngineStream
from .writer import address_of

__all__ = ["EnginePort"]


@implementer(IListeningPort)
class EnginePort:
    """A listening socket; what it accepts inherits its options."""

    def __init__(
        self,
        clock: IReactorTime,
        poller: Poller,
        log: Log,
        sock: socket.socket,
        accepted: Accepted,
    ) -> None:
        self._poller = poller
        self._log = log
        self._fd = sock.fileno()
        self._name = name = sock.getsockname()
        # Where visitors connect to; None: they have to be asked, as it may be any of this host's.
        self._local = None if Address(name[0], 0).wildcard else _endpoint(name)
        self._accepted = accepted
        self._accepting = Accepting(
            clock, sock, watch=self._be_told, taken=self._taken, complain=self._complain
        )

    def startListening(self) -> None:
        """Accept visitors.

        :raises CannotListenError: the system can't watch one more socket; it is closed.
        """
        try:
            self._accepting.start()
        except OSError as error:
            raise CannotListenError(self._name[0], self._name[1], error) from error

    def stopListening(self) -> Deferred[None]:
        """Close the port; fires at once."""
        self._accepting.close()
        return succeed(None)

    def getHost(self) -> Any:
        """Where it listens."""
        return address_of(self._name)

    # Watched

    def ready(self, events: int) -> None:
        self._accepting.accept()

    def _be_told(self, watched: bool) -> None:
        if watched:
            self._poller.add(self._fd, self, select.EPOLLIN)
        else:
            self._poller.remove(self._fd)

    def _taken(self, sock: socket.SocketType, peer: Any) -> None:
        visitor = _endpoint(peer)
        try:
            local = self._local or _endpoint(sock.getsockname())
            name = visitor if len(peer) == 2 else peer
            stream = EngineStream(self._poller, sock, peer=name, expects=True)
        except OSError:
            sock.close()
            return
        try:
            self._accepted(stream, visitor, local)
        except Exception:
            stream.abort(Cause.RESET)
            raise
        # At once: the other node can see to this visitor while this one accepts the next.
        stream.read_on()

    def _complain(self, reason: str) -> None:
        self._log.limited("accept", "can't accept visitors: {reason}; trying on", reason=reason)


def _endpoint(name: Any) -> Endpoint:
    host, port = name[:2]
    return Endpoint(unmapped(host.partition("%")[0]) if ":" in host else host, port)
