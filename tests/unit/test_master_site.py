"""The HTTP server of the master: what strangers may cost, and what every answer has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from klein import Klein
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.static import File

from nodepass.master.channel import IDLE_TIMEOUT, LINGER, REQUEST_TIMEOUT, SLOWEST, STALLED
from nodepass.master.request import CORS, MOST_BODY, MasterRequest, error_body
from tests.httpwire import Connection, Site

HEADERS = {name.decode().lower(): value.decode() for name, value in CORS}


class Page(Resource):
    """Answers with method, path and body; some paths do odd things."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.held: list[MasterRequest] = []

    def render(self, request: MasterRequest) -> object:
        if request.path == b"/boom":
            raise ValueError("boom with no key in it")
        if request.path == b"/half":
            request.write(b"half")
            raise ValueError("after the beginning")
        if request.path == b"/hold":
            self.held.append(request)
            return NOT_DONE_YET
        if request.path == b"/gets":
            return Resource.render(self, request)
        request.answer(200, request.method + b" " + request.path + b" " + request.content.read())
        return NOT_DONE_YET

    def render_GET(self, request: MasterRequest) -> bytes:
        return b"got"


@pytest.fixture
def page() -> Page:
    """A page."""
    return Page()


@pytest.fixture
def site(page: Page) -> Site:
    """A site that has nothing but the page."""
    return Site(page)


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """Events logged while the test runs."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def refused(connection: Connection, status: int, message: str) -> None:
    """Check that the connection got one whole answer, an error, and closes in time."""
    code, headers, body = connection.answer()
    assert (code, body) == (status, json.dumps({"error": message}, separators=(",", ":")).encode()
                            + b"\n")  # fmt: skip
    assert headers.items() >= HEADERS.items()
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"
    connection.clock.advance(LINGER)
    assert not connection.open
    assert connection.received() == b""


def test_bytes_of_an_answer(site: Site) -> None:
    """An answer has the headers for browsers, a length, and nothing that tells versions."""
    connection = site.connect()
    connection.get("/x")
    code, headers, body = connection.answer()
    assert (code, body) == (200, b"GET /x ")
    assert headers.pop("date").endswith("GMT")
    assert headers == HEADERS | {
        "server": "nodepass", "content-type": "application/json", "content-length": "7"
    }  # fmt: skip
    assert connection.open


def test_error_body() -> None:
    """An error is one JSON object and a line end."""
    assert error_body('a "b" <c>') == b'{"error":"a \\"b\\" \\u003cc\\u003e"}\n'


@pytest.mark.parametrize(
    ("target", "path"),
    [("//api//v1/x", "/api/v1/x"), ("/a///b//", "/a/b/"), ("/a%2F%2fb", "/a/b"), ("//", "/"),
     ("http://here:1//a//b?x=//", "/a/b"), ("/a?b=//c", "/a")],
)  # fmt: skip
def test_doubled_slashes(site: Site, target: str, path: str) -> None:
    """A path is served as if each run of slashes were one; the query stays as it is."""
    connection = site.connect()
    connection.get(target)
    assert connection.answer()[2] == f"GET {path} ".encode()


def test_children_are_found_by_the_cleaned_path() -> None:
    """What routes by segments sees the cleaned path, too."""
    root = Resource()
    branch = Resource()
    root.putChild(b"a", branch)
    branch.putChild(b"b", Page())
    connection = Site(root).connect()
    connection.get("//a//b")
    assert connection.answer()[:1] == (200,)


def test_body_within_the_limit(site: Site) -> None:
    """A body of exactly the limit arrives, whatever it calls itself."""
    connection = site.connect()
    connection.send(
        b"POST /x HTTP/1.1\r\nContent-Type: multipart/form-data\r\n"
        b"Content-Length: %d\r\n\r\n" % MOST_BODY + b"x" * MOST_BODY
    )
    code, _, body = connection.answer()
    assert code == 200 and body == b"POST /x " + b"x" * MOST_BODY


def test_announced_body_too_large(site: Site) -> None:
    """A body that is announced as too large is refused before any of it was read, and what comes
    of it all the same is thrown away."""
    connection = site.connect()
    connection.send(
        b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (MOST_BODY + 1)
    )
    first = connection.received()
    assert first.startswith(b"HTTP/1.1 413 ")
    connection.wire.write(first)
    connection.send(b"x" * (MOST_BODY + 1))
    connection.get("/y")
    refused(connection, 413, "Request body too large")


def test_body_of_a_stranger(page: Page) -> None:
    """The body of a request without the right key fills no memory, and too much of it is too
    large all the same; the next request on the connection is read as ever."""
    site = Site(page, knows=lambda key: key == b"right")
    connection = site.connect()
    for key, seen in (("X-API-Key: wrong", b""), ("X: y", b""), ("X-API-Key: right", b"whole")):
        connection.send(f"POST /x HTTP/1.1\r\n{key}\r\nContent-Length: 5\r\n\r\nwhole".encode())
        assert connection.answer()[2] == b"POST /x " + seen
    connection.send(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    for _ in range(17):
        connection.send(chunk)
    refused(connection, 413, "Request body too large")


def test_length_beyond_all_numbers(site: Site) -> None:
    """A length that no integer is made of is too large, and not a cause for a traceback."""
    connection = site.connect()
    connection.send(b"PUT /x HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
    refused(connection, 413, "Request body too large")


PIECES = [
    b"GET", b"POST", b" ", b"/", b"//", b"/boom", b"%", b"%ff", b"?", b" HTTP/1.1", b"\r\n",
    b"\r\n\r\n", b"Host: a\r\n", b"Host:", b"Content-Length: 3\r\n", b"Content-Length:",
    b"9" * 5000, b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"f" * 2000,
    b"\x00", b"\xff", b":", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Cookie: a\r\n",
    b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n", b"x" * 20_000,
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Whatever arrives, and in whatever pieces, raises nothing and leaves nothing."""
    site = Site(Page())
    connection = site.connect()
    for piece in pieces:
        if connection.open:
            connection.send(piece)
    site.clock.advance(REQUEST_TIMEOUT)
    site.clock.advance(IDLE_TIMEOUT)
    assert not connection.open
    assert site.clock.getDelayedCalls() == []
    assert not site.site._connections and not site.site._waiting


