"""A master as a Twisted service."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service

from nodepass.config import MasterConfig
from nodepass.tuning import Tuning


class MasterService(Service):
    """A master, as it is being built."""

    def __init__(
        self, config: MasterConfig, *, tuning: Tuning | None = None, reactor: Any = None
    ) -> None:
        self.config = config

    def whenFailed(self) -> Any:
        """Fires never yet."""

    def reload(self) -> None:
        """Nothing yet."""
