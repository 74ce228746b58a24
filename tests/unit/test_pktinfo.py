"""Control messages that carry the address a datagram was written to."""

from __future__ import annotations

import ipaddress
import socket
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodepass.relay import pktinfo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layout is that of Linux")

IPV4_LOOPBACK = (socket.IPPROTO_IP, 8, b"\x00\x00\x00\x00\x7f\x00\x00\x02\x00\x00\x00\x00")


def test_ipv4_layout() -> None:
    """The address to answer from is the second field, and writing one fills that field alone."""
    received = b"\x01\x00\x00\x00" + b"\x7f\x00\x00\x02" + b"\x7f\xff\xff\xff"

    assert pktinfo.decode(socket.IPPROTO_IP, 8, received) == "127.0.0.2"
    assert pktinfo.encode("127.0.0.2", socket.AF_INET) == (IPV4_LOOPBACK,)


def test_ipv6_layout() -> None:
    """The address comes first; the interface is left to the routes where the address suffices."""
    packed = ipaddress.ip_address("2001:db8::1").packed

    assert pktinfo.decode(socket.IPPROTO_IPV6, 50, packed + b"\x07\x00\x00\x00") == "2001:db8::1"
    assert pktinfo.encode("2001:db8::1", socket.AF_INET6) == (
        (socket.IPPROTO_IPV6, 50, packed + bytes(4)),
    )


def test_ipv4_on_a_socket_of_ipv6() -> None:
    """IPv4 is shown plain and sent mapped."""
    packed = ipaddress.ip_address("::ffff:192.0.2.1").packed

    assert pktinfo.decode(socket.IPPROTO_IPV6, 50, packed + b"\x02\x00\x00\x00") == "192.0.2.1"
    link_local = ipaddress.ip_address("::ffff:169.254.0.1").packed + b"\x02\x00\x00\x00"
    assert pktinfo.decode(socket.IPPROTO_IPV6, 50, link_local) == "169.254.0.1"
    assert pktinfo.encode("192.0.2.1", socket.AF_INET6) == (
        (socket.IPPROTO_IPV6, 50, packed + bytes(4)),
    )


def test_link_local_keeps_its_interface() -> None:
    """A link-local address has its interface as scope, in both directions."""
    message = ipaddress.ip_address("fe80::1").packed + b"\x03\x00\x00\x00"

    assert pktinfo.decode(socket.IPPROTO_IPV6, 50, message) == "fe80::1%3"
    assert pktinfo.encode("fe80::1%3", socket.AF_INET6) == ((socket.IPPROTO_IPV6, 50, message),)


@pytest.mark.parametrize(
    ("level", "kind", "data"),
    [
        (socket.IPPROTO_IPV6, 50, ipaddress.ip_address("ff02::1").packed + bytes(4)),
        (socket.IPPROTO_IPV6, 50, bytes(19)),
        (socket.IPPROTO_IP, 8, bytes(11)),
        (socket.IPPROTO_IP, 1, bytes(12)),
        (socket.SOL_SOCKET, 8, bytes(12)),
    ],
)
def test_what_names_no_address(level: int, kind: int, data: bytes) -> None:
    """Groups, cut messages and messages about other things give no address."""
    assert pktinfo.decode(level, kind, data) is None


@given(st.ip_addresses(), st.integers(1, 2**31 - 1))
@example(ipaddress.IPv6Address("::ffff:224.0.0.1"), 1)
def test_what_was_read_can_be_written(address: ipaddress.IPv6Address, interface: int) -> None:
    """Any address read from a message is written back as the same address."""
    bare = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    host = pktinfo.decode(socket.IPPROTO_IPV6, 50, bare + interface.to_bytes(4, sys.byteorder))

    # Python before 3.13 does not look at the IPv4 address in a mapped one.
    plain = getattr(address, "ipv4_mapped", None) or address
    if plain.is_multicast:
        assert host is None
    else:
        assert host is not None
        [(_, _, data)] = pktinfo.encode(host, socket.AF_INET6)
        assert data[:16] == bare


def test_a_socket_that_cannot_tell() -> None:
    """Where the socket has no control messages, that is said and nothing is raised."""

    class Plain:
        family = socket.AF_INET

    assert not pktinfo.enable(Plain())  # type: ignore[arg-type]
