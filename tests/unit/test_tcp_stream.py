"""TCP connections as streams: their start, their two orders of end, resets, and targets dialed."""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from nodepass.relay import hangup
from nodepass.relay.dialed import DIAL_BUFFER, DialedStream
from nodepass.relay.hangup import LOOK_INTERVAL, HangupWatch
from nodepass.relay.stream import Cause
from nodepass.relay.tcp import TcpStream
from tests.streams import NotingSink


class FakeSocket:
    """Notes the options that are set; `error` is what the system says of the connection."""

    def __init__(self) -> None:
        self.options: dict[tuple[int, int], Any] = {}
        self.error = 0

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        self.options[level, name] = value

    def getsockopt(self, level: int, name: int) -> int:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error


class FakeTransport:
    """A TCP transport that does nothing by itself."""

    def __init__(self, protocol: TcpStream, fd: int = 7) -> None:
        self.protocol = protocol
        self.socket = FakeSocket()
        self.fd = fd
        self.sent = b""
        self.reading = True
        self.closing = ""
        self.half_closed = False
        self.producer: Any = None
        self.no_delay = self.keep_alive = False
        protocol.makeConnection(self)  # type: ignore[arg-type]

    def getHandle(self) -> FakeSocket:
        return self.socket

    def fileno(self) -> int:
        return self.fd

    def setTcpNoDelay(self, on: bool) -> None:
        self.no_delay = on

    def setTcpKeepAlive(self, on: bool) -> None:
        self.keep_alive = on

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming and self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "written to after the half-close"
        self.sent += data

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = not self.closing

    def loseWriteConnection(self) -> None:
        assert self.producer is None, "a producer keeps the connection open"
        self.half_closed = True

    def loseConnection(self) -> None:
        self.closing = self.closing or "close"

    def abortConnection(self) -> None:
        self.closing = "abort"
        self.reading = False

    # Played by the test

    def all_has_left(self) -> None:
        """The half-close has left."""
        assert self.half_closed
        self.protocol.writeConnectionLost()

    def lose(self, reason: Exception | None = None) -> None:
        """The connection is gone."""
        if reason is None:
            reason = ConnectionAborted() if self.closing == "abort" else ConnectionDone()
        self.protocol.connectionLost(Failure(reason))


class Case:
    """A stream on a double of a transport."""

    def __init__(self, sink: bool = True) -> None:
        self.clock = Clock()
        self.watch = HangupWatch(self.clock)
        self.stream = TcpStream(self.watch)
        self.transport = FakeTransport(self.stream)
        self.sink = NotingSink()
        if sink:
            self.stream.attach(self.sink)

    @property
    def watched(self) -> bool:
        """Whether the socket is looked after."""
        return self.transport.fd in self.watch._watched

    @property
    def lingers(self) -> bool:
        """Whether closing the socket sends what is left rather than a reset."""
        option = self.transport.socket.options[socket.SOL_SOCKET, socket.SO_LINGER]
        return bool(struct.unpack("ii", option)[0] == 0)


def test_a_connection_is_tuned() -> None:
    """No delay, keep-alive, and a process that is killed resets rather than ends it."""
    case = Case()
    options = case.transport.socket.options
    assert case.transport.no_delay and case.transport.keep_alive
    assert options[socket.IPPROTO_TCP, socket.TCP_KEEPIDLE] == 15
    assert options[socket.IPPROTO_TCP, socket.TCP_KEEPINTVL] == 5
    assert options[socket.IPPROTO_TCP, socket.TCP_KEEPCNT] == 3
    assert not case.lingers


def test_it_starts_paused_and_watched() -> None:
    """Nothing is read before the first resume, yet a reset is noticed."""
    case = Case()
    assert not case.transport.reading and case.watched
    case.stream.resume()
    assert case.transport.reading and not case.watched
    case.stream.pause()
    assert not case.transport.reading and case.watched


def test_bytes_go_through() -> None:
    """What comes is handed over, what is written is sent."""
    case = Case()
    case.stream.dataReceived(b"in")
    case.stream.write(b"out")
    assert (case.sink.data, case.transport.sent) == (b"in", b"out")


def test_back_pressure_is_passed_on() -> None:
    """The transport's producer calls become congested and drained."""
    case = Case()
    case.transport.producer.pauseProducing()
    case.transport.producer.resumeProducing()
    assert case.sink.heard == ["congested", "drained"]


