"""The HTTP server: twisted.web's, with bounds on what a stranger may cost.

Everything a request can do wrong before a handler sees it is answered here, in the one form that
errors have, and every answer has the headers that let browsers on other sites read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http import NO_BODY_CODES, RESPONSES, HTTPChannel, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from nodepass.logs import Log, printable

from .models import ErrorAnswer, encode

__all__ = ["CORS", "JSON", "MasterChannel", "MasterRequest", "MasterSite", "error_body"]

#: Most bytes of a request's body: a thousand times what a request needs.
MOST_BODY = 1 << 20
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
#: Connections at a time: all streams that may be open, and as many callers again. Beyond it
#: the one that has idled longest makes room.
MOST_CONNECTIONS = 2048

JSON = b"application/json"

# The first byte of a TLS connection; no request begins with it.
_TLS_HANDSHAKE = 0x16

#: Headers of every answer.
CORS = (
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"GET, PATCH, POST, PUT, DELETE, OPTIONS"),
    (b"Access-Control-Allow-Headers", b"Content-Type, Authorization, X-API-Key, Cache-Control"),
)

# Slashes, written plainly or as an escape; what routes requests takes both for the same.
_SLASHES = re.compile(rb"(?:/|%2[fF])+")
_ABSOLUTE = re.compile(rb"(?i:https?)://[^/]*")
_METHOD = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_ENORMOUS = re.compile(rb"(?i:content-length):[ \t]*[0-9]{20,}")


def error_body(message: str) -> bytes:
    """Return the body of an answer that is an error."""
    return encode(ErrorAnswer(message)) + b"\n"


class MasterRequest(Request):
    """A request, with answers in the forms that the interface has.

    :ivar known: it came with the right key.
    """

    channel: Any
    content: Any
    #: Whether its answer goes on until one end closes the connection.
    streaming = False
    site: Any
    _size = 0
    known = True

    # What arrives

    def gotLength(self, length: int | None) -> None:
        # In memory: it is bounded, and a full disk is no reason to refuse it.
        self.content = BytesIO()
        # Strangers get the same answer whatever they send, and so it fills no memory.
        self.known = self.channel.site.knows(self.getHeader(b"X-API-Key"))

    def handleContentChunk(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MOST_BODY:
            self.channel.refuse(413, "Request body too large")
        elif self.known:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        # Scripts send JSON as a form. It is not looked at, so that nothing takes it for one.
        self.requestHeaders.removeHeader(b"Content-Type")
        super().requestReceived(command, path, version)

    def process(self) -> None:
        self.site = self.channel.site
        self.defaultContentType = None
        self.setHeader(b"Server", b"nodepass")
        self.setHeader(b"Date", datetimeToString())
        for name, value in CORS:
            self.setHeader(name, value)
        self.prepath = []
        self.path = _SLASHES.sub(b"/", _ABSOLUTE.sub(b"", self.path, count=1))
        self.postpath = [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        trouble = self._trouble()
        if trouble is not None:
            self.error(*trouble)
        elif self.path == b"*":
            self.answer(200)
        else:
            try:
                self.render(self.site.getResourceFor(self))
            except Exception:
                self.processingFailed(Failure())

    def _trouble(self) -> tuple[int, str] | None:
        """What is wrong with a request that handlers should not have to deal with."""
        if not _METHOD.fullmatch(self.method):
            return 400, "Bad Request"
        try:
            unquote_to_bytes(self.path).decode("utf-8")
        except UnicodeDecodeError:
            return 404, "Not Found"
        return None

    def render(self, resrc: IResource) -> None:
        try:
            body = resrc.render(self)
        except UnsupportedMethod:
            self.error(405, "Method not allowed")
            return
        if body is not NOT_DONE_YET:
            self.answer(self.code, body, None)

    def getRequestHostname(self) -> bytes:
        # No route depends on it, and what strangers write there is not always a name.
        return b"localhost"

    @property
    def address(self) -> str:
        """Where the request came from."""
        return getattr(self.client, "host", "a local socket")

    # What is answered

    def answer(self, code: int, body: bytes = b"", kind: bytes | None = JSON) -> None:
        """Answer with all that there is to say. A client that is gone is no error.

        :param kind: the Content-Type; None leaves it as it is.
        """
        if self._disconnected or self.finished:
            return
        self.setResponseCode(code)
        # An empty text is a text; no JSON is empty.
        if kind is not None and (body or kind != JSON):
            self.setHeader(b"Content-Type", kind)
        # An answer that never has a body tells the length of the one to GET, or none.
        if body or (self.method != b"HEAD" and code not in NO_BODY_CODES):
            self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def error(self, code: int, message: str, *, close: bool = False) -> None:
        """Answer with an error.

        :param close: whether to close the connection with it.
        """
        if close and self.channel is not None:
            self.setHeader(b"Connection", b"close")
            self.channel.persistent = False
        self.answer(code, error_body(message))

    def processingFailed(self, reason: Failure) -> Failure:
        """Log a handler's unexpected failure, and say no more than that there was one."""
        self.site.failed(self, reason)
        if self.startedWriting:
            if not self._disconnected and not self.finished:
                # Half an answer can't be mended: it must not look like a whole one.
                self.channel.abort()
        else:
            self.error(500, "Internal server error")
        return reason


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
