"""The engine's end of accepting visitors."""

from __future__ import annotations

import errno
import select
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from zope.interface import implementer

from nodepass.address import Endpoint, unmapped
from nodepass.logs import Log

from ..hangup import HangupWatch
from ..portable import Accepted
from ..tcp import TcpStream
from .poller import Poller
from .transport import EngineTransport, address_of

__all__ = ["EnginePort"]

#: Visitors accepted before others have their turn.
MOST_ACCEPTS = 64
#: Seconds without accepting after the system had no descriptor or memory for a visitor: it does
#: not say when there is one again, and would be asked without end.
ACCEPT_PAUSE = 0.5

# The visitor was gone before it was accepted; the next one may be there.
_NEXT = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR)


@implementer(IListeningPort)
class EnginePort:
    """A listening socket; what it accepts inherits its options."""

    def __init__(
        self,
        clock: IReactorTime,
        poller: Poller,
        watch: HangupWatch,
        log: Log,
        sock: socket.socket,
        accepted: Accepted,
    ) -> None:
        self._clock = clock
        self._poller = poller
        self._watch = watch
        self._log = log
        self._socket = sock
        self._fd = sock.fileno()
        self._accepted = accepted
        self._pause: IDelayedCall | None = None
        self._open = False

    def startListening(self) -> None:
        """Accept visitors.

        :raises CannotListenError: the system can't watch one more socket; it is closed.
        """
        # Level-triggered: who is not accepted now is told of again.
        try:
            self._poller.add(self._fd, self, select.EPOLLIN)
        except OSError as error:
            host, port = self._socket.getsockname()[:2]
            self._socket.close()
            raise CannotListenError(host, port, error) from error
        self._open = True

    def stopListening(self) -> Deferred[None]:
        """Close the port; fires at once."""
        if self._open:
            self._open = False
            if self._pause is not None:
                self._pause.cancel()
                self._pause = None
            self._poller.remove(self._fd)
            self._socket.close()
        return succeed(None)

    def getHost(self) -> Any:
        """Where it listens."""
        return address_of(self._socket.getsockname())

    # Watched

    def ready(self, events: int) -> None:
        for _ in range(MOST_ACCEPTS):
            if not self._open:
                return
            try:
                sock, peer = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NEXT:
                    continue
                self._rest(error)
                return
            sock.setblocking(False)
            try:
                local = sock.getsockname()
            except OSError:
                sock.close()
                continue
            stream = TcpStream(self._watch)
            EngineTransport(self._poller, sock).begin(stream)
            self._accepted(stream, _endpoint(peer), _endpoint(local))

    def _rest(self, error: OSError) -> None:
        self._log.limited(
            "accept",
            "can't accept visitors: {reason}; trying on",
            reason=error.strerror,
        )
        self._poller.remove(self._fd)
        self._pause = self._clock.callLater(ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        try:
            self._poller.add(self._fd, self, select.EPOLLIN)
        except OSError as error:
            self._rest(error)


def _endpoint(name: Any) -> Endpoint:
    return Endpoint(unmapped(name[0].partition("%")[0]), name[1])
