"""The old dialects, and everything in which they differ, as one table. No I/O."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

__all__ = ["ID_WAIT", "INTERVAL", "JOIN_TIMEOUT", "Dialect", "Traits"]

#: Seconds between two pings of an old node. Ten are healthy: one is left out after a flush.
INTERVAL = 5.0
#: Seconds that a launch's link is awaited: its signal may overtake the link's number.
ID_WAIT = 5.0
#: Seconds that a client has from its grant to its control link: as long as an old server waits.
JOIN_TIMEOUT = 10.0


@frozen(kw_only=True)
class Traits:
    """What one dialect does its own way.

    :ivar http: whether it shakes hands by HTTP; the control link is then the pool's first one.
        Otherwise the connection that shook hands is the control link.
    :ivar handshake_tls: whether the handshake is under TLS, whatever the links are.
    :ivar json: whether signals are JSON in base64; otherwise they are URLs.
    :ivar raw_id: whether a server writes a link's number as 4 bytes; otherwise as 8 hex digits.
    :ivar lost_after: seconds without a byte after which the control link is lost.
    :ivar framed_udp: whether a datagram's length goes before it.
    :ivar udp_read: bytes of the buffer that a datagram is read into; a longer one does not arrive
        whole.
    :ivar verified: values of `tls` with which both ends send a verify.
    :ivar colons: whether a fingerprint is written in capitals and with colons.
    """

    http: bool = True
    handshake_tls: bool = False
    json: bool = True
    raw_id: bool = True
    lost_after: float = 3 * INTERVAL
    framed_udp: bool = False
    udp_read: int = 16384
    verified: frozenset[int] = frozenset()
    colons: bool = False


class Dialect(Enum):
    """A dialect, by its name in `wire=`."""

    V2_0 = "2.0"
    V1_14 = "1.14"
    V1_6 = "1.6"
    #: As 1.6, but our server writes numbers of links as 4 bytes, as some nodes of that time do.
    V1_6_RAW = "1.6-raw"

    @property
    def traits(self) -> Traits:
        """What it does its own way."""
        return _TRAITS[self]


def _v1_6(raw_id: bool) -> Traits:
    return Traits(
        http=False,
        json=False,
        raw_id=raw_id,
        lost_after=2 * INTERVAL,
        udp_read=2048,
    )


_TRAITS = {
    Dialect.V2_0: Traits(handshake_tls=True, framed_udp=True, verified=frozenset((1,))),
    Dialect.V1_14: Traits(verified=frozenset((1, 2)), colons=True),
    Dialect.V1_6: _v1_6(raw_id=False),
    Dialect.V1_6_RAW: _v1_6(raw_id=True),
}
