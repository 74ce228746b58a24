"""Connections of the engine on real sockets, under a loop driven by hand."""

from __future__ import annotations

import gc
import random
import select
import socket
import sys
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from nodepass.relay.engine import connection as module
from nodepass.relay.engine import poller as poller_module
from nodepass.relay.engine.poller import MOST_ROUNDS, WRITABLE
from nodepass.relay.engine.transport import EngineTransport
from nodepass.relay.portable import end_writing, has_ended
from tests.enginerig import Halves, Plain, Rig, descriptors, reset

MEGABYTE = random.Random(1).randbytes(1 << 20)


class EngineTestCase(SynchronousTestCase):
    """Has a rig, and looks that nothing is left of it."""

    def setUp(self) -> None:
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop

    def lost(self, *protocols: Any) -> None:
        """Wait until the connections of these have ended."""
        self.loop.until(lambda: all("lost" in each.told for each in protocols))
        self.assertEqual(self.loop.readers, [])


class WritingTests(EngineTestCase):
    """What is written."""

    def full(self) -> tuple[Any, socket.socket, bytes]:
        """A connection whose other end does not read, written to until something is kept."""
        protocol, far = self.rig.connection(small=True)
        protocol.transport.registerProducer(protocol, True)
        protocol.transport.write(MEGABYTE)
        self.assertEqual(protocol.told, ["pause"])
        return protocol, far, MEGABYTE

    def test_what_waits_keeps_its_order(self) -> None:
        """Pieces written while others wait come behind them, and the producer is told once each
        way."""
        protocol, far, sent = self.full()
        for number in range(20):
            piece = bytes([number]) * 999
            protocol.transport.write(piece)
            protocol.transport.writeSequence((b"<", piece, b">"))
            sent += piece + b"<" + piece + b">"
        self.loop.settle()
        self.assertEqual(protocol.told, ["pause"])
        self.assertEqual(self.rig.read(far, len(sent)), sent)
        self.loop.until(lambda: len(protocol.told) > 1)
        self.assertEqual(protocol.told, ["pause", "resume"])
        protocol.transport.write(b"more")
        self.assertEqual(self.rig.read(far, 4), b"more")
        self.assertEqual(protocol.told, ["pause", "resume"])

    def test_a_sequence_that_leaves_in_part(self) -> None:
        """The rest of it follows, and the producer is asked to pause."""
        protocol, far = self.rig.connection(small=True)
        protocol.transport.registerProducer(protocol, True)
        protocol.transport.writeSequence((b"head", MEGABYTE, b"tail"))
        self.assertEqual(protocol.told, ["pause"])
        self.assertEqual(self.rig.read(far, len(MEGABYTE) + 8), b"head" + MEGABYTE + b"tail")

    def test_what_was_left_before(self) -> None:
        """Bytes that another transport had not sent go first, and whoever produces more waits."""
        protocol, far = self.rig.connection(small=True, left=MEGABYTE)
        protocol.transport.write(b"later")
        protocol.transport.registerProducer(protocol, True)
        self.assertEqual(protocol.told, ["pause"])
        self.assertEqual(self.rig.read(far, len(MEGABYTE) + 5), MEGABYTE + b"later")

    def test_writing_from_within_resume(self) -> None:
        """A producer that fills the socket again at once is paused again, and nothing is lost."""
        protocol, far, sent = self.full()
        again = [MEGABYTE[::-1], MEGABYTE]
        protocol.on_resume = lambda: again and protocol.transport.write(again.pop(0))
        sent += MEGABYTE[::-1] + MEGABYTE
        self.assertEqual(self.rig.read(far, len(sent)), sent)
        self.loop.until(lambda: len(protocol.told) == 6)
        self.assertEqual(protocol.told, ["pause", "resume"] * 3)

    def test_end_after_what_waits(self) -> None:
        """FIN follows what was written; only then the protocol is told, and it reads on."""
        protocol, far, sent = self.full()
        protocol.transport.unregisterProducer()
        end_writing(protocol.transport)
        protocol.transport.write(b"too late")
        protocol.transport.writeSequence((b"too", b"late"))
        self.loop.settle()
        self.assertEqual(protocol.told, ["pause"])
        self.assertFalse(has_ended(protocol.transport))
        self.assertEqual(self.rig.read(far), sent)
        self.loop.until(lambda: "write ended" in protocol.told)
        self.assertTrue(has_ended(protocol.transport))
        far.send(b"still")
        self.loop.until(lambda: protocol.data == b"still")
        self.assertEqual(protocol.told, ["pause", "write ended"])

    def test_close_after_what_waits(self) -> None:
        """loseConnection sends all that was written, and nothing that is written afterwards."""
        protocol, far, sent = self.full()
        protocol.transport.loseConnection()
        protocol.transport.write(b"too late")
        protocol.transport.writeSequence((b"too", b"late"))
        self.assertEqual(self.rig.read(far), sent)
        self.lost(protocol)
        self.assertIs(protocol.reason, ConnectionDone)

    def test_close_with_nothing_waiting(self) -> None:
        """It is told in the next round, never from within the call."""
        protocol, far = self.rig.connection()
        protocol.transport.loseConnection()
        self.assertEqual(protocol.told, [])
        self.lost(protocol)
        self.assertEqual(far.recv(1), b"")

    def test_abort(self) -> None:
        """The other end sees a reset, though bytes wait; it is told in the next round."""
        protocol, far, _ = self.full()
        protocol.transport.abortConnection()
        protocol.transport.write(b"too late")
        self.assertEqual(protocol.told, ["pause"])
        self.lost(protocol)
        self.assertEqual(protocol.told, ["pause", "lost"])
        self.assertIs(protocol.reason, ConnectionAborted)
        with self.assertRaises(ConnectionResetError):
            while far.recv(65536):
                pass

    def test_abort_from_within_pause(self) -> None:
        """A producer may give the connection up when it is asked to pause."""
        protocol, _ = self.rig.connection(small=True)
        protocol.transport.registerProducer(protocol, True)
        protocol.on_pause = lambda: protocol.transport.abortConnection()
        protocol.transport.write(MEGABYTE)
        self.assertEqual(protocol.told, ["pause"])
        self.lost(protocol)

    def test_close_while_the_other_end_resets(self) -> None:
        """A close that waits for bytes to leave is over when they can't."""
        protocol, far, _ = self.full()
        protocol.transport.loseConnection()
        reset(far)
        self.lost(protocol)
        self.assertIs(protocol.reason, ConnectionLost)

    def test_nothing_after_the_end(self) -> None:
        """Calls on a connection that has ended do nothing."""
        protocol, far = self.rig.connection()
        reset(far)
        self.lost(protocol)
        transport = protocol.transport
        transport.write(b"x")
        transport.writeSequence((b"x", b"y"))
        transport.pauseProducing()
        transport.resumeProducing()
        transport.loseWriteConnection()
        transport.loseConnection()
        transport.abortConnection()
        self.loop.settle()
        self.assertEqual(protocol.told, ["lost"])


