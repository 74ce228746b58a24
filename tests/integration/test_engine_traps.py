"""What fast relays have been caught by, each with a test that fails where it catches this one.

Sessions of the engine are driven from outside, under a loop turned by hand: one that joins two
connections, as a forwarder's do, and two with a data link between them, as a tunnel's are. What
concerns a single connection or the poller has its tests elsewhere; all of them:

1. A hang-up is told once, and a short read is no sign that nothing is left:
   `test_the_end_behind_any_number_of_bytes`; `test_engine`, `test_the_end_with_the_last_bytes`.
2. "Would block" does not say which side it means: `test_bulk_that_stops_and_goes`.
3. The end of file with bytes on the way, and what is left of them when a session is reset:
   `test_the_end_behind_what_is_held`, `test_what_was_held_reaches_nobody_else`.
4. An exception that escapes makes the reactor drop all sockets: `test_engine`,
   `NeighbourTests`; `test_engine_ends`, `test_no_descriptor_left`, `test_an_owner_that_fails`.
6. An event may be about the socket that had the descriptor before: `test_engine`,
   `test_a_descriptor_that_is_used_again`.
7. What is kept for a reader that has stopped: `test_what_is_held_is_bounded`.
8. A connection taken from the reactor, whose transport lives on: `test_engine_handover`,
   `PlainTests.test_bytes_in_flight`.
9. TLS that has read more than it has given: `test_engine_handover`, `test_pauses`.
10. A reset of a connection that is not read: `test_a_reset_of_a_sender_that_waits`; `test_engine`,
    `test_a_reset_while_paused`, `test_a_reset_that_came_with_what_made_it_pause`.
"""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import sys
from collections.abc import Callable

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from nodepass.address import Address, Endpoint
from nodepass.meter import Meter
from nodepass.relay.engine.port import EnginePort
from nodepass.relay.engine.sockets import listening, stream_socket
from nodepass.relay.engine.transport import READ_SIZE, EngineTransport
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.session import Session, SessionContext
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.native.datalink import DataLink
from tests.enginerig import SMALL, Rig, descriptors, reset

#: More than what is held anywhere on the way, so that both ends have to wait for each other.
BULK = random.Random(7).randbytes(6 << 20)
#: Most that one node may hold of a session whose reader has stopped, bytes: one read, or a pipe.
HELD = 1 << 20
#: Where a visitor comes from, which nobody asks about here.
NOWHERE = Endpoint("127.0.0.1", 1)


@define
class Joined:
    """Two sockets of other programs, with the engine between them.

    :ivar over: how each session on the way has ended.
    """

    near: socket.socket
    far: socket.socket
    sessions: list[Session] = field(factory=list)
    over: list[Cause | None] = field(factory=list)


class Owner:
    """The end of a data link that starts a session for each that is opened."""

    def __init__(self, opened: Callable[[Stream], None]) -> None:
        self._opened = opened
        self.free = 0

    def link_opened(self, link: DataLink, opening: Opening, stream: Stream) -> None:
        self._opened(stream)

    def link_free(self, link: DataLink) -> None:
        self.free += 1

    def link_backed_up(self, link: DataLink, session: int, cause: Cause) -> bool:
        """Pass it on as the control link would."""
        self.other.abort_session(session, cause)
        return True

    def link_lost(self, link: DataLink, reason: str) -> None:
        self.lost = reason

    other: DataLink


