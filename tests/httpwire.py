"""An HTTP connection to a master's site in memory, byte for byte."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from nodepass.logs import Level, Log
from nodepass.master.site import MasterSite


class Wire(StringTransportWithDisconnection):
    """A transport that notes how it was closed.

    @ivar aborted: it was reset rather than closed.
    """

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.7", 5000))
        self.aborted = False
        self.connected = True

    def abortConnection(self) -> None:
        if self.connected:
            self.aborted = True
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionAborted()))

    def loseConnection(self) -> None:
        if self.connected:
            super().loseConnection()


class Site:
    """A site on a clock, and connections to it."""

    def __init__(self, resource: IResource, **options: Any) -> None:
        self.clock = Clock()
        self.log = Log(Level.INFO, clock=self.clock.seconds)
        self.site = MasterSite(resource, self.clock, self.log, **options)

    def connect(self) -> Connection:
        """Open a connection, whatever becomes of it."""
        return Connection(self)


class Connection:
    """A client's end.

    @ivar channel: the site's end; None where it refused the connection.
    """

    def __init__(self, site: Site) -> None:
        self.clock = site.clock
        self.wire = Wire()
        self.channel = site.site.buildProtocol(self.wire.getPeer())
        if self.channel is not None:
            self.wire.protocol = self.channel
            self.channel.makeConnection(self.wire)

    @property
    def open(self) -> bool:
        """Whether the connection is."""
        return self.channel is not None and bool(self.wire.connected)

    def send(self, data: bytes) -> None:
        """Have bytes arrive at the site."""
        self.channel.dataReceived(data)

    def get(self, target: str, *headers: str) -> None:
        """Send a request without a body."""
        lines = [f"GET {target} HTTP/1.1", "Host: here", *headers, "", ""]
        self.send("\r\n".join(lines).encode())

    def received(self) -> bytes:
        """All that the site wrote since the last call."""
        data: bytes = self.wire.value()
        self.wire.clear()
        return data

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One answer: status, headers by lower-case name, and the rest as it is."""
        head, _, rest = self.received().partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "a header came twice"
        return (
            int(status.split()[1]),
            {name.lower(): value for name, value in headers.items()},
            rest,
        )

    def pause(self) -> None:
        """The client takes nothing any more."""
        self.wire.producer.pauseProducing()

    def resume(self) -> None:
        """The client has taken all there was."""
        self.wire.producer.resumeProducing()


def unchunk(data: bytes) -> tuple[bytes, bool]:
    """Decode chunks; and tell whether the last one, of length 0, was there."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            assert data == b"\r\n"
            return body, True
        body += data[:count]
        assert data[count : count + 2] == b"\r\n"
        data = data[count + 2 :]
    return body, False
