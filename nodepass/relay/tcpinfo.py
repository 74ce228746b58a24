"""What the system knows of a TCP connection: how far the other end is, and whether loss has made it
slow."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

__all__ = ["round_trip", "sending", "slowed"]

# Of Linux' `struct tcp_info`, whose layout is part of the kernel's interface: packets under way
# beyond which it no longer doubles them, packets that were sent again, and microseconds of the
# shortest round trip; packets that were sent and not acknowledged, and bytes not sent yet.
_THRESHOLD = struct.Struct("=76xI")
_RETRANSMITTED = struct.Struct("=100xI")
_SHORTEST = struct.Struct("=148xI")
_WAITING = struct.Struct("=24xI116xI")

#: The threshold of a connection that has not been told of any.
UNLIMITED = 0x7FFFFFFF
#: The shortest round trip of a connection that has not seen one.
UNKNOWN = 0xFFFFFFFF


def slowed(handle: Any) -> bool:
    """Whether packets of a connection were lost, and it goes slower since; False where that is not
    known.

    Most ways to control congestion take a lost packet for a sign that a line is full, remember how
    little was under way then, and from there on go faster by a packet each round trip. A new
    connection knows nothing of it and doubles its pace instead, so that over a long line it is
    several times as fast for the first seconds as one that has been through a loss.

    :param handle: its socket, or what stands in for one.
    """
    info = _ask(handle, _RETRANSMITTED.size)
    return (
        info is not None
        and _THRESHOLD.unpack_from(info)[0] < UNLIMITED
        and _RETRANSMITTED.unpack_from(info)[0] > 0
    )


def round_trip(handle: Any) -> float | None:
    """Seconds of a connection's shortest round trip; None where that is not known.

    :param handle: as for `slowed`.
    """
    info = _ask(handle, _SHORTEST.size)
    if info is None:
        return None
    (shortest,) = _SHORTEST.unpack_from(info)
    return None if shortest == UNKNOWN else shortest / 1e6


def sending(handle: Any) -> bool:
    """Whether bytes of a connection are on their way to the other end's system, or wait for that;
    False where that is not known.

    :param handle: as for `slowed`.
    """
    info = _ask(handle, _WAITING.size)
    return info is not None and any(_WAITING.unpack_from(info))


def _ask(handle: Any, size: int) -> bytes | None:
    if sys.platform != "linux" or not isinstance(handle, socket.SocketType):
        return None
    try:
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    except OSError:
        return None
    return info if len(info) == size else None