class TrapTestCase(SynchronousTestCase):
    """Makes sessions.

    :cvar tunnel: with a data link in the middle; it is used again by one session after another.
    :cvar buffers: what those of all sockets are asked to be, bytes.
    :cvar system: what the system holds of a session at most with such buffers, in one direction.
    """

    tunnel = False
    buffers = SMALL
    system = 100_000

    def setUp(self) -> None:
        gc.collect()
        before = descriptors()
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop
        self.watch = HangupWatch(self.loop)
        self.meter = Meter()
        self.streams: list[Stream] = []
        sock = self.sized(listening(Address("127.0.0.1", 0), 100))
        self.port = EnginePort(
            self.loop, self.rig.poller, self.watch, self.rig.log, sock,
            lambda stream, peer, local: self.streams.append(stream),
        )  # fmt: skip
        self.port.startListening()
        self.links: list[DataLink] = []
        if self.tunnel:
            self.make_link()

        def check() -> None:
            self.port.stopListening()
            for link in self.links:
                link.abort("the end")
            self.loop.until(lambda: not self.loop.readers)
            self.loop.advance(10)  # the last look at paused sockets
            self.assertEqual(self.loop.getDelayedCalls(), [])
            gc.collect()
            self.assertLessEqual(descriptors(), before)

        self.addCleanup(check)

    def sized(self, sock: socket.socket) -> socket.socket:
        """Set a socket's buffers, which those accepted on it inherit."""
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, self.buffers)
        return sock

    def make_link(self) -> None:
        """A data link, both ends in this loop."""
        with self.sized(socket.create_server(("127.0.0.1", 0))) as listener:
            one = self.sized(stream_socket(socket.AF_INET))
            one.connect_ex(listener.getsockname())
            other, _ = listener.accept()
            other.setblocking(False)
        self.owners = [Owner(self.opened), Owner(self.opened)]
        for takes, sock in enumerate((other, one)):
            link = DataLink(
                1, bool(takes), self.owners[takes], self.loop, self.watch, self.rig.poller.soon
            )
            EngineTransport(self.rig.poller, sock).begin(link)
            self.links.append(link)
        self.owners[0].other, self.owners[1].other = self.links[1], self.links[0]

    def opened(self, stream: Stream) -> None:
        """A session was opened on the link: join it with the far connection."""
        self.session(self.far_stream, stream, self.joined)

    def socket(self) -> tuple[socket.socket, Stream]:
        """A connection: the other program's end, and the engine's."""
        sock = self.sized(socket.socket())
        sock.connect(("127.0.0.1", self.port.getHost().port))
        sock.setblocking(False)
        self.addCleanup(sock.close)
        self.loop.until(lambda: self.streams)
        return sock, self.streams.pop()

    def session(self, near: Stream, far: Stream, joined: Joined) -> None:
        """Join two streams."""
        context = SessionContext(clock=self.loop, log=self.rig.log, meter=self.meter, read=0)
        session = Session(
            near, far, context=context, describe=lambda: "tcp", done=joined.over.append
        )
        joined.sessions.append(session)
        session.start()

    def join(self) -> Joined:
        """A new session between two programs."""
        (near, near_stream), (far, self.far_stream) = self.socket(), self.socket()
        self.joined = joined = Joined(near, far)
        if self.tunnel:
            taker = self.links[1]
            self.loop.until(lambda: taker.idle)
            opening = Opening(visitor=NOWHERE, local=NOWHERE, target=0)
            self.session(near_stream, taker.open(opening), joined)
            self.loop.until(lambda: len(joined.sessions) == 2)
        else:
            self.session(near_stream, self.far_stream, joined)
        return joined

    @property
    def nodes(self) -> int:
        """How many there are on the way."""
        return 2 if self.tunnel else 1

    def fill(self, sock: socket.socket, most: int = 32 << 20) -> int:
        """Send until nothing more is taken; how much that is."""
        sent = still = 0
        while still < 20 and sent < most:
            self.loop.turn(0.001)
            try:
                place = sent % len(BULK)
                sent += sock.send(BULK[place : place + 65536])
                still = 0
            except BlockingIOError:
                still += 1
        return sent

    def expect(self, sock: socket.socket, data: bytes) -> None:
        """All of this, and then FIN."""
        got = self.rig.read(sock)
        self.assertEqual(len(got), len(data))
        self.assertTrue(got == data)

    def expect_reset(self, sock: socket.socket) -> None:
        """A reset, whatever came before it."""

        def was_reset() -> bool:
            try:
                while sock.recv(1 << 20):
                    pass
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            raise AssertionError("a reset became a FIN")

        self.loop.until(was_reset)

    def end(self, joined: Joined) -> None:
        """Both programs have closed: nothing is left of the session."""
        joined.near.close()
        joined.far.close()
        self.loop.until(lambda: len(joined.over) == self.nodes)


