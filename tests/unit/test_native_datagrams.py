"""Flows on a data link: what leaves together, and what becomes of them when it is backed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from nodepass.address import Endpoint
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause
from nodepass.wire import Opening
from nodepass.wire.native.datagrams import (
    BACKLOG_BYTES,
    GATHERED_BYTES,
    HELD_BYTES,
    HELD_DATAGRAMS,
    DatagramLink,
    FlowCarrier,
    FlowChannel,
)
from nodepass.wire.native.datalink import DataLink
from tests.loopback import connect, flush


def opening(port: int) -> Opening:
    """A visitor's, told apart by its port."""
    return Opening(visitor=Endpoint("192.0.2.1", port), local=Endpoint("192.0.2.2", 2))


class Heard:
    """A flow's sink."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.closings: list[Cause | None] = []

    @property
    def all(self) -> list[bytes]:
        """All of them."""
        return [data for batch in self.batches for data in batch]

    def datagrams(self, batch: list[bytes]) -> None:
        self.batches.append(batch)

    def closed(self, cause: Cause | None) -> None:
        self.closings.append(cause)


class Case:
    """A datagram link whose calls for later are made when the test says so; both ends' channels."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []
        self.heard: dict[int, Heard] = {}
        clock = Clock()
        watch = HangupWatch(clock)
        self.taker = DataLink(1, True, self, clock, watch, self.later.append)
        self.server = DataLink(1, False, self, clock, watch, self.later.append)
        self.pair = connect(self.taker, self.server)
        self.flows = self.taker.carry_flows()

    # LinkOwner

    def flows_opened(self, link: DataLink, flows: DatagramLink) -> None:
        flows.flow_opened = self._flow_opened

    def link_lost(self, link: DataLink, reason: str, *, wrong: bool) -> None:
        """No part of these tests."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} has no part in these tests")

    def _flow_opened(self, channel: FlowChannel) -> None:
        self.heard[channel.opening.visitor.port] = heard = Heard()
        channel.attach(heard)

    # For tests

    def flow(self, port: int) -> FlowChannel:
        """A new flow at the taking end."""
        channel = FlowChannel(port, opening(port), None, None)
        self.flows.open(channel)
        return channel

    def turn(self) -> None:
        """What has come by now has been passed on."""
        calls, self.later[:] = list(self.later), []
        for call in calls:
            call()

    def deliver(self) -> None:
        """All that is on its way, and what leaves thereupon."""
        flush(self.pair)
        while self.later:
            self.turn()
            flush(self.pair)


def test_what_comes_together_leaves_together() -> None:
    """The datagrams of a turn are one write, whichever flows they are of, and arrive as one list
    for each flow; the first of a flow brings its opening."""
    case = Case()
    writes: list[bytes] = []
    write = case.taker.transport.write
    case.taker.transport.write = lambda data: (writes.append(data), write(data))
    first, second = case.flow(1), case.flow(2)
    for channel, batch in ((first, [b"a", b""]), (second, [b"b"]), (first, [b"c"])):
        assert not channel.send(batch)
    assert writes == []
    case.deliver()
    assert len(writes) == 1
    assert case.heard[1].batches == [[b"a", b""], [b"c"]]  # the second's opening came between
    assert case.heard[2].batches == [[b"b"]]
    case.deliver()
    assert len(writes) == 1
    for channel, batch in ((first, [b"d"]), (second, [b"e"]), (first, [b"f"])):
        assert not channel.send(batch)
    case.deliver()
    assert case.heard[1].batches[2:] == [[b"d", b"f"]]
    assert case.heard[2].batches[1:] == [[b"e"]]
    assert len(writes) == 2


def test_much_leaves_without_waiting() -> None:
    """So that no more than a bounded part of a large turn is gathered."""
    case = Case()
    channel = case.flow(1)
    while not case.pair[0].outbox:
        channel.send([bytes(1000)])
        assert case.flows._gathered_bytes < GATHERED_BYTES
    assert GATHERED_BYTES <= len(case.pair[0].outbox) < GATHERED_BYTES + 2000
    assert len(case.later) == 1


def test_what_was_gathered_leaves_before_the_link_is_closed() -> None:
    """The last datagrams of a turn, and the end of their flow, are not lost with it."""
    case = Case()
    channel = case.flow(1)
    channel.send([b"last"])
    channel.close(Cause.STOPPED)
    case.taker.close()
    flush(case.pair)
    assert case.heard[1].all == [b"last"]
    assert case.heard[1].closings == [Cause.STOPPED]


def test_a_flood_beside_a_quiet_flow() -> None:
    """On a link that is backed up the flood loses its own datagrams, and the quiet one none; both
    keep their order, and what is held is bounded."""
    case = Case()
    flood, quiet = case.flow(1), case.flow(2)
    lost = 0
    said: list[bytes] = []
    for number in range(3000):
        batch = [b"%06d" % number + bytes(500)] * 4
        lost += len(flood.send(batch))
        if number % 20 == 0:
            said.append(b"%d" % number)
            assert not quiet.send(said[-1:])
            case.turn()
        assert case.flows._backlog.cost <= BACKLOG_BYTES
    assert case.taker.congested and lost > 5000
    case.deliver()
    assert not case.flows._backlog
    assert case.heard[2].all == said
    got = case.heard[1].all
    assert got == sorted(got)
    assert len(got) + lost == 12_000


def test_flows_that_waited_leave_in_turn() -> None:
    """The quiet flow's datagram does not wait behind all that the flood has queued."""
    case = Case()
    flood, quiet = case.flow(1), case.flow(2)
    while not flood.send([bytes(1000)]):
        pass
    assert not quiet.send([b"soon"])
    (near, _) = case.pair
    near.deliver()  # what the link had taken before
    overtook = len(case.heard[1].all)
    while 2 not in case.heard:
        case.turn()
        assert near.deliver()
    waited = len(case.heard[1].all) - overtook
    assert waited * 1000 < 2 * GATHERED_BYTES < BACKLOG_BYTES // 2


def test_a_closed_flow_gives_its_room_back() -> None:
    """What waited with it is dropped, whichever end closes it."""
    case = Case()
    flood = case.flow(1)
    while not flood.send([bytes(1000)]):
        pass
    assert case.flows._backlog.cost > 0
    flood.close(None)
    assert case.flows._backlog.cost == 0
    other = case.flow(2)
    assert not other.send([b"x"])
    case.deliver()
    assert case.heard[2].all == [b"x"]
    assert flood.send([b"late"]) == [b"late"]


def test_flows_that_wait_for_a_link_hold_little() -> None:
    """Each a few datagrams, all together a bounded number of bytes; one that holds large ones
    leaves room for others; all of it is sent, in order, when there is a link."""
    carrier = FlowCarrier(lambda lane: None)
    small, large, quiet = (carrier.open(opening(port)) for port in (1, 2, 3))
    numbered = [b"%d" % number for number in range(HELD_DATAGRAMS + 10)]
    assert small.send(numbered) == numbered[HELD_DATAGRAMS:]
    assert small.send([b"more"]) == [b"more"]
    assert large.send([bytes(60_000)] * HELD_DATAGRAMS)
    assert carrier.held.cost < HELD_BYTES
    assert not quiet.send([bytes(60_000)] * 2)
    case = Case()
    for lane in list(carrier._lanes):
        carrier.give(lane, case.flows)
    assert carrier.held.cost == 0
    case.deliver()
    assert case.heard[1].all == numbered[:HELD_DATAGRAMS]
    assert case.heard[3].all == [bytes(60_000)] * 2