@pytest.mark.parametrize("order", ["read first", "write first"])
def test_both_orders_of_the_end(order: str) -> None:
    """The connection is closed once both directions are done, and closed in order."""
    case = Case()
    case.stream.resume()
    if order == "read first":
        case.stream.readConnectionLost()
        case.stream.finish()
        assert not case.transport.closing
        case.transport.all_has_left()
    else:
        case.stream.finish()
        case.transport.all_has_left()
        assert not case.transport.closing
        case.stream.readConnectionLost()
    assert case.transport.closing == "close"
    assert case.lingers
    case.transport.lose()
    assert case.sink.heard == ["ended", ("closed", None)]
    assert not case.watched


def test_a_cut_before_the_last_byte_left_is_a_reset() -> None:
    """Both ends may be done with it: while bytes wait, losing the connection loses them."""
    case = Case()
    case.stream.write(b"last words")
    case.stream.readConnectionLost()
    case.stream.finish()
    assert not case.lingers
    case.transport.lose()
    assert case.sink.heard == ["ended", ("closed", Cause.RESET)]


@pytest.mark.parametrize("reason", [ConnectionLost(), ConnectionDone()], ids=repr)
def test_a_lost_connection_is_a_reset(reason: Exception) -> None:
    """Whatever ends a connection before both directions are done resets the stream."""
    case = Case()
    case.transport.lose(reason)
    assert case.sink.heard == [("closed", Cause.RESET)]
    assert not case.watched


def test_finish_is_done_once() -> None:
    """A second finish, or one after the end, does nothing."""
    case = Case()
    case.stream.finish()
    case.stream.finish()
    case.transport.lose()
    case.stream.finish()
    assert case.transport.half_closed


def test_abort() -> None:
    """The connection is reset at once, and the sink hears nothing of it."""
    case = Case()
    case.stream.abort(Cause.STOPPED)
    case.stream.abort(Cause.STOPPED)
    assert case.transport.closing == "abort"
    assert not case.watched
    case.transport.lose()
    assert case.sink.heard == []


def test_a_connection_lost_before_anybody_listened() -> None:
    """Who attaches later is told."""
    case = Case(sink=False)
    case.transport.lose(ConnectionLost())
    case.stream.attach(case.sink)
    assert case.sink.heard == [("closed", Cause.RESET)]
    assert case.stream.gone


def test_nothing_is_asked_of_a_connection_that_is_gone() -> None:
    """Late calls do no harm."""
    case = Case()
    case.transport.lose()
    case.transport.reading = False
    for call in (case.stream.pause, case.stream.resume, case.stream.finish):
        call()
    case.stream.abort(Cause.RESET)
    assert not case.transport.reading and not case.watched and not case.transport.closing


def test_a_reset_while_paused_is_noticed() -> None:
    """What the watch finds resets the stream once."""
    case = Case()
    case.watch._watched[case.transport.fd]()
    assert case.transport.closing == "abort"
    case.transport.lose()
    assert case.sink.heard == [("closed", Cause.RESET)]


def test_a_reset_that_the_reactor_takes_for_an_end() -> None:
    """An end of input on a socket that has an error is a reset, and no end is passed on."""
    case = Case()
    case.stream.resume()
    case.transport.socket.error = errno.ECONNRESET
    case.stream.readConnectionLost()
    assert case.transport.closing == "abort"
    case.transport.lose()
    assert case.sink.heard == [("closed", Cause.RESET)]
    assert not case.watched


def test_a_reset_after_the_end_of_input_is_noticed() -> None:
    """A socket that was read to its end is no longer read, so it is watched."""
    case = Case()
    case.stream.resume()
    case.stream.readConnectionLost()
    assert case.watched
    case.stream.resume()
    assert case.watched, "there is nothing to read any more"


# The watch, with sockets of the system's own.


@pytest.fixture
def sockets() -> Any:
    """A connected pair."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    yield one, two
    one.close()
    two.close()


def reset(one: socket.socket, two: socket.socket) -> None:
    """End a connection with a reset that has arrived at its other end."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    poller = select.poll()
    poller.register(two, 0)
    assert poller.poll(10_000)


