"""The control link on a Twisted transport: messages in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.errors import PeerError
from nodepass.relay.tcp import tune
from nodepass.tlswords import lost_reason

from .messages import MAX_MESSAGE, Message, MessageReader, decode, encode


@implementer(IHandshakeListener, IPushProducer)
class ControlLink(Protocol):
    """One end of a control link.

    During the handshake messages are asked for one by one with `read`; from `listen` on each
    is handed over as it comes. While what was sent waits to leave, nothing is read: a peer that
    asks without reading the answers stops itself.

    :ivar encrypted: fires with this link when TLS is up, fails when it can't be.
    :ivar given_up: why this end aborted the link; empty if it did not say.
    """

    transport: Any

    def __init__(self) -> None:
        self.encrypted: Deferred[ControlLink] = Deferred()
        self.connected_ = False
        self._reader = MessageReader()
        self._reading: Deferred[bytes] | None = None
        self._handler: Callable[[Message], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._failure: Failure | None = None
        self._ends: list[Deferred[None]] = []
        self.given_up = ""

    # For the handshake.

    def read(self) -> Deferred[bytes]:
        """The next message's body.

        Fails with PeerError when it is no message, with ConnectionLost when the link is lost first.
        """
        result: Deferred[bytes] = Deferred(self._cancel_read)
        self._reading = result
        self._offer()
        return result

    def _cancel_read(self, _: Deferred[bytes]) -> None:
        self._reading = None

    def _offer(self) -> None:
        reading = self._reading
        if reading is None:
            return
        try:
            body = self._reader.next()
        except PeerError:
            self._reading = None
            reading.errback(Failure())
            return
        if body is not None:
            self._reading = None
            reading.callback(body)
        elif self._failure is not None:
            self._reading = None
            reading.errback(self._failure)

    # For the time after it.

    def listen(self, handler: Callable[[Message], None], lost: Callable[[str], None]) -> None:
        """Hand each message to `handler` from now on, and call `lost` once with the reason when the
        link is gone."""
        self._reader.limit = MAX_MESSAGE
        self._handler = handler
        self._on_lost = lost
        if self._failure is not None:
            self._tell_lost()
        else:
            self._deliver()

    def send(self, message: Message) -> None:
        """Send a message."""
        if self.connected_:
            self.transport.write(encode(message))

    def send_raw(self, encoded: bytes) -> None:
        """Send a message that was encoded before."""
        if self.connected_:
            self.transport.write(encoded)

    def close(self) -> Deferred[None]:
        """Close once what was sent has left; fires when the link is gone."""
        if self.connected_:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        return self.gone()

    def gone(self) -> Deferred[None]:
        """Fires when the link is gone, whoever ended it."""
        result: Deferred[None] = Deferred()
        if self._failure is not None:
            result.callback(None)
        else:
            self._ends.append(result)
        return result

    def abort(self, reason: str = "") -> None:
        """Close now; `reason` is what `lost` is told."""
        self.given_up = self.given_up or reason
        if self.connected_:
            self.transport.abortConnection()

    def _deliver(self) -> None:
        while self._handler is not None and self.connected_:
            try:
                body = self._reader.next()
                if body is None:
                    return
                message = decode(body)
                if message is not None:
                    self._handler(message)
            except PeerError as error:
                self.abort(f"a protocol error: {error}")
                return

    # Protocol

    def connectionMade(self) -> None:
        self.connected_ = True
        tune(self.transport)
        self.transport.registerProducer(self, True)

    def handshakeCompleted(self) -> None:
        self.encrypted.callback(self)

    def dataReceived(self, data: bytes) -> None:
        if not self.connected_:
            return
        self._reader.feed(data)
        if self._handler is not None:
            self._deliver()
        else:
            self._offer()
            if len(self._reader) > MAX_MESSAGE:
                self.abort("it sent more than the handshake has room for")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected_ = False
        self._failure = reason
        if not self.encrypted.called:
            self.encrypted.errback(reason)
        self._offer()
        self._tell_lost()
        ends, self._ends = self._ends, []
        for result in ends:
            result.callback(None)

    def _tell_lost(self) -> None:
        lost, self._on_lost = self._on_lost, None
        self._handler = None
        if lost is not None and self._failure is not None:
            lost(self.given_up or lost_reason(self._failure))

    # IPushProducer, for what is sent

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        pass  # connectionLost follows