def test_chunked_body_too_large(site: Site, page: Page) -> None:
    """Chunks are counted as they come; the handler never sees a request that grew too large."""
    connection = site.connect()
    connection.send(b"POST /hold HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(16):
        connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert connection.received() == b""
    connection.send(b"1\r\nx\r\n0\r\n\r\nGET /hold HTTP/1.1\r\n\r\n")
    refused(connection, 413, "Request body too large")
    assert page.held == []


def test_chunked_body_within_the_limit(site: Site) -> None:
    """A chunked body arrives as one."""
    connection = site.connect()
    connection.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert connection.answer()[2] == b"POST / abc"


MALFORMED = [
    b"GET\r\n",
    b"GET / HTTP/9.9 x\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000,
    b"GET / HTTP/1.1\r\n" + b"X-Header-Of-Some-Length: and a value that is long\r\n" * 350,
    b"GET / HTTP/1.1\r\n" + b"X:\r\n" * 501 + b"\r\n",
]


@pytest.mark.parametrize("request_", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_malformed_requests(
    site: Site, logged: list[LogEvent], request_: bytes, piece: int
) -> None:
    """What is no request gets one 400, no traceback, and no ear for what follows."""
    connection = site.connect()
    for start in range(0, len(request_), piece):
        connection.send(request_[start : start + piece])
    connection.send(b"GET / HTTP/1.1\r\n\r\n")
    refused(connection, 400, "Bad Request")
    assert logged == []


@pytest.mark.parametrize("host", ["", ".", "a..b", "x" * 300, "é", "a/b", "[", "xn--", ":99999"])
def test_odd_hosts(logged: list[LogEvent], host: str) -> None:
    """The host that a request names does not matter to what routes it, which would stumble."""
    app = Klein()

    @app.route("/x")
    def x(request: MasterRequest) -> None:
        request.answer(200, b"x")

    connection = Site(app.resource()).connect()
    connection.send(f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert connection.answer()[::2] == (200, b"x")
    assert logged == []


def test_path_that_is_no_text(site: Site, logged: list[LogEvent]) -> None:
    """A path that is not UTF-8 names nothing; it is no cause for a traceback."""
    connection = site.connect()
    connection.get("/%ff%fe")
    code, headers, _ = connection.answer()
    assert code == 404 and headers.items() >= HEADERS.items()
    assert logged == []


@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "TRACE", "PROPFIND", "x", "CONNECT"])
def test_odd_methods(site: Site, method: str) -> None:
    """Any method reaches the handler, and a resource that lacks it gives the usual error."""
    connection = site.connect()
    connection.send(f"{method} /x HTTP/1.1\r\n\r\n".encode())
    assert connection.answer()[::2] == (200, f"{method} /x ".encode())
    connection.send(f"{method} /gets HTTP/1.1\r\n\r\n".encode())
    code, headers, body = connection.answer()
    assert (code, body) == (405, error_body("Method not allowed"))
    assert headers.items() >= HEADERS.items()


def test_head(site: Site) -> None:
    """HEAD gets the headers of the answer, its length among them, and no body."""
    for target in ("/x", "/gets"):
        connection = site.connect()
        connection.send(f"HEAD {target} HTTP/1.1\r\n\r\n".encode())
        code, headers, body = connection.answer()
        assert (code, body) == (200, b"") and int(headers["content-length"]) > 0


def test_answers_of_files_without_a_body(tmp_path: Path) -> None:
    """A resource that answers HEAD by itself, or says that nothing has changed, gives no wrong
    length: the one of the file, or none."""
    (tmp_path / "file").write_bytes(b"12345")
    file = File(str(tmp_path / "file"))
    file.isLeaf = True
    connection = Site(file).connect()
    connection.send(b"HEAD / HTTP/1.1\r\n\r\n")
    code, headers, body = connection.answer()
    assert (code, headers["content-length"], body) == (200, "5", b"")
    connection.get("/", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT")
    code, headers, body = connection.answer()
    assert (code, headers.get("content-length"), body) == (304, None, b"")


def test_options_of_the_server(site: Site) -> None:
    """``OPTIONS *`` asks for nothing in particular, and gets it."""
    connection = site.connect()
    connection.send(b"OPTIONS * HTTP/1.1\r\n\r\n")
    code, headers, body = connection.answer()
    assert (code, body, headers["content-length"]) == (200, b"", "0")


def test_unexpected_failure(site: Site, logged: list[LogEvent]) -> None:
    """A handler's exception is a 500 that tells nothing, and one line with a traceback."""
    connection = site.connect()
    connection.get("/boom")
    code, headers, body = connection.answer()
    assert (code, body) == (500, error_body("Internal server error"))
    assert headers.items() >= HEADERS.items()
    assert [event["log_failure"].type for event in logged] == [ValueError]
    assert logged[0]["path"] == "/boom"
    connection.get("/x")
    assert connection.answer()[0] == 200


def test_failure_after_the_beginning(site: Site, logged: list[LogEvent]) -> None:
    """Half an answer is cut off, so that nobody takes it for a whole one."""
    connection = site.connect()
    connection.get("/half")
    assert connection.wire.aborted
    assert not connection.received().endswith(b"0\r\n\r\n")
    assert len(logged) == 1


def test_answer_to_nobody(site: Site, page: Page) -> None:
    """An answer to a client that has left is dropped in silence."""
    connection = site.connect()
    connection.get("/hold")
    connection.wire.abortConnection()
    page.held[0].answer(200, b"too late")
    page.held[0].error(401, "too late", close=True)
    assert site.clock.getDelayedCalls() == []


def test_answer_twice_counts_once(site: Site, page: Page) -> None:
    """Only the first answer is sent."""
    connection = site.connect()
    connection.get("/hold")
    page.held[0].answer(204)
    page.held[0].answer(200, b"again")
    code, headers, body = connection.answer()
    assert (code, body) == (204, b"") and "content-length" not in headers


def test_error_that_closes(site: Site, page: Page) -> None:
    """An error may end the connection."""
    connection = site.connect()
    connection.get("/hold")
    page.held[0].error(401, "no", close=True)
    code, headers, body = connection.answer()
    assert (code, headers["connection"], body) == (401, "close", error_body("no"))
    assert not connection.open


def slow_head(connection: Connection) -> None:
    connection.send(b"X")


def slow_body(connection: Connection) -> None:
    connection.send(b"POST /x HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")


@pytest.mark.parametrize("begin", [slow_head, slow_body])
def test_slow_request(site: Site, begin: Callable[[Connection], None]) -> None:
    """A request has a fixed time to arrive in: a byte now and then does not prolong it."""
    connection = site.connect()
    site.clock.advance(IDLE_TIMEOUT - 1)
    begin(connection)
    for _ in range(int(REQUEST_TIMEOUT) - 1):
        site.clock.advance(1)
        connection.send(b"x")
    assert connection.received() == b""
    site.clock.advance(1)
    refused(connection, 408, "Request timeout")


def test_tls_on_a_plain_port(site: Site) -> None:
    """A client that speaks TLS to a plain port learns at once that nobody here does."""
    connection = site.connect()
    connection.send(b"\x16\x03\x01\x05\xa8")
    assert connection.wire.aborted and connection.received() == b""


def test_each_request_has_its_own_time(site: Site) -> None:
    """The time counts from a request's first byte, not from the connection's."""
    connection = site.connect()
    for _ in range(5):
        site.clock.advance(REQUEST_TIMEOUT - 1)
        connection.get("/x")
        assert connection.answer()[0] == 200


def test_idle_connection(site: Site) -> None:
    """A connection that asks nothing is closed after a while, without a line in the log."""
    fresh, used = site.connect(), site.connect()
    site.clock.advance(10)
    used.get("/x")
    site.clock.advance(IDLE_TIMEOUT - 10)
    assert (fresh.open, used.open) == (False, True)
    site.clock.advance(10)
    assert not used.open
    assert site.clock.getDelayedCalls() == []


def test_slow_handler_is_no_idle_connection(site: Site, page: Page) -> None:
    """While a request is being answered, nothing times out."""
    connection = site.connect()
    connection.get("/hold")
    site.clock.advance(10 * IDLE_TIMEOUT)
    page.held[0].answer(200, b"at last")
    assert connection.answer()[2] == b"at last"


def test_client_that_takes_no_answer(site: Site, page: Page) -> None:
    """A connection whose last answer is not taken is reset after a while."""
    connection = site.connect()
    connection.wire.loseConnection = lambda: None  # type: ignore[method-assign]
    connection.get("/hold", "Connection: close")
    page.held[0].answer(200, b"for nobody")
    site.clock.advance(IDLE_TIMEOUT)
    assert connection.wire.aborted


def test_client_that_stops_reading(site: Site, page: Page) -> None:
    """Half an answer that the client does not take on is given up after a while, and not before."""
    connection = site.connect()
    connection.get("/hold")
    page.held[0].write(b"half")
    for _ in range(3):
        connection.pause()
        site.clock.advance(STALLED - 1)
        connection.resume()
        site.clock.advance(STALLED - 1)
    assert connection.open
    connection.pause()
    site.clock.advance(STALLED)
    assert connection.wire.aborted
    assert site.clock.getDelayedCalls() == []


@pytest.mark.parametrize("kept", [True, False])
def test_large_answer_over_a_slow_line(site: Site, page: Page, kept: bool) -> None:
    """The more there is to take at once, the longer that may last, also for the last answer."""
    connection = site.connect()
    connection.wire.loseConnection = lambda: None  # type: ignore[method-assign]
    connection.get("/hold", *([] if kept else ["Connection: close"]))
    write = connection.wire.write

    def slow(data: bytes) -> None:
        write(data)
        connection.pause()

    if kept:
        connection.wire.write = slow  # type: ignore[method-assign]
    page.held[0].answer(200, bytes(100 * SLOWEST))
    site.clock.advance(99)
    assert connection.open
    site.clock.advance(1)
    assert connection.wire.aborted


def test_next_request_waits_for_a_client_that_reads(site: Site, page: Page) -> None:
    """While an answer is not taken no further one is made, and few bytes of requests are read."""
    connection = site.connect()
    connection.send(b"GET /hold HTTP/1.1\r\n\r\n" * 3)
    connection.pause()
    page.held[0].answer(200, b"first")
    assert len(page.held) == 1
    connection.send(b"GET /hold HTTP/1.1\r\n\r\n" * 1000)
    assert connection.wire.producerState == "paused"
    connection.resume()
    assert len(page.held) == 2
    page.held[1].answer(200, b"second")
    assert len(page.held) == 3 and connection.open


def test_reading_goes_on_once_the_client_does(site: Site, page: Page) -> None:
    """A connection that was full of requests serves the last of them, and listens again."""
    connection = site.connect()
    connection.get("/hold")
    connection.pause()
    page.held[0].write(b"half")
    many = 1000
    connection.send(b"GET /x HTTP/1.1\r\n\r\n" * many)
    assert connection.wire.producerState == "paused"
    connection.resume()
    page.held[0].finish()
    assert connection.received().count(b"GET /x ") == many
    assert connection.wire.producerState == "producing"


def test_stranger_who_does_not_read_makes_room(page: Page) -> None:
    """Strangers can't hold all places by asking for much and reading nothing; whoever has the key,
    or reads on, keeps its place."""
    site = Site(page, most=3, knows=lambda key: key == b"right")
    known, reader, stranger = site.connect(), site.connect(), site.connect()
    known.get("/hold", "X-API-Key: right")
    reader.get("/hold")
    stranger.get("/hold")
    for each in (known, reader, stranger):
        each.pause()
    reader.resume()
    assert site.connect().open
    assert [each.open for each in (known, reader, stranger)] == [True, True, False]


def test_pipelined_requests(site: Site) -> None:
    """Requests sent at once are answered in turn."""
    connection = site.connect()
    connection.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    data = connection.received()
    assert data.index(b"GET /1 ") < data.index(b"GET /2 ")


def test_too_many_connections(page: Page) -> None:
    """Beyond the bound the connection that has waited longest gives way; one whose request is
    being answered never does, and if all are, the new one is refused."""
    site = Site(page, most=3)
    first, second, third = site.connect(), site.connect(), site.connect()
    first.get("/hold")
    second.get("/x")
    fourth = site.connect()
    assert [each.open for each in (first, second, third, fourth)] == [True, True, False, True]
    second.get("/hold")
    fourth.get("/hold")
    fifth = site.connect()
    assert not fifth.open
    assert all(each.open for each in (first, second, fourth))
    # A place that is given back can be had.
    second.wire.loseConnection()
    assert site.connect().open


def test_nothing_is_logged_of_requests(site: Site, logged: list[LogEvent]) -> None:
    """There is no access log, at no level."""
    connection = site.connect()
    connection.get("/x")
    site.clock.advance(IDLE_TIMEOUT)
    assert logged == []


def test_no_http2(site: Site) -> None:
    """Over TLS only HTTP/1.1 is offered: all limits are made for it."""
    assert site.site.acceptableProtocols() == [b"http/1.1"]


def test_close_with_half_an_answer(site: Site, page: Page) -> None:
    """What is cut off does not end as if it were all; an answer that is whole may still leave."""
    half, whole = site.connect(), site.connect()
    for each in (half, whole):
        each.get("/hold")
    page.held[0].write(b"half")
    whole.pause()
    page.held[1].answer(200, b"whole")
    closed = site.site.close()
    assert half.wire.aborted and not whole.wire.aborted
    assert closed.called and site.clock.getDelayedCalls() == []


def test_close(site: Site, page: Page) -> None:
    """Closing the site closes every connection; one that is not done in time is reset."""
    assert site.site.close().called
    idle, busy, stuck, refused_ = (site.connect() for _ in range(4))
    busy.get("/hold")
    refused_.send(b"nonsense\r\n")
    stuck.wire.loseConnection = lambda: None  # type: ignore[method-assign]
    closed = site.site.close()
    assert [each.open for each in (idle, busy, stuck, refused_)] == [False, False, True, False]
    page.held[0].answer(200, b"for nobody")
    assert not closed.called
    site.clock.advance(LINGER)
    assert closed.called and stuck.wire.aborted
    assert site.clock.getDelayedCalls() == []


def test_a_client_that_closes_its_sending_half(site: Site, page: Page) -> None:
    """It still gets its answer, and then the connection ends."""
    connection = site.connect()
    connection.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.channel.readConnectionLost()
    assert connection.wire.connected
    page.held[0].answer(200, b"late")
    assert connection.received().endswith(b"late")
    site.clock.advance(60)
    assert not connection.wire.connected


def test_a_client_that_closes_before_it_asks(site: Site) -> None:
    """There is nothing to wait for."""
    connection = site.connect()
    connection.channel.readConnectionLost()
    assert not connection.wire.connected
