"""The parts of simulated old nodes that need no sockets: idle links, and 1.6's lines."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from nodepass.address import Endpoint
from nodepass.testing import Dialect, OldTiming
from nodepass.testing.conn import Conn
from nodepass.testing.oldlines import BadLine, PlainReader, write_plain
from nodepass.testing.oldpool import NoLink, OldPool, ReusingPool
from nodepass.testing.tasks import Silence, Tasks
from nodepass.wire.old.signals import Flush, Launch, Ping, Pong

VISITOR = Endpoint("10.0.0.1", 40000)


class Link:
    """As much of a connection as a pool asks for."""

    def __init__(self, clock: Clock) -> None:
        self.gone = False
        self.left = [b"left over"]
        self._clock = clock

    def close(self) -> None:
        self.gone = True

    async def read(self, limit: int, timeout: float) -> bytes:
        if self.left:
            return self.left.pop()
        await Tasks(self._clock).sleep(timeout)
        raise Silence


class OldPoolTests(SynchronousTestCase):
    """Links in a table, numbers in a queue."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.timing = OldTiming.of(Dialect.V1_14)
        self.pool = OldPool(self.clock, self.timing, 3)

    def add(self, number: str) -> Link:
        link = Link(self.clock)
        self.pool.add(number, cast(Conn, link))
        return link

    def begin(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def test_numbers_are_taken_in_their_order(self) -> None:
        """Who wants any link gets the one that came first."""
        first, second = self.add("a"), self.add("b")
        assert self.successResultOf(self.begin(self.pool.next())) == ("a", first)
        assert self.successResultOf(self.begin(self.pool.next())) == ("b", second)

    def test_a_full_pool_closes_what_comes(self) -> None:
        """More idle links than it may have are closed."""
        links = [self.add(number) for number in "abcd"]
        assert [link.gone for link in links] == [False, False, False, True]

    def test_a_number_takes_another_from_the_queue(self) -> None:
        """Who wants one link by its number leaves another behind that nobody will take."""
        self.add("a")
        last = self.add("b")
        assert self.successResultOf(self.begin(self.pool.by_number("b"))) is last
        assert self.pool.active == 1
        taking = self.begin(self.pool.next())
        self.assertNoResult(taking)
        assert self.pool.active == 0 and list(self.pool.links) == ["a"]
        self.clock.pump([0.5] * 11)
        self.failureResultOf(taking, NoLink)

    def test_a_link_without_a_number_waits_for_one(self) -> None:
        """When no number is left, not even the link that is there is given."""
        self.add("a"), self.add("b")
        self.successResultOf(self.begin(self.pool.by_number("b")))
        self.begin(self.pool.next()).addErrback(lambda _: None)  # takes "b", whose link is gone
        taking = self.begin(self.pool.by_number("a"))
        self.clock.pump([0.5] * 20)
        self.assertNoResult(taking)
        self.add("c")
        assert not self.successResultOf(taking).gone

    def test_a_link_on_its_way_is_awaited(self) -> None:
        """A launch may overtake the number of its link, by as much as five seconds."""
        taking = self.begin(self.pool.by_number("a"))
        self.clock.pump([0.5] * 9)
        link = self.add("a")
        self.clock.advance(0.05)
        assert self.successResultOf(taking) is link
        taking = self.begin(self.pool.by_number("b"))
        self.clock.pump([0.1] * 52)
        self.failureResultOf(taking, NoLink)

    def test_a_flush_closes_all(self) -> None:
        """After a flush the pool is empty, and whoever waited for a link waits in vain."""
        links = [self.add("a"), self.add("b")]
        self.pool.errors = 2
        self.pool.flush()
        assert all(link.gone for link in links)
        assert (self.pool.active, self.pool.links, self.pool.errors) == (0, {}, 0)


class ReusingPoolTests(SynchronousTestCase):
    """Links that come back."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.tasks = Tasks(self.clock)
        self.pool = ReusingPool(self.clock, OldTiming.of(Dialect.V1_6), 3, self.tasks)

    def test_a_link_on_its_way_is_not_awaited(self) -> None:
        """A launch that overtakes the number of its link fails."""
        self.failureResultOf(Deferred.fromCoroutine(self.pool.by_number("a")), NoLink)

    def test_a_used_link_is_idle_again(self) -> None:
        """It is emptied until it has been silent for an interval, and keeps its number."""
        link = Link(self.clock)
        self.pool.done("a", cast(Conn, link))
        self.clock.advance(4.9)
        assert self.pool.links == {}
        self.clock.advance(0.2)
        assert list(self.pool.links) == ["a"] and self.pool.active == 0
        self.clock.advance(0.1)
        assert self.pool.active == 1
        assert self.successResultOf(Deferred.fromCoroutine(self.pool.next())) == ("a", link)


def test_plain_lines() -> None:
    """Signals survive, however the bytes are cut."""
    key = b"HARMLESS"
    signals = [Ping(), Launch(False, VISITOR, "00ff00ff"), Pong(), Launch(True, None, "a" * 8)]
    signals += [Launch(False, Endpoint("fe80::1", 9), "12345678"), Flush()]
    data = b"".join(write_plain(signal, key) for signal in signals)
    reader = PlainReader(key)
    assert [each for byte in data for each in reader.feed(bytes([byte]))] == signals
    assert PlainReader(key).feed(data) == signals


def test_a_broken_line_ends_the_tunnel() -> None:
    """A line feed that the XOR makes is not written around, and its reader gives up."""
    line = write_plain(Ping(), b")")  # "#" ^ ")" is a line feed
    assert line.count(b"\n") == 2
    key = b"dABCDEFG"  # "n" ^ "d" is one too; the rest of the line meets the wrong part of the key
    with pytest.raises(BadLine):
        PlainReader(key).feed(write_plain(Launch(False, VISITOR, "00ff00ff"), key))


def test_times() -> None:
    """1.6 waits longer for some things; all can be made faster."""
    assert OldTiming.of(Dialect.V1_14) == OldTiming.of(Dialect.V2_0) == OldTiming()
    assert OldTiming.of(Dialect.V1_6).pool_get == 30
    assert OldTiming.of(Dialect.V1_6).faster(10).pool_get == 3
