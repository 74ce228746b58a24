"""Addresses as sockets show them."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address

from nodepass.address import Endpoint, endpoint_of, is_literal, mapped, unmapped


def test_endpoint_text() -> None:
    """An endpoint is written as URLs write addresses."""
    assert str(Endpoint("192.0.2.1", 5)) == "192.0.2.1:5"
    assert str(Endpoint("2001:db8::1", 5)) == "[2001:db8::1]:5"


def test_endpoint_of() -> None:
    """A v4-mapped address is shown as IPv4, and a zone is left out."""
    assert endpoint_of(IPv4Address("TCP", "192.0.2.1", 5)) == Endpoint("192.0.2.1", 5)
    assert endpoint_of(IPv6Address("TCP", "::ffff:192.0.2.1", 5)) == Endpoint("192.0.2.1", 5)
    assert endpoint_of(IPv6Address("TCP", "fe80::1%eth0", 5)) == Endpoint("fe80::1", 5)


def test_is_literal() -> None:
    """An IP address in full is one; a name is none because it ends in a digit."""
    assert all(map(is_literal, ["192.0.2.1", "::1", "fe80::1%eth0", "::ffff:192.0.2.1"]))
    assert not any(map(is_literal, ["web1", "0x7f000001", "127.1", "a.test", "", "[::1]"]))


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:c000:201", "::ffff:c000:201"),
        ("::ffff:0:102:304", "::ffff:0:102:304"),
        ("::ffff:0:1.2.3.4", "::ffff:0:1.2.3.4"),
    ],
)
def test_unmapped(shown: str, meant: str) -> None:
    """Only an IPv4-mapped address becomes IPv4, not one that begins alike."""
    assert unmapped(shown) == meant
    assert unmapped(mapped(meant)) == meant
