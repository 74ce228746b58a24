"""Each way in which a request can fail has a message of one line with the cause and the cure."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from twisted.internet import error as neterror
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from nodepass.client import errors
from nodepass.client.address import parse_address
from nodepass.client.causes import of_answer, of_failure, unreadable
from nodepass.errors import ConfigError, NodePassError

PLAIN = parse_address("http://m.example:10101")
SECURE = parse_address("https://m.example:10101/np/")
SOCKET = parse_address("unix:%2Frun%2Fa.sock")


@pytest.mark.parametrize(
    ("text", "shown", "path"),
    [
        ("http://h:1", "http://h:1/api", "/api/v1/instances"),
        ("https://h/", "https://h/api", "/api/v1/instances"),
        (" http://h:1/api/v1/ ", "http://h:1/api", "/api/v1/instances"),
        ("http://[::1]:1/a/b", "http://[::1]:1/a/b", "/a/b/v1/instances"),
        ("HTTP://H:1//", "http://h:1/api", "/api/v1/instances"),
        ("unix:%2Frun%2Fa.sock", "unix:%2Frun%2Fa.sock/api", "/api/v1/instances"),
        ("UNIX:%2Frun%2Fa%3F/a/b/", "unix:%2Frun%2Fa%3F/a/b", "/a/b/v1/instances"),
    ],
)
def test_addresses(text: str, shown: str, path: str) -> None:
    """An address may lack the prefix, and have a slash or the version behind it."""
    address = parse_address(text)
    assert (str(address), address.path("instances")) == (shown, path)
    assert address.path("instances", "********") == f"{path}/********"
    assert address.path("a/b?").endswith("/a%2Fb%3F")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:1",
        "ftp://h",
        "master://:1",
        "http://",
        "http://h:x",
        "http://h:1/?a",
        "http://\xe4:1",
        "unix:",
        "unix:/run/a.sock",
        "unix:run%2Fa.sock",
        "unix:%2Frun%2Fa.sock%00",
        "unix:%2Frun%2Fa.sock/a?b",
        "unix:%2Frun%2Fa.sock/a b",
    ],
)
def test_no_addresses(text: str) -> None:
    """What is no address is named, with what is accepted."""
    with pytest.raises(ConfigError, match="accepted: http://HOST:PORT"):
        parse_address(text)


def test_key_in_an_address_is_not_shown() -> None:
    """A key that somebody wrote into the address does not get into the message."""
    with pytest.raises(ConfigError) as caught:
        parse_address("http://geheim@h:1")
    assert "geheim" not in str(caught.value)


def never(*causes: Exception) -> ResponseNeverReceived:
    """An agent's failure without an answer."""
    return ResponseNeverReceived([Failure(cause) for cause in causes])


def ssl(text: str) -> SSL.Error:
    """An error of OpenSSL's."""
    return SSL.Error([("SSL routines", "", text)])


FAILURES = [
    (PLAIN, neterror.ConnectionRefusedError(), errors.Unreachable, "is the master running"),
    (PLAIN, neterror.DNSLookupError(), errors.Unreachable, "no address found for m.example"),
    (PLAIN, neterror.TimeoutError(), errors.Unreachable, "does its firewall"),
    (PLAIN, neterror.NoRouteError(), errors.Unreachable, "No route"),
    (PLAIN, never(neterror.ConnectionDone()), errors.Cut, "--api https://m.example:10101/api"),
    (PLAIN, never(neterror.ConnectionDone()), errors.Cut, "is it a master's port?"),
    (SECURE, never(neterror.ConnectionLost()), errors.Cut, "is it a master's port?"),
    (SECURE, never(neterror.ConnectionLost()), errors.Cut, "--api http://m.example:10101/np"),
    (PLAIN, never(ParseError("x", b"y")), errors.TLSMismatch, "--api https://m.example"),
    (SECURE, never(ParseError("x", b"y")), errors.NotAMaster, "not HTTP"),
    (SECURE, never(ssl("wrong version number")), errors.TLSMismatch, "--api http://m.example"),
    (SECURE, never(ssl("alert protocol version")), errors.TLSMismatch, "ssl_protocols"),
    (SECURE, never(ssl("strange")), errors.TLSMismatch, "TLS error: strange"),
    (SECURE, never(errors.Untrusted("who?")), errors.Untrusted, "who?"),
    (PLAIN, ResponseFailed([Failure(neterror.ConnectionLost())]), errors.Cut, "in the middle"),
    (SOCKET, neterror.ConnectError(2, "x"), errors.Unreachable, "(no such file or directory); is"),
    (SOCKET, neterror.ConnectionRefusedError(111), errors.Unreachable, "in its group?"),
    (SOCKET, neterror.TimeoutError(), errors.Unreachable, "(no answer in time); is the master"),
    (SOCKET, never(ParseError("x", b"y")), errors.TLSMismatch, "take tls out of the master's URL"),
    (SOCKET, never(neterror.ConnectionDone()), errors.Cut, "take tls out of the master's URL"),
]


