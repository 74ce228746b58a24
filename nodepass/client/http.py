"""Requests to one master over HTTP: the key, TLS, bounds and timeouts, and what fails in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IConsumer,
    IOpenSSLClientConnectionCreator,
    IReactorUNIX,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from nodepass.errors import ConfigError

from .address import APIAddress
from .causes import of_answer, of_failure
from .errors import BadAnswer, Cut, Silent
from .trust import Trust

__all__ = ["Body", "Web"]

#: Seconds to connect, TLS aside; after that a firewall drops what is sent there.
CONNECT_TIMEOUT = 10.0
#: Seconds until an answer begins, and again until it is complete. A master answers within one.
ANSWER_TIMEOUT = 15.0
#: Seconds that a connection is kept for the next request: less than servers and proxies keep
#: theirs, as a request that meets the closing end of one fails.
KEEP_ALIVE = 2.0
#: Most bytes of an answer: some 40,000 instances, many times what a master runs.
MOST_ANSWER = 64 << 20
#: Most bytes that are read of an answer that only says what is wrong.
MOST_ERROR = 64 << 10
#: Bytes of a stream that may wait for its reader before the connection is no longer read.
STREAM_AHEAD = 256 << 10

# What treq sees instead of the master: hyperlink, which it reads URLs with, takes an IPv6 literal
# for an international name and fails.
_STAND_IN = "http://master"


class Web:
    """Sends requests and reads answers.

    :param key: the API key, sent with each request.
    :param agent: takes the requests instead of connections of its own, as in tests.
    :raises ConfigError: the key, or what ``trust`` names, can't be used.
    """

    def __init__(
        self, address: APIAddress, key: str, trust: Trust, reactor: Any, agent: IAgent | None
    ) -> None:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError("API key: not one line of plain ASCII; a master's is 32 hex digits")
        self.address = address
        self.key = key
        self.reactor = reactor
        self._pool: HTTPConnectionPool | None = None
        if agent is None:
            trust.check(address)
            if address.unix is not None and not IReactorUNIX.providedBy(reactor):
                raise ConfigError(
                    f"API address {address}: this system has no Unix sockets; accepted: "
                    "http://HOST:PORT or https://HOST:PORT"
                )
            creator = trust.creator(address.host) if address.tls else None
            self._pool = HTTPConnectionPool(reactor)
            self._pool.cachedConnectionTimeout = KEEP_ALIVE  # type: ignore[assignment]
            agent = Agent.usingEndpointFactory(
                reactor, _Endpoints(reactor, address, creator), self._pool
            )
        agent = _At(address.origin.encode("ascii"), agent)
        self._http = HTTPClient(agent, data_to_body_producer=_Bytes)

    async def close(self) -> None:
        """Close the connections that wait for another request."""
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    async def request(
        self,
        method: str,
        *parts: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> tuple[bytes, str]:
        """Send a request; return the body of its answer and the type that it is said to have.

        :param parts: the path below the API's, one name each.
        :param body: sent as JSON.
        :raises MasterError: there was no answer, or none of 2xx.
        """
        response = await self._send(method, parts, params, body, {})
        return await self._read(response, MOST_ANSWER), _header(response, "content-type")

    async def stream(
        self,
        *parts: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Body:
        """Send a GET whose answer goes on and on.

        :raises MasterError: there was no answer, or none of 2xx.
        """
        response = await self._send("GET", parts, params, None, headers or {})
        body = Body(self.address, _header(response, "content-type"))
        response.deliverBody(body)
        return body

    async def _send(
        self,
        method: str,
        parts: tuple[str, ...],
        params: Mapping[str, str] | None,
        body: Mapping[str, object] | None,
        headers: Mapping[str, str],
    ) -> Any:
        sent: dict[bytes | str, bytes | str] = {"X-API-Key": self.key, "User-Agent": "nodepass"}
        sent.update(headers.items())
        if body is not None:
            sent["Content-Type"] = "application/json"
        sending = self._http.request(
            method,
            _STAND_IN + self.address.path(*parts),
            params=dict(params) if params else None,
            headers=sent,
            data=None if body is None else msgspec.json.encode(body),
            allow_redirects=False,
            unbuffered=True,
            reactor=self.reactor,
        )
        # Not addTimeout(): an agent reports a cancellation in a wrapping that it does not know.
        timeout = self.reactor.callLater(ANSWER_TIMEOUT, sending.cancel)
        try:
            response = await sending
        except Exception as error:
            cause = of_failure(self.address, error)
            if isinstance(cause, CancelledError) and timeout.called:
                cause = self._silent()
            raise cause from None
        finally:
            if timeout.active():
                timeout.cancel()
        if not 200 <= response.code < 300:
            words = await self._read(response, MOST_ERROR, cut=True)
            more = (_header(response, name) for name in ("location", "www-authenticate"))
            raise of_answer(self.address, response.code, words, *more)
        return response

    async def _read(self, response: Any, most: int, *, cut: bool = False) -> bytes:
        """Read a body up to a bound.

        :param cut: what is longer is cut short rather than an error.
        """
        body = Body(self.address, "")
        response.deliverBody(body)
        data = bytearray()
        timeout = self.reactor.callLater(ANSWER_TIMEOUT, body.fail, self._silent())
        try:
            while part := await body.read():
                data += part
                if len(data) > most:
                    if cut:
                        break
                    raise BadAnswer(f"{self.address}: an answer of more than {most >> 20} MiB")
        finally:
            if timeout.active():
                timeout.cancel()
            body.close()
        return bytes(data[:most])

    def _silent(self) -> Silent:
        return Silent(
            f"{self.address}: no answer within {ANSWER_TIMEOUT:g} s; is the machine overloaded, or "
            "does it "
            + ("not speak TLS there?" if self.address.tls else "speak TLS there, or no HTTP?")
        )


class Body(Protocol):
    """What comes of an answer, read at the reader's own speed.

    :ivar content_type: the answer's, in small letters.
    """

    transport: Any

    def __init__(self, address: APIAddress, content_type: str) -> None:
        self.content_type = content_type
        self._address = address
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._error: BaseException | None = None
        self._ended = False
        self._waiting: Deferred[None] | None = None

    async def read(self) -> bytes:
        """Return what has come, or wait for it; empty at the end.

        :raises MasterError: the connection was cut, or `fail` was called.
        """
        if not self._parts and not self._ended:
            self._waiting = Deferred()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if not self._parts:
            if self._error is not None:
                raise self._error
            return b""
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        return data

    def fail(self, error: BaseException) -> None:
        """End the reading with ``error``."""
        if not self._ended:
            self._end(error)
            self.transport.loseConnection()

    def close(self) -> None:
        """Read no more. An answer that is complete leaves its connection to the next request."""
        if not self._ended:
            self._end(None)
            self._parts.clear()
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Part of the body."""
        if self._ended:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > STREAM_AHEAD and not self._paused:
            self._paused = True
            self.transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of the body, which need not be that of the connection."""
        if self._ended:
            return
        # A body without a length ends with its connection, so that a cut can't be told from an end.
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end(None)
        else:
            self._end(Cut(f"{self._address}: the connection was cut in the middle of the answer"))

    def _end(self, error: BaseException | None) -> None:
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)


@implementer(IBodyProducer)
class _Bytes:
    """A request's body, which is small enough to be written at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written already; likewise below."""

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


@implementer(IAgent)
class _At:
    """Puts the master's address where the stand-in was."""

    def __init__(self, origin: bytes, agent: IAgent) -> None:
        self._origin = origin
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        uri = self._origin + uri.removeprefix(_STAND_IN.encode("ascii"))
        return self._agent.request(method, uri, headers, bodyProducer)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Where and how an agent connects."""

    def __init__(
        self, reactor: Any, address: APIAddress, tls: IOpenSSLClientConnectionCreator | None
    ) -> None:
        self._reactor = reactor
        self._unix = address.unix
        self._tls = tls

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        if self._unix is not None:
            return UNIXClientEndpoint(self._reactor, self._unix, timeout=CONNECT_TIMEOUT)
        endpoint = HostnameEndpoint(
            self._reactor, uri.host.decode("ascii"), uri.port, timeout=CONNECT_TIMEOUT
        )
        return endpoint if self._tls is None else wrapClientTLS(self._tls, endpoint)


def _header(response: Any, name: str) -> str:
    values = response.headers.getRawHeaders(name) or [""]
    return str(values[0]).lower() if name == "content-type" else str(values[0])
