"""Datagrams of many flows that wait for one link, so that no flow stands in another's way.

Each flow has a queue of its own, and the queues are served in turn. A flow may hold as much as is
free: alone it gets half of the room, beside another that fills its queue a third, and there is
always as much left for one more as any of them has.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from attrs import define, field

__all__ = ["OVERHEAD", "FairQueue"]

#: What keeping a datagram costs beside its bytes, so that empty ones are bounded as well.
OVERHEAD = 128
#: What a flow's turn may cost; the datagram that goes beyond is its last. With less a turn itself
#: would cost more for each datagram, with more the others would wait longer.
TURN_BYTES = 16 * 1024

F = TypeVar("F", bound=Hashable)


@define(eq=False)
class _Queue:
    """What waits of one flow, and what it costs."""

    waiting: deque[bytes] = field(factory=deque)
    cost: int = 0


class FairQueue(Generic[F]):
    """What waits of all flows.

    :param room: what all of it may cost.
    :ivar cost: what all of it costs: its bytes, and `OVERHEAD` for each datagram.
    """

    __slots__ = ("_queues", "_room", "cost")

    def __init__(self, room: int) -> None:
        self._room = room
        self._queues: OrderedDict[F, _Queue] = OrderedDict()  # whose turn it is comes first
        self.cost = 0

    def __len__(self) -> int:
        """How many flows wait."""
        return len(self._queues)

    def offer(self, flow: F, batch: list[bytes]) -> list[bytes]:
        """Keep datagrams of a flow as far as there is room for it; return the others."""
        return [data for data in batch if not self._offer(flow, data)]

    def _offer(self, flow: F, data: bytes) -> bool:
        cost = len(data) + OVERHEAD
        queue = self._queues.get(flow)
        if (cost if queue is None else cost + queue.cost) > self._room - self.cost:
            return False
        self.put(flow, data)
        return True

    def put(self, flow: F, data: bytes) -> None:
        """Keep a datagram even if there is no room."""
        queue = self._queues.get(flow)
        if queue is None:
            queue = self._queues[flow] = _Queue()
        cost = len(data) + OVERHEAD
        queue.waiting.append(data)
        queue.cost += cost
        self.cost += cost

    def take(self) -> tuple[F, list[bytes]]:
        """Take out the datagrams of one turn, of the flow whose turn it is."""
        flow, queue = next(iter(self._queues.items()))
        batch: list[bytes] = []
        left = TURN_BYTES
        while queue.waiting and left > 0:
            data = queue.waiting.popleft()
            batch.append(data)
            left -= len(data) + OVERHEAD
        taken = TURN_BYTES - left
        queue.cost -= taken
        self.cost -= taken
        if queue.waiting:
            self._queues.move_to_end(flow)
        else:
            del self._queues[flow]
        return flow, batch

    def remove(self, flow: F) -> list[bytes]:
        """Take out all of a flow."""
        queue = self._queues.pop(flow, None)
        if queue is None:
            return []
        self.cost -= queue.cost
        return list(queue.waiting)

    def clear(self) -> None:
        """Forget everything."""
        self._queues.clear()
        self.cost = 0
