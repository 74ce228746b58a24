"""Sessions of real sockets that share a data link, and leave it when they have much to send."""

from __future__ import annotations

import hashlib
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from nodepass.relay.engine.sockets import stream_socket
from nodepass.relay.engine.transport import EngineTransport
from nodepass.relay.portable import take_over
from nodepass.relay.stream import Cause, Stream
from nodepass.relay.tcp import LINGER_OFF
from nodepass.wire import Opening
from nodepass.wire.native.linkpool import LinkPool
from nodepass.wire.native.muxstream import CREDIT
from nodepass.wire.parting import PARTING_TIMEOUT
from tests.sessionrig import NOWHERE, Joined, SessionTestCase

#: What goes in each direction, bytes: a visitor's, and a target's.
THERE, BACK = (random.Random(seed).randbytes(20 << 20) for seed in (1, 2))
#: What fits what a session may have on its way on a shared link.
LITTLE = 1000


class Program:
    """One end's program: it sends all that it is given, reads all that comes, and both at once.

    :ivar size: bytes that it has read.
    :ivar ended: nothing more comes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = memoryview(b"")
        self._hash = hashlib.sha256()
        self._finished = False
        self.size = 0
        self.ended = False

    def send(self, data: bytes, *, last: bool = False) -> None:
        """Begin to send."""
        assert not self._rest
        self._rest = memoryview(data)
        self._finished = last

    def go(self) -> None:
        """Send and read what can be."""
        try:
            while self._rest:
                self._rest = self._rest[self._sock.send(self._rest[: 1 << 18]) :]
            if self._finished:
                self._finished = False
                self._sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        try:
            while not self.ended:
                data = self._sock.recv(1 << 18)
                self._hash.update(data)
                self.size += len(data)
                self.ended = not data
        except BlockingIOError:
            pass

    def has(self, *data: bytes) -> bool:
        """Whether it has read this, all of it, and nothing else."""
        whole = b"".join(data)
        return self.size == len(whole) and self._hash.digest() == hashlib.sha256(whole).digest()


class Node:
    """One end's pool, and the owner of it."""

    name = "the peer"
    joined = True

    def __init__(self, case: SharingTestCase, takes: bool) -> None:
        self._case = case
        self.other: Node
        self.pool = LinkPool(
            self, takes=takes, minimum=3, maximum=10, clock=case.loop, watch=case.watch,
            log=case.rig.log, take_over=take_over, soon=case.rig.poller.soon, share_within=1.0,
        )  # fmt: skip

    def need_links(self, count: int) -> None:
        for _ in range(count):
            self._case.loop.callLater(0, self._case.add_link)

    def ask_to_retire(self, link: int) -> None:
        pass

    def opened(self, opening: Opening, stream: Stream) -> None:
        self._case.opened(stream)

    def flow_opened(self, channel: Any) -> None:
        raise AssertionError("there are no flows")

    def reset_around(self, link: int, session: int, cause: Cause) -> bool:
        there = self.other.pool.get(link)
        if there is not None:
            there.abort_session(session, cause)
        return True


class SharingTestCase(SessionTestCase):
    """A visitor's program and a target's, with two nodes between them that are near each other."""

    buffers = 1 << 18

    def setUp(self) -> None:
        super().setUp()
        self._number = 0
        self.listener = self.sized(socket.create_server(("127.0.0.1", 0)))
        self.addCleanup(self.listener.close)
        self.taking, self.serving = Node(self, True), Node(self, False)
        self.taking.other, self.serving.other = self.serving, self.taking
        self.taking.pool.start_over()
        self.loop.until(lambda: self.taking.pool.idle == 3)
        self.addCleanup(self.close)

    def close(self) -> None:
        """Leave nothing."""
        for node in (self.taking, self.serving):
            if not node.pool._closed:
                node.pool.close(Cause.STOPPED, "the end", linger=False)
        self.loop.until(lambda: not len(self.taking.pool) and not len(self.serving.pool))

    def add_link(self) -> None:
        """Make a link."""
        if self.taking.pool._closed or self.serving.pool._closed:
            return
        self._number += 1
        one = self.sized(stream_socket(socket.AF_INET, local=True))
        # Those of data links are not reset where they are closed.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF)
        one.connect_ex(self.listener.getsockname())
        other, _ = self.listener.accept()
        other.setblocking(False)
        for node, sock in ((self.serving, other), (self.taking, one)):
            link = node.pool.add(self._number)
            EngineTransport(self.rig.poller, sock).begin(link)
            node.pool.ready(link)

    def visit(self) -> tuple[Joined, Program, Program]:
        """A session, and its two programs."""
        (near, near_stream), (far, self.far_stream) = self.socket(), self.socket()
        self.joined = joined = Joined(near, far)
        stream = self.taking.pool.take(Opening(NOWHERE, NOWHERE))
        assert stream is not None
        self.session(near_stream, stream, joined)
        self.loop.until(lambda: len(joined.sessions) == 2)
        return joined, Program(near), Program(far)

    def until(self, condition: Any, *programs: Program) -> None:
        """The programs go on until something is so."""

        def gone_on() -> bool:
            for program in programs:
                program.go()
            return bool(condition())

        self.loop.until(gone_on, 30)

    @property
    def sharing(self) -> tuple[int, int]:
        """Sessions that share a link, as both ends see it."""
        return self.taking.pool._sharing.sessions, self.serving.pool._sharing.sessions

    @property
    def apart(self) -> tuple[int, int]:
        """Those that have one of their own."""
        return len(self.taking.pool._busy), len(self.serving.pool._busy)

    def over(self, joined: Joined, *programs: Program) -> None:
        """It ends as it should, and its link is there for the next one."""
        self.until(lambda: all(program.ended for program in programs), *programs)
        self.loop.until(lambda: joined.over == [None, None])
        self.loop.until(lambda: self.apart == (0, 0))
        self.loop.until(lambda: any(link.state.number for link in self.taking.pool._idle))
        joined.near.close()
        joined.far.close()


