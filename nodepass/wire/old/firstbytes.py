"""Who knocks at the tunnel port, as far as old dialects go, judged by the first bytes. No I/O.

Native is asked before, where it is admitted: its names and first bytes are nobody else's. One who
says nothing at all may be a link of an old pool, which waits for its number; silence is for the
caller's clock to find.
"""

from __future__ import annotations

import re
from enum import Enum

from nodepass.wire.clienthello import HANDSHAKE, alpn
from nodepass.wire.native import ALPN_CONTROL, ALPN_DATA

from .lines import MAX_LINE

__all__ = ["MAX_HEAD", "Knock", "knock"]

#: Most bytes of a request's head. A node's has 180, a browser's some hundred more.
MAX_HEAD = 8192

_BLANK_LINE = b"\r\n\r\n"


class Knock(Enum):
    """Somebody's first bytes, and what they are for the log.

    :ivar what: who it probably is.
    :ivar cure: what would let a node in; empty where nothing would.
    """

    #: A line of zeros: the hello of 1.6.
    HELLO = ("a client of NodePass 1.6", "wire=1.6 admits it")
    #: GET with a token. Without TLS it is 1.14, under TLS 2.0.
    HANDSHAKE = ("a client of NodePass 1.14", "wire=1.14 admits it")
    #: GET with an upgrade: a link of a WebSocket pool.
    WEBSOCKET = ("a WebSocket link of NodePass 1.14 or 2.0", "its handshake has to come first")
    #: TLS without ALPN: a handshake of 2.0, a WebSocket link, or a link that waits for its number.
    TLS = ("a client of NodePass 2.0, or a link of an old pool", "wire=2.0 admits the first")
    #: TLS as browsers offer it: a client of 1.14 whose tunnel port is 443, or a browser.
    HTTPS = ("a client of NodePass 1.14 on port 443, or a browser", "wire=1.14 admits the first")
    #: TLS for HTTP/2 alone.
    HTTP2 = ("a link of NodePass's HTTP/2 pool", "set type=0 at its server")
    #: TLS with a name of the native wire.
    NATIVE = ("a client of the native wire", "native in wire= admits it")
    #: HTTP that no node speaks.
    BROWSER = ("a browser or scanner", "")
    #: Anything else.
    STRANGER = ("unknown bytes", "")

    def __init__(self, what: str, cure: str) -> None:
        self.what = what
        self.cure = cure


_MAY_BE_HTTP = re.compile(rb"[A-Z]{1,10}(?: .*)?", re.DOTALL)
_REQUEST = re.compile(rb"[A-Z]{1,10} [\x21-\x7e]+ HTTP/1\.[01]\r\n")
_TOKEN = re.compile(rb"\r\nauthorization:[ \t]*bearer [0-9a-f]{64}[ \t]*\r\n", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)


def knock(first: bytes) -> Knock | None:
    """Judge a connection; None: more of it is needed.

    :param first: what has come so far, all of it, at least one byte; under TLS, of what is inside.
    """
    if first[0] == HANDSHAKE:
        return _tls(first)
    if first[0] == 0:
        return _zeros(first)
    return _http(first)


def _tls(first: bytes) -> Knock | None:
    names = alpn(first)
    if names is None:
        return None
    if not names:
        return Knock.TLS
    if names[0] in (ALPN_CONTROL, ALPN_DATA):
        return Knock.NATIVE
    if b"http/1.1" in names:
        return Knock.HTTPS
    return Knock.HTTP2 if names == [b"h2"] else Knock.STRANGER


def _zeros(first: bytes) -> Knock | None:
    line, end, _ = first.partition(b"\n")
    if line.strip(b"\0") or len(line) > MAX_LINE:
        return Knock.STRANGER
    return Knock.HELLO if end else None


def _http(first: bytes) -> Knock | None:
    head, end, _ = first.partition(_BLANK_LINE)
    if not end:
        may_be = _MAY_BE_HTTP.fullmatch(first) and len(first) <= MAX_HEAD
        return None if may_be else Knock.STRANGER
    head += end
    if not _REQUEST.match(head):
        return Knock.STRANGER
    if _UPGRADE.search(head):
        return Knock.WEBSOCKET
    return Knock.HANDSHAKE if _TOKEN.search(head) else Knock.BROWSER
