"""How long the old programs wait for what, and how to have it all happen faster."""

from __future__ import annotations

import attrs
from attrs import frozen

from nodepass.wire.old.dialect import Dialect

__all__ = ["OldTiming"]


@frozen(kw_only=True)
class OldTiming:
    """The times of an old node, in seconds; the values are those of 1.14 and 2.0.

    :ivar report: between two pings; the control link is lost after two (1.6) or three of them
        without a byte.
    :ivar handshake: until the first link of the pool must have come (in 1.6: the client's hello).
    :ivar pool_get: that a visitor waits for a link, and a launch for its link.
    :ivar dial: that a dial of the target may take, and one of the server.
    :ivar cooldown: from the end of a tunnel to the next try.
    :ivar udp_silence: without a datagram that end a UDP session (in 1.6 `read` does).
    :ivar id_wait: that a client waits for a link's number.
    :ivar refill_least: between two looks at the pool, when it is nearly empty.
    :ivar refill_most: the same, when it is nearly full.
    :ivar refill_step: by which that time changes.
    :ivar poll: between two looks at anything else.
    """

    report: float = 5.0
    handshake: float = 5.0
    pool_get: float = 5.0
    dial: float = 5.0
    cooldown: float = 3.0
    udp_silence: float = 30.0
    id_wait: float = 60.0
    refill_least: float = 0.1
    refill_most: float = 1.0
    refill_step: float = 0.1
    poll: float = 0.05

    @classmethod
    def of(cls, dialect: Dialect) -> OldTiming:
        """The times of a dialect's programs as they come."""
        if dialect.traits.http:
            return cls()
        return cls(handshake=10.0, pool_get=30.0, dial=30.0, id_wait=20.0)

    def faster(self, times: float) -> OldTiming:
        """All of them divided by a number."""
        return OldTiming(**{name: value / times for name, value in attrs.asdict(self).items()})
