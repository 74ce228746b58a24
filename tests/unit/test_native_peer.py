"""An association's control link: what is said when it comes up."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from twisted.internet.task import Clock

from nodepass.logs import Level, Log
from nodepass.parameters import TLSLevel
from nodepass.relay.hangup import HangupWatch
from nodepass.wire import Flow
from nodepass.wire.native.handshake import Secrets
from nodepass.wire.native.messages import About, Message, Ping, Want
from nodepass.wire.native.peer import NativePeer
from nodepass.wire.native.settings import PeerSettings


class FakeControl:
    """A control link that notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def listen(self, handler: Any, lost: Any) -> None:
        self.hear = handler

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def abort(self, reason: str = "") -> None:
        """Superseded."""


def make_peer(minimum: int) -> NativePeer:
    """A peer at the end of a server that takes links."""
    clock = Clock()
    settings = PeerSettings(
        clock=clock,
        log=Log(Level.NONE),
        watch=HangupWatch(clock),
        host=Mock(),
        flow=Flow.REVERSE,
        level=TLSLevel.PLAIN,
        takes=True,
        report_interval=5.0,
        adoption=18.0,
        about=About(),
        soon=lambda call: call(),
    )
    return NativePeer(
        settings,
        association=bytes(16),
        secrets=Secrets(bytes(32), bytes(32)),
        address="192.0.2.1:1",
        minimum=minimum,
        maximum=100,
    )


def test_a_new_control_link_asks_for_the_pool_once() -> None:
    """Joining, and coming back, each ask for as many links as the client wants kept, not more."""
    peer = make_peer(8)
    for _ in range(2):
        control: Any = FakeControl()
        peer.attach(control)
        control.hear(About())
        assert isinstance(control.sent[0], About)
        assert sum(each.count for each in control.sent if isinstance(each, Want)) == 8
        assert any(isinstance(each, Ping) for each in control.sent)