def test_the_watch_sees_a_reset(sockets: Any) -> None:
    """The callback is called once, within an interval, and the timer ends with the last socket."""
    one, two = sockets
    clock, calls = Clock(), []
    watch = HangupWatch(clock)
    watch.add(two.fileno(), lambda: calls.append("reset"))
    clock.advance(LOOK_INTERVAL)
    assert calls == []
    reset(one, two)
    clock.advance(LOOK_INTERVAL)
    assert calls == ["reset"]
    clock.advance(LOOK_INTERVAL)
    assert calls == ["reset"]
    assert not clock.getDelayedCalls()


def test_the_watch_leaves_an_orderly_end_alone(sockets: Any) -> None:
    """A FIN, and bytes that wait behind a pause, are no reset."""
    one, two = sockets
    clock, calls = Clock(), []
    watch = HangupWatch(clock)
    watch.add(two.fileno(), lambda: calls.append("reset"))
    one.sendall(b"last words")
    one.shutdown(socket.SHUT_WR)
    two.shutdown(socket.SHUT_WR)
    clock.advance(LOOK_INTERVAL)
    assert calls == []
    watch.stop()
    assert not clock.getDelayedCalls()


def test_who_is_discarded_is_not_called(sockets: Any) -> None:
    """A socket that is read again, by itself or in another's callback, is let be."""
    one, two = sockets
    clock, calls = Clock(), []
    watch = HangupWatch(clock)
    other = two.dup()
    for fd, rest in ((two.fileno(), other.fileno()), (other.fileno(), two.fileno())):
        watch.add(fd, lambda rest=rest: (calls.append("reset"), watch.discard(rest)))
    reset(one, two)
    clock.advance(LOOK_INTERVAL)
    assert calls == ["reset"]
    other.close()


