"""What is at the two ends of the demo's tunnel: targets, and visitors that ask them."""

from __future__ import annotations

import zlib
from typing import Any

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import DatagramProtocol, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from zope.interface import implementer

from nodepass.address import Endpoint

#: Datagrams under way at a time, far fewer than fill a socket's buffer.
DATAGRAMS_AT_ONCE = 32

#: Datagrams of all sizes up to this are sent; what fits a packet on most networks.
LARGEST_DATAGRAM = 1400

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>nodepass demo</title>
<h1>It works</h1>
<p>This page came through a tunnel: from the web site to the nodepass client, over one of its warm,
encrypted connections to the nodepass server, and from there to you.</p>
</html>
"""


# The targets.


@implementer(IPullProducer)
class _Bulk:
    """Sends so many bytes to an HTTP visitor, as fast as they leave.

    :ivar done: fires when all are sent, or the visitor is gone.
    """

    block = bytes(range(256)) * 256

    def __init__(self, request: Any, size: int) -> None:
        self.done: Deferred[None] = Deferred()
        self._request = request
        self._left = size
        request.notifyFinish().addErrback(lambda _: self.stopProducing())
        request.registerProducer(self, False)

    def resumeProducing(self) -> None:
        part = self.block[: self._left]
        self._left -= len(part)
        self._request.write(part)
        if not self._left:
            self._request.unregisterProducer()
            self.stopProducing()

    def stopProducing(self) -> None:
        if not self.done.called:
            self.done.callback(None)


def bulk_checksum(size: int) -> int:
    """The CRC-32 of what `_Bulk` sends."""
    checksum = 0
    while size > 0:
        part = _Bulk.block[:size]
        checksum = zlib.crc32(part, checksum)
        size -= len(part)
    return checksum


class WebSite:
    """The target that visitors reach: a page, and bytes in bulk."""

    app = Klein()

    @app.route("/")
    def page(self, request: IRequest) -> str:
        request.setHeader(b"Content-Type", b"text/html; charset=utf-8")
        return PAGE

    @app.route("/bulk/<int:size>")
    def bulk(self, request: IRequest, size: int) -> Deferred[None]:
        request.setHeader(b"Content-Type", b"application/octet-stream")
        request.setHeader(b"Content-Length", str(size).encode())
        return _Bulk(request, size).done


class UdpEcho(DatagramProtocol):
    """The UDP target: it answers each datagram with itself."""

    noisy = False
    transport: Any

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)


# The visitors.


class ShortVisit(Protocol):
    """Asks for the page and leaves; `over` fires with the answer."""

    def __init__(self) -> None:
        self.over: Deferred[bytes] = Deferred()
        self._answer: list[bytes] = []

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"GET / HTTP/1.0\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._answer.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(b"".join(self._answer))


class UdpVisitor(DatagramProtocol):
    """Sends datagrams of many sizes, a few at a time; `over` fires when each has come back."""

    noisy = False
    transport: Any

    def __init__(self, address: Endpoint, count: int) -> None:
        self.over: Deferred[None] = Deferred()
        self.missing: set[bytes] = set()
        self._address = address
        self._sizes = iter(range(count))

    def startProtocol(self) -> None:
        self.transport.connect(*self._address)
        for _ in range(DATAGRAMS_AT_ONCE):
            self._send()

    def _send(self) -> None:
        number = next(self._sizes, None)
        if number is not None:
            datagram = number.to_bytes(4, "big") + bytes(number % (LARGEST_DATAGRAM - 3))
            self.missing.add(datagram)
            self.transport.write(datagram)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if datagram in self.missing:
            self.missing.remove(datagram)
            self._send()
            if not self.missing and not self.over.called:
                self.over.callback(None)
