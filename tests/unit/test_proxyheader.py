"""The PROXY line: a table of families, and its grammar under any input."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.protocols.haproxy._v1parser import V1Parser

from nodepass.address import Endpoint
from nodepass.proxyheader import UNKNOWN, proxy_v1

V4 = Endpoint("192.0.2.1", 1000)
V6 = Endpoint("2001:db8::1", 1000)
MAPPED = Endpoint("::ffff:192.0.2.1", 1000)
LOCAL4 = Endpoint("198.51.100.2", 2000)
LOCAL6 = Endpoint("2001:db8::2", 2000)
LOCAL_MAPPED = Endpoint("::ffff:198.51.100.2", 2000)
TARGET4 = Endpoint("203.0.113.3", 3000)
TARGET6 = Endpoint("2001:db8::3", 3000)
TARGET_MAPPED = Endpoint("::ffff:203.0.113.3", 3000)

TO_TARGET4 = b"PROXY TCP4 192.0.2.1 203.0.113.3 1000 3000\r\n"
TO_LOCAL4 = b"PROXY TCP4 192.0.2.1 198.51.100.2 1000 2000\r\n"
TO_TARGET6 = b"PROXY TCP6 2001:db8::1 2001:db8::3 1000 3000\r\n"
TO_LOCAL6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 1000 2000\r\n"


@pytest.mark.parametrize(
    ("visitor", "local", "target", "line"),
    [
        # The target has the visitor's family: it is the destination.
        *((who, near, far, TO_TARGET4)
          for who in (V4, MAPPED)
          for near in (LOCAL4, LOCAL6, LOCAL_MAPPED, None)
          for far in (TARGET4, TARGET_MAPPED)),
        *((V6, near, TARGET6, TO_TARGET6) for near in (LOCAL4, LOCAL6, LOCAL_MAPPED, None)),
        # It has the other family, or is not known: the address connected to stands in.
        *((who, near, far, TO_LOCAL4)
          for who in (V4, MAPPED)
          for near in (LOCAL4, LOCAL_MAPPED)
          for far in (TARGET6, None)),
        *((V6, LOCAL6, far, TO_LOCAL6) for far in (TARGET4, TARGET_MAPPED, None)),
        # Nothing of the visitor's family: the IPv4 side is mapped.
        *((who, near, TARGET6, b"PROXY TCP6 ::ffff:c000:201 2001:db8::3 1000 3000\r\n")
          for who in (V4, MAPPED)
          for near in (LOCAL6, None)),
        *((V6, near, far, b"PROXY TCP6 2001:db8::1 ::ffff:cb00:7103 1000 3000\r\n")
          for near in (LOCAL4, LOCAL_MAPPED, None)
          for far in (TARGET4, TARGET_MAPPED)),
        (V4, LOCAL6, None, b"PROXY TCP6 ::ffff:c000:201 2001:db8::2 1000 2000\r\n"),
        (V6, LOCAL4, None, b"PROXY TCP6 2001:db8::1 ::ffff:c633:6402 1000 2000\r\n"),
        # No destination at all.
        (V4, None, None, UNKNOWN),
        (V6, None, None, UNKNOWN),
    ],
)  # fmt: skip
def test_families(
    visitor: Endpoint, local: Endpoint | None, target: Endpoint | None, line: bytes
) -> None:
    """Every combination of families yields the destination and the spelling promised."""
    assert proxy_v1(visitor, local, target) == line


def test_scope_is_left_out() -> None:
    """The scope of a link-local address means nothing to the target and is not written."""
    line = proxy_v1(Endpoint("fe80::1%3", 1), Endpoint("fe80::2%eth0", 2), None)

    assert line == b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"


def test_longest_line() -> None:
    """The longest addresses stay within the 107 bytes that a receiver must be ready for."""
    longest = Endpoint("1111:2222:3333:4444:5555:6666:7777:8888", 65535)

    assert len(proxy_v1(longest, longest, longest)) <= 107


@pytest.mark.parametrize(
    "visitor",
    [
        Endpoint("", 1),
        Endpoint("example.org", 1),
        Endpoint("192.0.2.1\r\n", 1),
        Endpoint("192.0.2.1", 65536),
        Endpoint("192.0.2.1", -1),
    ],
)
def test_what_is_no_address_is_unknown(visitor: Endpoint) -> None:
    """An address that can't be written is announced as unknown, never as a malformed line."""
    assert proxy_v1(visitor, LOCAL4, TARGET4) == UNKNOWN


addresses = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}"),
    st.ip_addresses(v=6).map(lambda address: f"{address}%1"),
)
endpoints = st.builds(Endpoint, addresses, st.integers(0, 65535))

GRAMMAR = re.compile(
    rb"PROXY (?:TCP4 [0-9.]{7,15} [0-9.]{7,15}|TCP6 [0-9a-f:]{2,39} [0-9a-f:]{2,39})"
    rb" (?:0|[1-9][0-9]{0,4}) (?:0|[1-9][0-9]{0,4})\r\n"
)


@given(endpoints, st.none() | endpoints, endpoints)
def test_grammar(visitor: Endpoint, local: Endpoint | None, target: Endpoint) -> None:
    """Any addresses give a canonical line of the v1 grammar that names the visitor."""
    line = proxy_v1(visitor, local, target)

    assert GRAMMAR.fullmatch(line)
    assert len(line) <= 107
    info, rest = V1Parser().feed(line + b"payload")
    assert info is not None and rest == b"payload"
    source, destination = info.source, info.destination
    assert isinstance(source, IPv4Address | IPv6Address)
    assert isinstance(destination, IPv4Address | IPv6Address)
    for address in (source, destination):
        parsed = ipaddress.ip_address(address.host)
        assert parsed.version == (4 if isinstance(address, IPv4Address) else 6)
        if not (isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped):
            assert address.host == str(parsed)
    assert _number(source.host) == _number(visitor.host)
    assert source.port == visitor.port


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@given(st.builds(Endpoint, st.text(), st.integers()), st.none() | endpoints, st.none() | endpoints)
def test_garbage_never_breaks_out(
    visitor: Endpoint, local: Endpoint | None, target: Endpoint | None
) -> None:
    """Whatever the visitor's address holds, exactly one well-formed line comes out."""
    line = proxy_v1(visitor, local, target)

    assert line == UNKNOWN or GRAMMAR.fullmatch(line)
