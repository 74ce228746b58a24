"""What a simulated node is told."""

from __future__ import annotations

from attrs import field, frozen

from nodepass.address import Endpoint
from nodepass.wire.old.dialect import Dialect

from .conn import Reactor
from .tasks import Tasks
from .timing import OldTiming

__all__ = ["Setting"]


@frozen(kw_only=True)
class Setting:
    """What a node is told, and what all its tunnels share.

    :ivar sessions: TCP sessions, which outlive the tunnel that they began in.
    :ivar other: where it listens for visitors, or what it dials.
    """

    reactor: Reactor
    dialect: Dialect
    key: bytes = field(repr=False)
    timing: OldTiming
    other: Endpoint
    read: float
    sessions: Tasks
