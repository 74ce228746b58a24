"""Which of a host's addresses a datagram was written to, and sending from that very address.

A socket bound to every interface answers from whatever address the route suggests, and a visitor
that wrote to another one drops the answer. The system tells, and takes, the address in a control
message beside the datagram: ``IP_PKTINFO`` for IPv4 (ip(7)), ``IPV6_PKTINFO`` for IPv6 (RFC 3542,
section 6). Where the platform lacks them, :func:`enable` returns False.
"""

from __future__ import annotations

import socket
import struct
import sys
from functools import lru_cache
from ipaddress import ip_address

from nodepass.address import mapped, unmapped

#: A control message as ``sendmsg`` takes it: level, type, data.
Ancillary = tuple[int, int, bytes]

# Python names these two only on some platforms and versions.
_IP_PKTINFO: int | None = getattr(
    socket, "IP_PKTINFO", {"linux": 8, "darwin": 26}.get(sys.platform)
)
_IPV6_RECVPKTINFO: int | None = getattr(socket, "IPV6_RECVPKTINFO", None)
_IPV6_PKTINFO: int | None = getattr(socket, "IPV6_PKTINFO", None)

# struct in_pktinfo: interface index, address to answer from, address in the datagram's header.
_V4 = struct.Struct("@I4s4s")
# struct in6_pktinfo: address, interface index.
_V6 = struct.Struct("@16sI")

#: A host has a few addresses, but one routed a whole prefix may be written to at any of it.
_CACHED_ADDRESSES = 1024


def space() -> int:
    """Bytes of control data to make room for when receiving."""
    return socket.CMSG_SPACE(max(_V4.size, _V6.size))


def enable(sock: socket.socket) -> bool:
    """Have a UDP socket tell the address of each datagram; False where that is not possible."""
    if not (hasattr(sock, "recvmsg") and hasattr(sock, "sendmsg")):
        return False
    try:
        if sock.family == socket.AF_INET6:
            if _IPV6_RECVPKTINFO is None or _IPV6_PKTINFO is None:
                return False
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            if _IP_PKTINFO is None:
                return False
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    except OSError:
        return False
    return True


@lru_cache(_CACHED_ADDRESSES)
def decode(level: int, kind: int, data: bytes) -> str | None:
    """Read one control message that came with a datagram.

    :returns: the IP address that the datagram was written to, IPv4 never as IPv6, and with the
        interface's index as its scope where it is link-local; None when the message says
        something else, or names a group, which nobody can answer from.
    """
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _V4.size:
        _, answer_from, _ = _V4.unpack_from(data)
        return socket.inet_ntop(socket.AF_INET, answer_from)
    if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO and len(data) >= _V6.size:
        packed, interface = _V6.unpack_from(data)
        host = unmapped(socket.inet_ntop(socket.AF_INET6, packed))
        address = ip_address(host)
        if address.is_multicast:
            return None
        return f"{host}%{interface}" if address.version == 6 and address.is_link_local else host
    return None


@lru_cache(_CACHED_ADDRESSES)
def encode(host: str, family: socket.AddressFamily) -> tuple[Ancillary, ...]:
    """Write what makes a datagram leave from ``host``, an address that :func:`decode` gave.

    :param family: of the socket; one of IPv6 carries IPv4 too.
    """
    if family == socket.AF_INET:
        assert _IP_PKTINFO is not None
        data = _V4.pack(0, socket.inet_pton(socket.AF_INET, host), bytes(4))
        return ((socket.IPPROTO_IP, _IP_PKTINFO, data),)
    assert _IPV6_PKTINFO is not None
    bare, _, scope = mapped(host).partition("%")
    # An index only where the address means nothing without: else the routes decide.
    data = _V6.pack(socket.inet_pton(socket.AF_INET6, bare), int(scope or 0))
    return ((socket.IPPROTO_IPV6, _IPV6_PKTINFO, data),)
