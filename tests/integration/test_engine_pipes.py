"""Bulk through pipes of the kernel: the same bytes in the same order as by copying, with nothing of
a session left for the next, and no pipe left over.

Reads are made small, so that sessions take to pipes soon and whatever the system's buffers are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from nodepass.meter import Meter
from nodepass.rate import RateLimiter
from nodepass.relay.engine import connection as connection_module
from nodepass.relay.engine import pipes as pipes_module
from nodepass.relay.engine.connection import FULL_READS, EngineConnection
from nodepass.relay.engine.pipes import MOST_IDLE, PIPE_SIZE, EnginePipe, Pipes
from nodepass.relay.engine.stream import EngineStream
from nodepass.relay.engine.transport import EngineTransport
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.session import Session, SessionContext
from nodepass.relay.stream import Cause
from nodepass.relay.tcp import TcpStream
from nodepass.wire import Opening
from nodepass.wire.native.datalink import LONG_FRAME, DataLink
from nodepass.wire.native.frames import Fin, Open, Reset, data_header, encode
from tests.enginerig import Rig, descriptors, reset
from tests.sessionrig import BULK, NOWHERE, Joined, Owner, SessionTestCase
from tests.streams import FakeOwner

#: What a read copies here, bytes; no less than what of a frame is not worth a pipe.
READ = LONG_FRAME
#: Bulk of each direction, bytes.
MUCH = 4 * BULK
#: And where it is copied.
SOME = BULK[: 1 << 20]


def send_some(sock: socket.socket, data: memoryview) -> int:
    """Send what is taken; how much that was."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


