"""The handshakes of the old dialects, both ends, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.parameters import TLSLevel
from nodepass.wire import Flow
from nodepass.wire.old.cipher import default_key, unfit_for_1_6, xor
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.firstbytes import MAX_HEAD
from nodepass.wire.old.handshake import (
    MAX_BODY,
    MOST_PIECES,
    Grant,
    GrantReader,
    HandshakeError,
    HelloReader,
    HTTPClientHandshake,
    HTTPServerHandshake,
    Verdict,
    grant_line,
    hello_line,
)
from nodepass.wire.old.lines import MAX_LINE, LineError
from nodepass.wire.old.linkid import LinkIdReader, encode_id, takes_raw
from nodepass.wire.old.urllines import LineUnwritable

KEY = b"s3cret"
TOKEN = b"91dfac70c5348b04e1babb8b421ac92cec08b565b49ca16130dccb72503647b7"
GRANT = Grant(Flow.REVERSE, 1024, TLSLevel.SELF_SIGNED)

#: As a client of 1.14 writes it.
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: none\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Authorization: Bearer " + TOKEN + b"\r\nAccept-Encoding: gzip\r\n\r\n"
)
#: As a server of 1.14 does.
BODY = b'{"flow":"-","max":1024,"tls":"1","type":"0"}\n'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Date: Sat, 31 Jan 2026 12:00:00 GMT\r\nContent-Length: 45\r\n\r\n" + BODY
)

GRANTS = st.builds(
    Grant, st.sampled_from(Flow), st.integers(1, 1_000_000), st.sampled_from(TLSLevel)
)


def judged(request: bytes) -> Verdict | None:
    """What our server makes of a request."""
    return HTTPServerHandshake(KEY, GRANT).feed(request)


def granted(answer: bytes) -> Grant | None:
    """What our client makes of an answer, all of which has come."""
    client = HTTPClientHandshake(KEY, None)
    client.request()
    return client.feed(answer)


def answered(head: bytes, body: bytes) -> bytes:
    """A server's answer."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


# 1.14 and 2.0 ---------------------------------------------------------------------------------


def test_request() -> None:
    """Our client shows its token, and the server's name where it has one."""
    assert HTTPClientHandshake(KEY, None).request() == (
        b"GET / HTTP/1.1\r\nHost: none\r\nAuthorization: Bearer " + TOKEN + b"\r\n\r\n"
    )
    assert b"\r\nHost: example.org\r\n" in HTTPClientHandshake(KEY, "example.org").request()


def test_go_client_is_served() -> None:
    """A client's request, cut anywhere, is granted with the very fields that it goes by."""
    for cut in range(len(REQUEST)):
        server = HTTPServerHandshake(KEY, GRANT)
        assert server.feed(REQUEST[:cut]) is None if cut else True
        verdict = server.feed(REQUEST[cut:])
        assert verdict is not None and verdict.granted
        head, _, body = verdict.answer.partition(b"\r\n\r\n")
        assert body == BODY
        assert head.split(b"\r\n") == [
            b"HTTP/1.1 200 OK",
            b"Connection: close",
            b"Content-Type: application/json",
            b"Content-Length: 45",
        ]


def test_go_server_is_understood() -> None:
    """A server's answer is read wherever it is cut, also when the connection's end ends it."""
    for cut in range(1, len(ANSWER)):
        client = HTTPClientHandshake(KEY, None)
        client.request()
        assert client.feed(ANSWER[:cut]) is None
        assert client.feed(ANSWER[cut:]) == GRANT
    client = HTTPClientHandshake(KEY, None)
    client.request()
    assert client.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY) is None
    assert client.feed(b"") == GRANT


@given(GRANTS, st.integers(0, 3), st.binary(min_size=1, max_size=40))
def test_both_ends_agree(grant: Grant, pool: int, key: bytes) -> None:
    """What our server grants our client understands."""
    grant = Grant(grant.flow, grant.max, grant.tls, pool)
    client = HTTPClientHandshake(key, None)
    verdict = HTTPServerHandshake(key, grant).feed(client.request())
    assert verdict is not None and client.feed(verdict.answer) == grant


@pytest.mark.parametrize(
    ("request_line", "token", "status", "reason"),
    [
        (b"POST /x", b"", 405, b"Method Not Allowed"),
        (b"HEAD /", TOKEN, 405, b"Method Not Allowed"),
        (b"GET /x", b"", 404, b"Not Found"),
        (b"GET //[", TOKEN, 404, b"Not Found"),
        (b"GET /", b"", 401, b"Unauthorized"),
        (b"GET /", TOKEN[:-1], 401, b"Unauthorized"),
        (b"GET /", TOKEN.upper(), 401, b"Unauthorized"),
        (b"GET /", b"\xff" * 64, 401, b"Unauthorized"),
        (b"GET /?x=1", TOKEN, 200, b"OK"),
    ],
)
def test_order_of_checks(request_line: bytes, token: bytes, status: int, reason: bytes) -> None:
    """Method, path, token, in this order; each refusal says why in plain text."""
    verdict = judged(
        request_line + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n"
    )
    assert verdict is not None and verdict.status == status
    assert verdict.granted is (status == 200)
    assert verdict.answer.startswith(b"HTTP/1.1 %d %s\r\nConnection: close\r\n" % (status, reason))
    if not verdict.granted:
        assert b"Content-Type: text/plain" in verdict.answer
        head = request_line.startswith(b"HEAD")
        assert verdict.answer.endswith(b"\r\n\r\n" + (b"" if head else reason + b"\n"))


