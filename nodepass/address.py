"""Addresses as URLs give them (``example.org:443``, ``[::1]:80``, ``:8080``) and as sockets do."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from attrs import frozen

__all__ = [
    "Address",
    "Endpoint",
    "endpoint_of",
    "is_literal",
    "mapped",
    "parse_address",
    "unmapped",
]

_WILDCARDS = ("", "0.0.0.0", "::")

#: RFC 1035, 2.3.4: octets of a name and of one label, as text.
_LONGEST_NAME = 253
_LONGEST_LABEL = 63

#: The zone of a link-local address is an interface's name or number.
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

#: RFC 4291, 2.5.5.2: how a socket of IPv6 shows an IPv4 address.
_MAPPED_PREFIX = "::ffff:"


@frozen
class Address:
    """A host and a port.

    :ivar host: an IP address, a name, or "" for every interface (listening) or this
        host (dialing).
    :ivar port: 0 to 65535; 0 to listen on any free port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, IPv6 addresses in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def wildcard(self) -> bool:
        """Whether it stands for every interface."""
        return self.host in _WILDCARDS

    def dial_hosts(self) -> tuple[str, ...]:
        """Return the hosts to dial, in order: a wildcard means this host."""
        return ("127.0.0.1", "::1") if self.host in _WILDCARDS else (self.host,)


class Endpoint(NamedTuple):
    """An IP address literal and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, IPv6 addresses in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _HostAndPort(Protocol):
    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


def endpoint_of(address: _HostAndPort) -> Endpoint:
    """Return the endpoint of a transport's address: IPv4 as IPv4, and without a zone."""
    return Endpoint(unmapped(address.host.partition("%")[0]), address.port)


def is_literal(host: str) -> bool:
    """Whether ``host`` is an IP address, with or without a zone, and so needs no look-up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def unmapped(host: str) -> str:
    """Return an IPv4-mapped IPv6 address as IPv4, anything else as it is."""
    if host.startswith(_MAPPED_PREFIX):
        tail = host[len(_MAPPED_PREFIX) :]
        if "." in tail and ":" not in tail:
            return tail
    return host


def mapped(host: str) -> str:
    """Return the reverse of `unmapped`: the address as a socket of IPv6 takes it."""
    return host if ":" in host else _MAPPED_PREFIX + host


def parse_address(text: str, *, dialed: bool = False) -> Address:
    """Read ``host:port`` out of a URL.

    :param dialed: whether it will surely be dialed, which port 0 can't be.
    :raises ValueError: it is none; the message says what is wrong and does not repeat ``text``.
    """
    host, colon, port = text.rpartition(":")
    if "/" in text:
        raise ValueError("accepted: host:port alone, without a scheme before it or a '/' behind it")
    if "&" in text or ";" in text:
        raise ValueError("parameters begin with '?' and are separated by '&'")
    if host in ("http", "https", "tcp", "udp") and not port:
        raise ValueError("accepted: host:port alone, without a scheme before it")
    if not text.startswith("[") and ":" in host:
        raise ValueError("an IPv6 address is written in brackets, as in [::1]:8080")
    if not colon or text.endswith("]"):
        more = "" if dialed else ", or :port for every interface"
        raise ValueError(f"the port is missing; accepted: host:port{more}")
    # Digits of other scripts are digits to str.isdigit() and int().
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"the port must be a number from {int(dialed)} to 65535")
    if dialed and int(port) == 0:
        raise ValueError("port 0 can't be dialed; accepted: 1 to 65535")
    return Address(_parse_host(host), int(port))


def _parse_host(text: str) -> str:
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError("the brackets hold one IPv6 address, as in [::1]:8080")
        return _parse_ipv6(unquote(text[1:-1]))
    host = unquote(text)
    if re.fullmatch("[0-9.]+", host):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise ValueError("the host is not a valid IPv4 address") from None
    if host and not _is_name(host):
        raise ValueError("the host is neither a name nor an IP address")
    return host


def _parse_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise ValueError("the brackets hold no valid IPv6 address") from None
    if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
        raise ValueError("the zone of the IPv6 address is not an interface's name")
    return str(address)


def _is_name(host: str) -> bool:
    """Whether ``host`` can be a name in the DNS or a hosts file, in whatever script."""
    labels = host.removesuffix(".").split(".")
    return len(host) <= _LONGEST_NAME and all(
        0 < len(label) <= _LONGEST_LABEL and all(char.isalnum() or char in "-_" for char in label)
        for label in labels
    )
