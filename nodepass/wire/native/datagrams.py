"""UDP flows on data links: many flows share a few links.

What flows send while the reactor is at work leaves a link together. A link holds a burst while it
can't send. Beyond that it drops datagrams, as a network does, rather than delay all flows on it:
those of the flows that send the most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nodepass.relay.portable import Soon
from nodepass.relay.stream import Cause, FlowSink
from nodepass.wire import Opening

from .fairqueue import FairQueue
from .frames import Datagrams, FlowClose, FlowOpen, datagrams, encode

if TYPE_CHECKING:
    from .datalink import DataLink

#: Datagrams that a new flow may hold while it waits for a link: a burst at its start, no more, as
#: old datagrams are worth little.
HELD_DATAGRAMS = 64
#: Bytes that all flows of one carrier may hold together while they wait; one flow half of them.
HELD_BYTES = 1 << 20
#: Bytes that a link holds when it is backed up; one flow may have half of them, which is what one
#: turn of the reactor reads from a socket. What the system's socket takes comes before.
BACKLOG_BYTES = 512 * 1024
#: Bytes gathered for a link, after which they leave without waiting for more: a call has become
#: cheap for each datagram by then, and what a backed-up link is given at once stays small.
GATHERED_BYTES = 64 * 1024
#: FLOW_CLOSE frames that wait to leave a link that is backed up. Only a peer that opens flows
#: without end and does not read what becomes of them lets so many wait; its link is closed.
MAX_UNREAD_CLOSES = 65536
#: Links that the flows of one peer share. More than one, so that a lost segment delays an eighth
#: of the flows only; few, so that a thousand flows do not take a thousand links.
DATAGRAM_LINKS = 8


class FlowChannel:
    """One flow as a channel.

    :ivar number: the flow's id on its link.
    :ivar known: the peer knows of the flow.
    :ivar held: datagrams that were held for it before it had a link.
    """

    __slots__ = ("_lane", "_over", "_sink", "held", "known", "link", "number", "opening")

    def __init__(
        self, number: int, opening: Opening, link: DatagramLink | None, lane: _Lane | None
    ) -> None:
        self.number = number
        self.opening = opening
        self.link = link
        self.known = link is not None
        self.held = 0
        self._lane = lane
        self._sink: FlowSink | None = None
        self._over: tuple[Cause | None] | None = None

    def attach(self, sink: FlowSink) -> None:
        self._sink = sink
        if self._over is not None:
            sink.closed(self._over[0])

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        if self._over is not None:
            return batch
        if self.link is not None:
            return self.link.send(self, batch)
        assert self._lane is not None
        return self._lane.hold(self, batch)

    def close(self, cause: Cause | None = None) -> None:
        if self._over is None:
            self._over = (cause,)
            self._sink = None
            if self.link is not None:
                self.link.close_flow(self, cause)
            elif self._lane is not None:
                self._lane.forget(self)

    # From the link

    def received(self, batch: list[bytes]) -> None:
        """Datagrams came."""
        if self._sink is not None:
            self._sink.datagrams(batch)

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

    :param soon: calls something when what has come by now has been passed on.
    :ivar flow_opened: set by the serving end: called with the channel of each new flow.
    """

    def __init__(self, link: DataLink, soon: Soon) -> None:
        self._link = link
        self._soon = soon
        self.flows: dict[int, FlowChannel] = {}
        self.flow_opened: Callable[[FlowChannel], None] | None = None
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._flush_due = False
        self._backlog: FairQueue[FlowChannel] = FairQueue(BACKLOG_BYTES)
        self._unread_closes = 0

    def open(self, channel: FlowChannel, held: Sequence[bytes] = ()) -> None:
        """Open a flow of this, the taking, end; what it held while it waited goes first."""
        channel.link = self
        self.flows[channel.number] = channel
        for data in held:
            self._backlog.put(channel, data)
        self.drained()

    def send(self, channel: FlowChannel, batch: list[bytes]) -> Sequence[bytes]:
        """Send datagrams; those for which a link that is backed up has no room are returned."""
        if self._link.congested:
            return self._backlog.offer(channel, batch)
        self._gather_datagrams(channel, batch)  # there is no backlog either
        return ()

    def drained(self) -> None:
        """The link may send again."""
        self._unread_closes = 0
        while self._backlog and not self._link.congested:
            self._gather_datagrams(*self._backlog.take())

    def _gather_datagrams(self, channel: FlowChannel, batch: list[bytes]) -> None:
        if not channel.known:
            channel.known = True
            self._gather(encode(FlowOpen(channel.number, channel.opening)))
        self._gather(datagrams(channel.number, batch))

    def _gather(self, frames: bytes) -> None:
        self._gathered.append(frames)
        self._gathered_bytes += len(frames)
        if self._gathered_bytes >= GATHERED_BYTES:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            self._soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Let what was gathered leave now."""
        if self._gathered:
            frames = b"".join(self._gathered)
            self._gathered.clear()
            self._gathered_bytes = 0
            self._link.send_frame(frames)

    def close_flow(self, channel: FlowChannel, cause: Cause | None) -> None:
        """End a flow of this end's."""
        if self._forget(channel.number) is not None:
            if channel.known:
                self._gather(encode(FlowClose(channel.number, cause)))
                if self._link.congested:
                    self._unread_closes += 1
                    if self._unread_closes > MAX_UNREAD_CLOSES:
                        self._link.abort("the peer does not read how its flows end", wrong=True)
                        return
            self._check_unused()

    def _forget(self, number: int) -> FlowChannel | None:
        channel = self.flows.pop(number, None)
        if channel is not None:
            self._backlog.remove(channel)
        return channel

    def receive(self, frame: FlowOpen | Datagrams | FlowClose) -> None:
        """A frame came. Frames for a flow that is not there crossed with its end."""
        if isinstance(frame, Datagrams):
            channel = self.flows.get(frame.flow)
            if channel is not None:
                channel.received(frame.batch)
        elif isinstance(frame, FlowClose):
            gone = self._forget(frame.flow)
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
        self._gathered.clear()
        self._gathered_bytes = 0
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

    def hold(self, channel: FlowChannel, batch: list[bytes]) -> list[bytes]:
        room = HELD_DATAGRAMS - channel.held
        held, lost = batch[:room], batch[room:]
        refused = self._carrier.held.offer(channel, held)
        channel.held += len(held) - len(refused)
        return refused + lost

    def forget(self, channel: FlowChannel) -> None:
        if self.waiting.pop(channel.number, None) is not None:
            self._carrier.held.remove(channel)

    def start(self, link: DatagramLink) -> None:
        self.link = link
        waiting, self.waiting = self.waiting, {}
        for channel in waiting.values():
            link.open(channel, self._carrier.held.remove(channel))

    def fail(self, cause: Cause) -> None:
        for channel in list(self.waiting.values()):
            self.forget(channel)
            channel.closed(cause)


class FlowCarrier:
    """The flows of a peer at the end with the visitors.

    :param need_link: asks for an idle link; `give` or `refuse` answers with the same lane number.
    :ivar held: what flows have sent that wait for a link.
    """

    def __init__(self, need_link: Callable[[int], None]) -> None:
        self._need_link = need_link
        self._lanes: dict[int, _Lane] = {}
        self._next_flow = 1
        self.held: FairQueue[FlowChannel] = FairQueue(HELD_BYTES)

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
