"""How an old client is let in: by HTTP in 1.14 and 2.0, by two lines in 1.6. No I/O.

The server's answer, here the Grant, says all that the client goes by: who listens for visitors,
how many idle links there may be, how they are protected and of which kind they are.
"""

from __future__ import annotations

import hmac
import re

import h11
import msgspec
from attrs import frozen

from nodepass.errors import PeerError
from nodepass.logs import printable
from nodepass.parameters import TLSLevel
from nodepass.wire import Flow

from .cipher import token, xor
from .firstbytes import MAX_HEAD
from .lines import LineError, LineSplitter
from .urllines import Mender, write

__all__ = [
    "GRANTED",
    "UNAUTHORIZED",
    "Grant",
    "GrantReader",
    "HTTPClientHandshake",
    "HTTPServerHandshake",
    "HandshakeError",
    "HelloReader",
    "Verdict",
    "grant_line",
    "hello_line",
]

#: Most bytes of a server's answer behind its head. A grant has 50.
MAX_BODY = 4096
#: Most lines that a grant of 1.6 may be broken into: about one for each of its characters.
MOST_PIECES = 16

#: Status of an answer that grants something, be it of no use, and of one to a wrong token.
GRANTED = 200
UNAUTHORIZED = 401

_BEARER = b"Bearer "


class HandshakeError(PeerError):
    """No tunnel comes of this connection.

    :ivar status: the server's answer, 0 where it gave none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@frozen
class Grant:
    """What the server says a client is to do.

    :ivar flow: who listens for visitors.
    :ivar max: most idle links.
    :ivar tls: how links are protected.
    :ivar pool: of which kind they are: 0 TCP, 1 QUIC, 2 WebSocket, 3 HTTP/2. 1.6 has 0 alone.
    """

    flow: Flow
    max: int
    tls: TLSLevel
    pool: int = 0


class _GrantRecord(msgspec.Struct):
    flow: str = ""
    max: int = 0
    tls: str = ""
    type: str = ""


_decode_grant = msgspec.json.Decoder(_GrantRecord).decode


def _grant(flow: str, most: int, tls: str, pool: str) -> Grant:
    known = flow in ("-", "+") and tls in ("0", "1", "2") and pool in ("0", "1", "2", "3")
    if not known or most < 1:
        shown = printable(f"flow={flow} max={most} tls={tls} type={pool}", 80)
        raise HandshakeError(f"the server's answer makes no sense: {shown}")
    return Grant(Flow(flow), most, TLSLevel(int(tls)), int(pool))


# 1.14 and 2.0 ---------------------------------------------------------------------------------


class HTTPClientHandshake:
    """The client's side of 1.14 and 2.0.

    :param host: the server's name; None where it is known by address alone.
    """

    def __init__(self, key: bytes, host: str | None) -> None:
        self._key = key
        self._host = host or "none"
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._status = 0
        self._size = 0
        self._body = b""

    def request(self) -> bytes:
        """What to send, once."""
        request = h11.Request(
            method="GET",
            target="/",
            headers=[
                (b"Host", self._host.encode("idna")),
                (b"Authorization", _BEARER + token(self._key)),
            ],
        )
        return (self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> Grant | None:
        """Bytes of the answer; empty for its end.

        :returns: what the server grants, once it is there.
        :raises HandshakeError: it refuses, answers nonsense, or closed before it had answered.
        """
        self._size += len(data)
        if self._size > MAX_HEAD + MAX_BODY:
            # Also one that puts the answer off for ever.
            raise HandshakeError("the server's answer is too long", self._status)
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > MAX_BODY:
                        raise HandshakeError("the server's answer is too long", self._status)
                elif isinstance(event, h11.EndOfMessage):
                    return self._answer()
                elif isinstance(event, h11.ConnectionClosed):
                    raise HandshakeError("the server closed the connection before it had answered")
        except h11.RemoteProtocolError as error:
            if not data:
                message = "the server closed the connection before it had answered"
            else:
                message = f"the server's answer is not HTTP: {printable(str(error), 80)}"
            raise HandshakeError(message) from None

    def _answer(self) -> Grant:
        if self._status == UNAUTHORIZED:
            raise HandshakeError(
                "the server refuses: wrong key; set the same on both", UNAUTHORIZED
            )
        if self._status != GRANTED:
            status = self._status
            raise HandshakeError(f"the answer is HTTP status {status}: no tunnel port", status)
        try:
            record = _decode_grant(self._body)
        except (ValueError, msgspec.DecodeError, RecursionError):
            raise HandshakeError(
                "the server's answer makes no sense: no grant in it", GRANTED
            ) from None
        return _grant(record.flow, record.max, record.tls, record.type)


@frozen
class Verdict:
    """What a server makes of a request.

    :ivar status: of the answer; 101 where it asks for a WebSocket, 0 for no HTTP at all.
    :ivar answer: what to send before closing; empty where it asks for a WebSocket, which is none of
        a handshake.
    """

    status: int
    answer: bytes

    @property
    def granted(self) -> bool:
        """Whether the client has shown the right token."""
        return self.status == GRANTED


_REASONS = {
    UNAUTHORIZED: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
}


class HTTPServerHandshake:
    """The server's side of 1.14 and 2.0: one request, one answer."""

    def __init__(self, key: bytes, grant: Grant) -> None:
        self._token = token(key)
        self._grant = grant
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def feed(self, data: bytes) -> Verdict | None:
        """Bytes of the request, at least one.

        :returns: the verdict; None while the request's head is not whole.
        """
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError:
            # As h11 may not answer any more: this is all that a peer makes of it.
            head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
            return Verdict(0, head + b"Connection: close\r\n\r\n400 Bad Request")
        if not isinstance(event, h11.Request):
            return None
        return self._judge(event)

    def _judge(self, request: h11.Request) -> Verdict:
        headers = dict(request.headers)
        if headers.get(b"upgrade", b"").lower() == b"websocket":
            return Verdict(101, b"")
        if request.method != b"GET":
            # The answer to HEAD has no body.
            return self._refusal(405, bare=request.method == b"HEAD")
        if request.target.partition(b"?")[0] != b"/":
            return self._refusal(404)
        shown = headers.get(b"authorization", b"")
        if not shown.startswith(_BEARER) or not hmac.compare_digest(
            shown[len(_BEARER) :], self._token
        ):
            return self._refusal(UNAUTHORIZED)
        grant = self._grant
        record = _GrantRecord(grant.flow.value, grant.max, str(int(grant.tls)), str(grant.pool))
        body = msgspec.json.encode(record) + b"\n"
        return Verdict(GRANTED, self._respond(GRANTED, b"OK", b"application/json", body))

    def _refusal(self, status: int, bare: bool = False) -> Verdict:
        reason = _REASONS[status]
        body = b"" if bare else reason + b"\n"
        return Verdict(status, self._respond(status, reason, b"text/plain; charset=utf-8", body))

    def _respond(self, status: int, reason: bytes, kind: bytes, body: bytes) -> bytes:
        headers = [
            (b"Connection", b"close"),
            (b"Content-Type", kind),
            (b"Content-Length", b"%d" % len(body)),
        ]
        response = h11.Response(status_code=status, reason=reason, headers=headers)
        events = (response, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self._http.send(event) or b"" for event in events)


