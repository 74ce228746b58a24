"""Which relay serves a role."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.interfaces import IReactorFDSet

from nodepass.logs import Log
from nodepass.resolver import CachingResolver

from .hangup import HangupWatch
from .portable import PortableRelay, Relay

__all__ = ["choose_relay"]


def choose_relay(
    reactor: Any, resolver: CachingResolver, watch: HangupWatch, log: Log, *, portable: bool
) -> Relay:
    """Return the engine on Linux, where the reactor can watch descriptors; else the portable one.

    :param portable: the portable one is asked for.
    """
    if portable or sys.platform != "linux" or not IReactorFDSet.providedBy(reactor):
        return PortableRelay(reactor, resolver, watch, log)
    # Not at the top: elsewhere it can't be imported.
    from .engine.relay import EngineRelay

    return EngineRelay(reactor, resolver, watch, log)