class PipeTestCase(SessionTestCase):
    """Counts what comes by pipe.

    :ivar piped: bytes that pipes were filled with.
    """

    buffers = 1 << 20

    def setUp(self) -> None:
        self.patch(connection_module, "READ_SIZE", READ)
        self.patch(connection_module, "_buffer", memoryview(bytearray(READ)))
        self.piped = 0
        fill = EnginePipe.fill

        def counted(pipe: EnginePipe, fd: int, most: int) -> int:
            size = fill(pipe, fd, most)
            self.piped += size
            return size

        self.patch(EnginePipe, "fill", counted)
        # After all else: none is left.
        self.addCleanup(lambda: self.assertEqual((self.pipes._made, self.pipes._idle), (0, [])))
        super().setUp()
        self.pipes: Any = self.rig.poller.pipes

    def transports(self) -> list[Any]:
        """All connections of the engine."""
        watched = self.rig.poller._watched.values()
        return [each for each in watched if isinstance(each, EngineConnection)]

    def waiting(self) -> list[EnginePipe]:
        """The pipes whose bytes wait to leave."""
        return [each._pipe for each in self.transports() if each._pipe is not None]

    def settled(self) -> None:
        """Pipes are in use or kept, none is both or neither, and those kept are empty and few."""
        idle = self.pipes._idle
        of = [id(pipe) for pipe in (*idle, *self.waiting())]
        self.assertEqual(len(of), len(set(of)))
        self.assertEqual(self.pipes._made, len(of))
        self.assertLessEqual(len(idle), MOST_IDLE)
        for pipe in idle:
            self.assertEqual(pipe.held, 0)
            self.assertRaises(BlockingIOError, os.read, pipe.reading, 1)

    def carry(
        self, joined: Joined, forth: bytes, back: bytes, takes: Callable[[], int] = lambda: 1 << 20
    ) -> None:
        """Send in both directions at once; every byte arrives.

        :param takes: how much the readers take next.
        """
        ways = [(joined.near, joined.far, forth), (joined.far, joined.near, back)]
        views = [memoryview(forth), memoryview(back)]
        got = [bytearray(), bytearray()]

        def go() -> bool:
            for number, (source, sink, data) in enumerate(ways):
                sent = send_some(source, views[number][: 1 << 20]) if views[number] else 0
                views[number] = views[number][sent:]
                size = takes()
                with contextlib.suppress(BlockingIOError):
                    while size > 0 and len(got[number]) < len(data):
                        piece = sink.recv(size)
                        self.assertTrue(piece, "an early end")
                        got[number] += piece
                        size -= len(piece)
            return all(len(each) == len(way[2]) for each, way in zip(got, ways, strict=True))

        self.loop.until(go, 30)
        self.assertTrue(got == [forth, back])

    def stall(self, joined: Joined, sock: socket.socket) -> int:
        """Send to a reader who has stopped, until a pipe waits; how much was sent."""
        sent = 0
        for _ in range(20):
            # Of what was taken in pieces the last may have been copied.
            sent += self.fill_from(sock, sent)
            if self.waiting():
                return sent
            other = joined.far if sock is joined.near else joined.near
            got = self.rig.read(other, sent // 2)
            self.assertTrue(got == (BULK * 9)[self.taken : self.taken + len(got)])
            self.taken += len(got)
        raise AssertionError("no pipe ever waits")

    taken = 0

    def fill_from(self, sock: socket.socket, place: int) -> int:
        """Send BULK again and again, from this place on, until nothing more is taken."""
        sent = still = 0
        while still < 10 and sent < 48 << 20:
            at = (place + sent) % len(BULK)
            more = send_some(sock, memoryview(BULK)[at : at + (1 << 20)])
            sent += more
            still = 0 if more else still + 1
            self.loop.turn(0.001)
        return sent

    def finish(self, joined: Joined) -> None:
        """Both programs end in order."""
        for one, other in ((joined.near, joined.far), (joined.far, joined.near)):
            one.shutdown(socket.SHUT_WR)
            self.expect(other, b"")
        self.end(joined)
        self.assertEqual(joined.over, [None] * self.nodes)


class ForwardingTests(PipeTestCase):
    """One session on the way."""

    def test_both_ways_at_once(self) -> None:
        """Bulk in both directions, with readers who are slow or take nothing for a while, arrives
        as it was sent, by pipe for the most part, and is counted."""
        joined = self.join()
        chance = random.Random(5)
        self.carry(
            joined, MUCH, MUCH[::-1], lambda: chance.choice((0, 0, 100, 70_000, 1 << 20, 2 << 20))
        )
        self.assertGreater(self.piped, self.nodes * len(MUCH))
        self.settled()
        for session in joined.sessions:
            self.assertEqual((session.received, session.sent), (len(MUCH), len(MUCH)))
        total = self.nodes * len(MUCH)
        self.assertEqual((self.meter.tcp_rx, self.meter.tcp_tx), (total, total))
        self.finish(joined)

    def test_small_messages_after_bulk(self) -> None:
        """A session goes back to copying for small messages, and to pipes again for bulk."""
        joined = self.join()
        chance = random.Random(6)
        for _ in range(3):
            before = self.piped
            self.carry(joined, BULK, b"")
            self.carry(joined, b"", BULK)
            self.assertGreater(self.piped, before + self.nodes * len(BULK))
            self.carry(joined, b"a", b"b")
            before = self.piped
            for _ in range(20):
                message = BULK[: chance.choice((1, 2, 3, 4, 5, 300, 5000))]
                self.carry(joined, message, b"")
                self.carry(joined, b"", message)
            # A pipe may serve the first of them.
            self.assertLess(self.piped, before + 20_000 * self.nodes)
        self.finish(joined)

    def test_the_end_behind_a_pipe(self) -> None:
        """A sender ends while a pipe waits: its reader gets every byte and then the end, and may
        go on sending."""
        joined = self.join()
        sent = self.stall(joined, joined.near)
        joined.near.shutdown(socket.SHUT_WR)
        self.loop.settle(20)
        self.assertTrue(self.waiting())
        self.expect(joined.far, (BULK * 9)[self.taken : sent])
        self.carry(joined, b"", BULK)
        joined.far.shutdown(socket.SHUT_WR)
        self.expect(joined.near, b"")
        self.end(joined)
        self.assertEqual(joined.over, [None] * self.nodes)
        self.settled()

    def test_resets(self) -> None:
        """Either program resets while a pipe waits: the other hears of it, the pipe is closed with
        what it holds, and the next session gets nothing of that."""
        for number in range(4):
            self.taken = 0
            joined = self.join()
            ends = joined.near, joined.far
            self.stall(joined, ends[number % 2])
            lost = [
                each._pipe
                for each in self.transports()
                if each._pipe is not None and isinstance(each, EngineStream)
            ]
            reset(ends[number // 2])
            self.loop.until(lambda: len(self.joined.over) == self.nodes)
            self.expect_reset(ends[1 - number // 2])
            self.end(joined)
            self.assertNotIn(None, joined.over)
            # What waited for the link may have left, and been dropped at its other end.
            for pipe in lost:
                self.assertNotIn(pipe, self.pipes._idle)
            self.settled()
            joined = self.join()
            self.carry(joined, b"small", b"words")
            self.carry(joined, BULK[::-1], BULK)
            self.finish(joined)
            self.assertEqual([link for link in self.links if not link.over], [])

    def test_what_is_held_is_bounded(self) -> None:
        """For a reader who has stopped a node holds one pipe, and then reads no more."""
        joined = self.join()
        sent = self.stall(joined, joined.near)
        for _ in range(5):
            sent += self.fill_from(joined.near, sent)
            self.assertLessEqual(len(self.waiting()), self.nodes)
            self.assertLessEqual(sum(len(each._left) for each in self.transports()), 5 * READ)
        self.assertLessEqual(sent - self.taken, self.nodes * PIPE_SIZE + 16 * self.buffers)
        reset(joined.near)
        self.expect_reset(joined.far)
        self.end(joined)

    def test_no_pipes(self) -> None:
        """Where the system gives no pipe, or a tiny one, bulk is copied, and no descriptor is
        lost."""

        def refused(*arguments: int) -> int:
            raise PermissionError

        def no_descriptor(flags: int) -> tuple[int, int]:
            raise OSError

        joined = self.join()
        for module, name, instead in (
            (pipes_module.fcntl, "fcntl", refused),
            (pipes_module.fcntl, "fcntl", lambda *arguments: 4096),
            (pipes_module.os, "pipe2", no_descriptor),
        ):
            patched = self.patch(module, name, instead)
            before = descriptors()
            self.carry(joined, SOME, SOME[::-1])
            self.assertEqual(descriptors(), before)
            patched.restore()
            self.pipes._most = pipes_module.MOST_PIPES
        self.assertEqual(self.piped, 0)
        self.carry(joined, BULK, BULK[::-1])
        self.assertGreater(self.piped, 0)
        self.finish(joined)

    def test_few_pipes(self) -> None:
        """Sessions that share too few pipes go on by copying."""
        self.pipes._most, self.pipes._again_at = 1, float("inf")
        joined = self.join()
        chance = random.Random(7)
        self.carry(joined, BULK, BULK[::-1], lambda: chance.choice((0, 70_000, 1 << 20)))
        self.assertGreater(self.piped, 0)
        self.assertLessEqual(self.pipes._made, 1)
        self.finish(joined)

    def test_a_limited_rate(self) -> None:
        """What is doled out comes in pieces, not by the pipe."""
        self.inbound = self.outbound = RateLimiter(1e15, self.loop)
        joined = self.join()
        self.carry(joined, SOME, SOME[::-1])
        self.assertEqual(self.piped, 0)
        self.finish(joined)

    def test_one_limited_direction(self) -> None:
        """A limit of one direction is none of the other's business."""
        self.inbound = RateLimiter(1e15, self.loop)
        joined = self.join()
        self.carry(joined, SOME, b"")
        # In a tunnel what the second session has from the link is not limited.
        self.assertLessEqual(self.piped, (self.nodes - 1) * len(SOME))
        self.piped = 0
        self.carry(joined, b"", BULK)
        self.assertGreater(self.piped, len(BULK) // 2)
        self.finish(joined)

    def test_urgent_bytes(self) -> None:
        """A read ends at an urgent byte, by pipe as well: what is behind it is no less read, and
        an end behind that is not taken for one before it. The byte itself is dropped."""
        for bulk in (False, True):
            for ends in (False, True):
                joined = self.join()
                near = joined.sessions[0].near.stream
                assert isinstance(near, EngineStream)
                if bulk:
                    near._much = FULL_READS
                joined.near.send(BULK[:20_000])
                joined.near.send(b"!", socket.MSG_OOB)
                joined.near.send(BULK[20_000:50_000])
                if ends:
                    joined.near.shutdown(socket.SHUT_WR)
                    self.expect(joined.far, BULK[:50_000])
                else:
                    self.assertTrue(self.rig.read(joined.far, 50_000) == BULK[:50_000])
                reset(joined.near)
                self.end(joined)


class TunnelTests(ForwardingTests):
    """Two sessions on the way, with a data link between them."""

    tunnel = True


class PeerTests(PipeTestCase):
    """A link whose other end is written by hand: it takes, and its bytes go to the far program."""

    def setUp(self) -> None:
        super().setUp()
        near, self.peer = self.rig.sockets()
        self.peer.setblocking(False)
        self.owner: Any = Owner(self.opened)
        self.link = DataLink(1, False, self.owner, self.loop, self.watch, self.rig.poller.soon)
        EngineTransport(self.rig.poller, near).begin(self.link)
        self.links.append(self.link)
        self.number = 0

    def start(self) -> Joined:
        """Open a session, and let the receiver see bulk: three frames of the longest kind."""
        far, self.far_stream = self.socket()
        self.joined = Joined(self.peer, far)
        self.number += 1
        opening = Opening(visitor=NOWHERE, local=NOWHERE, target=0)
        self.send(encode(Open(self.number, opening)))
        self.loop.until(lambda: self.joined.sessions)
        self.sent = b""
        self.got = bytearray()
        for _ in range(3):
            self.send_frame(BULK[: 1 << 20])
        self.assertGreater(self.piped, 1 << 20)
        return self.joined

    def send(self, data: bytes) -> None:
        """Send bytes, while the far program reads."""
        view = memoryview(data)

        def go() -> bool:
            nonlocal view
            view = view[send_some(self.peer, view) :]
            self.take()
            return not view

        self.loop.until(go)

    def send_blindly(self, data: bytes) -> None:
        """Send bytes that reach nobody."""
        while data:
            data = data[send_some(self.peer, memoryview(data)) :]
            self.loop.turn(0.001)

    def take(self) -> None:
        """The far program reads."""
        with contextlib.suppress(BlockingIOError):
            while piece := self.joined.far.recv(1 << 20):
                self.got += piece

    def send_frame(self, body: bytes, split: int = 0) -> None:
        """Send a DATA frame in two pieces, the second of which comes when the first was read by
        one who expects bulk; all of it arrives before this returns."""
        self.sent += body
        frame = data_header(len(body)) + body
        if split:
            self.link.transport._much = FULL_READS
            self.send(frame[:split])
            self.loop.turn(0.001)
            self.loop.turn()
            self.link.transport._much = FULL_READS
        self.send(frame[split:])

        def arrived() -> bool:
            self.take()
            return len(self.got) >= len(self.sent)

        self.loop.until(arrived)

    def check(self) -> None:
        """What has arrived is what was sent; begin anew."""
        self.assertTrue(self.got == self.sent)
        self.sent = b""
        self.got.clear()

    def test_frames_of_any_size(self) -> None:
        """Frames of all sizes that are treated each in their way, in bulk, with a header that comes
        in two pieces, cut at each place, or a body that does."""
        joined = self.start()
        self.check()
        sizes = (0, 1, READ, LONG_FRAME - 1, LONG_FRAME, LONG_FRAME + 1, 3 * LONG_FRAME)
        for size in sizes:
            for split in (1, 2, 3, 4, 5, 4 + size // 2, 3 + size):
                self.send_frame(BULK[split : split + size], split)
                # The receiver is to expect long ones again.
                self.send_frame(BULK[7 : 7 + LONG_FRAME + READ], READ)
            self.check()
        # And many at once.
        data = BULK[: 3 * LONG_FRAME]
        self.sent = b"".join(data[:size] for size in sizes * 3)
        self.send(b"".join(data_header(size) + data[:size] for size in sizes * 3))
        self.send_frame(b"the last")
        self.check()
        self.send(encode(Fin(1)))
        self.expect(joined.far, b"")
        joined.far.close()
        self.loop.until(lambda: self.joined.over)
        self.assertEqual(joined.over, [None])

    def test_byte_by_byte(self) -> None:
        """Headers and all other frames in bulk, byte by byte; then the next session."""
        for _ in range(2):
            joined = self.start()
            for size in (LONG_FRAME, 3):
                for byte in data_header(size):
                    self.link.transport._much = FULL_READS
                    self.send(bytes((byte,)))
                    self.loop.turn(0.001)
                self.link.transport._much = FULL_READS
                self.sent += BULK[:size]
                self.send(BULK[:size])
            for byte in encode(Fin(self.number)):
                self.link.transport._much = FULL_READS
                self.send(bytes((byte,)))
                self.loop.turn(0.001)
            self.got += self.rig.read(joined.far)
            self.check()
            joined.far.close()
            self.loop.until(lambda: self.joined.over)
            self.assertEqual(joined.over, [None])
        self.assertEqual(self.owner.free, 2)

    def test_a_reset_in_the_midst_of_a_frame(self) -> None:
        """The far program resets while a frame is under way: what is left of it is dropped, and
        the link goes on with the next session's bytes alone."""
        for _ in range(2):
            joined = self.start()
            self.check()
            self.send(data_header(1 << 20) + b"o" * 500_000)
            self.loop.until(lambda: self.link._reader.left == (1 << 20) - 500_000)
            reset(joined.far)
            self.loop.until(lambda: self.joined.over)
            self.assertEqual(self.link.idle, False)
            rest = b"o" * ((1 << 20) - 500_000) + encode(Reset(self.number, Cause.RESET))
            self.send_blindly(rest)
            self.loop.until(lambda: self.link.idle)
            self.settled()
            with contextlib.suppress(BlockingIOError):
                self.peer.recv(1000)
        joined = self.start()
        self.check()
        joined.far.close()

    def test_a_peer_that_goes_in_the_midst_of_a_frame(self) -> None:
        """A frame of which the rest never comes is no end in order."""
        joined = self.start()
        self.check()
        self.send(data_header(1 << 20) + BULK[:500_000])
        self.peer.close()
        self.expect_reset(joined.far)
        self.assertEqual(joined.over, [Cause.LOST])

    def test_what_was_held_back(self) -> None:
        """A short frame that was about to leave does so before the pipe, and once."""
        near, far = self.rig.sockets()
        link: Any = DataLink(2, True, self.owner, self.loop, self.watch, self.rig.poller.soon)
        EngineTransport(self.rig.poller, near).begin(link)
        self.links.append(link)
        opening = Opening(visitor=NOWHERE, local=NOWHERE, target=0)
        stream = link.open(opening)
        pipe = self.pipes.take()
        pipe.held = os.write(pipe.writing, b"bytes")
        stream.write_pipe(pipe)
        stream.finish()
        expected = encode(Open(1, opening)) + data_header(5) + b"bytes" + encode(Fin(1))
        self.assertEqual(self.rig.read(far, len(expected)), expected)
        self.loop.settle()
        self.assertRaises(BlockingIOError, far.recv, 1)

    def test_bytes_behind_the_end(self) -> None:
        """A long frame after FIN is an error, and nobody gets any of it."""
        self.start()
        self.check()
        self.send(encode(Fin(1)))
        self.loop.settle()
        for piece in (data_header(1 << 20), BULK[: 2 * LONG_FRAME]):
            self.link.transport._much = FULL_READS
            self.peer.send(piece)
            self.loop.settle()
        self.assertIn("a protocol error", self.owner.lost)
        self.assertEqual(self.joined.over, [Cause.LOST])

    def test_lies(self) -> None:
        """A frame longer than any may be, one of no kind, and bytes behind the end, in bulk."""
        for lie in (
            struct.pack(">I", (2 << 24) + (1 << 20) + 1),
            struct.pack(">I", 99 << 24),
            encode(Fin(1)) + data_header(LONG_FRAME) + bytes(LONG_FRAME),
        ):
            if self.number:
                self.doCleanups()
                self.setUp()
            self.start()
            self.check()
            self.link.transport._much = FULL_READS
            self.peer.send(lie)
            self.loop.until(lambda: self.joined.over)
            self.assertIn("a protocol error", self.owner.lost)
            self.assertEqual(bytes(self.got), b"")


class TransportTests(SynchronousTestCase):
    """One connection that is given pipes."""

    def setUp(self) -> None:
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop
        self.pipes: Any = self.rig.poller.pipes

        def check() -> None:
            for each in list(self.rig.poller._watched.values()):
                each.abortConnection()  # type: ignore[attr-defined]
            self.loop.settle()
            self.assertEqual(self.pipes._made, 0)
            self.assertEqual(self.loop.readers, [])

        self.addCleanup(check)

    def pipe(self, data: bytes) -> EnginePipe:
        """A pipe with bytes in it."""
        pipe: EnginePipe | None = self.pipes.take()
        assert pipe is not None
        pipe.held = os.write(pipe.writing, data)
        assert pipe.held == len(data)
        return pipe

    def connection(self) -> tuple[Any, socket.socket]:
        protocol, far = self.rig.connection(small=True)
        protocol.transport.registerProducer(protocol, True)
        return protocol, far

    def test_a_header_that_does_not_leave_whole(self) -> None:
        """When there is room for nothing, or for a part of the header, all keeps its order."""
        for head in (b"head", BULK[:1_000_000]):
            protocol, far = self.connection()
            transport = protocol.transport
            filled = 0
            if len(head) == 4:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        filled += transport.getHandle().send(b"x" * 1000)
            transport.write_pipe(head, self.pipe(b"1" * 300_000))
            self.assertEqual(protocol.told, ["pause"])
            transport.write(b"2")
            transport.write_pipe(b"head", self.pipe(b"3" * 300_000))
            transport.loseWriteConnection()
            expected = b"x" * filled + head + b"1" * 300_000 + b"2head" + b"3" * 300_000
            self.assertTrue(self.rig.read(far) == expected)

    def test_order(self) -> None:
        """Whatever is written behind a pipe that waits leaves behind it, though there be room by
        then, and then the end."""
        body = BULK[:PIPE_SIZE]
        for ending in ("loseWriteConnection", "loseConnection"):
            for number in range(4):
                protocol, far = self.connection()
                transport = protocol.transport
                transport.write_pipe(b"head", self.pipe(body))
                self.assertIsNotNone(transport._pipe)
                self.assertEqual(protocol.told, ["pause"])
                got = far.recv(1 << 20)
                select.select([], [transport.getHandle()], [], 5)
                if number == 1:
                    transport.write(b"1")
                elif number == 2:
                    transport.writeSequence([b"1", memoryview(b"2")])
                elif number == 3:
                    transport.write_pipe(b"1", self.pipe(b"2" * 200_000))
                    transport.write(b"3")
                self.assertEqual(protocol.told, ["pause"])
                getattr(transport, ending)()
                self.loop.turn()
                got += self.rig.read(far)
                behind = (b"", b"1", b"12", b"1" + b"2" * 200_000 + b"3")[number]
                self.assertTrue(got == b"head" + body + behind)

    def test_goes_on(self) -> None:
        """The producer goes on when the pipe has left, and the pipe is kept for the next."""
        protocol, far = self.connection()
        protocol.transport.write_pipe(b"", self.pipe(BULK[:PIPE_SIZE]))
        self.assertTrue(self.rig.read(far, PIPE_SIZE) == BULK[:PIPE_SIZE])
        self.loop.until(lambda: protocol.told == ["pause", "resume"])
        self.assertEqual((len(self.pipes._idle), self.pipes._made), (1, 1))

    def test_bulk_starves_nobody(self) -> None:
        """While one connection always has more to read, others have their turns as often as where
        bytes are copied."""
        piece = 50_000
        self.patch(connection_module, "MOST_PIPED_BYTES", 2 * piece)
        protocol, source = self.rig.connection()
        transport: Any = protocol.transport
        source.setblocking(False)
        turns = 0

        def other() -> None:
            nonlocal turns
            turns += 1

        def refill(data: bytes) -> None:
            send_some(source, memoryview(BULK)[: 2 * len(data)])

        protocol.on_data = refill
        protocol.next = piece, True
        self.loop.settle()
        send_some(source, memoryview(BULK)[: 8 * piece])
        for _ in range(10):
            before = len(protocol.data)
            transport._much = FULL_READS  # though the last piece may have been a short one
            self.rig.poller.soon(other)
            self.rig.poller.hear([])
            self.assertLessEqual(len(protocol.data) - before, 3 * piece)
            if not transport._scheduled:
                self.loop.turn(0.1)
        self.assertEqual(turns, 10)
        self.assertGreater(len(protocol.data), 10 * piece)

    def test_a_producer_that_comes_late(self) -> None:
        """It is asked to pause at once while a pipe waits."""
        protocol, _ = self.rig.connection(small=True)
        protocol.transport.write_pipe(b"", self.pipe(BULK[:PIPE_SIZE]))
        protocol.transport.registerProducer(protocol, True)
        self.assertEqual(protocol.told, ["pause"])

    def test_nothing_leaves_after_the_end(self) -> None:
        """A pipe given to a connection that is closing, ended or lost is closed."""
        for ending in ("loseWriteConnection", "loseConnection", "abortConnection"):
            for later in (False, True):
                protocol, far = self.connection()
                getattr(protocol.transport, ending)()
                if later:
                    self.loop.settle()
                protocol.transport.write_pipe(b"head", self.pipe(b"bytes"))
                self.assertEqual((self.pipes._made, self.pipes._idle), (0, []))
                if ending != "abortConnection":
                    self.assertEqual(self.rig.read(far), b"")

    def test_a_connection_that_broke(self) -> None:
        """The other end resets: while a pipe waits, or before one is written. The pipe is closed,
        with what it holds, and the producer of the dead connection is asked for nothing."""
        protocol, far = self.connection()
        protocol.transport.write_pipe(b"", self.pipe(BULK[:PIPE_SIZE]))
        reset(far)
        self.loop.until(lambda: "lost" in protocol.told)
        self.assertEqual(self.pipes._made, 0)
        for head in (b"", b"head"):
            protocol, far = self.connection()
            protocol.transport.pauseProducing()
            reset(far)
            protocol.transport.write_pipe(head, self.pipe(b"bytes"))
            self.assertEqual(self.pipes._made, 0)
            self.loop.until(lambda protocol=protocol: "lost" in protocol.told)
            self.assertNotIn("pause", protocol.told)


class ChoiceTests(SynchronousTestCase):
    """Who takes pipes."""

    def test_another_transport(self) -> None:
        """A connection of the portable relay takes none."""
        stream = TcpStream(HangupWatch(Rig(self.addCleanup).loop))
        stream.transport = StringTransport()
        self.assertFalse(stream.takes_pipes())

    def test_tls(self) -> None:
        """Nor does one with TLS on it, which has to see the bytes."""
        tls = pytest.importorskip("nodepass.relay.engine.tls")
        self.assertFalse(tls.EngineTLSTransport.takes_pipes)

    def test_what_may_be_sent_again(self) -> None:
        """What is kept for another client is copied, until the target has answered; what the
        target sends need not be. And what the other end can't take is copied."""
        rig = Rig(self.addCleanup)
        streams: list[Any] = []
        for _ in range(2):
            near, _far = rig.sockets()
            streams.append(EngineStream(rig.poller, near))
        context = SessionContext(clock=rig.loop, log=rig.log, meter=Meter(), read=0)
        session = Session(*streams, context=context, owner=FakeOwner(), movable=True)
        session.start()
        self.assertFalse(session.near.takes_pipes())
        session.near.received(b"question")
        self.assertFalse(session.near.takes_pipes())
        session.far.received(b"answer")
        self.assertTrue(session.near.takes_pipes())
        session.far.stream = TcpStream(HangupWatch(rig.loop))
        self.assertFalse(session.near.takes_pipes())
        session.far.stream = streams[1]
        session.abort(Cause.STOPPED)
        rig.loop.settle()


class PipesTests(SynchronousTestCase):
    """The pipes of a process."""

    def test_kept_and_closed(self) -> None:
        """Empty ones are used again, a few of them kept; one with bytes in it is closed; and there
        are no more than so many."""
        before = descriptors()
        pipes = Pipes()
        taken = [pipe for _ in range(100) if (pipe := pipes.take()) is not None]
        self.assertLessEqual(len(taken), pipes_module.MOST_PIPES)
        first = taken.pop()
        size = fcntl.fcntl(first.reading, fcntl.F_GETPIPE_SZ)
        self.assertGreaterEqual(size, PIPE_SIZE)
        first.held = os.write(first.writing, b"left")
        first.release()
        self.assertIsNot(pipes.take(), first)
        for pipe in taken:
            pipe.release()
        self.assertLessEqual(descriptors(), before + 2 * MOST_IDLE + 2)
        pipes.close()
