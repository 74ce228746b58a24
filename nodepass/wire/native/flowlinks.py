"""The links that carry flows of a peer's, and who waits for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nodepass.relay.stream import Cause, Channel
from nodepass.wire import Opening

from .datagrams import DatagramLink, FlowCarrier
from .datalink import DataLink

__all__ = ["FlowLinks"]

#: Seconds that a datagram link without flows is kept: a resolver's next query comes soon.
DATAGRAM_LINK_REST = 10.0


class FlowLinks:
    """The datagram links of a peer, at either end.

    :param need_link: the taking end needs an idle link for them; `give` answers, or `refuse`.
    """

    def __init__(self, need_link: Callable[[], None]) -> None:
        self._need_link = need_link
        self._carrier = FlowCarrier(self._lane_needs_link)
        self._lanes: deque[int] = deque()  # of the carrier, waiting for a link
        self._links: dict[DatagramLink, DataLink] = {}

    @property
    def sessions(self) -> int:
        """Flows, those that wait for a link included."""
        return sum(len(flows.flows) for flows in self._links) + self._carrier.waiting

    @property
    def waiting(self) -> int:
        """Links that are waited for."""
        return len(self._lanes)

    def open(self, opening: Opening) -> Channel:
        """At the taking end: a channel for a new flow."""
        return self._carrier.open(opening)

    def give(self, link: DataLink) -> None:
        """An idle link, for who waits longest."""
        flows = link.carry_flows()
        self._links[flows] = link
        self._carrier.give(self._lanes.popleft(), flows)

    def refuse(self, cause: Cause) -> None:
        """There is no link for those who wait."""
        while self._lanes:
            self._carrier.refuse(self._lanes.popleft(), cause)

    def add(self, link: DataLink, flows: DatagramLink) -> None:
        """At the serving end: the peer made a link one of these."""
        self._links[flows] = link

    def lost(self, link: DataLink) -> None:
        """A link is gone, which may have been one of these."""
        if link.flows is not None:
            self._carrier.lost(link.flows)
            self._links.pop(link.flows, None)

    def unused(self, now: float) -> list[DataLink]:
        """At the taking end: those that nobody has used for a while, which get no more flows.

        :param now: the clock's seconds.
        """
        unused = list[DataLink]()
        for flows in self._carrier.unused():
            link = self._links.get(flows)
            if link is not None and now - link.free_since > DATAGRAM_LINK_REST:
                self._carrier.lost(flows)
                unused.append(link)
        return unused

    def _lane_needs_link(self, lane: int) -> None:
        self._lanes.append(lane)
        self._need_link()
