"""Connections within this host are not paced.

Where the system's way to control congestion is BBR, each connection sends its packets at the pace
that it believes the line can take, with a timer for each 64 KiB. Within the host there is no line
to be spared, and the timers take more time than all else that is done with the bytes. So what is
bound to stay on this host has another way; all other connections have the system's.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

__all__ = ["UNPACED", "send_freely", "send_freely_on", "stays_here"]

#: What local connections have in the place of BBR: each Linux kernel has it, and lets every user
#: choose it.
UNPACED = b"reno"

# Bytes of the longest name of such a way (TCP_CA_NAME_MAX).
_LONGEST_NAME = 16


def stays_here(host: str) -> bool:
    """Whether what goes to an IP address, or comes to it, does not leave this host.

    :param host: an IP literal; another name says nothing.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def send_freely(sock: socket.SocketType) -> None:
    """See to it that a TCP socket's connections, which are within this host, are not paced.

    It has to come before the first of them: what has begun to be paced stays so. Those that are
    accepted have it from the socket that listens.
    """
    try:  # `suppress` takes several calls, and each session passes here
        if _paces():
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
    except OSError:
        pass


def send_freely_on(transport: Any) -> None:
    """The same for one of Twisted's ports or transports; one in memory has no socket."""
    sock = getattr(transport, "socket", None)
    if sock is not None:
        send_freely(sock)


@lru_cache(1)
def _paces() -> bool:
    """Whether the system would.

    :raises OSError: it can't say now.
    """
    if not hasattr(socket, "TCP_CONGESTION"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LONGEST_NAME)
    return name.startswith(b"bbr")
