"""How many worker processes there are to be, and why not as many as were asked for."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from twisted.internet.interfaces import IReactorFDSet

from nodepass.config import ClientConfig, Mode, ServerConfig
from nodepass.dialects import NATIVE
from nodepass.parameters import AUTO

__all__ = ["worker_count"]


def worker_count(config: ServerConfig | ClientConfig, reactor: Any) -> tuple[int, str]:
    """The number of workers, and what is missing where several were asked for and can't be."""
    asked = config.workers
    if asked == 1:
        return 1, ""
    missing = _missing(config, reactor)
    if missing:
        return 1, missing
    return (len(os.sched_getaffinity(0)) if asked == AUTO else int(asked)), ""


def _missing(config: ServerConfig | ClientConfig, reactor: Any) -> str:
    if sys.platform != "linux":
        return "it needs Linux"
    for name, has in (
        ("SO_REUSEPORT", hasattr(socket, "SO_REUSEPORT")),
        ("eventfd", hasattr(os, "eventfd")),
        ("memfd_create", hasattr(os, "memfd_create")),
    ):
        if not has:
            return f"this Python was built without {name}"
    if not IReactorFDSet.providedBy(reactor):
        return "the reactor can't watch descriptors"
    if isinstance(config, ServerConfig) and not config.key:
        return "a server without a key serves one client at a time; set a key on both ends"
    forwards = isinstance(config, ClientConfig) and config.mode is Mode.ONE
    if not forwards and config.dialects != (NATIVE,):
        return "nodes of old dialects know of one process at the other end; write wire=native"
    return ""
