"""The end that dials: targets for a peer's visitors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from nodepass.address import Address, Endpoint
from nodepass.proxyheader import proxy_v1
from nodepass.relay.flow import FlowSet
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.wire import Opening

from .instance import Instance


class Way(NamedTuple):
    """Names a session in the log: whose it is, and where it leads."""

    visitor: Endpoint
    peer: str
    target: object

    def __str__(self) -> str:
        of = f" of {self.peer}" if self.peer else ""
        return f"tcp {self.visitor}{of} to {self.target}"


class TargetDialer:
    """Dials targets and joins them with the streams and channels that lead to visitors.

    Of several targets each new session begins with the next one, and goes on to the others when
    that one can't be reached.
    """

    def __init__(self, instance: Instance, targets: tuple[Address, ...]) -> None:
        self._instance = instance
        self._targets = targets
        self._turn = 0
        self._flow_number = 0
        self.flows = FlowSet(instance.context, instance.flow_limits, near_answers=True)

    @property
    def names(self) -> str:
        """The targets, for log lines."""
        return ", ".join(map(str, self._targets))

    def dial(self, opening: Opening, far: Stream, peer: str) -> None:
        """A visitor of the peer wants a target."""
        instance = self._instance
        targets = self._choose(opening.target)
        if not targets:
            far.abort(Cause.DENIED)
            return
        if not instance.slots.acquire_tcp():
            instance.log.limited(
                "tcp slot", "{why}: visitor {visitor} of {peer} was refused",
                why=instance.slots.why, visitor=opening.visitor, peer=peer,
            )  # fmt: skip
            far.abort(Cause.NO_SLOT)
            return
        near = self.connect(opening, targets)
        instance.start_session(near, far, Way(opening.visitor, peer, targets[0]))

    def dial_flow(self, opening: Opening, far: Channel, peer: str) -> None:
        """A visitor's UDP flow wants a target."""
        targets = self._choose(opening.target)
        if not targets:
            far.close(Cause.DENIED)
            return
        if not self.flows.room():
            far.close(Cause.NO_SLOT)
            return
        near = self.connect_flow(targets)
        self._flow_number += 1
        self.flows.start(
            self._flow_number, near, far, lambda: f"udp {opening.visitor} of {peer} to {targets[0]}"
        )

    def connect(self, opening: Opening, targets: Sequence[Address] | None = None) -> Stream:
        """A stream to a target, with the PROXY header where the URL asks for one."""

        instance = self._instance
        header = (
            partial(proxy_v1, opening.visitor, opening.local) if instance.config.proxy else None
        )
        return instance.relay.dial_tcp(
            targets or self._choose(0), instance.tuning.tcp_dial_timeout, header
        )

    def connect_flow(self, targets: Sequence[Address] | None = None) -> Channel:
        """A channel to a target."""
        return self._instance.relay.dial_udp(
            (targets or self._choose(0))[0],
            self._instance.tuning.udp_dial_timeout,
            self._instance.tuning.udp_buffer,
            self.flows.oversized,
        )

    def stop(self) -> None:
        """End all flows."""
        self.flows.close(Cause.STOPPED)

    def _choose(self, index: int) -> Sequence[Address]:
        """The targets to try, in order; empty when there is none of this index."""
        if index:
            return self._targets[index - 1 : index]
        if len(self._targets) == 1:
            return self._targets
        turn = self._turn % len(self._targets)
        self._turn += 1
        return self._targets[turn:] + self._targets[:turn]