@pytest.mark.parametrize(("address", "met", "kind", "words"), FAILURES)
def test_failures(address: object, met: Exception, kind: type[Exception], words: str) -> None:
    """What the network does is told by its kind, and by words that say what to do."""
    error = of_failure(address, met)  # type: ignore[arg-type]
    assert type(error) is kind
    assert words in str(error)
    assert "\n" not in str(error)


def test_not_the_networks() -> None:
    """A cancellation stays one, though the agent wraps it, and a fault in the code stays itself."""
    assert isinstance(of_failure(PLAIN, never(CancelledError())), CancelledError)
    fault = ZeroDivisionError()
    assert of_failure(PLAIN, fault) is fault


ANSWERS = [
    (401, b'{"error":"Unauthorized: Invalid API key"}', errors.WrongKey, "key --master"),
    (401, b"<html>401 Authorization Required</html>", errors.NotAMaster, "asks for a sign-in"),
    (401, b"", errors.NotAMaster, "asks for a sign-in"),
    (301, b"", errors.NotAMaster, "redirects to https://else.example"),
    (400, b"Client sent an HTTP request to an HTTPS server.", errors.TLSMismatch, "https://m"),
    (400, b"The plain HTTP request was sent to HTTPS port", errors.TLSMismatch, "https://m"),
    (400, b'{"error":"Invalid URL scheme"}', errors.Refused, "refused: Invalid URL scheme"),
    (403, b"<html>no</html>", errors.NotAMaster, "403"),
    (404, b"404 page not found\n", errors.NotAMaster, "is the prefix right"),
    (404, b'{"error":"Instance not found"}', errors.NotFound, "ctl list"),
    (405, b'{"error":"Method not allowed"}', errors.MissingFeature, "too old"),
    (409, b'{"error":"Instance URL conflict"}', errors.Refused, "Instance URL conflict"),
    (500, b'{"error":"it broke"}', errors.ServerTrouble, "500 it broke"),
    (502, b"<html>", errors.ServerTrouble, "the proxy"),
    (503, b"", errors.ServerTrouble, "503 Service Unavailable"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), ANSWERS)
def test_answers(status: int, body: bytes, kind: type[Exception], words: str) -> None:
    """An answer that is no success is told by its kind, with the server's own words if any."""
    error = of_answer(PLAIN, status, body, "https://else.example/")
    assert type(error) is kind and isinstance(error, NodePassError)
    assert words in str(error)
    assert str(PLAIN) in str(error)
    assert "\n" not in str(error)


def test_sign_in() -> None:
    """A challenge is a proxy's, whatever comes with it: masters send none."""
    body = b'{"error":"Unauthorized"}'
    assert type(of_answer(PLAIN, 401, body)) is errors.WrongKey
    error = of_answer(PLAIN, 401, body, "", 'Basic realm="x"')
    assert type(error) is errors.NotAMaster and "the key" not in str(error)


def test_words_of_strangers() -> None:
    """What a server says is escaped and cut before a terminal sees it."""
    error = of_answer(PLAIN, 400, b'{"error":"\\u001b[2J' + b"x" * 5000 + b'"}')
    assert isinstance(error, errors.Refused)
    assert "\x1b" not in error.reason and len(str(error)) < 400


def test_unreadable() -> None:
    """A web page in place of an answer is not a master's; other nonsense is quoted."""
    assert "web page" in str(unreadable(PLAIN, "text/html", ValueError("x")))
    assert "quoted" in str(unreadable(PLAIN, "application/json", ValueError("quoted")))
