"""Has loss made a TCP connection slow?

Most ways to control congestion take a lost packet for a sign that a line is full, remember how
little was under way then, and from there on go faster by a packet each round trip. A new connection
knows nothing of it and doubles its pace instead, so that over a long line it is several times as
fast for the first seconds as one that has been through a loss.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

__all__ = ["slowed"]

# Of Linux' `struct tcp_info`: packets under way beyond which it no longer doubles them, and packets
# that were sent again. The layout is part of the kernel's interface.
_THRESHOLD = struct.Struct("=76xI")
_RETRANSMITTED = struct.Struct("=100xI")
_SIZE = _RETRANSMITTED.size

#: The threshold of a connection that has not been told of any.
UNLIMITED = 0x7FFFFFFF


def slowed(handle: Any) -> bool:
    """Whether packets of a connection were lost, and it goes slower since; False where that is not
    known.

    :param handle: its socket, or what stands in for one.
    """
    if sys.platform != "linux" or not isinstance(handle, socket.socket):
        return False
    try:
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except OSError:
        return False
    return (
        len(info) == _SIZE
        and _THRESHOLD.unpack_from(info)[0] < UNLIMITED
        and _RETRANSMITTED.unpack_from(info)[0] > 0
    )
