"""Streams of the master: pace, silence, and the two ways in which they end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from nodepass.logs import Level, Log
from nodepass.master import stream as stream_module
from nodepass.master.channel import STALLED
from nodepass.master.hosting import LogLine
from nodepass.master.hub import EventHub
from nodepass.master.logtail import LogTail
from nodepass.master.models import MASTER_ID, Instance
from nodepass.master.stream import (
    BATCH,
    FINISH_TIMEOUT,
    QUEUE_BYTES,
    SILENCE,
    Stream,
    Streams,
)
from tests.httpwire import Connection, Site, unchunk

KEY = Instance(id=MASTER_ID)
ONE = Instance(id="00000001")


class Page(Resource):
    """Streams of a hub at /events, of a log at /logs."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.streams: Any = None
        self.hub = EventHub(lambda: [KEY, ONE])
        self.tail = LogTail()
        self.done: list[Deferred[None]] = []

    def render(self, request: Any) -> object:
        if request.path == b"/events":
            done = self.streams.events(request, self.hub)
        else:
            done = self.streams.follow(request, self.tail, ONE.id, 2)
        self.done.append(done)
        return NOT_DONE_YET


class Bench:
    """A site with streams."""

    def __init__(self) -> None:
        self.page = Page()
        self.site = Site(self.page)
        self.clock = self.site.clock
        self.streams = self.page.streams = Streams(self.clock, self.site.log, most=3)
        self.hub = self.page.hub

    def connect(self, target: str = "/events", version: str = "1.1") -> Connection:
        """Open a stream."""
        connection = self.site.connect()
        connection.send(f"GET {target} HTTP/{version}\r\n\r\n".encode())
        return connection

    def turn(self) -> None:
        """Let the reactor go round once."""
        self.clock.advance(0)

    def clean(self) -> bool:
        """Whether nothing is left of any stream."""
        return (
            not len(self.streams)
            and not self.hub.subscribers
            and self.clock.getDelayedCalls() == []
            and all(done.called for done in self.page.done)
        )


@pytest.fixture
def bench() -> Bench:
    """A bench."""
    return Bench()


def events(body: bytes) -> list[bytes]:
    """The events, comments and the first line of a stream, each without its blank line."""
    assert body.endswith(b"\n\n")
    return body[:-2].split(b"\n\n")


def test_how_a_stream_begins(bench: Bench) -> None:
    """Status, headers, the time to retry and all instances are out at once."""
    connection = bench.connect()
    code, headers, rest = connection.answer()
    assert code == 200
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["access-control-allow-origin"] == "*"
    body, ended = unchunk(rest)
    assert not ended
    assert body.startswith(b'retry: 3000\n\nevent: instance\ndata: {"type":"initial",')
    assert len(events(body)) == 3


def test_http_1_0(bench: Bench) -> None:
    """A client, or a proxy, of HTTP/1.0 gets the bytes as they are."""
    _, headers, body = bench.connect(version="1.0").answer()
    assert "transfer-encoding" not in headers
    assert body.startswith(b"retry: 3000\n\nevent: instance\n")


def test_a_turn_is_one_write(bench: Bench) -> None:
    """What happens in one turn of the reactor is written together, in order."""
    connection = bench.connect()
    connection.received()
    for number in range(5):
        bench.hub.publish("log", ONE, str(number))
    assert connection.received() == b""
    bench.turn()
    data = connection.received()
    body, _ = unchunk(data)
    assert data.count(b"\r\n") == 2, "one chunk"
    assert [event[-3:-2] for event in events(body)] == [b"0", b"1", b"2", b"3", b"4"]


def test_comment_after_silence(bench: Bench) -> None:
    """A comment goes out after each 15 s without anything; an event moves it."""
    connection = bench.connect()
    connection.received()
    bench.clock.advance(SILENCE - 0.1)
    assert connection.received() == b""
    bench.clock.advance(0.1)
    bench.turn()
    assert unchunk(connection.received()) == (b": \n\n", False)
    bench.clock.advance(10)
    bench.hub.publish("update", ONE)
    bench.turn()
    assert b"update" in connection.received()
    bench.clock.advance(5)
    bench.clock.advance(9.9)
    assert connection.received() == b""
    bench.clock.advance(0.1)
    bench.turn()
    assert unchunk(connection.received()) == (b": \n\n", False)


def test_client_that_leaves(bench: Bench) -> None:
    """A closed connection leaves nothing behind, even with something to be written."""
    connection = bench.connect()
    bench.hub.publish("update", ONE)
    connection.wire.loseConnection()
    bench.turn()
    assert bench.clean()


