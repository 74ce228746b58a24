"""What fast relays have been caught by, each with a test that fails where it catches this one.

Sessions of the engine are driven from outside, under a loop turned by hand: one that joins two
connections, as a forwarder's do, and two with a data link between them, as a tunnel's are. What
concerns a single connection or the poller has its tests elsewhere; all of them:

1. A hang-up is told once, and a short read is no sign that nothing is left:
   `test_the_end_behind_any_number_of_bytes`; `test_engine`, `test_the_end_with_the_last_bytes`.
2. "Would block" does not say which side it means: `test_bulk_that_stops_and_goes`.
3. The end of file with bytes on the way, and what is left of them when a session is reset:
   `test_the_end_behind_what_is_held`, `test_what_was_held_reaches_nobody_else`, and
   `WaitingPipeTests`.
4. An exception that escapes makes the reactor drop all sockets: `test_engine`,
   `NeighbourTests`; `test_engine_ends`, `test_no_descriptor_left`, `test_an_owner_that_fails`.
5. A user has few large pipes: `TunnelWithoutPipesTests`, `PipeTests`.
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
import errno
import fcntl
import gc
import os
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
from nodepass.relay.engine import pipes
from nodepass.relay.engine.pipes import MOST_IDLE, PIPE_SIZE, EnginePipe, Pipes
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
    :cvar pipes: whether bytes in bulk are to go through pipes of the kernel.
    :cvar system: what the system holds of a session at most with such buffers, in one direction.
    """

    tunnel = False
    buffers = SMALL
    pipes = False
    system = 100_000

    def setUp(self) -> None:
        gc.collect()
        before = descriptors()
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop
        self.watch = HangupWatch(self.loop)
        self.meter = Meter()
        self.streams: list[Stream] = []
        self.piped = 0  # reads into a pipe
        fill = EnginePipe.fill

        def counting(pipe: EnginePipe, fd: int, most: int) -> int:
            size = fill(pipe, fd, most)
            self.piped += size > 0
            return size

        self.patch(EnginePipe, "fill", counting)
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
        self.assertEqual(self.piped > 0, self.pipes)

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
    pipes = True
    system = 16 << 20


class TunnelBulkTests(ForwardingBulkTests):
    """And with a data link."""

    tunnel = True


class TunnelWithoutPipesTests(TunnelBulkTests):
    """And where the user has as many large pipes already as the system allows."""

    pipes = False

    def setUp(self) -> None:
        self.refused = 0

        def refuse(fd: int, command: int, size: int) -> int:
            self.refused += 1
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(pipes.fcntl, "fcntl", refuse)
        super().setUp()

    def tearDown(self) -> None:
        self.assertLessEqual(self.refused, 1, "the system was asked again and again")


class WaitingPipeTests(SynchronousTestCase):
    """A pipe whose bytes wait for their receiver, within a connection."""

    def setUp(self) -> None:
        self.rig = Rig(self.addCleanup)
        self.protocol, self.far = self.rig.connection(small=True)
        self.transport = self.protocol.transport
        self.transport.registerProducer(self.protocol, True)
        self.near, self.source = socket.socketpair()
        self.near.setblocking(False)
        for sock in (self.near, self.source):
            self.addCleanup(sock.close)

        def check() -> None:
            self.transport.abortConnection()
            self.rig.loop.until(lambda: not self.rig.loop.readers)

        self.addCleanup(check)

    def pipe(self, data: bytes) -> EnginePipe:
        """A pipe with these bytes in it."""
        pipe = self.rig.poller.pipes.take()
        assert pipe is not None
        self.source.sendall(data)
        self.assertEqual(pipe.fill(self.near.fileno(), PIPE_SIZE), len(data))
        return pipe

    def test_order(self) -> None:
        """What is written before and behind a pipe keeps its place, also the end; the producer is
        asked to pause as soon as anything waits, and goes on when all has left."""
        parts = [BULK[place : place + 100_000] for place in range(0, 500_000, 100_000)]
        self.transport.write_pipe(b"first", self.pipe(parts[0]))
        self.assertEqual(self.protocol.told, ["pause"])
        self.transport.write(b"second")
        self.transport.writeSequence((b"third", b"fourth"))
        self.transport.write_pipe(b"", self.pipe(parts[1]))
        said = b"first" + parts[0] + b"secondthirdfourth" + parts[1]
        self.assertTrue(self.rig.read(self.far, len(said)) == said)
        self.rig.loop.until(lambda: self.protocol.told == ["pause", "resume"])
        self.transport.write(parts[2])
        self.transport.write_pipe(b"head", self.pipe(parts[3]))
        self.transport.write_pipe(b"head", self.pipe(parts[4]))
        self.transport.loseWriteConnection()
        said = parts[2] + b"head" + parts[3] + b"head" + parts[4]
        self.assertTrue(self.rig.read(self.far) == said)

    def test_the_end_behind_a_pipe(self) -> None:
        """FIN, or a close, waits for it."""
        for name in ("loseWriteConnection", "loseConnection"):
            protocol, far = self.rig.connection(small=True)
            protocol.transport.write_pipe(b"", self.pipe(BULK[:200_000]))
            getattr(protocol.transport, name)()
            self.rig.loop.settle()
            self.assertTrue(self.rig.read(far) == BULK[:200_000])
            protocol.transport.abortConnection()


