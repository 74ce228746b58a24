"""The control link of an old dialect on a Twisted transport: signals in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.relay.tcp import tune
from nodepass.tlswords import lost_reason

from .dialect import Dialect
from .lines import LineError
from .signals import Signal, SignalReader, encode

__all__ = ["OldControl"]


@implementer(IPushProducer)
class OldControl(Protocol):
    """One end of a control link.

    While what was sent waits to leave, nothing is read: a peer that asks without reading the
    answers stops itself.

    :param hear: called with each signal.
    :param lost: called once with the reason when the link is gone.
    """

    transport: Any

    def __init__(
        self,
        dialect: Dialect,
        key: bytes,
        hear: Callable[[Signal], None],
        lost: Callable[[str], None],
    ) -> None:
        self._dialect = dialect
        self._key = key
        self._reader = SignalReader(dialect, key)
        self._hear = hear
        self._lost = lost
        self._connected = False
        self._given_up = ""
        self._gone: Deferred[None] = Deferred()

    def send(self, signal: Signal) -> None:
        """Send a signal.

        :raises LineUnwritable: it can't be said with this key.
        """
        line = encode(signal, self._dialect, self._key)
        if self._connected:
            self.transport.write(line)

    def close(self) -> Deferred[None]:
        """Close once what was sent has left; fires when the link is gone. `lost` is not called."""
        self._lost = _nothing
        if self._connected:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        return self._gone

    def abort(self, reason: str = "") -> None:
        """Close now; `reason` is what `lost` is told."""
        self._given_up = self._given_up or reason
        if self._connected:
            self.transport.abortConnection()

    # Protocol

    def connectionMade(self) -> None:
        self._connected = True
        tune(self.transport)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        try:
            signals = self._reader.feed(data)
        except LineError as error:
            self.abort(f"a protocol error: {error}")
            return
        for signal in signals:
            if not self._connected or self._given_up:
                return
            self._hear(signal)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connected = False
        lost, self._lost = self._lost, _nothing
        lost(self._given_up or lost_reason(reason))
        self._gone.callback(None)

    # IPushProducer, for what is sent

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        pass  # connectionLost follows


def _nothing(_: str) -> None:
    pass
