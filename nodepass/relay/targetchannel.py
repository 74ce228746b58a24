"""A channel to a target: datagrams wait while its name is looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from nodepass.address import Address, Endpoint
from nodepass.logs import Log
from nodepass.racing import dial_cause
from nodepass.resolver import CachingResolver, LookupTimeout, resolve_udp

from .dialed import cause_of
from .stream import Cause, FlowSink
from .udp import BATCH_BYTES
from .udptarget import TargetReceiver, TargetSocket

#: Datagrams that a flow may hold while its target's name is looked up.
LOOKUP_DATAGRAMS = 64
#: Bytes that one flow may hold so: what a socket gives at a time. It leaves room for others.
LOOKUP_FLOW_BYTES = BATCH_BYTES
#: Bytes that all flows of a relay may hold so: anybody can open flows, and a look-up may take long.
LOOKUP_BYTES = 4 * 1024 * 1024

#: Opens a socket to a target for a receiver, with the largest datagram delivered in bytes.
ConnectUdp = Callable[[Endpoint, TargetReceiver, int], TargetSocket]


def _too_late(_: object, timeout: float) -> Endpoint:
    raise LookupTimeout(f"no answer within {timeout:g} s")


class Held:
    """How much the flows of a relay hold."""

    size = 0


class TargetChannel:
    """A UDP socket to a target as a channel. The target's name is looked up first."""

    def __init__(
        self,
        reactor: Any,
        resolver: CachingResolver,
        connect: ConnectUdp,
        target: Address,
        timeout: float,
        limit: int,
        oversized: Callable[[], None],
        log: Log,
        all_held: Held,
    ) -> None:
        self._connect = connect
        self._target = target
        self._limit = limit
        self._tell_oversized = oversized
        self._log = log
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._all_held = all_held
        self._socket: TargetSocket | None = None
        self._sink: FlowSink | None = None
        self._over = False
        self._cause: Cause | None = None
        host = target.dial_hosts()[0]
        self._resolving: Deferred[Endpoint] | None = Deferred.fromCoroutine(
            resolve_udp(resolver, host, target.port)
        )
        if not self._resolving.called:
            self._resolving.addTimeout(timeout, reactor, _too_late)
        self._resolving.addCallbacks(self._resolved, self._failed)

    # Channel

    def attach(self, sink: FlowSink) -> None:
        self._sink = sink
        if self._over:
            sink.closed(self._cause)

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        if self._socket is not None:
            return self._socket.send(batch)
        return [data for data in batch if not self._hold(data)]

    def _hold(self, data: bytes) -> bool:
        size = len(data)
        if (
            self._over
            or len(self._held) >= LOOKUP_DATAGRAMS
            or self._held_bytes + size > LOOKUP_FLOW_BYTES
            or self._all_held.size + size > LOOKUP_BYTES
        ):
            return False
        self._held.append(data)
        self._held_bytes += size
        self._all_held.size += size
        return True

    def close(self, cause: Cause | None = None) -> None:
        self._sink = None
        self._end(cause)

    # TargetReceiver

    def datagrams(self, batch: list[bytes]) -> None:
        if self._sink is not None:
            self._sink.datagrams(batch)

    def oversized(self) -> None:
        self._tell_oversized()

    def lost(self) -> None:
        self._end(Cause.LOST)

    def refused(self) -> None:
        # The flow goes on: what was to listen there may be about to start.
        self._log.limited(
            ("udp refused", self._target),
            "UDP target {target}: {cause}",
            target=self._target,
            cause="refused",
        )

    def _resolved(self, endpoint: Endpoint) -> None:
        self._resolving = None
        try:
            self._socket = self._connect(endpoint, self, self._limit)
        except OSError as error:
            self._log.limited(
                ("udp dial", self._target, error.errno),
                "UDP target {target}: {error}",
                target=self._target,
                error=error.strerror or str(error),
            )
            self._end(Cause.UNREACHABLE)
            return
        held = self._take_held()
        if held:
            self._socket.send(held)

    def _failed(self, failure: Failure) -> None:
        self._resolving = None
        if self._over:
            return
        self._log.limited(
            ("udp dial", self._target, failure.type),
            "UDP target {target}: {cause}",
            target=self._target,
            cause=dial_cause(failure),
        )
        self._end(cause_of(failure))

    def _end(self, cause: Cause | None) -> None:
        if self._over:
            return
        self._over = True
        self._cause = cause
        self._take_held()
        if self._resolving is not None:
            self._resolving.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.closed(cause)

    def _take_held(self) -> list[bytes]:
        held, self._held = self._held, []
        self._all_held.size -= self._held_bytes
        self._held_bytes = 0
        return held