class MuchBothWaysTests(SharingTestCase):
    """Twenty megabytes in each direction."""

    def test_at_once(self) -> None:
        """A session that has shared a link sends both ways, with others beside it that stay; each
        has its own bytes."""
        joined, visitor, target = self.visit()
        others = [self.visit() for _ in range(5)]
        visitor.send(b"hello")
        target.send(b"welcome")
        self.until(lambda: target.size == 5 and visitor.size == 7, visitor, target)
        self.assertEqual((self.sharing, self.apart), ((6, 6), (0, 0)))
        for n, (_, asking, answering) in enumerate(others):
            asking.send(b"%d" % n * LITTLE)
            answering.send(b"%d" % (n + 5) * LITTLE)
        visitor.send(THERE, last=True)
        target.send(BACK, last=True)
        programs = [program for _, *both in others for program in both]
        self.until(lambda: target.ended and visitor.ended, visitor, target, *programs)
        self.assertTrue(target.has(b"hello", THERE))
        self.assertTrue(visitor.has(b"welcome", BACK))
        self.assertEqual(self.sharing, (5, 5))
        self.over(joined, visitor, target)
        for n, (_, asking, answering) in enumerate(others):
            self.assertTrue(answering.has(b"%d" % n * LITTLE))
            self.assertTrue(asking.has(b"%d" % (n + 5) * LITTLE))
        for other, *_ in others:
            other.near.close()
            other.far.close()
        self.loop.until(lambda: self.sharing == (0, 0))

    def test_at_once_from_the_start(self) -> None:
        """Where OPEN itself is still on its way when the session needs a link of its own."""
        joined, visitor, target = self.visit()
        visitor.send(THERE, last=True)
        target.send(BACK, last=True)
        self.until(lambda: target.ended and visitor.ended, visitor, target)
        self.assertTrue(target.has(THERE) and visitor.has(BACK))
        self.over(joined, visitor, target)


def directions() -> Iterator[str]:
    """Who ends first."""
    yield from ("visitor", "target")


class HalfClosedTests(SharingTestCase):
    """One direction ends early; the other is carried whole, and then ends as well."""

    def check(self, first: str, *, moved: bool) -> None:
        """One program ends, before the session has moved or after; then the other sends much."""
        joined, visitor, target = self.visit()
        one, two = (visitor, target) if first == "visitor" else (target, visitor)
        much = THERE if moved else b"x" * LITTLE
        one.send(much, last=True)
        self.until(lambda: two.ended, one, two)
        self.assertTrue(two.has(much))
        self.assertEqual(self.apart, (1, 1) if moved else (0, 0))
        two.send(BACK, last=True)
        self.until(lambda: one.ended, one, two)
        self.assertTrue(one.has(BACK))
        self.over(joined, visitor, target)
        self.assertEqual(self.sharing, (0, 0))

    def test_before_moving(self) -> None:
        """On the shared link: it is not told twice, and what moves is the other direction."""
        for first in directions():
            self.check(first, moved=False)

    def test_after_moving(self) -> None:
        """On the link of its own."""
        for first in directions():
            self.check(first, moved=True)


