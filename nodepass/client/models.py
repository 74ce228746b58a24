"""The records of a master's API, under the names that users of the client import."""

from __future__ import annotations

from nodepass.master.models import (
    EVENT_TYPES,
    MASTER_ID,
    Event,
    Info,
    Instance,
    Meta,
    Peer,
    Tcping,
    Traffic,
)

__all__ = [
    "EVENT_TYPES",
    "MASTER_ID",
    "Event",
    "Info",
    "Instance",
    "Meta",
    "Peer",
    "Tcping",
    "Traffic",
]