@pytest.mark.parametrize(
    "header",
    [b"", b"Authorization: Basic " + TOKEN + b"\r\n", b"Authorization: " + TOKEN + b"\r\n"],
)
def test_no_token(header: bytes) -> None:
    """Without a bearer's token nobody is let in."""
    verdict = judged(b"GET / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n")
    assert verdict is not None and verdict.status == 401


def test_websocket_is_for_somebody_else() -> None:
    """A link of a WebSocket pool gets no answer here."""
    request = (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    server = HTTPServerHandshake(KEY, GRANT)
    assert server.feed(request[:30]) is None
    assert server.feed(request[30:]) == Verdict(101, b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0\0\0\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * MAX_HEAD,
    ],
)
def test_no_http(request_bytes: bytes) -> None:
    """Who sends no request, or an endless one, gets status 400 at once."""
    verdict = judged(request_bytes)
    assert verdict is not None and verdict.status == 0 and not verdict.granted
    assert verdict.answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (answered(b"401 Unauthorized", b"Unauthorized\n"), 401, "wrong key"),
        (answered(b"404 Not Found", b""), 404, "HTTP status 404"),
        (answered(b"200 OK", b""), 200, "no grant in it"),
        (answered(b"200 OK", b"[]"), 200, "no grant in it"),
        (answered(b"200 OK", b'{"flow":"\xff"}'), 200, "no grant in it"),
        (answered(b"200 OK", b'{"x":' + b"[" * 3000), 200, "no grant in it"),
        (answered(b"200 OK", BODY.replace(b"-", b"=")), 0, "flow=="),
        (answered(b"200 OK", BODY.replace(b"1024", b"0")), 0, "max=0"),
        (answered(b"200 OK", BODY.replace(b'"1"', b'"3"')), 0, "tls=3"),
        (answered(b"200 OK", BODY.replace(b'"0"', b'"\\n' + b"x" * 900 + b'"')), 0, "type="),
        (answered(b"200 OK", b" " * (MAX_BODY + 1)), 200, "too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0, "too long"),
        (b"HTTP/1.0 200 OK\r\nX: " + b"x" * MAX_HEAD, 0, "not HTTP"),
        (b"np://1024/-#1\r\n\r\n", 0, "not HTTP"),
        (b"x\xff" * 500 + b"\r\n\r\n", 0, "not HTTP"),
    ],
)
def test_answers_that_are_no_grant(answer: bytes, status: int, reason: str) -> None:
    """Each says what is wrong in one short line, with the status where there is one."""
    with pytest.raises(HandshakeError, match=reason) as caught:
        granted(answer)
    assert caught.value.status == status
    assert len(str(caught.value)) < 160 and str(caught.value).isprintable()


@pytest.mark.parametrize("size", [0, 10, len(ANSWER) - 1])
def test_lost_answers(size: int) -> None:
    """A connection that closes before all is there is an error that says so."""
    client = HTTPClientHandshake(KEY, None)
    client.request()
    if size:
        assert client.feed(ANSWER[:size]) is None
    with pytest.raises(HandshakeError, match="closed the connection before it had answered"):
        client.feed(b"")


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=8))
def test_garbage_for_the_server(pieces: list[bytes]) -> None:
    """Garbage gets an answer or none yet, and is never granted."""
    server = HTTPServerHandshake(KEY, GRANT)
    for piece in pieces:
        verdict = server.feed(piece)
        if verdict is not None:
            assert not verdict.granted
            return


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=8), st.booleans())
def test_garbage_for_the_client(pieces: list[bytes], begun: bool) -> None:
    """Garbage, also behind a good head, raises nothing but HandshakeError."""
    client = HTTPClientHandshake(KEY, None)
    client.request()
    try:
        for piece in [*([ANSWER[:-60]] if begun else []), *pieces, b""]:
            assert client.feed(piece) is None
    except HandshakeError as error:
        assert str(error).isprintable()


# 1.6 ------------------------------------------------------------------------------------------


def test_hello() -> None:
    """The hello is zeros, as many as the key has bytes, whatever the key is."""
    assert hello_line(KEY) == hello_line(b"other!") == b"\0" * 6 + b"\n"
    data = b"\0" * 6 + b"\n" + b"rest"
    for cut in range(len(data) + 1):
        reader = HelloReader(KEY)
        verdict = reader.feed(data[:cut])
        assert verdict is (True if cut > 6 else None)
        if verdict is None:
            assert reader.feed(data[cut:]) is True and reader.rest == b"rest"
        else:
            assert reader.rest == data[7:cut]