class BrokenTests(SharingTestCase):
    """A program gives up in the middle."""

    def test_reset_while_moving(self) -> None:
        """Whenever it comes, at either end, the other program hears of it; the links serve on."""
        for turns in range(8):
            for ending in (0, 1):
                joined, visitor, target = self.visit()
                visitor.send(THERE)
                target.send(BACK)
                for _ in range(turns):
                    visitor.go()
                    target.go()
                    self.loop.turn()
                giving_up, other = (joined.near, joined.far)[:: 1 if ending else -1]
                giving_up.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                giving_up.close()
                self.expect_reset(other)
                self.loop.until(lambda joined=joined: len(joined.over) == 2)
                self.loop.until(lambda: self.apart == (0, 0) and self.sharing == (0, 0))
                other.close()
        self.loop.until(lambda: not self.taking.pool._ending)
        joined, visitor, target = self.visit()
        visitor.send(b"on", last=True)
        self.until(lambda: target.ended, visitor, target)
        self.assertTrue(target.has(b"on"))
        joined.near.close()
        joined.far.close()


class StoppingTests(SharingTestCase):
    """A node stops whose sessions are over while the other one has not read all of them."""

    #: Bytes of each session, more than may go without a word of the reader's. All of them are more
    #: than is read before that leaves.
    size = 60_000

    def sized(self, sock: socket.socket) -> socket.socket:
        return sock  # the system holds all of them

    def stop(self, *, taking: bool) -> list[tuple[Program, bytes]]:
        """Stop one node; who is to read what of it. The other one reads nothing yet."""
        leaving, staying = (self.taking, self.serving)[:: 1 if taking else -1]
        visits = [self.visit() for _ in range(20)]
        ends = [(visitor, target)[:: 1 if taking else -1] for _, visitor, target in visits]
        for joined, *_ in visits:
            self.addCleanup(joined.near.close)
            self.addCleanup(joined.far.close)
        for _, reader in ends:
            reader.send(b"", last=True)
        self.until(lambda: all(sender.ended for sender, _ in ends), *(p for e in ends for p in e))
        (mux,) = staying.pool._sharing._links
        self.late = mux.link.transport
        self.late.pauseProducing()
        due = []
        for n, (sender, reader) in enumerate(ends):
            due.append((reader, bytes([n]) * self.size))
            sender.send(due[-1][1], last=True)
        self.until(lambda: not leaving.pool.sessions, *(sender for sender, _ in ends))
        self.assertEqual(staying.pool.sessions, 20)
        leaving.pool.close(Cause.STOPPED, "stopping", linger=False)
        self.leaving, self.staying = leaving.pool, staying.pool
        return due

    def read(self, due: list[tuple[Program, bytes]]) -> None:
        """The other node reads on: all must arrive."""
        self.late.resumeProducing()
        readers = [reader for reader, _ in due]
        self.until(lambda: all(reader.ended for reader in readers), *readers)
        for reader, data in due:
            self.assertTrue(reader.has(data))

    def check(self, *, taking: bool, told: bool) -> None:
        """Nothing is lost, and no link is left.

        :param told: the other node has heard that this one leaves.
        """
        due = self.stop(taking=taking)
        if told:
            self.staying.close(Cause.STOPPED, "it left", linger=True)
        self.loop.turn()
        self.read(due)
        self.loop.until(lambda: not self.leaving and not (told and self.staying))

    def test_taking_end(self) -> None:
        """Visitors' last bytes."""
        self.check(taking=True, told=True)

    def test_serving_end(self) -> None:
        """Targets' last bytes."""
        self.check(taking=False, told=True)

    def test_taking_end_without_a_word(self) -> None:
        """There is no control link, or it is slower."""
        self.check(taking=True, told=False)

    def test_serving_end_without_a_word(self) -> None:
        """Likewise."""
        self.check(taking=False, told=False)

    def test_both_ends(self) -> None:
        """Neither waits for the other."""
        joined, *_ = self.visit()
        joined.near.close()
        joined.far.close()
        self.loop.until(lambda: self.sharing == (0, 0))
        for node in (self.taking, self.serving):
            node.pool.close(Cause.STOPPED, "stopping", linger=False)
        self.loop.until(lambda: not self.taking.pool and not self.serving.pool)

    def test_who_does_not_read_in_time(self) -> None:
        """Is not waited for any longer, and has all that needs no word of it."""
        self.size = CREDIT - 1
        due = self.stop(taking=True)
        self.loop.advance(PARTING_TIMEOUT)
        self.loop.until(lambda: not self.leaving)
        self.read(due)
