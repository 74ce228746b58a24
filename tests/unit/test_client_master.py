"""The client's methods against a master in memory: ours, and one of the Go implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec
import pytest
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from nodepass.client import (
    BadAnswer,
    Cut,
    MasterClient,
    MasterError,
    MissingFeature,
    NotAMaster,
    NotFound,
    Refused,
    Silent,
    Trust,
    WrongKey,
    http,
    master,
    parse_fingerprint,
)
from nodepass.client.address import parse_address
from nodepass.client.models import Event, Info, Instance, Meta, Tcping
from nodepass.client.reading import read, read_list
from nodepass.errors import ConfigError
from tests.fakemaster import KEY, FakeMaster

T = TypeVar("T")


class Reader:
    """Reads an async iterator in the background."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self.items: list[Any] = []
        self.error: BaseException | None = None
        self.ended = False
        self.task = Deferred.fromCoroutine(self._read(items))
        self.task.addErrback(self._failed)

    async def _read(self, items: AsyncIterator[Any]) -> None:
        async for item in items:
            self.items.append(item)
        self.ended = True

    def _failed(self, failure: Failure) -> None:
        self.error = failure.value


class Case(SynchronousTestCase):
    """A client and a master in memory."""

    ours = True

    def setUp(self) -> None:
        self.fake = FakeMaster(ours=self.ours)
        self.agent = RequestTraversalAgent(self.fake)
        self.clock = Clock()
        self.master = self.client()

    def client(self, key: str = KEY) -> MasterClient:
        return MasterClient("http://m:10101", key, reactor=self.clock, agent=self.agent)

    def get(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns that needs nothing but the master's answers."""
        task = Deferred.fromCoroutine(work)
        self.agent.flush()
        return self.successResultOf(task)

    def fail(self, work: Coroutine[Any, Any, object], kind: type[Exception]) -> str:  # type: ignore[override]
        """The message of the error that a coroutine ends with."""
        task = Deferred.fromCoroutine(work)
        self.agent.flush()
        return str(self.failureResultOf(task, kind).value)

    def assert_clean(self) -> None:
        """No timer is left."""
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Methods(Case):
    """Every method sends what the contract says, and reads what it gets."""

    def test_list(self) -> None:
        """All instances in the master's order, without the one that stands for the key."""
        self.fake.add("aaaaaaaa", alias="web", tcprx=5)
        self.fake.add("bbbbbbbb")
        found = self.get(self.master.list())
        self.assertEqual([one.id for one in found], ["aaaaaaaa", "bbbbbbbb"])
        self.assertEqual((found[0].alias, found[0].tcprx, found[0].restart), ("web", 5, True))
        self.assertEqual(self.fake.requests, [("GET", "/api/v1/instances", None)])
        self.assert_clean()

    def test_create(self) -> None:
        """What is not given is not sent."""
        made = self.get(self.master.create("server://:1/:2"))
        self.get(self.master.create("server://:1/:2", "x"))
        self.assertEqual(made.url, "server://:1/:2")
        bodies = [body for _, _, body in self.fake.requests]
        self.assertEqual(
            bodies, [{"url": "server://:1/:2"}, {"url": "server://:1/:2", "alias": "x"}]
        )

    def test_restore(self) -> None:
        """Everything that an instance was elsewhere goes into one request."""
        meta = Meta(tags={"a": "b"})
        totals = {"tcprx": 1, "tcptx": 2, "udprx": 3, "udptx": 4}
        made = self.get(
            self.master.restore(
                "server://:1/:2", alias="x", id="cccccccc", restart=False, meta=meta, totals=totals
            )
        )
        self.assertEqual(
            (made.id, made.restart, made.meta, made.udptx), ("cccccccc", False, meta, 4)
        )
        body = self.fake.requests[0][2]
        self.assertEqual(set(body), {"url", "alias", "id", "restart", "meta", "totals"})
        self.assertEqual(body["totals"], totals)

    def test_changes(self) -> None:
        """A change sends what is given alone; tags and peer go into meta."""
        self.fake.add("aaaaaaaa")
        self.get(self.master.change("aaaaaaaa", alias="new", tags={}))
        self.get(self.master.change("aaaaaaaa", restart=False, peer={"sid": "1"}))
        for method in (
            self.master.start,
            self.master.stop,
            self.master.restart,
            self.master.reset,
        ):
            self.get(method("aaaaaaaa"))
        bodies = [body for _, _, body in self.fake.requests]
        self.assertEqual(bodies[0], {"alias": "new", "meta": {"tags": {}}})
        self.assertEqual(bodies[1], {"restart": False, "meta": {"peer": {"sid": "1"}}})
        actions = [body["action"] for body in bodies[2:]]
        self.assertEqual(actions, ["start", "stop", "restart", "reset"])
        self.assertEqual({uri for _, uri, _ in self.fake.requests}, {"/api/v1/instances/aaaaaaaa"})

    def test_replace_and_delete(self) -> None:
        """A new URL, the same one again, and the end; a 204 has no body to read."""
        self.fake.add("aaaaaaaa")
        self.assertEqual(
            self.get(self.master.replace("aaaaaaaa", "client://:3/:4")).url[:6], "client"
        )
        task = Deferred.fromCoroutine(self.master.replace("aaaaaaaa", "client://:3/:4"))
        error = self.failureResultOf(task, Refused).value
        self.assertEqual((error.status, error.reason), (409, "Instance URL conflict"))
        self.get(self.master.delete("aaaaaaaa"))
        self.fail(self.master.get("aaaaaaaa"), NotFound)
        self.assert_clean()

    def test_the_rest(self) -> None:
        """The master's figures and name, a ping, traffic and logs."""
        self.fake.add("aaaaaaaa")
        info = self.get(self.master.info())
        self.assertEqual((info.ver, info.cpu, info.swap_used, info.mid), ("v1.10.0", 7, 0, ""))
        self.get(self.master.set_alias("home"))
        self.assertEqual(self.fake.requests[-1], ("POST", "/api/v1/info", {"alias": "home"}))
        ping = self.get(self.master.tcping("h:1"))
        self.assertEqual((ping.target, ping.connected, ping.error), ("h:1", True, None))
        traffic = self.get(self.master.traffic("aaaaaaaa", since=1, step=60))
        self.assertEqual(traffic.points, [(100, 1, 2, 3, 4)])
        self.assertIn("traffic?since=1&step=60", self.fake.requests[-1][1])
        self.assertEqual(self.get(self.master.logs("aaaaaaaa", 5)), self.fake.lines)
        self.assertIn("logs?lines=5", self.fake.requests[-1][1])

    def test_rotate_key(self) -> None:
        """The new key is returned, and used by the same client from then on."""
        new = self.get(self.master.rotate_key())
        self.assertEqual(self.fake.requests[0][:2], ("PATCH", "/api/v1/instances/********"))
        self.assertEqual((new, self.master.key), ("f" * 32, "f" * 32))
        self.get(self.master.list())

    def test_wrong_key(self) -> None:
        """A key that is not the master's is told as such, and nothing of it is shown."""
        message = self.fail(self.client("geheim").list(), WrongKey)
        self.assertNotIn("geheim", message)

    def test_unusable_keys(self) -> None:
        """What could not stand in a header never gets there."""
        for key in ("a b", "a\nX-Other: b", "\xe4"):
            with pytest.raises(ConfigError):
                self.client(key)

    def test_not_a_master(self) -> None:
        """A web page with status 200 is no answer."""
        self.fake.answers["/api/v1/instances"] = (200, "text/html; charset=utf-8", b"<html>hi")
        self.fail(self.master.list(), NotAMaster)
        self.fake.answers["/api/v1/info"] = (200, "application/json", b'{"cpu":"much"}')
        self.assertIn("cpu", self.fail(self.master.info(), BadAnswer))

    def test_large_answers(self) -> None:
        """An answer without end is not read to it; of a refusal the beginning will do."""
        self.patch(http, "MOST_ANSWER", 1 << 20)
        self.fake.answers["/api/v1/instances"] = (200, "application/json", b" " * (2 << 20))
        self.assertIn("1 MiB", self.fail(self.master.list(), BadAnswer))
        self.fake.answers["/api/v1/instances"] = (404, "text/plain", b" " * (2 << 20))
        self.fail(self.master.list(), NotAMaster)
        self.assert_clean()

    def test_no_answer_in_time(self) -> None:
        """A master that says nothing, or stops in the middle, is given up."""
        self.fake._route = lambda *_: 1  # type: ignore[assignment, method-assign]
        task = Deferred.fromCoroutine(self.master.list())
        self.clock.advance(http.ANSWER_TIMEOUT)
        self.failureResultOf(task, Silent)

        self.fake._route = lambda request, *_: self.fake._stream(request, b"[")  # type: ignore[assignment, method-assign]
        task = Deferred.fromCoroutine(self.master.list())
        self.agent.flush()
        self.clock.advance(http.ANSWER_TIMEOUT)
        self.failureResultOf(task, Silent)
        self.assert_clean()

    def test_cancelled(self) -> None:
        """Who gives up gets a cancellation, not an error of the network."""
        self.fake._route = lambda *_: 1  # type: ignore[assignment, method-assign]
        task = Deferred.fromCoroutine(self.master.list())
        task.cancel()
        self.failureResultOf(task, CancelledError)
        self.assert_clean()


class GoMaster(Case):
    """Masters of the Go implementation have no logs, no traffic, and fewer members."""

    ours = False

    def test_list(self) -> None:
        """Missing members get their defaults."""
        self.fake.add("aaaaaaaa", tags=[{"key": "a", "value": "b"}], meta=None)
        [one] = self.get(self.master.list())
        self.assertEqual((one.meta, one.config), (Meta(tags={"a": "b"}), ""))

    def test_missing_features(self) -> None:
        """It is the master that lacks them, unless there is no such instance either."""
        self.fake.add("aaaaaaaa")
        self.fail(self.master.logs("aaaaaaaa"), MissingFeature)
        self.fail(self.master.traffic("aaaaaaaa"), MissingFeature)
        self.fail(self.master.logs("bbbbbbbb"), NotFound)
        reader = Reader(self.master.follow("aaaaaaaa"))
        assert isinstance(reader.error, MissingFeature)

    def test_events(self) -> None:
        """All events come, and those not asked for are left out here."""
        self.fake.add("aaaaaaaa")
        self.fake.add("bbbbbbbb")
        reader = Reader(self.master.events(types=["update"], instance="bbbbbbbb"))
        self.agent.flush()
        for type, id in (("update", "aaaaaaaa"), ("log", "bbbbbbbb"), ("update", "bbbbbbbb")):
            self.fake.event(type, id)
        self.agent.flush()
        self.assertEqual([event.instance.id for event in reader.items], ["bbbbbbbb"])
        # It sends no comments, so that silence says nothing.
        self.assert_clean()


class Follow(Case):
    """A followed log."""

    def setUp(self) -> None:
        super().setUp()
        self.fake.add("aaaaaaaa")
        self.reader = Reader(self.master.follow("aaaaaaaa", 3))
        self.agent.flush()

    def test_lines(self) -> None:
        """Lines come whole, however the bytes are cut, and the last one need not have an end."""
        self.assertIn("logs?follow=1&lines=3", self.fake.requests[0][1])
        for part in (b"caf\xc3", b"\xa9\nb\n", b"\nlast"):
            self.fake.send(part)
            self.agent.flush()
        self.fake.streams[0].finish()
        self.agent.flush()
        self.assertEqual(self.reader.items, [*self.fake.lines, "caf\xe9", "b", "", "last"])
        self.assertTrue(self.reader.ended)

    def test_cut(self) -> None:
        """A lost connection is not an end."""
        self.fake.streams[0].transport.loseConnection()
        self.agent.flush()
        assert isinstance(self.reader.error, Cut)

    def test_endless_line(self) -> None:
        """A line that does not end is an error rather than memory, and closes the connection."""
        self.patch(master, "MOST_LINE", 100)
        self.fake.send(b"x" * 101)
        self.agent.flush()
        assert isinstance(self.reader.error, BadAnswer)
        self.agent.flush()
        self.assertEqual(self.fake.streams, [])

    def test_stopped(self) -> None:
        """Who stops reading closes the connection."""
        self.reader.task.cancel()
        self.agent.flush()
        self.assertEqual(self.fake.streams, [])


class Events(Case):
    """The event stream."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(master.random, "random", lambda: 0.0)
        self.fake.add("aaaaaaaa")
        self.losses: list[tuple[MasterError, float]] = []

    def read(self, **arguments: Any) -> Reader:
        reader = Reader(
            self.master.events(on_loss=lambda *loss: self.losses.append(loss), **arguments)
        )
        self.agent.flush()
        return reader

    def cut(self) -> None:
        """The connection is lost."""
        self.fake.streams[0].transport.loseConnection()
        self.agent.flush()

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)
        self.agent.flush()

    def test_filters(self) -> None:
        """Filters are asked of the master."""
        self.read(types=["update", "log"], instance="aaaaaaaa")
        uri = self.fake.requests[0][1]
        self.assertIn("types=log%2Cupdate", uri)
        self.assertIn("instance=aaaaaaaa", uri)
        self.assertIn("resume=1", uri)

    def test_resumed(self) -> None:
        """A lost stream is asked for again after the time that the master named, by the last id."""
        reader = self.read()
        self.fake.event("initial", "aaaaaaaa", number="6")
        self.fake.event("update", "aaaaaaaa", number="7")
        self.agent.flush()
        self.cut()
        self.assertEqual([round(delay, 1) for _, delay in self.losses], [3.0])
        self.wait(2.9)
        self.assertEqual(self.fake.streams, [])
        self.wait(0.2)
        self.assertEqual(self.fake.headers[-1].getRawHeaders("Last-Event-ID"), ["7"])
        self.assertIsNone(self.fake.headers[0].getRawHeaders("Last-Event-ID"))
        self.fake.event("delete", "aaaaaaaa", number="8")
        self.agent.flush()
        self.assertEqual([event.type for event in reader.items], ["initial", "update", "delete"])

    def test_not_resumed(self) -> None:
        """Whoever wants the state anew says so."""
        self.read(resume=False)
        self.fake.event("initial", "aaaaaaaa", number="6")
        self.agent.flush()
        self.cut()
        self.wait(4)
        self.assertEqual(len(self.fake.requests), 2)
        self.assertIsNone(self.fake.headers[-1].getRawHeaders("Last-Event-ID"))

    def test_back_off(self) -> None:
        """Each failure doubles the pause, up to a bound, and an event ends the row of failures."""
        self.read()
        self.fake.answers["/api/v1/events"] = (502, "text/html", b"")
        self.cut()
        for _ in range(6):
            self.wait(self.losses[-1][1])
        self.assertEqual([delay for _, delay in self.losses], [3, 6, 12, 24, 30, 30, 30])
        self.fake.answers.clear()
        self.wait(30)
        self.fake.event("update", "aaaaaaaa")
        self.agent.flush()
        self.cut()
        self.assertEqual(self.losses[-1][1], 3)

    def test_clean_end(self) -> None:
        """After a shutdown, a master that is started again is found again."""
        reader = self.read()
        self.fake.event("shutdown")
        self.fake.streams[0].finish()
        self.agent.flush()
        self.assertEqual(
            [(event.type, event.instance) for event in reader.items], [("shutdown", None)]
        )
        self.wait(3)
        self.assertEqual(len(self.fake.streams), 1)

    def test_key_no_longer_right(self) -> None:
        """What trying again can't mend ends the events."""
        reader = self.read()
        self.fake.key = "other"
        self.cut()
        self.wait(3)
        assert isinstance(reader.error, WrongKey)

    def test_first_connection(self) -> None:
        """The first failure is told at once."""
        self.fake.answers["/api/v1/events"] = (503, "application/json", b'{"error":"full"}')
        reader = self.read()
        assert isinstance(reader.error, MasterError)
        self.assertIn("full", str(reader.error))
        self.assertEqual(self.losses, [])

    def test_silence(self) -> None:
        """A master that sends comments, and then none, is lost."""
        self.read()
        self.fake.send(b": \n")
        self.agent.flush()
        self.wait(40)
        self.fake.send(b": \n")
        self.agent.flush()
        self.wait(40)
        self.assertEqual(self.losses, [])
        self.wait(5)
        [(error, _)] = self.losses
        assert isinstance(error, Silent)
        self.assertEqual(self.fake.streams, [])

    def test_silence_without_resuming(self) -> None:
        """Ids are asked for even where nothing is resumed: they show a master whose silence counts.

        One whose checkpoints come every few seconds never sends a comment.
        """
        self.read(resume=False)
        self.assertIn("resume=1", self.fake.requests[-1][1])
        self.fake.event("initial", "aaaaaaaa", number="6")
        self.agent.flush()
        for _ in range(2):
            self.wait(master.STREAM_SILENCE)
            assert isinstance(self.losses[-1][0], Silent)
            # The next connection may be dead before its first event.
            self.wait(self.losses[-1][1])
            self.assertEqual(len(self.fake.streams), 1)
        self.assertEqual(len(self.losses), 2)

    def test_no_pause(self) -> None:
        """A master that asks for no pause before the next try gets one all the same."""
        self.read()
        for _ in range(2):
            self.fake.send(b"retry: 0\n\n")
            self.agent.flush()
            self.cut()
            self.wait(0.9)
            self.assertEqual(self.fake.streams, [])
            self.wait(1.1)
        self.assertEqual([delay for _, delay in self.losses], [1.0, 2.0])

    def test_no_stream(self) -> None:
        """Another page at that place is not waited for."""
        self.fake.answers["/api/v1/events"] = (200, "text/html", b"<html>")
        assert isinstance(self.read().error, NotAMaster)

    def test_nonsense(self) -> None:
        """An event that can't be read ends the events, and the connection."""
        reader = self.read()
        self.fake.send(b"data: {]\n\n")
        self.agent.flush()
        assert isinstance(reader.error, BadAnswer)
        self.agent.flush()
        self.assertEqual(self.fake.streams, [])
        self.assert_clean()

    def test_stopped(self) -> None:
        """Who stops reading closes the connection and leaves no timer."""
        reader = self.read()
        self.fake.send(b": \n")
        self.agent.flush()
        reader.task.cancel()
        self.agent.flush()
        self.assertEqual(self.fake.streams, [])
        self.assert_clean()


class Ahead(Case):
    """A reader that is slower than the master."""

    def test_paused(self) -> None:
        """Beyond a bound the connection is no longer read, until the reader has caught up."""
        calls: list[str] = []

        class Transport:
            def pauseProducing(self) -> None:
                calls.append("pause")

            def resumeProducing(self) -> None:
                calls.append("resume")

        body = http.Body(parse_address("http://m:1"), "")
        body.makeConnection(Transport())  # type: ignore[arg-type]
        for _ in range(3):
            body.dataReceived(b"x" * (http.STREAM_AHEAD // 2))
        self.assertEqual(calls, ["pause"])
        self.assertEqual(len(self.get(body.read())), http.STREAM_AHEAD // 2 * 3)
        self.assertEqual(calls, ["pause", "resume"])


def test_reading() -> None:
    """Nulls and missing members get defaults at any depth; an unknown load is not an idle one."""
    one = read(b'{"id":"a","alias":null,"meta":{"peer":null,"tags":null},"new":{}}', Instance)
    assert one == Instance(id="a")
    assert read_list(b"null", Instance) == []
    assert read(b"{}", Info).cpu == -1
    assert read(b'{"connected":false}', Tcping).error is None
    event = read('{"type":"log","instance":{"id":"a","tags":[{"key":"k","value":"v"}]}}', Event)
    assert event.instance is not None and event.instance.meta.tags == {"k": "v"}
    assert (event.logs, event.time) == ("", "")


@pytest.mark.parametrize("body", [b"[1]", b"{}", b'"x"', b"{", b'[{"id":5}]', b'[{"alias":"x"}]'])
def test_not_instances(body: bytes) -> None:
    """What is no list of instances is said to be none."""
    with pytest.raises(msgspec.DecodeError):
        read_list(body, Instance)


def test_fingerprints() -> None:
    """A fingerprint can be given as tools print it."""
    digits = "0123456789abcdef" * 4
    colons = ":".join(digits[at : at + 2] for at in range(0, 64, 2)).upper()
    for text in (digits, colons, f"sha256:{digits}", f" SHA256={colons} ", f"SHA-256:{digits}"):
        assert parse_fingerprint(text) == bytes.fromhex(digits)
    for text in ("", digits[:-1], digits + "0", "x" * 64):
        with pytest.raises(ConfigError, match="64 hex digits"):
            parse_fingerprint(text)


def test_trust_needs_tls() -> None:
    """A pin for an address without TLS is an error, not a false comfort."""
    with pytest.raises(ConfigError, match="write https"):
        MasterClient("http://h:1", KEY, trust=Trust(fingerprint=bytes(32)), reactor=Clock())


def test_unix_sockets() -> None:
    """The socket of an address is what is connected to, and a system without them is told."""
    reactor = MemoryReactorClock()
    client = MasterClient("unix:%2Frun%2Fa.sock/np", KEY, reactor=reactor)
    task = Deferred.fromCoroutine(client.list())
    [(path, factory, _, _)] = reactor.unixClients
    assert path == "/run/a.sock"
    transport = StringTransport()
    factory.buildProtocol(None).makeConnection(transport)
    assert transport.value().startswith(b"GET /np/v1/instances HTTP/1.1\r\n")
    assert b"Host: localhost\r\n" in transport.value()
    task.addErrback(lambda failure: failure.trap(CancelledError))
    task.cancel()
    with pytest.raises(ConfigError, match="no Unix sockets"):
        MasterClient("unix:%2Frun%2Fa.sock", KEY, reactor=Clock())
