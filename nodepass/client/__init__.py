"""A client for the API of masters, on Twisted and treq.

::

    master = MasterClient("https://tunnels.example.org:10101", key)
    for instance in await master.list():
        print(instance.id, instance.status)
    async for event in master.events(types=["update"]):
        ...
"""

from __future__ import annotations

from .errors import (
    BadAnswer,
    Cut,
    MasterError,
    MissingFeature,
    NotAMaster,
    NotFound,
    Refused,
    ServerTrouble,
    Silent,
    TLSMismatch,
    Unreachable,
    Untrusted,
    WrongKey,
)
from .master import MasterClient
from .trust import Trust, parse_fingerprint

__all__ = [
    "BadAnswer",
    "Cut",
    "MasterClient",
    "MasterError",
    "MissingFeature",
    "NotAMaster",
    "NotFound",
    "Refused",
    "ServerTrouble",
    "Silent",
    "TLSMismatch",
    "Trust",
    "Unreachable",
    "Untrusted",
    "WrongKey",
    "parse_fingerprint",
]
