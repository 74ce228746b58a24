"""What a master keeps for good: its identity, and of each instance the part that outlives it."""

from __future__ import annotations

import secrets

from attrs import field, frozen

from .models import Meta

__all__ = ["MAX_COUNTER", "Contents", "Identity", "Record", "Totals", "new_api_key"]

#: The largest counter: what eight bytes with a sign hold, in the state file and in clients.
MAX_COUNTER = 2**63 - 1


def _bounded(count: int) -> int:
    return min(max(0, count), MAX_COUNTER)


@frozen(kw_only=True)
class Totals:
    """Bytes that an instance moved in all its life, or in some time."""

    tcprx: int = field(default=0, converter=_bounded)
    tcptx: int = field(default=0, converter=_bounded)
    udprx: int = field(default=0, converter=_bounded)
    udptx: int = field(default=0, converter=_bounded)

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            tcprx=self.tcprx + other.tcprx,
            tcptx=self.tcptx + other.tcptx,
            udprx=self.udprx + other.udprx,
            udptx=self.udptx + other.udptx,
        )

    def __bool__(self) -> bool:
        return bool(self.tcprx or self.tcptx or self.udprx or self.udptx)


@frozen(kw_only=True)
class Record:
    """The durable part of an instance.

    :ivar url: as it was posted, key included; never printed.
    :ivar restart: whether it starts with the master.
    """

    id: str
    url: str = field(repr=False)
    alias: str = ""
    restart: bool = True
    meta: Meta = field(factory=Meta)
    totals: Totals = Totals()


@frozen(kw_only=True)
class Identity:
    """The master itself.

    :ivar mid: 16 hex digits, the same as long as there is state.
    :ivar key: the API key, 32 hex digits; never printed.
    :ivar alias: the master's alias.
    """

    mid: str
    key: str = field(repr=False)
    alias: str = ""


@frozen(kw_only=True)
class Contents:
    """All that a state file holds.

    :ivar identity: None where none was ever saved.
    :ivar records: in the order in which they were created.
    """

    identity: Identity | None = None
    records: tuple[Record, ...] = ()


def new_api_key() -> str:
    """Return a new API key: 32 hex digits."""
    return secrets.token_hex(16)
