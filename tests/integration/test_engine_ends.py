"""The engine's ends on real sockets: accepting, connecting, and what is left of either."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import sys
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from twisted.internet.error import CannotListenError, TimeoutError
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from nodepass.address import Address, Endpoint
from nodepass.racing import dial_cause
from nodepass.relay.accepting import ACCEPT_PAUSE
from nodepass.relay.choice import choose_relay
from nodepass.relay.engine import dialer as dialer_module
from nodepass.relay.engine.dialer import Dialer
from nodepass.relay.engine.port import EnginePort
from nodepass.relay.engine.relay import EngineRelay
from nodepass.relay.engine.sockets import listening, stream_socket
from nodepass.relay.engine.stream import EngineStream
from nodepass.relay.engine.transport import EngineTransport
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import PortableRelay
from nodepass.relay.stream import Cause, Stream
from nodepass.relay.tcp import (
    KEEPALIVE_IDLE,
    KEEPALIVE_INTERVAL,
    KEEPALIVE_PROBES,
    LINGER_RESET,
)
from nodepass.resolver import CachingResolver
from nodepass.wire import Opening
from nodepass.wire.native.datalink import DataLink
from nodepass.wire.native.frames import Data, Fin, FrameReader, Open
from tests.enginerig import Rig, descriptors, reset
from tests.sessionrig import BULK, NOWHERE, Owner

SESSIONS = int(os.environ.get("NP_TEST_SESSIONS", "1000"))


class Ears:
    """A sink that notes what a stream says, and ends it when the other end has."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.data = b""
        self.over: tuple[Cause | None] | None = None

    def received(self, data: bytes) -> None:
        self.data += data

    def ending(self) -> None:
        pass

    def ended(self) -> None:
        self.stream.finish()

    def congested(self) -> None:
        pass

    def drained(self) -> None:
        pass

    def became(self, stream: Stream) -> None:
        self.stream = stream

    def closed(self, cause: Cause | None) -> None:
        self.over = (cause,)


class EndsTestCase(SynchronousTestCase):
    """Has a rig, and looks that no descriptor and no timer is left."""

    def setUp(self) -> None:
        gc.collect()  # what tests before this one left
        before = descriptors()
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop
        self.visitors: list[tuple[Any, Endpoint, Endpoint]] = []

        def check() -> None:
            for stream, _, _ in self.visitors:
                stream.abort(Cause.STOPPED)
            self.loop.until(lambda: not self.loop.readers)
            self.assertEqual(self.loop.getDelayedCalls(), [])
            self.assertEqual(descriptors(), before)

        self.addCleanup(check)

    def listen(self, host: str = "127.0.0.1", accepted: Any = None) -> tuple[EnginePort, int]:
        """A port of the engine, and its number."""
        sock = listening(Address(host, 0), 4096)
        port = EnginePort(
            self.loop,
            self.rig.poller,
            self.rig.log,
            sock,
            accepted or (lambda *visitor: self.visitors.append(visitor)),
        )
        port.startListening()
        self.addCleanup(port.stopListening)
        return port, port.getHost().port

    def visit(self, number: int, host: str = "127.0.0.1") -> socket.socket:
        """Connect to a port, from outside the loop."""
        sock = socket.create_connection((host, number), 10)
        self.addCleanup(sock.close)
        return sock


