"""Who knocks: told from the first bytes as soon as they say it, and never wrongly before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from nodepass.wire.clienthello import MOST_NEEDED, alpn
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.fingerprint import fingerprint
from nodepass.wire.old.firstbytes import MAX_HEAD, Knock, knock
from nodepass.wire.old.handshake import HTTPClientHandshake, hello_line
from nodepass.wire.old.lines import MAX_LINE

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nupgrade:websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
GO_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: none\r\nUser-Agent: Go-http-client/1.1\r\nAuthorization: Bearer "
    + b"0123456789abcdef" * 4
    + b"\r\nAccept-Encoding: gzip\r\n\r\n"
)


def client_hello(*names: bytes) -> bytes:
    """The first record of a TLS connection that offers these ALPN names."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    connection.set_connect_state()
    if names:
        connection.set_alpn_protos([*names])
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)


@pytest.mark.parametrize(
    ("first", "who"),
    [
        (hello_line(b"key"), Knock.HELLO),
        (hello_line(b"k" * 200), Knock.HELLO),
        (HTTPClientHandshake(b"key", None).request(), Knock.HANDSHAKE),
        (GO_REQUEST, Knock.HANDSHAKE),
        (UPGRADE, Knock.WEBSOCKET),
        (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade-Insecure-Requests: 1\r\n\r\n", Knock.BROWSER),
        (b"GET / HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n", Knock.BROWSER),
        (b"OPTIONS * HTTP/1.0\r\n\r\n", Knock.BROWSER),
        (client_hello(), Knock.TLS),
        (client_hello(b"h2"), Knock.HTTP2),
        (client_hello(b"h2", b"http/1.1"), Knock.HTTPS),
        (client_hello(b"smtp"), Knock.STRANGER),
        (client_hello(b"nodepass2"), Knock.NATIVE),
        (client_hello(b"nodepass2-data", b"w1"), Knock.NATIVE),
        (client_hello(b"nodepass3"), Knock.STRANGER),
    ],
)
def test_who_knocks(first: bytes, who: Knock) -> None:
    """Each is known once its first words are whole, and what comes behind them changes nothing."""
    assert knock(first) is who and knock(first + b"more") is who
    assert all(knock(first[:size]) is None for size in range(1, len(first)))
    assert who.what


@pytest.mark.parametrize(
    "first",
    [
        b"\0\0\0x",
        b"\0" * (MAX_LINE + 1),
        b"SSH-2.0-OpenSSH",
        b"GETGETGETGET",
        b"get / HTTP/1.1",
        b"GET / FTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD,
        b"\n",
        b"\x80",
        b"\x05\x01\x00",
    ],
)
def test_strangers(first: bytes) -> None:
    """What no node says is known at once; what might become something, within bounds."""
    assert knock(first) is Knock.STRANGER


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes(first: bytes) -> None:
    """Whatever comes is judged or awaited, and a judgement does not change with more bytes."""
    who = knock(first)
    assert who is None or knock(first + b"\r\n\r\n\n") is who


@given(
    st.binary(min_size=1, max_size=200).map(
        lambda body: b"\x16\x03\x01\0" + bytes([len(body)]) + body
    )
)
def test_any_record(record: bytes) -> None:
    """A TLS record is judged when it is whole, whatever is in it."""
    assert alpn(record) is not None and alpn(record[:-1]) is None


def test_record_without_end() -> None:
    """No more is waited for than the longest record holds."""
    assert alpn(b"\x16\x03\x01\xff\xff" + b"x" * (MOST_NEEDED - 5)) == []


def test_fingerprints() -> None:
    """Each dialect compares text, written in its own way."""
    digest = bytes(range(0xA0, 0xC0))
    assert fingerprint(digest, Dialect.V1_14) == (
        "sha256:A0:A1:A2:A3:A4:A5:A6:A7:A8:A9:AA:AB:AC:AD:AE:AF:"
        "B0:B1:B2:B3:B4:B5:B6:B7:B8:B9:BA:BB:BC:BD:BE:BF"
    )
    assert fingerprint(digest, Dialect.V2_0) == (
        "sha256:a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf"
    )
