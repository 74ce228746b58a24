"""For which worker a connection to the tunnel port is, told by its first bytes. No I/O.

A data link without TLS names its worker in the preface; a TLS connection offers ``w<hex>`` as one
of its ALPN names. Who names none, or makes no sense, is for the first worker, which has the words
to turn strangers away.
"""

from __future__ import annotations

import struct

from nodepass.wire.clienthello import HANDSHAKE, MOST_NEEDED, alpn
from nodepass.wire.native.proof import MAGIC
from nodepass.wire.native.tags import tagged

__all__ = ["MOST_NEEDED", "addressed"]

_PLAIN = struct.Struct(">4sBH")


def addressed(first: bytes) -> int | None:
    """The number that the connection names; None: more of it is needed.

    :param first: what has come so far, all of it.
    """
    if first[0] != HANDSHAKE:
        if not MAGIC.startswith(first[: len(MAGIC)]):
            return 0
        return None if len(first) < _PLAIN.size else int(_PLAIN.unpack_from(first)[2])
    names = alpn(first)
    return None if names is None else tagged(names)
