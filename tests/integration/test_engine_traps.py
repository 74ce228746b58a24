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
import os
import random
import socket
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from twisted.trial.unittest import SynchronousTestCase

from nodepass.relay.engine import pipes
from nodepass.relay.engine.connection import READ_SIZE
from nodepass.relay.engine.pipes import MOST_IDLE, PIPE_SIZE, EnginePipe, Pipes
from tests.enginerig import Rig, descriptors, reset
from tests.sessionrig import BULK, SessionTestCase

#: Most that one node may hold of a session whose reader has stopped, bytes: one read, or a pipe.
HELD = 1 << 20


class ForwardingTests(SessionTestCase):
    """One session on the way.

    :cvar pipes: whether bytes in bulk are to go through pipes of the kernel.
    :ivar piped: reads into a pipe.
    """

    pipes = False

    def setUp(self) -> None:
        self.piped = 0
        fill = EnginePipe.fill

        def counting(pipe: EnginePipe, fd: int, most: int) -> int:
            size = fill(pipe, fd, most)
            self.piped += size > 0
            return size

        self.patch(EnginePipe, "fill", counting)
        super().setUp()

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
