"""Addresses and ports that no other process of the tests takes."""

from __future__ import annotations

import os
import socket
import sys

#: A loopback address of this process alone, so that programs of other test runs, which still dial a
#: port that was theirs, are not taken for visitors, and none takes a port that was found free here.
#: Only Linux has them all.
HERE = (
    f"127.{1 + os.getpid() % 250}.{os.getpid() // 250 % 250}.1"
    if sys.platform == "linux"
    else "127.0.0.1"
)


def free_port(host: str = HERE) -> int:
    """A port that both protocols have free, for programs that can't be asked for theirs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            tcp.bind((host, 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind((host, port))
            except OSError:
                continue
            return port