@pytest.mark.parametrize("line", [b"", b"\0" * 5, b"\0" * 7, b"\0\0\0\0\0x", b"GET / HTTP/1.1\r"])
def test_wrong_hello(line: bytes) -> None:
    """Another length, or anything but zeros, is no hello."""
    assert HelloReader(KEY).feed(line + b"\n") is False


def test_endless_hello() -> None:
    """A hello without an end is bounded."""
    with pytest.raises(LineError):
        HelloReader(KEY).feed(b"\0" * (MAX_LINE + 1))


def test_grant_of_1_6() -> None:
    """The answer is as a Go server writes it, and is read wherever it is cut, with what follows."""
    line = grant_line(GRANT, b"abcdefg")
    assert line == bytes.fromhex("0f12594b4a575753564c494657") + b"\n"
    data = line + b"rest\nmore"
    for cut in range(len(data) + 1):
        reader = GrantReader(b"abcdefg")
        grant = reader.feed(data[:cut]) or reader.feed(data[cut:])
        assert grant == GRANT
        assert (reader.rest + (data[cut:] if cut >= len(line) else b"")) == b"rest\nmore"


@given(GRANTS, st.one_of(st.binary(min_size=1, max_size=40), st.integers(1, 9).map(default_key)))
def test_grants_of_1_6(grant: Grant, key: bytes) -> None:
    """A Go server's answer is understood although the key broke it; ours never is broken."""
    plain = f"np://{grant.max}/{grant.flow.value}#{int(grant.tls)}".encode()
    if len(xor(plain, key).split(b"\n")) <= MOST_PIECES:
        assert GrantReader(key).feed(xor(plain, key) + b"\n") == grant
    try:
        line = grant_line(grant, key)
    except LineUnwritable:
        return
    assert line.count(b"\n") == 1 and GrantReader(key).feed(line) == grant


def test_each_default_key_that_is_fit_carries_a_grant() -> None:
    """Keys of tunnels without one can be used with 1.6, unless they can't be at all."""
    for port in range(1, 65536, 97):
        key = default_key(port)
        if unfit_for_1_6(key) is None:
            assert GrantReader(key).feed(grant_line(GRANT, key)) == GRANT


@pytest.mark.parametrize(
    "text",
    [b"np://0/-#1", b"np://1024/=#1", b"np://1024/-#3", b"np:///-#1", b"np://1024/-", b"HTTP/1.1"],
)
def test_answers_of_1_6_that_are_no_grant(text: bytes) -> None:
    """Nonsense is given a few lines' time, as a grant may be broken, and then up."""
    reader = GrantReader(KEY)
    line = xor(text, KEY) + b"\n"
    with pytest.raises(HandshakeError, match="makes no sense"):
        assert reader.feed(line * (MOST_PIECES + 1))
    with pytest.raises(HandshakeError, match="too long"):
        GrantReader(KEY).feed(b"x" * (MAX_LINE + 1))


# Numbers of links -----------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", Dialect)
def test_numbers_of_links(dialect: Dialect) -> None:
    """A number is read as it is written, with what follows."""
    written = encode_id("a1b2c3d4", dialect)
    assert written == (b"a1b2c3d4" if dialect is Dialect.V1_6 else b"\xa1\xb2\xc3\xd4")
    reader = LinkIdReader(dialect)
    assert reader.feed(written + b"rest") == "a1b2c3d4" and reader.rest == b"rest"
    if dialect.traits.raw_id:
        reader = LinkIdReader(dialect)
        assert [reader.feed(written[i : i + 1]) for i in range(4)] == [None] * 3 + ["a1b2c3d4"]
        assert reader.rest == b""


@pytest.mark.parametrize("dialect", [Dialect.V1_6, Dialect.V1_6_RAW])
def test_both_forms_of_numbers_in_1_6(dialect: Dialect) -> None:
    """A client takes what arrives: hex digits in one piece, or else 4 bytes."""
    assert LinkIdReader(dialect).feed(b"a1b2c3d4") == "a1b2c3d4"
    assert LinkIdReader(dialect).feed(b"\xa1\xb2\xc3\xd4") == "a1b2c3d4"
    assert LinkIdReader(dialect).feed(b"a1b2") == "61316232"
    assert LinkIdReader(Dialect.V1_14).feed(b"a1b2c3d4") == "61316232"


def test_a_number_that_was_read_as_raw_bytes_is_known() -> None:
    """It is the start of one that was written as digits, and of no other link's."""
    misread = LinkIdReader(Dialect.V1_14).feed(encode_id("a1b2c3d4", Dialect.V1_6))
    assert misread == "61316232"
    assert takes_raw(misread, {"00000001", "a1b2c3d4"})
    assert not takes_raw(misread, {"00000001", "b1a2c3d4"})
    assert not takes_raw(misread, {misread, "a1b2c3d4"})
    assert not takes_raw("ffffffff", {"a1b2c3d4"})