class ReadingTests(EngineTestCase):
    """What is read."""

    def test_nothing_while_paused_and_all_afterwards(self) -> None:
        """A pause keeps bytes in the system, and loses none."""
        protocol, far = self.rig.connection()
        protocol.transport.pauseProducing()
        far.sendall(MEGABYTE[:50000])
        self.loop.settle()
        self.assertEqual(protocol.data, b"")
        protocol.transport.resumeProducing()
        self.assertEqual(protocol.data, b"")  # not from within the call
        self.loop.until(lambda: len(protocol.data) == 50000)
        self.assertEqual(protocol.data, MEGABYTE[:50000])

    def test_pause_from_within(self) -> None:
        """A protocol that pauses whenever it is given something gets one piece at a time."""
        self.patch(module, "READ_SIZE", 1000)
        self.patch(module, "_buffer", memoryview(bytearray(1000)))
        protocol, far = self.rig.connection()
        pieces: list[bytes] = []

        def pause(data: bytes) -> None:
            pieces.append(bytes(data))
            protocol.transport.pauseProducing()

        protocol.on_data = pause
        far.sendall(MEGABYTE[:5500])
        for number in range(1, 7):
            self.loop.until(lambda number=number: len(pieces) == number)
            self.loop.settle(2)
            self.assertEqual(len(pieces), number)
            protocol.transport.resumeProducing()
        self.assertEqual(b"".join(pieces), MEGABYTE[:5500])

    def test_a_reset_while_paused(self) -> None:
        """It is heard at once."""
        protocol, far = self.rig.connection()
        protocol.transport.pauseProducing()
        self.loop.settle()
        reset(far)
        self.lost(protocol)
        self.assertIs(protocol.reason, ConnectionLost)
        self.assertEqual(protocol.told, ["lost"])

    def test_a_reset_that_came_with_what_made_it_pause(self) -> None:
        """The system tells once, and before the pause; it is heard nevertheless."""
        self.patch(module, "READ_SIZE", 1000)
        self.patch(module, "_buffer", memoryview(bytearray(1000)))
        protocol, far = self.rig.connection()
        protocol.on_data = lambda data: protocol.transport.pauseProducing()
        far.sendall(bytes(5000))
        reset(far)
        self.lost(protocol)
        self.assertIs(protocol.reason, ConnectionLost)

    def test_a_reset_after_the_end_of_file(self) -> None:
        """Who only writes learns of it, with nothing to read it from."""
        protocol, far = self.rig.connection()
        far.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: protocol.told == ["read ended"])
        reset(far)
        self.lost(protocol)
        self.assertEqual(protocol.told, ["read ended", "lost"])

    def test_the_end_with_the_last_bytes(self) -> None:
        """One event tells of both; the short read is not the last."""
        protocol, far = self.rig.connection()
        far.sendall(b"bye")
        far.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: protocol.told)
        self.assertEqual((bytes(protocol.data), protocol.told), (b"bye", ["read ended"]))

    def test_the_end_while_paused(self) -> None:
        """It comes behind what was sent, when reading goes on."""
        protocol, far = self.rig.connection()
        protocol.transport.pauseProducing()
        far.sendall(b"bye")
        far.shutdown(socket.SHUT_WR)
        self.loop.settle()
        self.assertEqual((bytes(protocol.data), protocol.told), (b"", []))
        protocol.transport.resumeProducing()
        self.loop.until(lambda: protocol.told)
        self.assertEqual((bytes(protocol.data), protocol.told), (b"bye", ["read ended"]))

    def test_each_direction_ends_by_itself(self) -> None:
        """After the other end's FIN this one writes on, and ends in its own time."""
        protocol, far = self.rig.connection()
        far.shutdown(socket.SHUT_WR)
        self.loop.until(lambda: protocol.told == ["read ended"])
        protocol.transport.write(b"answer")
        protocol.transport.loseWriteConnection()
        self.assertEqual(protocol.told, ["read ended"])  # not from within the call
        self.assertEqual(self.rig.read(far), b"answer")
        self.assertEqual(protocol.told, ["read ended", "write ended"])
        self.loop.settle()
        self.assertEqual(protocol.told, ["read ended", "write ended"])
        protocol.transport.loseConnection()
        self.lost(protocol)
        self.assertIs(protocol.reason, ConnectionDone)

    def test_the_end_for_who_has_no_halves(self) -> None:
        """The end of file is the end of the connection."""
        protocol, far = self.rig.connection(Plain())
        far.sendall(b"bye")
        far.close()
        self.lost(protocol)
        self.assertEqual((bytes(protocol.data), protocol.told), (b"bye", ["lost"]))
        self.assertIs(protocol.reason, ConnectionDone)

    def test_lost_once(self) -> None:
        """A reset is the last that is told, whatever the protocol does about it."""
        protocol, far = self.rig.connection()
        protocol.transport.loseWriteConnection()
        reset(far)
        protocol.transport.abortConnection()
        protocol.transport.loseConnection()
        self.lost(protocol)
        self.loop.settle()
        self.assertEqual(protocol.told.count("lost"), 1)

    def test_abort_from_within(self) -> None:
        """A protocol that gives up gets nothing more."""
        self.patch(module, "READ_SIZE", 1000)
        self.patch(module, "_buffer", memoryview(bytearray(1000)))
        protocol, far = self.rig.connection()
        protocol.on_data = lambda data: protocol.transport.abortConnection()
        far.sendall(bytes(5000))
        self.lost(protocol)
        self.assertEqual(len(protocol.data), 1000)

    def test_the_peer_is_known_after_a_reset(self) -> None:
        """Where the connection led can be asked although the system has forgotten."""
        near, far = self.rig.sockets()
        name = near.getpeername()
        protocol = Halves()
        EngineTransport(self.rig.poller, near, peer=name).begin(protocol)
        protocol.transport.pauseProducing()
        reset(far)
        self.assertEqual(protocol.transport.getPeer().port, name[1])
        self.lost(protocol)


