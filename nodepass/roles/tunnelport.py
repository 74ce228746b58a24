"""The tunnel port: bound at the start, or as soon as it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall

from nodepass.address import Address, Endpoint
from nodepass.errors import FatalError
from nodepass.health import Health
from nodepass.logs import Level
from nodepass.tuning import Tuning

from .visitors import fatal, why

__all__ = ["TunnelPort"]

T = TypeVar("T")


class TunnelPort(Generic[T]):
    """A port for clients. One that is in use is tried again for ever.

    :ivar port: what listens; None while nothing does.
    :param listen: opens it; raises CannotListenError.
    :param where: the address of what listens.
    :param failed: hears that it never can be bound.
    """

    def __init__(
        self,
        reactor: Any,
        address: Address,
        tuning: Tuning,
        health: Health,
        *,
        listen: Callable[[], T],
        where: Callable[[T], Endpoint],
        failed: Callable[[FatalError], None],
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._cooldown = tuning.service_cooldown
        self._health = health
        self._listen = listen
        self._where = where
        self._failed = failed
        self._retry: IDelayedCall | None = None
        self.port: T | None = None

    @property
    def address(self) -> Endpoint | None:
        """Where it is bound; None while it is not."""
        return None if self.port is None else self._where(self.port)

    def bind(self) -> None:
        """Bind it now or later; nothing where that was asked before."""
        if self.port is None and self._retry is None:
            self._try()

    def stop(self) -> T | None:
        """Try no more; what listens is the caller's to close."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        port, self.port = self.port, None
        return port

    def _try(self) -> None:
        self._retry = None
        health = self._health
        try:
            self.port = self._listen()
        except CannotListenError as error:
            hopeless = fatal(error, f"tunnel address {self._address}")
            if hopeless is not None:
                health.trouble("tunnel port", "{error}", level=Level.ERROR, error=hopeless)
                self._failed(hopeless)
                return
            health.trouble(
                "tunnel port",
                "can't listen for clients on {address}: {reason}; trying on",
                address=self._address,
                reason=why(error),
            )
            self._retry = self._reactor.callLater(self._cooldown, self._try)
            return
        health.well("tunnel port")
        health.log.info("listening for clients on {address}", address=self.address)
