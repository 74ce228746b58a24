"""What the wires of a role use of it."""

from __future__ import annotations

from typing import Any, Protocol

from nodepass.health import Health
from nodepass.logs import Log
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import Relay
from nodepass.resolver import CachingResolver
from nodepass.tuning import Tuning

__all__ = ["Surroundings"]


class Surroundings(Protocol):
    """A running role, as far as wires are concerned."""

    @property
    def reactor(self) -> Any:
        """What it runs on."""

    @property
    def tuning(self) -> Tuning:
        """Its limits and timeouts."""

    @property
    def health(self) -> Health:
        """What is wrong with it."""

    @property
    def log(self) -> Log:
        """Where it tells of things."""

    @property
    def watch(self) -> HangupWatch:
        """Looks after connections whose reading is paused."""

    @property
    def resolver(self) -> CachingResolver:
        """Finds addresses."""

    @property
    def relay(self) -> Relay:
        """The sockets beneath it."""