def test_handler_that_is_cancelled(bench: Bench) -> None:
    """A framework that cancels what it waits for when the client leaves does no harm."""
    connection = bench.connect()
    failures: list[Any] = []
    bench.page.done[0].addErrback(failures.append)
    bench.page.done[0].cancel()
    assert failures[0].check(CancelledError)
    connection.wire.loseConnection()
    assert bench.clean()


def test_pause_holds_events_back(bench: Bench) -> None:
    """While the client takes nothing, nothing is written; then all, in order."""
    connection = bench.connect()
    connection.received()
    connection.pause()
    for number in range(5):
        bench.hub.publish("log", ONE, str(number))
        bench.turn()
    bench.clock.advance(SILENCE)
    assert connection.received() == b""
    connection.resume()
    body, _ = unchunk(connection.received())
    assert [event[-3:-2] for event in events(body)] == [b"0", b"1", b"2", b"3", b"4"]


def test_backlog_is_written_as_it_is_taken() -> None:
    """A thousand instances fill no queue: what goes first is made when the client can take it, and
    what happens meanwhile comes after it."""
    bench = Bench()
    many = [Instance(id=f"{number:08x}", url="x" * 5000) for number in range(1000)]
    bench.page.hub = bench.hub = EventHub(lambda: many)
    connection = bench.site.connect()
    write = connection.wire.write

    def slow(data: bytes) -> None:
        write(data)
        connection.pause()

    connection.wire.writeSequence = lambda parts: slow(b"".join(parts))  # type: ignore[method-assign]
    connection.get("/events")
    bench.hub.publish("update", many[0])
    first = connection.received()
    assert 0 < len(first) < 2 * BATCH
    body = unchunk(first.partition(b"\r\n\r\n")[2])[0]
    while b'"update"' not in body:
        assert connection.open and len(body) < 10_000_000
        connection.resume()
        data = connection.received()
        assert len(data) < 2 * BATCH
        body += unchunk(data)[0]
    assert len(events(body)) == 1 + 1000 + 1
    assert b'"update"' in events(body)[-1]


def test_overflow_aborts(bench: Bench) -> None:
    """Whoever takes nothing while too much happens is cut off, and not as if all were said."""
    slow, quick = bench.connect(), bench.connect()
    slow.pause()
    slow.received()
    quick.received()
    line = "x" * 10_000
    published = 0
    while slow.open:
        bench.hub.publish("log", ONE, line)
        bench.turn()
        published += 1
        assert published * len(line) < QUEUE_BYTES + 20_000
    assert published * len(line) > QUEUE_BYTES * 0.95
    assert slow.wire.aborted
    assert slow.received() == b""
    assert len(bench.streams) == 1 and bench.hub.subscribers == 1
    assert quick.open
    assert len(events(unchunk(quick.received())[0])) == published


def test_burst_within_a_turn_is_no_overflow(bench: Bench) -> None:
    """A report of a thousand instances at once cuts off nobody who reads."""
    connection = bench.connect()
    connection.received()
    for _ in range(1000):
        bench.hub.publish("update", Instance(id="00000001", url="x" * 500, config="x" * 500))
    bench.turn()
    assert len(events(unchunk(connection.received())[0])) == 1000


def test_stalled_client_is_cut_off(bench: Bench) -> None:
    """Whoever takes nothing for half a minute is cut off, however little there is for it."""
    connection = bench.connect()
    bench.clock.advance(7)
    connection.pause()
    bench.hub.publish("update", ONE)
    for _ in range(int(STALLED) - 1):
        bench.clock.advance(1)
    assert connection.open
    bench.clock.advance(1)
    assert connection.wire.aborted
    assert bench.clean()


def test_clean_end(bench: Bench) -> None:
    """`finish` ends the answer as complete after all that was published, and closes."""
    connection = bench.connect()
    connection.received()
    bench.hub.publish("update", KEY)
    bench.hub.publish("shutdown", None)
    finished = bench.streams.finish()
    bench.hub.publish("update", ONE)
    assert not finished.called
    bench.turn()
    body, ended = unchunk(connection.received())
    assert ended and not connection.wire.aborted and not connection.open
    assert [b'"update"' in event for event in events(body)] == [True, False]
    assert b'"type":"shutdown"' in events(body)[1]
    assert finished.called
    assert bench.clean()


def test_end_waits_for_a_slow_client(bench: Bench) -> None:
    """The end comes after what waits, once the client takes it."""
    connection = bench.connect()
    connection.received()
    connection.pause()
    bench.hub.publish("shutdown", None)
    finished = bench.streams.finish()
    bench.clock.advance(FINISH_TIMEOUT / 2)
    assert connection.received() == b"" and not finished.called
    connection.resume()
    body, ended = unchunk(connection.received())
    assert ended and b'"shutdown"' in body
    assert finished.called
    assert bench.clean()


