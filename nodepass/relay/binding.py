"""Sockets that listen: where, and what nobody else may have."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.error import CannotListenError, DNSLookupError

from nodepass.address import Address, is_literal
from nodepass.resolver import LOCALHOST

from .pacing import send_freely, stays_here

__all__ = [
    "BACKLOG",
    "bound",
    "every_interface",
    "listening_sockets",
    "literal",
    "numeric",
    "socket_address",
]

#: Connections that wait to be accepted: a burst of visitors between two turns of the reactor.
BACKLOG = 4096


def every_interface() -> str:
    """The address that stands for all of this host's, IPv6 and IPv4 where there are both."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def literal(address: Address) -> Address:
    """The address with a literal for its host, so that it can be bound.

    It blocks while a name is looked up: for use at start, before there is anybody to keep waiting.

    :raises CannotListenError: the name has no address, or none can be had now.
    """
    host, port = address.host, address.port
    if not host or is_literal(host):
        return address
    if host.lower() == "localhost":
        return Address(LOCALHOST[0], port)  # as the resolver has it
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotListenError(host, port, DNSLookupError(f"{host}: {reason}")) from error
    return Address(str(found[0][4][0]), port)


def numeric(address: Address) -> tuple[int, Any]:
    """The family of an IP address, or of every interface, and its name as the system takes it.

    :raises CannotListenError: it is no address here.
    """
    host = address.host or every_interface()
    try:
        return socket_address(host, address.port)
    except OSError as error:
        raise CannotListenError(host, address.port, error) from error


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The same of an IP address, its scope included; never a look-up.

    :raises OSError: the host is a name.
    """
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    # As bytes: of text the codec is asked that turns names into ASCII, with tables of Unicode.
    found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=flags)[0]
    return found[0], found[4]


def bound(make: Callable[[], socket.socket], name: Any, count: int) -> list[socket.socket]:
    """So many sockets bound to one name, which nobody else has.

    The first is bound as if it were alone, so that a port that is in use is refused, even where its
    owner would share it; only then it lets others in.

    :param make: makes a socket, not yet bound.
    :raises CannotListenError: it can't be had.
    """
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = make()
            sockets.append(sock)
            if len(sockets) > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(name)
            if len(sockets) == 1:
                name = sock.getsockname()
                if count > 1:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        _close(sockets)
        raise CannotListenError(name[0], name[1], error) from error
    return sockets


def listening_sockets(
    address: Address, make: Callable[[int], socket.socket], count: int = 1, backlog: int = BACKLOG
) -> list[socket.socket]:
    """So many TCP sockets that listen on one IP address, or on every interface of both families.

    :param make: makes a socket of a family.
    :raises CannotListenError: it can't be bound.
    """
    family, name = numeric(address)

    def prepared() -> socket.socket:
        sock = make(family)
        if stays_here(name[0]):
            send_freely(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and name[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return sock

    sockets = bound(prepared, name, count)
    try:
        for sock in sockets:
            sock.listen(backlog)
    except OSError as error:  # another program's socket on the address was quicker
        _close(sockets)
        raise CannotListenError(name[0], name[1], error) from error
    return sockets


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
