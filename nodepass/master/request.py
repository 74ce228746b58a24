"""A request to the API, and its answer in the one form that answers have."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http import NO_BODY_CODES, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request

from .models import ErrorAnswer, encode

__all__ = ["CORS", "JSON", "MOST_BODY", "MasterRequest", "error_body"]

#: Most bytes of a request's body: a thousand times what a request needs.
MOST_BODY = 1 << 20

JSON = b"application/json"

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
