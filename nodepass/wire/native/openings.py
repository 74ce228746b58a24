"""What OPEN and FLOW_OPEN say of a visitor, as bytes: number, target, and two addresses.

An address is u8 4 or 6, the 4 or 16 bytes of it, u16 port, in network order.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_pton

from nodepass.address import Endpoint
from nodepass.relay.stream import Chunk
from nodepass.wire import Opening

__all__ = ["IPV4_SIZE", "pack_opening", "unpack_opening"]

#: Hosts whose other form is remembered: those of the visitors who come again and again.
HOSTS_KEPT = 1024

_PORT = struct.Struct(">H")
_NUMBER_AND_TARGET = struct.Struct(">IH")
# An opening with two addresses of IPv4: number, target, visitor (family and host, port), local.
_OPENING_V4 = struct.Struct(">IH5sH7s")
# Bytes of the visitor's host and of the local address then.
_BOTH_IPV4 = 12

#: Bytes of an opening with two addresses of IPv4.
IPV4_SIZE = _OPENING_V4.size


def pack_opening(number: int, opening: Opening) -> bytes:
    """The body of a frame that opens the session or flow of this number."""
    (host, port), local, target = opening
    visitor, here = _pack_host(host), _pack_local(local)
    if len(visitor) + len(here) == _BOTH_IPV4:
        return _OPENING_V4.pack(number, target, visitor, port, here)
    return _NUMBER_AND_TARGET.pack(number, target) + visitor + _PORT.pack(port) + here


@lru_cache(HOSTS_KEPT)
def _pack_host(host: str) -> bytes:
    if ":" in host:
        # A link-local scope means nothing on another host.
        return b"\6" + inet_pton(AF_INET6, host.partition("%")[0])
    return b"\4" + inet_pton(AF_INET, host)


@lru_cache(HOSTS_KEPT)
def _pack_local(local: Endpoint) -> bytes:
    return _pack_host(local.host) + _PORT.pack(local.port)


def unpack_opening(body: Chunk) -> tuple[int, Opening]:
    """What such a body says: the number, and the opening.

    :raises ValueError, IndexError, struct.error: it is none.
    """
    if len(body) == IPV4_SIZE:
        number, target, host, port, local = _OPENING_V4.unpack(body)
        if host[0] == 4:
            visitor = Endpoint(_unpack_host(host), port)
            return number, Opening(visitor, _unpack_local(local), target)
    body = bytes(body)
    number, target = _NUMBER_AND_TARGET.unpack_from(body)
    visitor, at = _unpack_address(body, _NUMBER_AND_TARGET.size)
    return number, Opening(visitor, _unpack_local(body[at:]), target)


@lru_cache(HOSTS_KEPT)
def _unpack_local(packed: bytes) -> Endpoint:
    local, end = _unpack_address(packed, 0)
    if end != len(packed):
        raise ValueError("more than an address")
    return local


def _unpack_address(body: bytes, at: int) -> tuple[Endpoint, int]:
    size = {4: 4, 6: 16}.get(body[at])
    if size is None:
        raise ValueError(f"unknown address family {body[at]}")
    end = at + 1 + size
    (port,) = _PORT.unpack_from(body, end)
    return Endpoint(_unpack_host(body[at:end]), port), end + 2


@lru_cache(HOSTS_KEPT)
def _unpack_host(packed: bytes) -> str:
    return str(ip_address(packed[1:]))
