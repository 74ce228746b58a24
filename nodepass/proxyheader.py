"""The PROXY protocol, version 1: a line that tells a target who its visitor is.

Source: <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, section 2.1.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from nodepass.address import Endpoint

#: The header for what can't be described: the target is to use what it sees of the connection.
UNKNOWN = b"PROXY UNKNOWN\r\n"

_MAPPED_PREFIX = 0xFFFF << 32


def proxy_v1(visitor: Endpoint, local: Endpoint | None, target: Endpoint | None) -> bytes:
    """The header line for one session, to be written to the target before any payload.

    The destination named is the target where it is of the visitor's address family, else the
    address that the visitor had connected to. When neither is, the IPv4 side is written as an
    IPv4-mapped IPv6 address, because a line holds one family only.

    :param visitor: where the session came from; IPv4-mapped IPv6 counts as IPv4.
    :param local: the address that the visitor had connected to, where it is known.
    :param target: the address that was dialed, where it is known.
    :returns: the line with its CRLF, never malformed: :data:`UNKNOWN` when an address is missing or
        is not an IP address.
    """
    source = _parse(visitor)
    destinations = [
        (address, endpoint.port)
        for endpoint in (target, local)
        if endpoint is not None and (address := _parse(endpoint)) is not None
    ]
    if source is None or not destinations:
        return UNKNOWN
    destination, port = min(destinations, key=lambda pair: pair[0].version != source.version)
    if source.version == destination.version == 4:
        family, names = "TCP4", (str(source), str(destination))
    else:
        family, names = "TCP6", (_text6(source), _text6(destination))
    return f"PROXY {family} {names[0]} {names[1]} {visitor.port} {port}\r\n".encode("ascii")


def _parse(endpoint: Endpoint) -> IPv4Address | IPv6Address | None:
    """The address without scope, unmapped; None for what is not an address and a port."""
    if not 0 <= endpoint.port <= 65535:
        return None
    try:
        address = ip_address(endpoint.host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _text6(address: IPv4Address | IPv6Address) -> str:
    """As IPv6, in hexadecimal groups throughout: the header's grammar knows no dotted tail."""
    if address.version == 4:
        address = IPv6Address(_MAPPED_PREFIX | int(address))
        return f"::ffff:{int(address) >> 16 & 0xFFFF:x}:{int(address) & 0xFFFF:x}"
    return str(address)