# 1.6 ------------------------------------------------------------------------------------------


def hello_line(key: bytes) -> bytes:
    """What a client of 1.6 sends first. As the key is combined with itself, it is all zeros."""
    return xor(key, key) + b"\n"


class HelloReader:
    """The server's side of 1.6: waits for the hello.

    :ivar rest: bytes behind it.
    """

    def __init__(self, key: bytes) -> None:
        self._hello = hello_line(key)[:-1]
        self._splitter = LineSplitter()
        self.rest = b""

    def feed(self, data: bytes) -> bool | None:
        """Whether the client has a key of the same length, which is all that it shows; None: more
        is needed.

        :raises LineError: the bytes are no line.
        """
        lines = self._splitter.feed(data)
        if not lines:
            return None
        self.rest = b"\n".join([*lines[1:], self._splitter.rest])
        return hmac.compare_digest(lines[0], self._hello)


def grant_line(grant: Grant, key: bytes) -> bytes:
    """The server's answer of 1.6.

    :raises LineUnwritable: it can't be written with this key.
    """
    return write("np://", [f"{grant.max}/{grant.flow.value}#{int(grant.tls)}"], key)


class GrantReader:
    """The client's side of 1.6: waits for the server's answer.

    :ivar rest: bytes behind it, for a `SignalReader`.
    """

    def __init__(self, key: bytes) -> None:
        self._mender = Mender(key, _read_grant)
        self._splitter = LineSplitter()
        self._lines = 0
        self.rest = b""

    def feed(self, data: bytes) -> Grant | None:
        """The grant, once it is there.

        :raises HandshakeError: it makes no sense; another key, or no 1.6 server.
        """
        try:
            lines = self._splitter.feed(data)
        except LineError:
            raise HandshakeError("the server's answer is too long") from None
        for place, line in enumerate(lines):
            grant = self._mender.take(line)
            if grant is not None:
                self.rest = b"\n".join([*lines[place + 1 :], self._splitter.rest])
                return grant
        self._lines += len(lines)
        if self._lines > MOST_PIECES:
            raise HandshakeError("the server's answer makes no sense: another key, or no 1.6 node")
        return None


_GRANT = re.compile(r"np://(?:[a-z]*@)?([0-9]{1,9})/([-+])#([0-2])")


def _read_grant(text: str) -> Grant | None:
    match = _GRANT.fullmatch(text)
    if match is None:
        return None
    most, flow, tls = match.groups()
    return _grant(flow, int(most), tls, "0")
