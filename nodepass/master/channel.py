"""A connection to the API, with bounds on what a stranger may cost.

Requests that are too large, too slow or malformed are answered here, before a handler sees them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.server import Request
from zope.interface import implementer

from .request import CORS, JSON, MOST_BODY, error_body

if TYPE_CHECKING:
    from .site import MasterSite

__all__ = ["IDLE_TIMEOUT", "LINGER", "MasterChannel"]

#: Most bytes of a request's line and headers together, and of each.
MOST_HEADER_BYTES = 16 << 10
#: Most headers of a request.
MOST_HEADERS = 500
#: Seconds in which a request has to arrive, from its first byte to its last: a slow line takes
#: 1 MiB in 30 s, and one that sends a byte at a time holds a connection no longer.
REQUEST_TIMEOUT = 30.0
#: Seconds that a connection may lie idle between requests: dashboards ask every few seconds.
IDLE_TIMEOUT = 60.0
#: Seconds that a client gets to read why it was refused, while what it sends on is thrown away.
#: Closed at once, the connection would be reset, and the answer lost with it.
LINGER = 1.0
#: Seconds that a client may take nothing of an answer while the system holds all that it can for
#: it. Whoever reads at all has taken something by then.
STALLED = 30.0
#: Bytes that a client has to take each second of an answer too large for that: a list of thousands
#: of instances, over the slowest of lines.
SLOWEST = 8 << 10

# The first byte of a TLS connection; no request begins with it.
_TLS_HANDSHAKE = 0x16
_ENORMOUS = re.compile(rb"(?i:content-length):[ \t]*[0-9]{20,}")


@implementer(IHalfCloseableProtocol)
class MasterChannel(HTTPChannel):
    """A connection; requests that are too large, too slow or malformed end here."""

    totalHeadersSize = MOST_HEADER_BYTES
    maxHeaders = MOST_HEADERS
    MAX_LENGTH = MOST_HEADER_BYTES

    transport: Any
    site: MasterSite

    def __init__(self) -> None:
        super().__init__()
        self._refused = False
        self._deadline: IDelayedCall | None = None
        self._end: IDelayedCall | None = None
        self._stall: IDelayedCall | None = None
        self._latest = 0  # bytes that were written last
        self._answered: Request | None = None
        self._lost = False
        self._losing: list[Deferred[None]] = []

    def when_lost(self) -> Deferred[None]:
        """Fires when the connection is gone."""
        if self._lost:
            return succeed(None)
        result: Deferred[None] = Deferred()
        self._losing.append(result)
        return result

    def abort(self) -> None:
        """Reset the connection."""
        if not self._lost:
            self.transport.abortConnection()

    # IProtocol

    def connectionMade(self) -> None:
        super().connectionMade()
        if ITCPTransport.providedBy(self.transport):
            # A client that vanishes while it follows a quiet log is noticed one day.
            self.transport.setTcpKeepAlive(True)
        self.site.idle(self)

    def dataReceived(self, data: bytes) -> None:
        if self._refused:
            return
        if data[0] == _TLS_HANDSHAKE and not self._handlingRequest and self._deadline is None:
            # A client that speaks TLS waits for an answer in TLS: better that it learns at once.
            self.abort()
            return
        if self._handlingRequest and self.requests[0].streaming:
            # There will be no next request; and were it kept, reading would pause, and that the
            # client is gone would not be noticed.
            return
        if self._deadline is None and not self._handlingRequest:
            self._deadline = self.callLater(REQUEST_TIMEOUT, self._too_slow)
        super().dataReceived(data)

    def readConnectionLost(self) -> None:
        """The client has said all that it will; it may wait for the answer still."""
        if self._handlingRequest and not self.requests[0].streaming:
            self.persistent = False
        else:
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """This end never closes one direction alone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._cancel_deadline()
        self._cancel_stall()
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self.site.lost(self)
        super().connectionLost(reason)
        for result in self._losing:
            result.callback(None)

    # HTTPChannel: a request arrives

    def lineReceived(self, line: bytes) -> None:
        if not self._refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if self._refused:
            return
        super().rawDataReceived(data)
        if (
            self._waitingForTransport
            and sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize
        ):
            # Whoever reads no answer must not fill memory with what it asks next.
            self._networkProducer.pauseProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def headerReceived(self, line: bytes) -> bool:
        if _ENORMOUS.match(line):
            # Python reads no number of thousands of digits.
            self.refuse(413, "Request body too large")
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > MOST_BODY:
            # Before the client is told to go on and send it.
            self.refuse(413, "Request body too large")
        elif not self._refused:
            super().allHeadersReceived()

    def allContentReceived(self) -> None:
        if not self._refused:
            self._cancel_deadline()
            self.site.busy(self)
            super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        if not self.persistent:
            super().requestDone(request)
            self._abort_after(max(IDLE_TIMEOUT, self._latest / SLOWEST))
        elif self._waitingForTransport:
            # The next request is not looked at before the client has taken this answer: thousands
            # may have come in one piece, and their answers would fill memory.
            self._answered = request
        else:
            self.site.idle(self)
            super().requestDone(request)

    # HTTPChannel: an answer leaves

    def write(self, data: bytes) -> None:
        self._latest = len(data)
        super().write(data)

    def writeSequence(self, iovec: Collection[bytes]) -> None:
        self._latest = sum(map(len, iovec))
        super().writeSequence(iovec)

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self._cancel_stall()
        patience = max(STALLED, self._latest / SLOWEST)
        self._stall = self.callLater(patience, self._stalled)
        if self._handlingRequest and not self.requests[0].known:
            # A stranger who does not read holds no place that somebody else needs.
            self.site.idle(self)

    def resumeProducing(self) -> None:
        self._cancel_stall()
        if self._handlingRequest:
            self.site.busy(self)
        super().resumeProducing()
        answered, self._answered = self._answered, None
        if answered is not None:
            self.requestDone(answered)

    def loseConnection(self) -> None:
        # Nothing is told of how the rest leaves.
        self._cancel_stall()
        super().loseConnection()

    def _stalled(self) -> None:
        self._stall = None
        self.abort()

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(400, "Bad Request")

    def refuse(self, code: int, message: str) -> None:
        """Answer a request of which no more is read, and close the connection."""
        if self._refused:
            return
        self._refused = True
        self._cancel_deadline()
        self.setTimeout(None)
        body = error_body(message)
        lines = [b"HTTP/1.1 %d %s" % (code, RESPONSES[code]), b"Server: nodepass"]
        lines += [b"%s: %s" % header for header in CORS]
        lines += [b"Content-Type: " + JSON, b"Content-Length: %d" % len(body)]
        lines += [b"Connection: close", b"", body]
        self.transport.write(b"\r\n".join(lines))
        self._end = self.callLater(LINGER, self.close)

    def timeoutConnection(self) -> None:
        """Close a connection that has idled too long; twisted.web's own way logs each."""
        self.close()

    def close(self) -> None:
        """Close the connection when all is written; reset it when that takes too long, or when half
        an answer would be taken for a whole one."""
        if self.requests and self.requests[0].startedWriting and not self.requests[0].finished:
            self.abort()
            return
        if self._end is not None and self._end.active():
            self._end.cancel()
        self._end = None
        self.loseConnection()
        self._abort_after(self.abortTimeout)

    def _abort_after(self, seconds: float) -> None:
        """Give the client so long to take what is left, and with TLS to say goodbye."""
        if not self._lost and self._end is None:
            self._end = self.callLater(seconds, self._abort_late)

    def _abort_late(self) -> None:
        self._end = None
        self.abort()

    def _too_slow(self) -> None:
        self._deadline = None
        self.refuse(408, "Request timeout")

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