class ForwardingTests(TrapTestCase):
    """One session on the way."""

    def test_bulk_that_stops_and_goes(self) -> None:
        """Both ways at once, with a sender who has nothing for a while and a reader who takes
        nothing for a while: "would block" on either side of a transfer means that side alone, and
        nothing waits for ever for a word that has been said."""
        joined = self.join()
        chance = random.Random(11)
        ways = [(joined.near, joined.far, BULK), (joined.far, joined.near, BULK[::-1])]
        sent, got = [0, 0], [bytearray(), bytearray()]

        def go() -> bool:
            for number, (source, sink, data) in enumerate(ways):
                with contextlib.suppress(BlockingIOError):
                    if chance.random() < 0.6 and sent[number] < len(data):
                        size = chance.choice((1, 5000, 300_000, 1 << 20))
                        sent[number] += source.send(data[sent[number] :][:size])
                        if sent[number] == len(data):
                            source.shutdown(socket.SHUT_WR)
                with contextlib.suppress(BlockingIOError):
                    if chance.random() < 0.6:
                        got[number] += sink.recv(chance.choice((100, 40_000, 1 << 20)))
            return [len(each) for each in got] == [len(BULK)] * 2

        self.loop.until(go, 30)
        self.assertTrue(got == [BULK, BULK[::-1]])
        self.expect(joined.near, b"")
        self.expect(joined.far, b"")
        self.end(joined)
        self.assertEqual(joined.over, [None] * self.nodes)

    def test_the_end_behind_any_number_of_bytes(self) -> None:
        """The end of file comes at once with the last bytes, and is told of once; it is not taken
        for part of a read that was full, nor forgotten after one that was not."""
        for size in (0, 1, READ_SIZE - 1, READ_SIZE, READ_SIZE + 1, 5 * READ_SIZE):
            self.check_end(size)

    def check_end(self, size: int) -> None:
        joined = self.join()
        sent, got = 0, bytearray()

        def all_sent() -> bool:
            nonlocal sent
            with contextlib.suppress(BlockingIOError):
                sent += joined.near.send(BULK[sent:size])
            with contextlib.suppress(BlockingIOError):
                got.extend(joined.far.recv(1 << 20))
            return sent == size

        self.loop.until(all_sent)
        joined.near.shutdown(socket.SHUT_WR)
        self.assertTrue(got + self.rig.read(joined.far) == BULK[:size])
        self.end(joined)

    def test_the_end_behind_what_is_held(self) -> None:
        """A sender ends while all that is on the way is held up: the reader, once it reads on, gets
        every byte and then the end."""
        joined = self.join()
        sent = self.fill(joined.near)
        joined.near.shutdown(socket.SHUT_WR)
        self.loop.settle(20)
        self.expect(joined.far, (BULK * 6)[:sent])
        self.end(joined)

    def test_what_is_held_is_bounded(self) -> None:
        """Of a session whose reader has stopped each node holds one read at most, however long
        its sender goes on."""
        joined = self.join()
        most = self.nodes * HELD + self.system
        self.assertLessEqual(self.fill(joined.near, most + 1), most)
        reset(joined.near)
        self.expect_reset(joined.far)
        self.end(joined)

    def test_what_was_held_reaches_nobody_else(self) -> None:
        """Bytes that were held when their session was reset are gone with it: the next session,
        which may get the same buffers and descriptors, starts clean."""
        for number in range(4):
            joined = self.join()
            self.fill((joined.near, joined.far)[number % 2])
            resetting, other = (joined.near, joined.far)[:: 1 if number < 2 else -1]
            reset(resetting)
            self.expect_reset(other)
            self.end(joined)
            self.assertEqual(len([cause for cause in joined.over if cause is not None]), self.nodes)
            joined = self.join()
            for one, other in ((joined.near, joined.far), (joined.far, joined.near)):
                one.send(b"clean")
                one.shutdown(socket.SHUT_WR)
                self.expect(other, b"clean")
            self.end(joined)

    def test_a_reset_of_a_sender_that_waits(self) -> None:
        """A connection that is not read, as what it sent before is held up, is watched all the
        same: its reset reaches the other end, though that reads nothing."""
        joined = self.join()
        self.fill(joined.near)
        reset(joined.near)
        self.loop.until(lambda: joined.over)
        self.expect_reset(joined.far)
        self.end(joined)


class TunnelTests(ForwardingTests):
    """Two sessions on the way, with a data link between them."""

    tunnel = True


class ForwardingBulkTests(ForwardingTests):
    """The same with much to read at a time."""

    buffers = 1 << 20
    system = 16 << 20


class TunnelBulkTests(ForwardingBulkTests):
    """And with a data link."""

    tunnel = True
