"""Many datagrams in one call, where the system can: generic segmentation offload, udp(7).

A call takes datagrams of one size for one receiver, and the kernel, or the network card, cuts them
apart again: what leaves is the same. Reading has no such help but from cards that gather.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from ..pktinfo import Ancillary

__all__ = ["Runs", "segments"]

#: Datagrams in a call: what each kernel that can do it takes (UDP_MAX_SEGMENTS).
MOST_SEGMENTS = 64
#: Bytes in a call: a little less than the longest datagram, which leaves room for options of IP.
MOST_BYTES = 65000

#: Bytes that fit a packet on each way, as IP asks of it: if so few fail it is not for their length.
ALWAYS_FIT = 512

# What systems say where packets are too small for what is to be cut apart, and where the card can't
# do it.
_TOO_LONG = {errno.EINVAL, errno.EMSGSIZE}
_UNABLE = {errno.EIO, errno.EOPNOTSUPP}

_UDP_SEGMENT = 103  # of linux/udp.h; the level is the protocol's number


def _known() -> bool:
    """Whether this system knows the option. One that does not might send all as one datagram."""
    try:
        return _asked()
    except OSError:
        return False  # no socket to ask with, now or at all


@lru_cache(1)
def _asked() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.getsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT)
        except OSError:
            return False
    return True


@lru_cache
def segments(size: int) -> tuple[Ancillary, ...]:
    """What goes with datagrams of that size which are sent as one."""
    return ((socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", size)),)


class Runs:
    """Which datagrams may leave a socket together, as far as it has shown.

    What is longer than a packet on the way can't be cut apart, and some cards can't do it at all:
    what failed is not tried again.
    """

    __slots__ = ("_longest",)

    def __init__(self) -> None:
        self._longest = MOST_BYTES // 2 if _known() else 0

    def split(self, batch: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        """Cut a batch into parts, in their order.

        :returns: with each part the size of its datagrams where they may leave together, else 0.
        """
        for size, group in groupby(batch, len):
            run = list(group)
            if len(run) == 1 or not 0 < size <= self._longest:
                yield 0, run
                continue
            most = min(MOST_SEGMENTS, MOST_BYTES // size)
            for at in range(0, len(run), most):
                part = run[at : at + most]
                yield (size if len(part) > 1 else 0), part

    def failed(self, size: int, number: int) -> None:
        """Datagrams of that size could not be sent together.

        :param number: of the system's error.
        """
        if number in _UNABLE:
            self._longest = 0
        elif number in _TOO_LONG and size > ALWAYS_FIT:
            self._longest = min(self._longest, size - 1)