class NeighbourTests(EngineTestCase):
    """What one connection does to others."""

    def test_a_protocol_that_fails(self) -> None:
        """It loses its connection, which is logged; the others of the same round have theirs."""

        def fail(data: bytes) -> None:
            raise ValueError("a fault")

        connections = [self.rig.connection() for _ in range(5)]
        connections[2][0].on_data = fail
        self.loop.settle()
        for _, far in connections:
            far.sendall(b"hello")
        bad = connections.pop(2)[0]
        self.loop.until(lambda: all(protocol.data for protocol, _ in connections))
        self.loop.until(lambda: bad.told == ["lost"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        for protocol, far in connections:
            protocol.transport.write(b"world")
            self.assertEqual(self.rig.read(far, 5), b"world")
            far.close()
            self.loop.until(lambda protocol=protocol: protocol.told == ["read ended"])

    def test_a_protocol_that_fails_when_it_goes_on(self) -> None:
        """The same for what is read after a pause."""

        def fail(data: bytes) -> None:
            raise ValueError("a fault")

        protocol, far = self.rig.connection()
        protocol.on_data = fail
        protocol.transport.pauseProducing()
        far.sendall(b"hello")
        self.loop.settle()
        protocol.transport.resumeProducing()
        self.lost(protocol)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_flood_starves_nobody(self) -> None:
        """While one connection always has more to read, others and timers have their turns."""
        # Each round hears of it, and goes on with it soon.
        most = 2 * MOST_ROUNDS * module.MOST_READS * 1000
        self.patch(module, "READ_SIZE", 1000)
        self.patch(module, "_buffer", memoryview(bytearray(1000)))
        flood, source = self.rig.connection()
        quiet, far = self.rig.connection()
        source.setblocking(False)
        refills = iter(range(2000))

        def refill(data: bytes) -> None:
            if next(refills, None) is not None:
                try:
                    source.send(bytes(5000))
                except BlockingIOError:
                    pass

        flood.on_data = refill
        self.loop.settle()
        source.send(bytes(20000))
        self.loop.turn()
        self.assertLessEqual(len(flood.data), most)
        far.sendall(b"me too")
        ticks: list[int] = []
        self.loop.callLater(0, lambda: ticks.append(len(flood.data)))
        before = len(flood.data)
        self.loop.turn(0.1)
        self.assertEqual(quiet.data, b"me too")
        self.assertEqual(len(ticks), 1)
        self.assertLessEqual(len(flood.data) - before, most)
        self.loop.turn()
        self.assertGreater(len(flood.data), before)  # and it goes on itself


class PollerTests(EngineTestCase):
    """The poller alone."""

    def test_a_descriptor_that_is_used_again(self) -> None:
        """What is known about a socket is not told to the one that has its number now."""
        self.patch(poller_module, "MOST_ROUNDS", 1)
        pairs = [self.rig.sockets(), self.rig.sockets()]
        heard: list[str] = []
        poller, keep = self.rig.poller, self.addCleanup

        class New:
            def ready(self, events: int) -> None:
                heard.append("new")

        class Old:
            def __init__(self, other: socket.socket) -> None:
                self.other = other

            def ready(self, events: int) -> None:
                heard.append("old")
                number = self.other.fileno()
                poller.remove(number)
                self.other.close()
                fresh = socket.socket()
                keep(fresh.close)
                if fresh.fileno() != number:
                    raise AssertionError("the system gave another number")
                poller.add(number, New())

        poller.add(pairs[0][0].fileno(), Old(pairs[1][0]), WRITABLE)
        poller.add(pairs[1][0].fileno(), Old(pairs[0][0]), WRITABLE)
        self.loop.turn()  # both can be written to
        self.assertEqual(heard, ["old"])
        self.loop.turn()  # an unconnected socket has hung up, and is told of in its own right
        self.assertEqual(heard, ["old", "new"])

    def test_a_descriptor_that_others_use_again(self) -> None:
        """Nor is it taken for something that a socket of the reactor's is to be told of."""
        poller, heard = self.rig.poller, list[int]()

        class Old:
            def __init__(self, this: int, other: int) -> None:
                self.this, self.other = this, other

            def ready(self, events: int) -> None:
                heard.append(self.this)
                poller.remove(self.other)

        numbers = [self.rig.sockets()[0].fileno() for _ in range(2)]
        for this, other in (numbers, numbers[::-1]):
            poller.add(this, Old(this, other))
        stranger = self.rig.sockets()[0].fileno()
        told = [(number, select.EPOLLIN) for number in (*numbers, stranger)]
        self.assertEqual(poller.hear(told), [(stranger, select.EPOLLIN)])
        self.assertEqual(heard, numbers[:1])
        poller.remove(numbers[0])

    def test_leaves_the_reactor(self) -> None:
        """With nothing to watch it has no descriptor, and it can begin anew."""
        gc.collect()  # what tests before this one left
        before = descriptors()
        for _ in range(3):
            protocol, far = self.rig.connection()
            self.assertEqual(len(self.loop.readers), 1)
            far.close()
            self.loop.until(lambda protocol=protocol: protocol.told == ["read ended"])
            protocol.transport.loseConnection()
            self.lost(protocol)
            self.assertEqual(self.rig.poller.fileno(), -1)
            self.assertEqual(descriptors(), before)

    def test_soon(self) -> None:
        """Calls are made after what happens now, in order; one that fails does not stop the next;
        what a call asks for is for the next round, behind the timers."""
        heard: list[str] = []

        def again() -> None:
            heard.append("again")
            if len(heard) < 100:
                self.rig.poller.soon(again)

        self.rig.poller.soon(lambda: 1 // 0)
        self.rig.poller.soon(again)
        self.assertEqual(heard, [])
        self.loop.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(heard, ["again"])
        self.loop.turn()
        self.assertEqual(heard, ["again", "again"])

    def test_no_room_for_one_more(self) -> None:
        """A connection that the system can't watch is lost, as if it had broken."""
        near, _ = self.rig.sockets()

        def add(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        self.patch(self.rig.poller, "add", add)
        protocol = Halves()
        EngineTransport(self.rig.poller, near).begin(protocol)
        self.assertEqual(protocol.told, [])
        self.lost(protocol)
        self.assertEqual(protocol.told, ["lost"])
