"""UDP flows on data links: many flows share a few links.

A link holds a burst while it can't send. Beyond that it drops datagrams, as a network does, rather
than delay all flows on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from nodepass.relay.stream import Cause, FlowSink
from nodepass.wire import Opening

from .frames import MAX_DATAGRAM, Datagram, FlowClose, FlowOpen, datagram, encode

if TYPE_CHECKING:
    from .datalink import DataLink

#: Datagrams that a new flow may hold while it waits for a link: a burst at its start, no more, as
#: old datagrams are worth little.
HELD_DATAGRAMS = 64
#: Bytes that all flows of one carrier may hold together while they wait.
HELD_BYTES = 1 << 20
#: Bytes that a link holds when it is backed up: twice what one turn of the reactor reads from the
#: visitors' socket, all of which may be for one link. What the system's socket takes comes before.
BACKLOG_BYTES = 512 * 1024
#: FLOW_CLOSE frames that wait to leave a link that is backed up. Only a peer that opens flows
#: without end and does not read what becomes of them lets so many wait; its link is closed.
MAX_UNREAD_CLOSES = 65536
#: What keeping a datagram costs beside its bytes, so that empty ones are bounded as well.
OVERHEAD = 128
#: Links that the flows of one peer share. More than one, so that a lost segment delays an eighth
#: of the flows only; few, so that a thousand flows do not take a thousand links.
DATAGRAM_LINKS = 8


def _cost(data: bytes) -> int:
    return len(data) + OVERHEAD


class FlowChannel:
    """One flow as a channel.

    :ivar number: the flow's id on its link.
    :ivar known: the peer knows of the flow.
    """

    __slots__ = ("_carrier", "_over", "_sink", "held", "known", "link", "number", "opening")

    def __init__(
        self, number: int, opening: Opening, link: DatagramLink | None, carrier: _Lane | None
    ) -> None:
        self.number = number
        self.opening = opening
        self.link = link
        self.known = link is not None
        self.held: deque[bytes] = deque()
        self._carrier = carrier
        self._sink: FlowSink | None = None
        self._over: tuple[Cause | None] | None = None

    def attach(self, sink: FlowSink) -> None:
        self._sink = sink
        if self._over is not None:
            sink.closed(self._over[0])

    def send(self, data: bytes) -> bool:
        if self._over is not None or len(data) > MAX_DATAGRAM:
            return False
        if self.link is not None:
            return self.link.send(self, data)
        assert self._carrier is not None
        return self._carrier.hold(self, data)

    def close(self, cause: Cause | None = None) -> None:
        if self._over is None:
            self._over = (cause,)
            self._sink = None
            if self.link is not None:
                self.link.close_flow(self, cause)
            elif self._carrier is not None:
                self._carrier.forget(self)

    # From the link

    def received(self, data: bytes) -> None:
        """A datagram came."""
        if self._sink is not None:
            self._sink.datagram(data)

    def closed(self, cause: Cause | None) -> None:
        """The flow was closed by the peer or lost with its link."""
        if self._over is None:
            self._over = (cause,)
            sink, self._sink = self._sink, None
            if sink is not None:
                sink.closed(cause)


class DatagramLink:
    """The flows on one data link.

    The peer learns of a flow with its first datagram that leaves, so that a link that is stuck is
    not filled with the flows that come and go meanwhile.

    :ivar flow_opened: set by the serving end: called with the channel of each new flow.
    """

    def __init__(self, link: DataLink) -> None:
        self._link = link
        self.flows: dict[int, FlowChannel] = {}
        self.flow_opened: Callable[[FlowChannel], None] | None = None
        self._backlog: deque[tuple[FlowChannel, bytes]] = deque()
        self._backlog_cost = 0
        self._unread_closes = 0

    def open(self, channel: FlowChannel) -> None:
        """Open a flow of this, the taking, end; what it held while it waited goes first."""
        channel.link = self
        self.flows[channel.number] = channel
        for data in channel.held:
            self._hold(channel, data)
        channel.held.clear()
        self.drained()

    def send(self, channel: FlowChannel, data: bytes) -> bool:
        """Send a datagram; False when the link is backed up."""
        if not self._link.congested:  # so there is no backlog either
            self._write(channel, data)
            return True
        if self._backlog_cost + _cost(data) > BACKLOG_BYTES:
            return False
        self._hold(channel, data)
        return True

    def drained(self) -> None:
        """The link may send again."""
        self._unread_closes = 0
        while self._backlog and not self._link.congested:
            channel, data = self._backlog.popleft()
            self._backlog_cost -= _cost(data)
            if self.flows.get(channel.number) is channel:
                self._write(channel, data)

    def _hold(self, channel: FlowChannel, data: bytes) -> None:
        self._backlog.append((channel, data))
        self._backlog_cost += _cost(data)

    def _write(self, channel: FlowChannel, data: bytes) -> None:
        frame = datagram(channel.number, data)
        if not channel.known:
            channel.known = True
            frame = encode(FlowOpen(channel.number, channel.opening)) + frame
        self._link.send_frame(frame)

    def close_flow(self, channel: FlowChannel, cause: Cause | None) -> None:
        """End a flow of this end's."""
        if self.flows.pop(channel.number, None) is not None:
            if channel.known:
                self._link.send_frame(encode(FlowClose(channel.number, cause)))
                if self._link.congested:
                    self._unread_closes += 1
                    if self._unread_closes > MAX_UNREAD_CLOSES:
                        self._link.abort("the peer does not read how its flows end")
                        return
            self._check_unused()

    def receive(self, frame: FlowOpen | Datagram | FlowClose) -> None:
        """A frame came. Frames for a flow that is not there crossed with its end."""
        if isinstance(frame, Datagram):
            channel = self.flows.get(frame.flow)
            if channel is not None:
                channel.received(frame.data)
        elif isinstance(frame, FlowClose):
            gone = self.flows.pop(frame.flow, None)
            if gone is not None:
                gone.closed(frame.cause)
                self._check_unused()
        elif self.flow_opened is not None and frame.flow not in self.flows:
            channel = FlowChannel(frame.flow, frame.opening, self, None)
            self.flows[frame.flow] = channel
            self.flow_opened(channel)

    def lost(self, cause: Cause) -> None:
        """The link is gone."""
        flows, self.flows = self.flows, {}
        self._backlog.clear()
        for channel in flows.values():
            channel.closed(cause)

    def _check_unused(self) -> None:
        if not self.flows:
            self._link.flows_ended()


