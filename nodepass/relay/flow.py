"""UDP sessions: two datagram channels joined, with counters, rate and the limit on silence."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall

from nodepass.rate import PacedQueue, RateLimiter
from nodepass.slots import Slots

from .flowtable import FlowTable
from .session import SessionContext
from .stream import Cause, Channel
from .tally import Tally

#: What the datagrams that all flows of an instance delay for its rate may cost together, in bytes:
#: 64 full queues. Anybody can open flows, so that a bound for each would be none for all.
DELAYED_BYTES = 16 * 1024 * 1024
#: What delaying a datagram costs beside its bytes: its place in the queue, and the call in it.
DELAYED_OVERHEAD = 256
#: Silent flows that end before other events have their turn. A burst of forged visitors falls
#: silent all at once, and ending a flow closes a socket.
EXPIRY_BATCH = 128


class _Side:
    """One of a flow's channels as a `FlowSink`: its datagrams go to the other channel.

    :ivar delayed: what the datagrams in its queue cost.
    """

    __slots__ = ("channel", "delayed", "flow", "near", "other", "queue")

    other: _Side

    def __init__(
        self, flow: FlowSession, channel: Channel, limiter: RateLimiter | None, near: bool
    ) -> None:
        self.flow = flow
        self.channel = channel
        self.near = near
        self.queue = None if limiter is None else PacedQueue(limiter)
        self.delayed = 0

    def datagrams(self, batch: list[bytes]) -> None:
        size = sum(map(len, batch))
        self.flow.moved(self, size)
        if self.queue is None:
            self._pass_on(batch, size)
        else:
            for data in batch:
                self._pass_on_in_turn(self.queue, data)

    def _pass_on_in_turn(self, queue: PacedQueue, data: bytes) -> None:
        size = len(data)
        cost = size + DELAYED_OVERHEAD

        def in_turn() -> None:
            self._delay(-cost)
            self._pass_on([data], size)

        if self.flow.set.delayed + cost <= DELAYED_BYTES:
            self._delay(cost)
            if queue.offer(size, in_turn):
                return
            self._delay(-cost)
        self.flow.set.dropped("rate", 1)

    def forget_delayed(self) -> None:
        """Drop what waits for its turn."""
        if self.queue is not None:
            self.queue.clear()
            self._delay(-self.delayed)

    def _delay(self, cost: int) -> None:
        self.delayed += cost
        self.flow.set.delayed += cost

    def _pass_on(self, batch: list[bytes], size: int) -> None:
        lost = self.other.channel.send(batch)
        if lost:
            self.flow.set.dropped("congestion", len(lost))
            size -= sum(map(len, lost))
        if not self.near:
            self.flow.set.context.meter.udp_tx += size

    def closed(self, cause: Cause | None) -> None:
        self.flow.ended(self, cause)


class FlowSession:
    """One UDP session.

    It ends once: when a channel closes, when it was silent for too long, or when it is given up.
    """

    __slots__ = ("_over", "describe", "far", "key", "near", "received", "sent", "set")

    def __init__(
        self,
        flows: FlowSet,
        key: Hashable,
        near: Channel,
        far: Channel,
        describe: Callable[[], str],
    ) -> None:
        self.set = flows
        self.key = key
        self.describe = describe
        self.near = _Side(self, near, flows.context.inbound, True)
        self.far = _Side(self, far, flows.context.outbound, False)
        self.near.other = self.far
        self.far.other = self.near
        self.received = 0
        self.sent = 0
        self._over = False

    def attach(self) -> None:
        """Begin to move datagrams."""
        self.far.channel.attach(self.far)
        if not self._over:
            self.near.channel.attach(self.near)

    def moved(self, source: _Side, size: int) -> None:
        """Datagrams of so many bytes came on one side."""
        if source.near:
            self.received += size
            self.set.context.meter.udp_rx += size
            self.set.heard(self, answer=self.set.near_answers)
        else:
            self.sent += size
            self.set.heard(self, answer=not self.set.near_answers)

    def ended(self, side: _Side, cause: Cause | None) -> None:
        """One channel is gone: close the other."""
        if not self._over:
            side.other.channel.close(cause)
            self._finish(cause)

    def close(self, cause: Cause | None) -> None:
        """End the flow from this node."""
        if not self._over:
            self.near.channel.close(cause)
            self.far.channel.close(cause)
            self._finish(cause)

    def _finish(self, cause: Cause | None) -> None:
        self._over = True
        self.near.forget_delayed()
        self.far.forget_delayed()
        self.set.gone(self)
        self.set.context.log.debug(
            "flow {flow()}: ended ({cause}), {received} bytes received, {sent} sent",
            flow=self.describe,
            cause="closed" if cause is None else cause.words,
            received=self.received,
            sent=self.sent,
        )


@frozen(kw_only=True)
class FlowLimits:
    """How long and how many.

    :ivar idle: seconds of silence after which a flow ends.
    """

    slots: Slots
    idle: float


class FlowSet:
    """All flows of one instance: their slots, and the timer that ends the silent ones.

    :ivar near_answers: the near channels lead to targets, so what they say is an answer; where
        they lead to visitors, the far ones answer.
    :ivar delayed: what the datagrams that wait for the rate cost, in bytes.
    """

    def __init__(self, context: SessionContext, limits: FlowLimits, near_answers: bool) -> None:
        self.context = context
        self.near_answers = near_answers
        self.delayed = 0
        self._limits = limits
        self._table: FlowTable[Hashable, FlowSession] = FlowTable()
        self._timer: IDelayedCall | None = None
        self._tallies: dict[str, Tally] = {}  # of what goes wrong, by its cause
        self._closed = False

    def __len__(self) -> int:
        return len(self._table)

    def room(self) -> bool:
        """Take a slot for a new flow, the oldest unanswered flow's if need be.

        A taken slot goes to `start`; False: there is none.
        """
        slots = self._limits.slots
        if slots.acquire_udp():
            return True
        victim = self._table.choose_victim()
        flow = None if victim is None else self._table.get(victim)
        if flow is not None:
            flow.close(Cause.NO_SLOT)
            if slots.acquire_udp():
                return True
        self._tally("slot", self._say_refused)
        return False

    def start(
        self, key: Hashable, near: Channel, far: Channel, describe: Callable[[], str]
    ) -> FlowSession:
        """Begin a flow in the slot that `room` took."""
        flow = FlowSession(self, key, near, far, describe)
        self._table.add(key, flow, self.context.clock.seconds())
        self.context.log.debug("flow {flow()}: started", flow=describe)
        self._schedule()
        flow.attach()
        return flow

    def heard(self, flow: FlowSession, answer: bool) -> None:
        """Datagrams of this flow came."""
        now = self.context.clock.seconds()
        if answer:
            self._table.answered(flow.key, now)
        else:
            self._table.touch(flow.key, now)

    def gone(self, flow: FlowSession) -> None:
        """A flow has ended: give its slot back."""
        if self._table.get(flow.key) is flow:  # else its silence has taken it out
            self._table.remove(flow.key)
        self._limits.slots.release_udp()
        if not self._table and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def dropped(self, why: str, count: int) -> None:
        """So many datagrams were given up."""
        self.context.meter.udp_dropped += count
        self._tally(why, lambda count: self._say_dropped(why, count), count)

    def oversized(self) -> None:
        """A datagram above the buffer's size was given up."""
        self.context.meter.udp_oversized += 1
        self.context.log.debug("a datagram above NP_UDP_DATA_BUF_SIZE was dropped")
        self._tally("oversized", self._say_oversized)

    def close(self, cause: Cause | None) -> None:
        """End all flows, for good: what is lost from now on is counted and not said."""
        self._closed = True
        for flow in self._table.flows():
            flow.close(cause)
        for tally in self._tallies.values():
            tally.flush()

    def _tally(self, key: str, say: Callable[[int], None], count: int = 1) -> None:
        if self._closed:
            return
        if key not in self._tallies:
            self._tallies[key] = Tally(self.context.clock, say)
        self._tallies[key].add(count)

    def _say_refused(self, count: int) -> None:
        slots = self._limits.slots
        self.context.log.warn(
            "new UDP sessions refused: {count}; {why}, of which UDP may take {most}",
            count=count,
            why=slots.why,
            most=slots.flow_limit,
        )

    def _say_dropped(self, why: str, count: int) -> None:
        self.context.log.warn("datagrams dropped: {count} ({why})", count=count, why=why)

    def _say_oversized(self, count: int) -> None:
        self.context.log.warn(
            "datagrams dropped: {count} above NP_UDP_DATA_BUF_SIZE; raise it to relay them",
            count=count,
        )

    def _schedule(self) -> None:
        due = self._table.next_expiry(self._limits.idle)
        if self._timer is None and due is not None:
            delay = max(0.0, due - self.context.clock.seconds())
            self._timer = self.context.clock.callLater(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self.context.clock.seconds()
        for _, flow in self._table.expire(now, self._limits.idle, EXPIRY_BATCH):
            flow.close(Cause.IDLE)
        self._schedule()  # at once, where more are due
