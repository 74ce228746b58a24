"""TCP connects on request: what each outcome reads like, the bounds, and that nothing is left."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from nodepass.master.models import Tcping as Result
from nodepass.master.tcping import CONNECT_LIMIT, MOST_AT_ONCE, PATIENCE, Tcping


class TcpingTests(SynchronousTestCase):
    """`Tcping` on connections that succeed and fail when the test says so."""

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.tcping = Tcping(self.reactor, clock=self.reactor.seconds)
        self.tcping.start()

    def tearDown(self) -> None:
        """Nothing is left once it has stopped."""
        self.tcping.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.tcping._under_way, set())

    def accept(self, index: int) -> StringTransport:
        """Let one attempt get through."""
        protocol = self.reactor.tcpClients[index][2].buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        return transport

    def refuse(self, index: int) -> None:
        """Let one attempt fail."""
        factory = self.reactor.tcpClients[index][2]
        factory.clientConnectionFailed(
            self.reactor.connectors[index], Failure(ConnectionRefusedError())
        )

    def test_connected(self) -> None:
        """The latency is the connect's, in ms, and the connection is given up at once."""
        asked = self.tcping.ping("192.0.2.1:80")
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 80))
        self.reactor.advance(0.0125)
        transport = self.accept(0)
        self.assertEqual(
            self.successResultOf(asked),
            Result(target="192.0.2.1:80", connected=True, latency=12, error=None),
        )
        self.assertTrue(transport.disconnected)

    def test_no_address(self) -> None:
        """What can't be dialed is told with what can."""
        for target, error in (
            ("192.0.2.1", "the port is missing; accepted: host:port"),
            ("192.0.2.1:0", "port 0 can't be dialed; accepted: 1 to 65535"),
            ("192.0.2.1:x", "the port must be a number from 1 to 65535"),
        ):
            found = self.successResultOf(self.tcping.ping(target))
            self.assertEqual((found.connected, found.error), (False, error))
        self.assertEqual(self.reactor.tcpClients, [])

    def test_a_fast_connect_takes_a_millisecond(self) -> None:
        """0 stands for no connection, so the least latency is 1."""
        asked = self.tcping.ping("[2001:db8::1]:80")
        self.accept(0)
        self.assertEqual(self.successResultOf(asked).latency, 1)

    def test_refused(self) -> None:
        """A refusal is an answer, with its cause."""
        asked = self.tcping.ping("192.0.2.1:80")
        self.refuse(0)
        self.assertEqual(
            self.successResultOf(asked),
            Result(target="192.0.2.1:80", connected=False, latency=0, error="refused"),
        )

    def test_no_answer(self) -> None:
        """A target that is silent is given up after the limit."""
        asked = self.tcping.ping("192.0.2.1:80")
        self.reactor.pump([1] * int(CONNECT_LIMIT))
        result = self.successResultOf(asked)
        self.assertEqual((result.connected, result.latency, result.error), (False, 0, "timed out"))

    def test_targets_that_are_none(self) -> None:
        """Text that is no target is answered with what is wrong with it, and nothing is dialed."""
        for target in ("nonsense", "host:", "host:99999", "a b:80", "::1:80", "host:0"):
            result = self.successResultOf(self.tcping.ping(target))
            self.assertEqual((result.target, result.connected), (target, False))
            self.assertTrue(result.error)
        self.assertEqual(self.reactor.tcpClients, [])

    def test_too_many(self) -> None:
        """Ten are under way at once; another one waits for a place, and not for long."""
        asked = [self.tcping.ping(f"192.0.2.1:{port}") for port in range(1, MOST_AT_ONCE + 3)]
        self.assertEqual(len(self.reactor.tcpClients), MOST_AT_ONCE)
        self.reactor.advance(PATIENCE / 2)
        self.refuse(0)
        # The first that waited has got the place.
        self.assertEqual(len(self.reactor.tcpClients), MOST_AT_ONCE + 1)
        self.reactor.advance(PATIENCE / 2)
        self.assertEqual(
            self.successResultOf(asked[-1]),
            Result(target="192.0.2.1:12", connected=False, latency=0, error="too many requests"),
        )
        self.assertNoResult(asked[-2])
        self.tcping.stop()
        for each in asked[1:-1]:
            self.assertEqual(self.successResultOf(each).error, "the master stops")

    def test_places_come_back(self) -> None:
        """After as many outcomes of each kind as there are places, there are as many again."""
        for round in range(2):
            first = len(self.reactor.tcpClients)
            asked = [self.tcping.ping("192.0.2.1:80") for _ in range(MOST_AT_ONCE)]
            self.assertEqual(len(self.reactor.tcpClients), first + MOST_AT_ONCE, round)
            for index in range(4):
                self.accept(first + index)
                self.refuse(first + 4 + index)
            asked[8].cancel()
            self.failureResultOf(asked[8], CancelledError)
            self.reactor.pump([1] * int(CONNECT_LIMIT))
            for each in asked[:8] + asked[9:]:
                self.successResultOf(each)

    def test_cancelled(self) -> None:
        """A request whose asker has gone ends its connect, or its wait for a place."""
        asked = [self.tcping.ping("192.0.2.1:80") for _ in range(MOST_AT_ONCE + 1)]
        for each in reversed(asked):
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Stopping ends connects and those that wait for a place, with an answer that says so, and
        none begins after it."""
        asked = [self.tcping.ping("192.0.2.1:80") for _ in range(MOST_AT_ONCE + 2)]
        self.tcping.stop()
        begun = len(self.reactor.tcpClients)
        asked.append(self.tcping.ping("192.0.2.1:80"))
        for each in asked:
            self.assertEqual(
                self.successResultOf(each),
                Result(target="192.0.2.1:80", connected=False, latency=0, error="the master stops"),
            )
        self.assertEqual(len(self.reactor.tcpClients), begun)


@pytest.mark.parametrize("target", ["no-such-host.invalid:80"])
def test_names_are_not_looked_up_once_stopped(target: str) -> None:
    """A name asked for after the stop is not found, rather than looked up."""
    tcping = Tcping(MemoryReactorClock())  # type: ignore[arg-type]
    results: list[Result] = []
    tcping.ping(target).addCallback(results.append)
    assert results[0].error == "name not found"