class _Lane:
    """One of the links that a peer's flows share, and the flows that wait for it."""

    def __init__(self, carrier: FlowCarrier) -> None:
        self._carrier = carrier
        self.link: DatagramLink | None = None
        self.waiting: dict[int, FlowChannel] = {}

    def hold(self, channel: FlowChannel, data: bytes) -> bool:
        if len(channel.held) >= HELD_DATAGRAMS or not self._carrier.take_room(_cost(data)):
            return False
        channel.held.append(data)
        return True

    def forget(self, channel: FlowChannel) -> None:
        if self.waiting.pop(channel.number, None) is not None:
            self._carrier.take_room(-sum(map(_cost, channel.held)))
            channel.held.clear()

    def start(self, link: DatagramLink) -> None:
        self.link = link
        waiting, self.waiting = self.waiting, {}
        for channel in waiting.values():
            self._carrier.take_room(-sum(map(_cost, channel.held)))
            link.open(channel)

    def fail(self, cause: Cause) -> None:
        for channel in list(self.waiting.values()):
            self.forget(channel)
            channel.closed(cause)


class FlowCarrier:
    """The flows of a peer at the end with the visitors.

    :param need_link: asks for an idle link; `give` or `refuse` answers with the same lane number.
    """

    def __init__(self, need_link: Callable[[int], None]) -> None:
        self._need_link = need_link
        self._lanes: dict[int, _Lane] = {}
        self._next_flow = 1
        self._held = 0

    @property
    def waiting(self) -> int:
        """Flows that wait for a link."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def open(self, opening: Opening) -> FlowChannel:
        """A channel for a new flow; what is sent before there is a link is held for a while."""
        number = hash(opening.visitor) % DATAGRAM_LINKS
        lane = self._lanes.get(number)
        fresh = lane is None
        if lane is None:
            lane = self._lanes[number] = _Lane(self)
        channel = FlowChannel(self._next_flow, opening, None, lane)
        self._next_flow = self._next_flow % 0xFFFFFFFF + 1
        if lane.link is not None:
            lane.link.open(channel)
        else:
            lane.waiting[channel.number] = channel
            if fresh:
                self._need_link(number)
        return channel

    def give(self, number: int, link: DatagramLink) -> None:
        """The link that a lane asked for."""
        self._lanes[number].start(link)

    def refuse(self, number: int, cause: Cause) -> None:
        """There is no link for a lane; its flows are closed."""
        lane = self._lanes.pop(number, None)
        if lane is not None:
            lane.fail(cause)

    def lost(self, link: DatagramLink) -> None:
        """A lane's link is gone, or was closed because nothing used it."""
        for number, lane in list(self._lanes.items()):
            if lane.link is link:
                del self._lanes[number]

    def unused(self) -> list[DatagramLink]:
        """Links without a flow."""
        links = [lane.link for lane in self._lanes.values() if lane.link is not None]
        return [link for link in links if not link.flows]

    def take_room(self, size: int) -> bool:
        """Take room for held bytes, or give it back (negative)."""
        if size > 0 and self._held + size > HELD_BYTES:
            return False
        self._held += size
        return True
