"""One connection that the reactor makes, as those see it whom it reaches, and its end."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from nodepass.connection import connect
from nodepass.relay.portable import end_writing, has_ended
from nodepass.relay.tcpinfo import sending

SYSTEM: Any = reactor


class CancelledTests(TestCase):
    """An attempt that is cancelled after the system has connected it, and before it is heard of."""

    timeout = 30

    async def cancelled(self, **how: Any) -> socket.socket:
        """What the other end has accepted."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            connecting = connect(
                SYSTEM, "127.0.0.1", port, Factory.forProtocol(Protocol), 10.0, **how
            )
            over: Deferred[None] = Deferred()
            # In the turn in which the reactor asks the system to connect, right behind that.
            SYSTEM.callLater(0, lambda: (connecting.cancel(), over.callback(None)))
            await over
            self.failureResultOf(connecting, CancelledError)
            accepted, _ = listener.accept()
        self.addCleanup(accepted.close)
        accepted.settimeout(10)
        return accepted

    async def test_reset(self) -> None:
        """A target must not take it for a visitor with nothing to say."""
        accepted = await self.cancelled(resets=True)
        with self.assertRaises(ConnectionResetError):
            accepted.recv(1)

    async def test_closed(self) -> None:
        """Others are told in the usual way."""
        accepted = await self.cancelled()
        self.assertEqual(accepted.recv(1), b"")


class EndTests(TestCase):
    """The end of what is written."""

    timeout = 30

    async def test_it_has_left(self) -> None:
        """That is known: while the other end does not read, what was written waits here."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            factory: Any = Factory.forProtocol(Protocol)
            protocol = await connect(SYSTEM, "127.0.0.1", port, factory, 10.0)
            accepted, _ = listener.accept()
        self.addCleanup(accepted.close)
        lost: Deferred[None] = Deferred()
        protocol.connectionLost = lambda reason: lost.callback(None)
        protocol.transport.write(bytes(1 << 24))
        end_writing(protocol.transport)
        for _ in range(10):
            await deferLater(SYSTEM, 0)
        self.assertFalse(has_ended(protocol.transport))

        def read() -> int:
            return sum(map(len, iter(lambda: accepted.recv(1 << 20), b"")))

        self.assertEqual(await deferToThread(read), 1 << 24)
        self.assertTrue(has_ended(protocol.transport))
        accepted.close()
        await lost


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_what_is_on_its_way() -> None:
    """That is known until the other end's system has it all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        near.setblocking(False)
        assert not sending(near)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += near.send(bytes(1 << 20))
        assert sending(near)
        while sent:
            sent -= len(far.recv(1 << 20))
        assert not sending(near)
    assert not sending(near), "a socket that is closed"
