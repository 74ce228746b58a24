"""The least that a tunnel does."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from nodepass.address import Endpoint
from tests.certs import Authority
from tests.scenarios.harness import tunnel


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Visitor(Protocol):
    def __init__(self) -> None:
        self.got = b""
        self.lost: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        if self.got == b"hello":
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(self.got)


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest.mark.parametrize("tls", [0, 1, 2])
@pytest_twisted.ensureDeferred
async def test_a_byte_goes_there_and_back(flow: str, tls: int, tmp_path: object) -> None:
    """What a visitor says reaches the target, and its answer the visitor."""
    factory = Factory.forProtocol(Echo)
    target = reactor.listenTCP(0, factory, interface="127.0.0.1")
    authority = Authority(str(tmp_path), "roots")
    leaf = authority.leaf("127.0.0.1")
    files = (str(leaf.crt), str(leaf.key), str(authority.ca))
    pair = await tunnel(
        Endpoint("127.0.0.1", target.getHost().port), flow=flow, tls=tls, files=files
    )
    host, port = pair.visitor
    visitor = await connectProtocol(TCP4ClientEndpoint(reactor, host, port), Visitor())
    visitor.transport.write(b"hello")
    assert await visitor.lost == b"hello"
    await pair.stop()
    await target.stopListening()