class PipeTests(SynchronousTestCase):
    """Pipes alone."""

    def setUp(self) -> None:
        self.pipes = Pipes()
        self.addCleanup(self.pipes.close)
        self.near, self.far = socket.socketpair()
        for sock in (self.near, self.far):
            sock.setblocking(False)
            self.addCleanup(sock.close)

    def taken(self) -> EnginePipe:
        """A pipe."""
        pipe = self.pipes.take()
        assert pipe is not None
        return pipe

    def test_would_block(self) -> None:
        """With an empty pipe it is the sender who has nothing; with what is in it the receiver who
        takes nothing, and it stays where it is."""
        pipe = self.taken()
        with self.assertRaises(BlockingIOError):
            pipe.fill(self.near.fileno(), PIPE_SIZE)
        self.assertEqual(pipe.held, 0)
        self.far.send(b"some")
        self.assertEqual(pipe.fill(self.near.fileno(), PIPE_SIZE), 4)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.near.send(bytes(65536))
        self.assertFalse(pipe.drain(self.near.fileno()))
        self.assertEqual(pipe.held, 4)
        with contextlib.suppress(BlockingIOError):
            while self.far.recv(1 << 20):
                pass
        self.assertTrue(pipe.drain(self.near.fileno()))
        self.assertEqual((pipe.held, self.far.recv(10)), (0, b"some"))
        pipe.release()

    def test_the_end(self) -> None:
        """A pipe is not filled by the end of file, and what is in it survives the sender."""
        pipe = self.taken()
        self.far.send(b"last")
        self.far.close()
        self.assertEqual(pipe.fill(self.near.fileno(), PIPE_SIZE), 4)
        other = self.taken()
        self.assertEqual(other.fill(self.near.fileno(), PIPE_SIZE), 0)
        self.assertEqual(pipe.read(), b"last")
        other.release()

    def test_none_is_used_again_with_bytes_in_it(self) -> None:
        """The next to take a pipe gets an empty one; those that are empty are used again, and no
        more of them kept than a few."""
        before = descriptors()
        full, empty = self.taken(), self.taken()
        self.far.send(b"some")
        full.fill(self.near.fileno(), PIPE_SIZE)
        full.release()
        empty.release()
        many = [self.taken() for _ in range(MOST_IDLE + 3)]
        self.assertIs(many[0], empty)
        for pipe in many:
            self.assertIsNot(pipe, full)
            with self.assertRaises(BlockingIOError):
                os.read(pipe.reading, 1)
        for pipe in many:
            pipe.release()
        self.assertEqual(descriptors(), before + 2 * MOST_IDLE)
        self.pipes.close()
        self.assertEqual(descriptors(), before)

    def test_an_ordinary_user(self) -> None:
        """Who has 64 large pipes gets no more; that is noticed, in place of tiny ones being used,
        and forgotten once there are others again."""
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(theirs, _as_a_user())
            finally:
                os._exit(0)
        os.close(theirs)
        self.addCleanup(os.close, ours)
        self.addCleanup(os.waitpid, child, 0)
        self.assertEqual(os.read(ours, 1000), b"good")


def _as_a_user() -> bytes:
    """Use up a user's pipes; what came of it."""
    if not os.getuid():
        os.setuid(65534)
    fds: list[int] = []
    with contextlib.suppress(PermissionError):
        while len(fds) < 1000:
            fds += os.pipe()
            fcntl.fcntl(fds[-1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return b"good"  # this system sets no limit
    some = Pipes()
    if some.take() is not None:
        return b"a pipe beyond the limit"
    for fd in fds:
        os.close(fd)
    if some.take() is not None:
        return b"asked again at once"
    some.close()
    return b"good" if some.take() is not None else b"never asked again"