def test_end_does_not_wait_for_ever(bench: Bench) -> None:
    """A client that takes nothing is cut off at the end, and counts as not ended."""
    connection, other = bench.connect(), bench.connect()
    connection.received()
    connection.pause()
    bench.hub.publish("shutdown", None)
    finished = bench.streams.finish()
    bench.clock.advance(FINISH_TIMEOUT / 2)
    assert not other.open and not finished.called
    bench.clock.advance(FINISH_TIMEOUT / 2)
    assert connection.wire.aborted and connection.received() == b""
    assert finished.called
    assert bench.clean()


def test_end_where_closing_takes_long(bench: Bench) -> None:
    """What was written and not taken when the connection closes is given up as well."""
    connection = bench.connect()
    connection.wire.loseConnection = lambda: None  # type: ignore[method-assign]
    finished = bench.streams.finish()
    bench.turn()
    assert unchunk(connection.answer()[2])[1]
    assert not finished.called
    bench.clock.advance(FINISH_TIMEOUT)
    assert finished.called and connection.wire.aborted
    assert bench.clean()


def test_finish_with_no_streams(bench: Bench) -> None:
    """Without a stream there is nothing to wait for."""
    assert bench.streams.finish().called
    gone = bench.connect()
    stream = next(iter(bench.streams._open))
    gone.wire.loseConnection()
    assert stream.finish().called
    assert bench.clean()


def test_bound_of_streams(bench: Bench) -> None:
    """The streams of both kinds are counted together; one that ends makes room."""
    connections = [bench.connect(target) for target in ("/events", "/logs", "/events")]
    assert "too many" in (bench.streams.refusal or "")
    connections[1].wire.loseConnection()
    assert bench.streams.refusal is None


def test_none_is_opened_at_the_end(bench: Bench) -> None:
    """Once the last event is out no stream begins, as it would end without one. One that was
    finished for another reason may be opened anew."""
    first = bench.connect()
    bench.streams.finish()
    bench.turn()
    assert not first.open and bench.streams.refusal is None
    bench.connect()
    closed = bench.streams.close()
    assert bench.streams.refusal == "the master stops; try again later"
    bench.turn()
    assert closed.called and bench.clean()


def test_failure_of_one_stream(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that fails is logged and cut off; the others of the same turn go on."""
    logged: list[LogEvent] = []
    first, second = bench.connect(), bench.connect()
    second.received()
    broken = next(iter(bench.streams._open))
    monkeypatch.setattr(broken, "_batch", lambda: 1 / 0)
    globalLogPublisher.addObserver(logged.append)
    try:
        bench.hub.publish("update", ONE)
        bench.turn()
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert first.wire.aborted and b'"update"' in second.received()
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]


def test_followed_log(bench: Bench) -> None:
    """The last lines, then each as it comes, as plain text; no comments; a clean end when the
    instance is deleted."""
    for number in range(3):
        bench.page.tail.append(ONE.id, LogLine(0, Level.INFO, str(number)))
    connection = bench.connect("/logs")
    code, headers, rest = connection.answer()
    assert (code, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    body, _ = unchunk(rest)
    assert [line[23:] for line in body.splitlines()] == [b"  INFO  1", b"  INFO  2"]
    bench.clock.advance(10 * SILENCE)
    assert connection.received() == b""
    bench.page.tail.append(ONE.id, LogLine(0, Level.WARN, "3"))
    bench.page.tail.append("00000002", LogLine(0, Level.WARN, "of another"))
    bench.turn()
    assert unchunk(connection.received())[0][23:] == b"  WARN  3\n"
    bench.page.tail.append(ONE.id, LogLine(0, Level.INFO, "4"))
    bench.page.tail.forget(ONE.id)
    bench.turn()
    body, ended = unchunk(connection.received())
    assert ended and body.endswith(b"  INFO  4\n")
    assert bench.clean()


def test_cheap_for_many() -> None:
    """300 subscribers and 200 events: each event is encoded once, each stream written once a turn,
    and what waits for clients that read nothing is shared."""
    page = Page()
    site = Site(page)
    page.streams = streams = Streams(site.clock, Log(Level.NONE))
    connections = []
    for _ in range(300):
        connections.append(site.connect())
        connections[-1].get("/events")
    for connection in connections:
        connection.pause()
    for _ in range(200):
        page.hub.publish("update", ONE)
    queues = [list(stream._queue) for stream in streams._open]
    assert {len(queue) for queue in queues} == {200}
    assert len({id(data) for queue in queues for data in queue}) == 200
    # Of each: one for a silence, one for a client that stays so.
    assert len(site.clock.getDelayedCalls()) == 2 * 300


def test_names_of_the_interface() -> None:
    """A stream is a push producer, as the channel needs it."""
    assert stream_module.IPushProducer.implementedBy(Stream)