class AcceptTests(EndsTestCase):
    """Visitors."""

    def test_many_at_once(self) -> None:
        """Five hundred come in one moment; each has its own connection."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 2048:
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
        _, number = self.listen()
        visitors = [self.visit(number) for _ in range(500)]
        self.loop.until(lambda: len(self.visitors) == 500)
        ports = {sock.getsockname()[1]: sock for sock in visitors}
        for stream, peer, local in self.visitors:
            self.assertEqual((peer.host, local.host, local.port), ("127.0.0.1",) * 2 + (number,))
            stream.write(b"%d" % peer.port)
        self.assertEqual(len({peer.port for _, peer, _ in self.visitors}), 500)
        for port, sock in ports.items():
            self.assertEqual(sock.recv(10), b"%d" % port)

    def test_options(self) -> None:
        """A visitor's socket has the options that all have, and no child process gets it."""
        _, number = self.listen()
        self.visit(number)
        self.loop.until(lambda: self.visitors)
        handle = self.visitors[0][0].getHandle()
        tcp = socket.IPPROTO_TCP
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_NODELAY), 1)
        self.assertEqual(handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_KEEPIDLE), KEEPALIVE_IDLE)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_KEEPINTVL), KEEPALIVE_INTERVAL)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_KEEPCNT), KEEPALIVE_PROBES)
        self.assertEqual(
            handle.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(LINGER_RESET)), LINGER_RESET
        )
        self.assertFalse(os.get_inheritable(handle.fileno()))
        self.assertFalse(handle.getblocking())

    def test_no_descriptor_left(self) -> None:
        """Accepting rests, says so once, and goes on when there is one again."""
        lines: list[str] = []

        def note(event: Any) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        port, number = self.listen()
        self.visit(number)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            rests: list[int] = []
            rest = port._accepting._rest

            def counted(error: OSError) -> None:
                rests.append(error.errno or 0)
                rest(error)

            self.patch(port._accepting, "_rest", counted)
            self.rig.poller.doRead()
            # It was the only one watched, so that the poller is gone; and it can't come back.
            self.addCleanup(os.close, os.dup(0))
            for _ in range(2):
                self.loop.settle()
                self.assertEqual(self.loop.readers, [])
                self.loop.advance(ACCEPT_PAUSE)
            self.assertEqual(rests, [errno.EMFILE] * 3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.assertEqual(self.visitors, [])
        self.loop.advance(ACCEPT_PAUSE)
        self.loop.until(lambda: self.visitors)
        complaints = [line for line in lines if "can't accept" in line]
        self.assertEqual(complaints, ["can't accept visitors: Too many open files; trying on"])

    def test_the_other_connections_go_on_meanwhile(self) -> None:
        """What the system has no room for is one visitor; who is there is served."""
        _, number = self.listen()
        self.visit(number).sendall(b"hello")
        self.loop.until(lambda: self.visitors)
        ears = Ears(self.visitors[0][0])
        ears.stream.attach(ears)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = self.visit(number)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            self.rig.poller.doRead()
            ears.stream.resume()
            self.rig.poller._late()
            self.assertEqual(ears.data, b"hello")
            self.assertEqual(len(self.visitors), 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        late.close()
        self.loop.advance(ACCEPT_PAUSE)
        self.loop.until(lambda: len(self.visitors) == 2)

    def test_closed_while_it_rests(self) -> None:
        """A port that is closed does not begin again."""
        port, number = self.listen()
        port._be_told(False)
        port._accepting._rest(OSError(errno.EMFILE, "Too many open files"))
        port.stopListening()
        self.loop.advance(ACCEPT_PAUSE)
        self.assertEqual(self.loop.readers, [])
        with self.assertRaises(ConnectionRefusedError):
            self.visit(number)

    def test_closed_by_a_visitor(self) -> None:
        """Whoever is told of a visitor may close the port."""
        port, number = self.listen(accepted=lambda *visitor: accepted(*visitor))

        def accepted(*visitor: Any) -> None:
            self.visitors.append(visitor)
            port.stopListening()

        self.visit(number)
        self.visit(number)
        self.loop.settle()
        self.assertEqual(len(self.visitors), 1)

    def test_an_owner_that_fails(self) -> None:
        """The next visitor is told of."""

        def accepted(*visitor: Any) -> None:
            self.visitors.append(visitor)
            if len(self.visitors) == 1:
                raise ValueError("a fault")

        _, number = self.listen(accepted=accepted)
        self.visit(number)
        self.visit(number)
        self.loop.until(lambda: len(self.visitors) == 2)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_address_in_use(self) -> None:
        """It can't be bound, and no socket is left."""
        _, number = self.listen()
        before = descriptors()
        with self.assertRaises(CannotListenError):
            listening(Address("127.0.0.1", number), 1)
        self.assertEqual(descriptors(), before)

    def test_every_interface(self) -> None:
        """Without a host both families are served, and IPv4 addresses look as they do."""
        _, number = self.listen("")
        self.visit(number)
        self.loop.until(lambda: self.visitors)
        self.assertEqual(self.visitors[0][1].host, "127.0.0.1")
        if socket.has_dualstack_ipv6():
            self.visit(number, "::1")
            self.loop.until(lambda: len(self.visitors) == 2)
            self.assertEqual(self.visitors[1][1].host, "::1")


class DialTests(EndsTestCase):
    """Connects to targets on this host, which answer before the call that asks them returns."""

    def setUp(self) -> None:
        super().setUp()
        self.dialer = Dialer(self.loop, self.rig.poller)

    def server(self, host: str = "127.0.0.1", backlog: int = 5) -> tuple[socket.socket, int]:
        """A target outside the loop, and its number."""
        sock = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=backlog
        )
        sock.settimeout(10)
        self.addCleanup(sock.close)
        return sock, sock.getsockname()[1]

    def dial(self, host: str, number: int) -> list[Any]:
        """A list that gets the outcome: one that hears the stream, or a failure."""
        outcome: list[Any] = []
        self.dialing = self.dialer.connect(host, number, 5.0)
        self.dialing.addCallback(self.hear).addBoth(outcome.append)
        return outcome

    def hear(self, stream: Stream) -> Ears:
        """Read what a stream says."""
        ears = Ears(stream)
        stream.attach(ears)
        stream.resume()
        return ears

    def check_exchange(self, host: str) -> None:
        server, number = self.server(host)
        outcome = self.dial(host, number)
        self.loop.until(lambda: outcome and not self.loop.getDelayedCalls())
        ears = outcome[0]
        far, _ = server.accept()
        self.addCleanup(far.close)
        self.assertEqual(ears.stream.peer, Endpoint(host, number))
        ears.stream.write(b"question")
        self.assertEqual(far.recv(8), b"question")
        far.sendall(b"answer")
        self.loop.until(lambda: ears.data == b"answer")
        ears.stream.abort(Cause.STOPPED)

    def test_ipv4(self) -> None:
        """Both ends hear each other."""
        self.check_exchange("127.0.0.1")

    def test_ipv6(self) -> None:
        """The same by IPv6."""
        if not socket.has_ipv6:
            self.skipTest("no IPv6 here")
        self.check_exchange("::1")

    def test_refused(self) -> None:
        """The cause is that nobody listens."""
        server, number = self.server()
        server.close()
        outcome = self.dial("127.0.0.1", number)
        self.loop.until(lambda: outcome)
        self.assertEqual(dial_cause(outcome[0]), "refused")

    def test_unreachable(self) -> None:
        """Where no connection can lead the system says so at once."""
        outcome = self.dial("224.0.0.1", 9)
        self.assertEqual(dial_cause(outcome[0]), "unreachable")

    def test_at_once(self) -> None:
        """Who has answered needs not be waited for."""
        _, number = self.server()
        stream = self.dialer.dial("127.0.0.1", number, 5.0)
        assert isinstance(stream, EngineStream)
        stream.abort(Cause.STOPPED)

    def test_timed_out(self) -> None:
        """A target whose queue is full does not answer."""
        _, number = self.server(backlog=0)
        waiting = self.dial("127.0.0.1", number)
        self.loop.until(lambda: waiting)
        outcome = self.dial("127.0.0.1", number)
        self.loop.settle()
        self.assertEqual(outcome, [])
        self.loop.advance(5)
        self.assertIsNotNone(outcome[0].check(TimeoutError))
        waiting[0].stream.abort(Cause.STOPPED)

    def test_cancelled(self) -> None:
        """Nothing is left of it, and nobody is told later."""
        _, number = self.server(backlog=0)
        waiting = self.dial("127.0.0.1", number)
        self.loop.until(lambda: waiting)
        before = descriptors()
        outcome = self.dial("127.0.0.1", number)
        self.dialing.cancel()
        self.assertEqual(len(outcome), 1)
        self.assertEqual(descriptors(), before)
        self.loop.advance(10)
        self.assertEqual(len(outcome), 1)
        waiting[0].stream.abort(Cause.STOPPED)

    def test_no_descriptor(self) -> None:
        """A dial that the system has no descriptor for fails as a dial."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        _, number = self.server()
        try:
            # One for the socket, none for the poller.
            for room in (1, 2):
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
                outcome = self.dial("127.0.0.1", number)
                self.assertEqual(len(outcome), 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_a_target_that_speaks_and_ends_at_once(self) -> None:
        """One event tells of the connect, the bytes and the end; all are heard."""
        server, number = self.server()
        outcome = self.dial("127.0.0.1", number)
        far, _ = server.accept()
        far.sendall(b"banner")
        far.shutdown(socket.SHUT_WR)
        self.addCleanup(far.close)
        self.loop.until(lambda: outcome)
        ears = outcome[0]
        self.loop.until(lambda: ears.over)
        self.assertEqual((ears.data, ears.over), (b"banner", (None,)))

    def test_a_target_that_resets_at_once(self) -> None:
        """It is a failed dial or a lost connection, never silence."""
        server, number = self.server()
        outcome = self.dial("127.0.0.1", number)
        reset(server.accept()[0])
        self.loop.until(lambda: outcome)
        self.loop.until(lambda: not self.loop.readers)


class SocketTests(SynchronousTestCase):
    """What connects to targets."""

    def test_options(self) -> None:
        """All are cut rather than ended if the process is killed; a target elsewhere is probed,
        one on this host, which tells of its end in any case, is not."""
        for local in (True, False):
            sock = stream_socket(socket.AF_INET, local=local)
            self.addCleanup(sock.close)
            options = (socket.SOL_SOCKET, socket.SO_LINGER, len(LINGER_RESET))
            self.assertEqual(sock.getsockopt(*options), LINGER_RESET)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
            probed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            self.assertEqual(probed, not local)


class DistantDialTests(DialTests):
    """The same with targets that answer later."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(dialer_module, "stream_socket", DistantSocket)

    def test_at_once(self) -> None:
        """Nobody has."""

        _, number = self.server()
        outcome = self.dial("127.0.0.1", number)
        self.assertEqual(outcome, [])
        self.loop.until(lambda: outcome)
        outcome[0].stream.abort(Cause.STOPPED)


class DistantSocket(socket.socket):
    """Says that it is still connecting, whatever has become of that."""

    def __init__(self, family: int, *, local: bool) -> None:
        super().__init__(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.asked = False

    def connect_ex(self, address: Any) -> int:
        if self.asked:
            return errno.EALREADY
        self.asked = True
        return super().connect_ex(address)


class LastBytesTests(EndsTestCase):
    """What leaves with the end behind it."""

    def test_a_stream(self) -> None:
        """The system is told that more follows, and FIN takes them along."""
        sock, far = self.rig.sockets()
        noting = NotingSocket(fileno=sock.detach())
        noting.setblocking(False)
        stream = EngineStream(self.rig.poller, noting)
        stream.write(b"first ")
        stream.write_last(b"last")
        self.assertEqual(noting.flags, [0, socket.MSG_MORE])
        stream.finish()
        # At once: the reactor has had no turn.
        self.assertEqual(far.recv(100) + far.recv(100), b"first last")
        self.assertEqual(far.recv(100), b"")
        far.close()
        stream.attach(Ears(stream))
        stream.resume()
        self.loop.until(lambda: stream.gone)

    def test_a_stream_that_waits_for_room(self) -> None:
        """They come behind what waits."""
        sock, far = self.rig.sockets(small=True)
        stream = EngineStream(self.rig.poller, sock)
        stream.write(BULK)
        stream.write_last(b"last")
        stream.finish()
        self.assertTrue(self.rig.read(far) == BULK + b"last")
        stream.abort(Cause.STOPPED)

    def test_a_link(self) -> None:
        """One packet has the bytes and FIN."""
        sock, far = self.rig.sockets()
        owner = Owner(lambda _: None)
        watch = HangupWatch(self.loop)
        link = DataLink(1, True, owner, self.loop, watch, self.rig.poller.soon)
        EngineTransport(self.rig.poller, sock).begin(link)
        stream = link.open(Opening(NOWHERE, NOWHERE))
        self.loop.turn()
        self.assertEqual(FrameReader().feed(far.recv(100)), [Open(1, Opening(NOWHERE, NOWHERE))])
        stream.write_last(b"last")
        stream.finish()
        self.loop.turn()
        self.assertEqual(FrameReader().feed(far.recv(100)), [Data(b"last"), Fin(1)])
        link.abort("the test is over")


class NotingSocket(socket.socket):
    """Notes with which flags it sends."""

    flags: list[int]

    def __init__(self, **which: Any) -> None:
        super().__init__(**which)
        self.flags = []

    def send(self, data: Any, flags: int = 0) -> int:
        self.flags.append(flags)
        return super().send(data, flags)


class LeftoversTests(EndsTestCase):
    """What is left of many connections."""

    def test_sessions_leave_nothing(self) -> None:
        """Streams that end in order, or by a reset, are freed at once, without a collection."""
        _, number = self.listen()
        dialer = Dialer(self.loop, self.rig.poller)
        kinds = (EngineStream, Ears)
        gc.collect()

        def alive() -> list[int]:
            return sorted(id(each) for each in gc.get_objects() if isinstance(each, kinds))

        known = alive()  # of tests before this one
        gc.disable()
        self.addCleanup(gc.enable)

        def session(abort: bool) -> None:
            outcome: list[Any] = []
            dialer.connect("127.0.0.1", number, 5.0).addBoth(outcome.append)
            self.loop.until(lambda: outcome and self.visitors)
            ends = [Ears(outcome.pop()), Ears(self.visitors.pop()[0])]
            for ears in ends:
                ears.stream.attach(ears)
                ears.stream.resume()
            ends[0].stream.write(b"question")
            if abort:
                ends[0].stream.abort(Cause.RESET)
                self.loop.until(lambda: ends[1].over)
            else:
                ends[0].stream.finish()
                self.loop.until(lambda: ends[0].over and ends[1].over)
                self.assertEqual((ends[1].data, ends[1].over), (b"question", (None,)))
            for ears in ends:
                del ears.stream

        session(True)
        self.loop.settle()
        before = descriptors()
        for count in range(SESSIONS):
            session(count % 4 == 0)
        self.loop.settle()
        self.assertEqual(descriptors(), before)
        self.assertEqual(alive(), known)


class ChoiceTests(SynchronousTestCase):
    """Which relay there is."""

    def choose(self, reactor: Any, portable: bool = False) -> Any:
        rig = Rig(self.addCleanup)
        resolver = CachingResolver(rig.loop)
        return type(
            choose_relay(reactor, resolver, HangupWatch(rig.loop), rig.log, portable=portable)
        )

    def test_linux(self) -> None:
        """The engine, unless the portable one is asked for."""
        from twisted.internet import reactor

        self.assertIs(self.choose(reactor), EngineRelay)
        self.assertIs(self.choose(reactor, portable=True), PortableRelay)

    def test_elsewhere(self) -> None:
        """The portable one on other systems, and on reactors that watch no descriptors."""
        from twisted.internet import reactor

        self.assertIs(self.choose(Rig(self.addCleanup).loop), PortableRelay)
        self.patch(sys, "platform", "darwin")
        self.assertIs(self.choose(reactor), PortableRelay)