def test_without_poll_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the platform has no poll() there is no timer either; nor for a socket that is gone."""
    clock = Clock()
    HangupWatch(clock).add(-1, lambda: None)
    monkeypatch.setattr(hangup, "_HAS_POLL", False)
    HangupWatch(clock).add(5, lambda: None)
    assert not clock.getDelayedCalls()


# Targets.


class Dial:
    """A target that is being dialed."""

    def __init__(self, header: bytes | None = None, sink: bool = True) -> None:
        self.canceled = 0
        self.connecting: Deferred[TcpStream] = Deferred(self._cancel)
        self.stream = DialedStream(
            self.connecting,
            lambda failure: Cause.REFUSED,
            None if header is None else lambda stream: header,
        )
        self.sink = NotingSink()
        if sink:
            self.stream.attach(self.sink)
        self.case = Case(sink=False)

    def _cancel(self, _: object) -> None:
        self.canceled += 1

    def connect(self) -> FakeTransport:
        """The target answers."""
        self.connecting.callback(self.case.stream)
        return self.case.transport


def test_what_was_written_meanwhile_goes_first_and_in_order() -> None:
    """The header, then the held bytes, then what is written later."""
    dial = Dial(header=b"PROXY ")
    dial.stream.write(b"a")
    dial.stream.write(b"b")
    transport = dial.connect()
    dial.stream.write(b"c")
    assert transport.sent == b"PROXY abc"
    assert dial.sink.instead is dial.case.stream, "what goes on has nothing to pass through"


def test_a_finish_meanwhile_is_kept() -> None:
    """A visitor that sends and half-closes before the target is there."""
    dial = Dial()
    dial.stream.write(b"all")
    dial.stream.finish()
    transport = dial.connect()
    assert (transport.sent, transport.half_closed) == (b"all", True)


@pytest.mark.parametrize("resume", [True, False])
def test_reading_begins_as_it_was_asked_for(resume: bool) -> None:
    """Resume and pause before the connection count when it is there."""
    dial = Dial()
    dial.stream.resume()
    if not resume:
        dial.stream.pause()
    assert dial.connect().reading == resume


def test_what_is_held_is_bounded() -> None:
    """At the bound the writer is asked to wait, once, until the target is there."""
    dial = Dial()
    dial.stream.write(b"x" * (DIAL_BUFFER - 1))
    assert dial.sink.heard == []
    dial.stream.write(b"x")
    dial.stream.write(b"x")
    assert dial.sink.heard == ["congested"]
    dial.connect()
    assert dial.sink.heard == ["congested", "drained"]


@pytest.mark.parametrize("size", [1, DIAL_BUFFER])
def test_what_is_held_may_fill_the_socket(size: int) -> None:
    """A target that is slow from the start: the writer goes on only when all has left."""
    dial = Dial()
    stream, transport = dial.case.stream, dial.case.transport
    transport.write = lambda data: stream.pauseProducing()  # type: ignore[method-assign]
    dial.stream.write(b"x" * size)
    dial.connect()
    assert set(dial.sink.heard) == {"congested"}
    stream.resumeProducing()
    assert dial.sink.heard[-1] == "drained"


def test_a_failed_dial_closes_with_its_cause() -> None:
    """Whether somebody listens already or only later."""
    for early in (True, False):
        dial = Dial(sink=early)
        dial.connecting.errback(ConnectionLost())
        if not early:
            dial.stream.attach(dial.sink)
        assert dial.sink.heard == [("closed", Cause.REFUSED)]
        dial.stream.abort(Cause.RESET)


def test_abort_gives_up_dialing() -> None:
    """The dial is canceled, and nothing is told of it."""
    dial = Dial()
    dial.stream.write(b"x")
    dial.stream.abort(Cause.RESET)
    assert dial.canceled == 1
    assert dial.sink.heard == []


def test_abort_after_the_connection() -> None:
    """The connection itself is reset."""
    dial = Dial()
    transport = dial.connect()
    dial.stream.abort(Cause.RESET)
    assert transport.closing == "abort"


def test_a_target_that_is_gone_at_once() -> None:
    """The sink is told of the end, and of nothing after it."""
    dial = Dial()
    dial.stream.resume()
    dial.stream.write(b"x" * DIAL_BUFFER)
    dial.case.transport.lose(ConnectionLost())
    dial.connecting.callback(dial.case.stream)
    assert dial.sink.heard == ["congested", ("closed", Cause.RESET)]


def test_attached_after_the_connection() -> None:
    """Who listens late hears what comes from then on."""
    dial = Dial(sink=False)
    dial.connect()
    dial.stream.attach(dial.sink)
    dial.case.stream.dataReceived(b"x")
    assert dial.sink.heard == [b"x"]


class AnyOrder(RuleBasedStateMachine):
    """Whatever a program, the system and the session do, in any order: the sink asserts that
    nothing follows `closed`, the transport that nothing is written after the half-close."""

    @initialize()
    def begin(self) -> None:
        self.case = Case()
        self.lost = self.ended = self.left = self.aborted = False

    @rule(reading=st.booleans())
    def read(self, reading: bool) -> None:
        self.case.stream.resume() if reading else self.case.stream.pause()

    @rule()
    def finish(self) -> None:
        if not self.case.sink.over:
            self.case.stream.finish()

    @rule()
    def abort(self) -> None:
        self.aborted = self.aborted or not self.case.sink.over
        self.case.stream.abort(Cause.STOPPED)

    @rule(what=st.sampled_from(["data", "end", "left", "congest", "drain", "lose", "hangup"]))
    def happen(self, what: str) -> None:
        transport, stream = self.case.transport, self.case.stream
        if self.lost:
            return
        if what == "data" and transport.reading and not self.ended:
            stream.dataReceived(b"x")
        elif what == "end" and transport.reading and not self.ended:
            self.ended = True
            stream.readConnectionLost()
        elif what == "left" and transport.half_closed and not self.left and not transport.closing:
            self.left = True
            transport.all_has_left()
        elif what in ("congest", "drain") and transport.producer is not None:
            producer = transport.producer
            producer.pauseProducing() if what == "congest" else producer.resumeProducing()
        elif what == "lose":
            self.lost = True
            transport.lose()
        elif what == "hangup" and self.case.watched:
            self.case.watch._watched.pop(transport.fd)()

    @invariant()
    def it_ends_as_it_should(self) -> None:
        if not hasattr(self, "case"):
            return
        heard = self.case.sink.heard
        if self.lost:
            assert not self.case.watched
            clean = self.ended and self.left and self.case.transport.closing == "close"
            if not self.aborted:
                assert heard[-1] == ("closed", None if clean else Cause.RESET)
        if self.aborted:
            assert ("closed", None) not in heard
        if self.ended and self.left and not self.lost:
            assert self.case.transport.closing


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase
