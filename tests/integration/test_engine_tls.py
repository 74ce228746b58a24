"""TLS connections of the engine on real sockets, under a loop driven by hand.

The other end is OpenSSL in memory, so that what travels can be cut, joined, forged and held back.
"""

from __future__ import annotations

import gc
import importlib
import random
import select
import socket
import sys
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

if sys.platform != "linux":
    pytest.skip("the engine is for Linux", allow_module_level=True)

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from nodepass.identity import self_signed
from nodepass.relay.engine import tls as module
from nodepass.relay.engine.tls import RECORD, EngineTLSTransport
from nodepass.relay.portable import end_writing, has_ended
from tests.enginerig import Halves, Plain, Rig, reset

MEGABYTE = random.Random(4).randbytes(1 << 20)
ENOUGH = 1 << 17

_IDENTITY = self_signed()


class Direction:
    """The records of one end, made and read by hand (RFC 8446 5.2, 7.2 and 7.3)."""

    APPLICATION_DATA, HANDSHAKE, ALERT = 23, 22, 21

    def __init__(self, secret: bytes) -> None:
        self._begin(secret)

    def _begin(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(self._expand(b"key", 32))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")
        self._number = 0

    def _expand(self, label: bytes, length: int) -> bytes:
        info = length.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self._secret)

    def update(self) -> None:
        """Go on with the next keys."""
        self._begin(self._expand(b"traffic upd", 48))

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return nonce

    def seal(self, content: bytes, kind: int = APPLICATION_DATA) -> bytes:
        """A record."""
        head = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        return head + self._key.encrypt(self._nonce(), content + bytes([kind]), head)

    def open(self, record: bytes) -> tuple[int, bytes]:
        """The type and content of a record, the next or one not much later."""
        for _ in range(5):
            try:
                content = self._key.decrypt(self._nonce(), record[5:], record[:5])
            except InvalidTag:
                continue
            return content[-1], content[:-1]
        raise InvalidTag


class Other:
    """The other end.

    :ivar secrets: of the traffic of each direction, by the names of key logs.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.secrets: dict[str, bytes] = {}
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_keylog_callback(self._learn)
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()

    def _learn(self, _: SSL.Connection, line: bytes) -> None:
        name, _random, secret = line.decode().split()
        self.secrets[name] = bytes.fromhex(secret)

    def join(self) -> SSL.Connection:
        """Shake hands in memory with an end for the engine."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        _IDENTITY.install(context)
        server = SSL.Connection(context, None)
        server.set_accept_state()
        for _ in range(3):
            for end, peer in ((self.tls, server), (server, self.tls)):
                try:
                    end.do_handshake()
                    end.recv(1)
                except SSL.WantReadError:
                    pass
                try:
                    peer.bio_write(end.bio_read(ENOUGH))
                except SSL.WantReadError:
                    pass
        return server

    def encrypt(self, *pieces: bytes) -> bytes:
        """Records with these, each in as many as it needs."""
        for piece in pieces:
            for place in range(0, len(piece), RECORD):
                self.tls.send(piece[place : place + RECORD])
        return self.taken()

    def taken(self) -> bytes:
        """What OpenSSL has to send."""
        records = b""
        while True:
            try:
                records += self.tls.bio_read(ENOUGH)
            except SSL.WantReadError:
                return records

    def decrypt(self, records: bytes) -> tuple[bytes, bool]:
        """What these bytes bring, and whether TLS's own end came."""
        got = b""
        self.tls.bio_write(records)
        try:
            while True:
                got += self.tls.recv(RECORD)
        except SSL.WantReadError:
            return got, False
        except SSL.ZeroReturnError:
            return got, True

    def by_hand(self) -> tuple[Direction, Direction]:
        """What this end sends, and what it gets."""
        return (
            Direction(self.secrets["CLIENT_TRAFFIC_SECRET_0"]),
            Direction(self.secrets["SERVER_TRAFFIC_SECRET_0"]),
        )


class TLSTestCase(SynchronousTestCase):
    """A connection of the engine with TLS, and its other end."""

    def setUp(self) -> None:
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop

    def connect(
        self, *, small: bool = False, kind: type[Plain] = Plain
    ) -> tuple[Plain, Any, Other]:
        """The protocol, its transport, and the other end.

        :param small: little fits between them.
        :param kind: of the protocol.
        """
        near, far = self.rig.sockets(small)
        other = Other(far)
        protocol = kind()
        transport = EngineTLSTransport(self.rig.poller, near, other.join())
        transport.begin(protocol)
        return protocol, transport, other

    def lost(self, protocol: Plain) -> Any:
        """Wait for the end, and return its reason."""
        self.loop.until(lambda: "lost" in protocol.told)
        self.assertEqual(self.loop.readers, [])
        return protocol.reason

    def arrives(self, protocol: Plain, data: bytes) -> None:
        """Wait until the protocol has just this."""
        self.loop.until(lambda: len(protocol.data) >= len(data))
        self.assertEqual(bytes(protocol.data), data)

    def reads(self, other: Other, size: int, most: int = ENOUGH) -> bytes:
        """What the other end gets: so many bytes, in pieces of the network of at most `most`."""
        other.socket.setblocking(False)
        got = bytearray()

        def more() -> bool:
            try:
                got.extend(other.decrypt(other.socket.recv(most))[0])
            except BlockingIOError:
                pass
            return len(got) >= size

        self.loop.until(more)
        self.loop.settle()
        return bytes(got)

    def busy(self) -> bool:
        """Whether the kernel has anything to tell, and would tell it again and again."""
        poll = select.poll()
        for reader in self.loop.readers:
            poll.register(reader.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class ReadingTests(TLSTestCase):
    """What is read."""

    def test_records_split_at_every_byte(self) -> None:
        """A record is passed on when it is whole, wherever the network has cut it."""
        protocol, _, other = self.connect()
        records = [other.encrypt(piece) for piece in (b"one", b"two", b"three")]
        ends = [len(records[0]), len(records[0] + records[1]), len(b"".join(records))]
        sent = b"".join(records)
        for place in range(len(sent)):
            other.socket.sendall(sent[place : place + 1])
            self.loop.turn(1.0)
            self.loop.turn()
            whole = sum(end <= place + 1 for end in ends)
            self.assertEqual(bytes(protocol.data), b"".join([b"one", b"two", b"three"][:whole]))

    def test_records_that_come_together(self) -> None:
        """All of them are read, small ones and large ones in any order, though nothing comes after
        them."""
        protocol, _, other = self.connect()
        pieces = [b"a", b"b" * RECORD, b"c" * 5000, b"d", b"e" * 300, b"f" * RECORD, b"g" * 4096]
        other.socket.sendall(other.encrypt(*pieces))
        self.arrives(protocol, b"".join(pieces))

    def test_more_than_is_read_at_once(self) -> None:
        """Several megabytes arrive as they were sent, in pieces of many records."""
        protocol, _, other = self.connect()
        pieces: list[int] = []
        protocol.on_data = lambda data: pieces.append(len(data))
        records = memoryview(other.encrypt(MEGABYTE, MEGABYTE[::-1], MEGABYTE))
        other.socket.setblocking(False)
        place = 0

        def on() -> bool:
            nonlocal place
            try:
                place += other.socket.send(records[place:])
            except BlockingIOError:
                pass
            return len(protocol.data) == 3 << 20

        self.loop.until(on)
        self.assertEqual(bytes(protocol.data), MEGABYTE + MEGABYTE[::-1] + MEGABYTE)
        self.assertGreater(max(pieces), 4 * RECORD)

    def test_pause(self) -> None:
        """What waits while reading is paused waits in the socket: nothing comes, nothing spins, and
        all of it comes afterwards though nothing is sent any more."""
        protocol, transport, other = self.connect()
        protocol.on_data = lambda _: transport.pauseProducing()
        sent = MEGABYTE[: 3 * RECORD + 5]
        other.socket.sendall(other.encrypt(b"first"))
        self.loop.until(lambda: protocol.data)
        other.socket.sendall(other.encrypt(sent))
        self.loop.settle()
        self.assertEqual(bytes(protocol.data), b"first")
        self.assertFalse(self.busy())
        protocol.on_data = lambda _: None
        transport.resumeProducing()
        self.arrives(protocol, b"first" + sent)

    def test_pause_with_a_full_buffer(self) -> None:
        """Nor does more come when as much was read as is read at once."""
        self.patch(module, "READ_SIZE", 2 * RECORD)
        protocol, transport, other = self.connect()
        protocol.on_data = lambda _: transport.pauseProducing()
        sent = MEGABYTE[: 7 * RECORD]
        other.socket.sendall(other.encrypt(sent))
        self.loop.until(lambda: protocol.data)
        self.loop.settle()
        self.assertEqual(bytes(protocol.data), sent[: len(protocol.data)])
        self.assertLessEqual(len(protocol.data), 2 * RECORD)
        protocol.on_data = lambda _: None
        transport.resumeProducing()
        self.arrives(protocol, sent)

    def test_pause_within_a_batch(self) -> None:
        """A pause between two records of one segment holds the second back."""
        protocol, transport, other = self.connect()
        protocol.on_data = lambda _: transport.pauseProducing()
        other.socket.sendall(other.encrypt(b"first", b"second"))
        self.loop.until(lambda: protocol.data)
        self.loop.settle()
        self.assertEqual(bytes(protocol.data), b"first")
        transport.resumeProducing()
        self.arrives(protocol, b"firstsecond")

    def test_many_pauses(self) -> None:
        """Pausing and reading on at every piece loses nothing."""
        protocol, transport, other = self.connect()

        def pause(_: bytes) -> None:
            transport.pauseProducing()
            self.loop.callLater(0, transport.resumeProducing)

        protocol.on_data = pause
        sent = MEGABYTE[: 1 << 17]
        other.socket.sendall(other.encrypt(sent[:100], sent[100:50000], sent[50000:]))
        self.arrives(protocol, sent)

    def test_reset_while_paused(self) -> None:
        """It is noticed though nothing is read."""
        protocol, transport, other = self.connect()
        transport.pauseProducing()
        other.socket.sendall(other.encrypt(b"unread"))
        self.loop.settle()
        reset(other.socket)
        self.assertIs(self.lost(protocol), ConnectionLost)

    def test_a_protocol_that_fails(self) -> None:
        """It has lost its connection, and others have not."""
        protocol, _, other = self.connect()

        def fail(_: bytes) -> None:
            raise ValueError

        protocol.on_data = fail
        other.socket.sendall(other.encrypt(b"x"))
        self.assertIs(self.lost(protocol), ConnectionAborted)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class EndTests(TLSTestCase):
    """How a connection ends."""

    def test_end_by_the_other(self) -> None:
        """TLS's own end is a clean one, behind what came with it, though TCP stays open."""
        protocol, _, other = self.connect()
        last = other.encrypt(b"bye")
        other.tls.shutdown()
        other.socket.sendall(last + other.taken())
        self.assertIs(self.lost(protocol), ConnectionDone)
        self.assertEqual(bytes(protocol.data), b"bye")

    def test_end_behind_much(self) -> None:
        """The same behind a full buffer."""
        protocol, _, other = self.connect()
        last = other.encrypt(MEGABYTE[: 9 * RECORD])
        other.tls.shutdown()
        other.socket.sendall(last + other.taken())
        self.assertIs(self.lost(protocol), ConnectionDone)
        self.assertEqual(bytes(protocol.data), MEGABYTE[: 9 * RECORD])

    def test_truncation(self) -> None:
        """An end of TCP without TLS's own is a lost connection: between two records, and within
        one, of which nothing is passed on."""
        for cut in (0, 1, 4, 5, 6, 20, -1):
            protocol, _, other = self.connect()
            whole, half = other.encrypt(b"whole"), other.encrypt(b"half")
            other.socket.sendall(whole + half[:cut])
            other.socket.shutdown(socket.SHUT_WR)
            self.assertIs(self.lost(protocol), ConnectionLost)
            self.assertEqual(bytes(protocol.data), b"whole")

    def test_reset(self) -> None:
        """A reset is a lost connection."""
        protocol, _, other = self.connect()
        reset(other.socket)
        self.assertIs(self.lost(protocol), ConnectionLost)

    def test_an_end_is_told_before_what_follows(self) -> None:
        """Who asks for a link in the same round as its end is heard does not get it."""
        for end in ("reset", "closed"):
            protocol, _, other = self.connect()
            good, _, third = self.connect()
            good.on_data = lambda _, protocol=protocol: self.assertEqual(  # type: ignore[misc]
                protocol.told, ["lost"]
            )
            if end == "reset":
                reset(other.socket)
            else:
                other.tls.shutdown()
                other.socket.sendall(other.taken())
            third.socket.sendall(third.encrypt(b"visitor"))
            self.loop.turn(1.0)
            self.arrives(good, b"visitor")

    def test_a_changed_byte(self) -> None:
        """A record that was tampered with is not passed on, and ends the connection; other
        connections do not suffer from it."""
        protocol, _, other = self.connect()
        good, _, third = self.connect()
        record = bytearray(other.encrypt(b"record"))
        record[-1] ^= 1
        other.socket.sendall(record)
        third.socket.sendall(third.encrypt(b"good"))
        self.loop.until(lambda: "lost" in protocol.told)
        self.assertIs(protocol.reason, ConnectionLost)
        self.assertEqual(protocol.data, b"")
        self.arrives(good, b"good")
        more = MEGABYTE[:5000]  # so that there is a look for another record
        third.socket.sendall(third.encrypt(more))
        self.arrives(good, b"good" + more)
        self.loop.settle()
        self.assertEqual(good.told, [])

    def test_end_by_this_one(self) -> None:
        """TLS's own end comes behind all that was written, and then TCP's."""
        protocol, transport, other = self.connect(small=True)
        transport.write(MEGABYTE)
        transport.loseConnection()
        transport.write(b"too late")
        self.assertEqual(other.decrypt(self.rig.read(other.socket)), (MEGABYTE, True))
        self.assertIs(self.lost(protocol), ConnectionDone)

    def test_no_room_for_the_end(self) -> None:
        """Where not even that fits it waits for room."""
        protocol, transport, other = self.connect(small=True)
        filled = 0
        sock = transport.getHandle()
        for _ in range(6):
            try:
                while True:
                    filled += sock.send(bytes(RECORD))
            except BlockingIOError:
                self.loop.settle()
        end_writing(transport)
        self.loop.settle()
        self.assertFalse(has_ended(transport))
        transport.loseConnection()
        self.loop.settle()
        self.assertEqual(protocol.told, [])
        rest = self.rig.read(other.socket)
        self.assertEqual(other.decrypt(rest[filled:]), (b"", True))
        self.assertIs(self.lost(protocol), ConnectionDone)

    def test_what_comes_while_it_closes(self) -> None:
        """It is not heard, and does not keep the loop busy. It can still be aborted."""
        protocol, transport, other = self.connect(small=True)
        transport.write(MEGABYTE)
        transport.loseConnection()
        other.socket.sendall(other.encrypt(b"unheard"))
        self.loop.settle()
        self.assertFalse(self.busy())
        transport.abortConnection()
        self.assertIs(self.lost(protocol), ConnectionAborted)
        self.assertEqual(protocol.data, b"")

    def test_abort(self) -> None:
        """The other end sees a reset, and what waited is gone."""
        protocol, transport, other = self.connect(small=True)
        transport.write(MEGABYTE)
        transport.abortConnection()
        self.assertIs(self.lost(protocol), ConnectionAborted)
        with self.assertRaises(ConnectionResetError):
            while other.socket.recv(ENOUGH):
                pass


class HalfCloseTests(TLSTestCase):
    """Directions that end one by one, for protocols that want to hear of it."""

    def test_this_end_first(self) -> None:
        """TLS's own end comes behind all that was written; what the other end still says is heard,
        and its end is."""
        protocol, transport, other = self.connect(small=True, kind=Halves)
        transport.write(MEGABYTE)
        end_writing(transport)
        transport.write(b"too late")
        self.assertFalse(has_ended(transport))
        got = bytearray()
        other.socket.setblocking(False)

        def all_of_it() -> bool:
            try:
                data, end = other.decrypt(other.socket.recv(ENOUGH))
                got.extend(data)
                return end
            except BlockingIOError:
                return False

        self.loop.until(all_of_it)
        self.loop.settle()
        self.assertEqual(bytes(got), MEGABYTE)
        self.assertEqual(protocol.told, ["write ended"])
        self.assertTrue(has_ended(transport))
        other.socket.setblocking(True)
        other.socket.sendall(other.encrypt(b"answer"))
        self.arrives(protocol, b"answer")
        other.tls.shutdown()
        other.socket.sendall(other.taken())
        self.loop.until(lambda: "read ended" in protocol.told)
        transport.loseConnection()
        self.assertIs(self.lost(protocol), ConnectionDone)

    def test_the_other_end_first(self) -> None:
        """It is told, and does not keep the loop busy; what is written then arrives."""
        protocol, transport, other = self.connect(kind=Halves)
        last = other.encrypt(b"question")
        other.tls.shutdown()
        other.socket.sendall(last + other.taken())
        self.loop.until(lambda: "read ended" in protocol.told)
        self.assertEqual(bytes(protocol.data), b"question")
        transport.resumeProducing()
        self.loop.settle()
        self.assertFalse(self.busy())
        transport.write(b"answer")
        transport.loseWriteConnection()
        self.loop.settle()
        transport.loseConnection()
        self.assertEqual(other.decrypt(self.rig.read(other.socket)), (b"answer", True))
        self.assertIs(self.lost(protocol), ConnectionDone)
        self.assertEqual(protocol.told, ["read ended", "write ended", "lost"])

    def test_a_reset_after_the_other_end(self) -> None:
        """It is noticed though nothing is read any more."""
        protocol, _, other = self.connect(kind=Halves)
        other.tls.shutdown()
        other.socket.sendall(other.taken())
        self.loop.until(lambda: "read ended" in protocol.told)
        reset(other.socket)
        self.assertIs(self.lost(protocol), ConnectionLost)


class WritingTests(TLSTestCase):
    """What is written."""

    def test_sizes(self) -> None:
        """Writes of any size arrive in order, from any kind of buffer."""
        _, transport, other = self.connect()
        sizes = [0, 1, RECORD - 1, RECORD, RECORD + 1, 3 * RECORD]
        place = 0
        for number, size in enumerate(sizes):
            piece = MEGABYTE[place : place + size]
            transport.write([piece, bytearray(piece), memoryview(piece)][number % 3])
            place += size
        transport.writeSequence((b"<", memoryview(b"in three"), b">"))
        transport.loseConnection()
        got, ended = other.decrypt(self.rig.read(other.socket))
        self.assertEqual(got, MEGABYTE[:place] + b"<in three>")
        self.assertTrue(ended)

    def test_half_written_records(self) -> None:
        """What does not fit waits, a half-sent record among it; pieces written meanwhile come
        behind it, and the producer hears of it once each way. A buffer is free again at once."""
        protocol, transport, other = self.connect(small=True)
        transport.registerProducer(protocol, True)
        lent = bytearray(MEGABYTE)
        transport.write(memoryview(lent))
        lent[:] = bytes(len(lent))
        lent.clear()  # nobody holds it
        sent = MEGABYTE
        self.assertEqual(protocol.told, ["pause"])
        for number in range(9):
            transport.write(bytes([number]) * 999)
            transport.writeSequence((b"<", b">"))
            sent += bytes([number]) * 999 + b"<>"
        self.loop.settle()
        self.assertEqual(protocol.told, ["pause"])
        self.assertEqual(self.reads(other, len(sent), 7777), sent)
        self.assertEqual(protocol.told, ["pause", "resume"])
        self.assertFalse(self.busy())

    def test_what_was_left_before(self) -> None:
        """Records of another owner that had not left go first. Until then nothing is read, which
        might make OpenSSL answer, nothing spins, and whoever writes waits."""
        near, far = self.rig.sockets(small=True)
        other, protocol = Other(far), Plain()
        tls = other.join()
        for place in range(0, len(MEGABYTE), RECORD):
            tls.send(MEGABYTE[place : place + RECORD])
        transport = EngineTLSTransport(self.rig.poller, near, tls, left=tls.bio_read(1 << 21))
        transport.begin(protocol)
        transport.registerProducer(protocol, True)
        transport.write(b"later")
        other.socket.sendall(other.encrypt(b"heard afterwards"))
        self.loop.settle()
        self.assertEqual((protocol.told, protocol.data), (["pause"], b""))
        self.assertFalse(self.busy())
        self.assertEqual(self.reads(other, len(MEGABYTE) + 5), MEGABYTE + b"later")
        self.arrives(protocol, b"heard afterwards")
        self.assertEqual(protocol.told, ["pause", "resume"])
        self.assertFalse(self.busy())

    def test_both_ways_while_one_waits(self) -> None:
        """What comes is read while what is written waits, and nothing spins."""
        protocol, transport, other = self.connect(small=True)
        transport.write(MEGABYTE)
        other.socket.sendall(other.encrypt(b"meanwhile"))
        self.arrives(protocol, b"meanwhile")
        self.loop.settle()
        self.assertFalse(self.busy())
        transport.loseConnection()
        self.assertEqual(other.decrypt(self.rig.read(other.socket)), (MEGABYTE, True))

    def test_the_other_resets_while_it_waits(self) -> None:
        """The connection is lost, and a write afterwards does no harm."""
        protocol, transport, other = self.connect(small=True)
        transport.write(MEGABYTE)
        reset(other.socket)
        transport.write(b"more")
        self.assertIs(self.lost(protocol), ConnectionLost)
        transport.write(b"more")
        transport.loseConnection()
        self.loop.settle()
        self.assertEqual(protocol.told, ["lost"])


class MessageTests(TLSTestCase):
    """What TLS has to say between two records of data."""

    UPDATE = b"\x18\0\0\1"

    def test_the_other_changes_keys(self) -> None:
        """Its data under new keys is read. Asked to, this end changes its own with its next
        write."""
        protocol, transport, other = self.connect()
        out, back = other.by_hand()
        records = out.seal(b"before") + out.seal(self.UPDATE + b"\1", out.HANDSHAKE)
        out.update()
        other.socket.sendall(records + out.seal(b"after"))
        self.arrives(protocol, b"beforeafter")
        transport.write(b"answer")
        transport.loseConnection()
        records = self.rig.read(other.socket)
        messages = []
        while records:
            size = 5 + int.from_bytes(records[3:5], "big")
            messages.append(back.open(records[:size]))
            records = records[size:]
            if messages[-1][0] == back.HANDSHAKE:
                back.update()
        self.assertEqual(
            messages,
            [
                (back.HANDSHAKE, self.UPDATE + b"\0"),
                (back.APPLICATION_DATA, b"answer"),
                (back.ALERT, b"\1\0"),
            ],
        )

    def test_keys_change_while_a_record_waits(self) -> None:
        """A record that was half-sent is finished first, and all that follows can be read."""
        protocol, transport, other = self.connect(small=True)
        out, back = other.by_hand()
        transport.write(MEGABYTE)
        records = out.seal(self.UPDATE + b"\1", out.HANDSHAKE)
        out.update()
        other.socket.sendall(records + out.seal(b"after"))
        self.arrives(protocol, b"after")
        transport.write(b"answer")
        transport.loseConnection()
        records, got = self.rig.read(other.socket), b""
        while records:
            size = 5 + int.from_bytes(records[3:5], "big")
            kind, content = back.open(records[:size])
            records = records[size:]
            if kind == back.HANDSHAKE:
                back.update()
            elif kind == back.APPLICATION_DATA:
                got += content
        self.assertEqual(got, MEGABYTE + b"answer")

    def test_many_key_changes(self) -> None:
        """Messages without data between them and behind them are no end of anything."""
        protocol, _, other = self.connect()
        out, _back = other.by_hand()
        for _ in range(5):
            records = out.seal(self.UPDATE + b"\0", out.HANDSHAKE)
            out.update()
            other.socket.sendall(records)
            self.loop.settle()
        self.assertEqual(protocol.told, [])
        other.socket.sendall(out.seal(b"data"))
        self.arrives(protocol, b"data")

    def test_a_new_handshake(self) -> None:
        """There is none in TLS 1.3: a ClientHello or a HelloRequest ends the connection, and the
        other end is told why."""
        for message in (b"\1\0\0\x02\3\3", b"\0\0\0\0"):
            protocol, _, other = self.connect()
            out, back = other.by_hand()
            other.socket.sendall(out.seal(message, out.HANDSHAKE))
            self.assertIs(self.lost(protocol), ConnectionLost)
            kind, alert = back.open(self.rig.read(other.socket))
            self.assertEqual((kind, alert[0]), (back.ALERT, 2))


class MemoryTests(TLSTestCase):
    """What an idle connection keeps."""

    def test_what_judged_the_certificate(self) -> None:
        """It goes at once, without the garbage collector; the connection goes on."""

        def judge(*_: object) -> bool:
            return True

        near, far = self.rig.sockets()
        other, protocol = Other(far), Plain()
        tls = other.join()
        tls.set_verify(SSL.VERIFY_PEER, judge)
        gone = weakref.ref(judge)
        del judge
        gc.disable()
        self.addCleanup(gc.enable)
        EngineTLSTransport(self.rig.poller, near, tls).begin(protocol)
        self.assertIsNone(gone())
        other.socket.sendall(other.encrypt(b"data"))
        self.arrives(protocol, b"data")


class BindingTests(SynchronousTestCase):
    """What beneath pyOpenSSL is used."""

    def test_it_is_there(self) -> None:
        """The installed pyOpenSSL has what the fast path needs."""
        relay = importlib.import_module("nodepass.relay.engine.relay")
        self.assertTrue(relay.DIRECT_TLS)

    def loaded(self, name: str, stub: Any) -> Any:
        """The relay's module, loaded anew with another module in the place of one."""
        importlib.import_module("nodepass.relay.engine.relay")
        package = importlib.import_module("nodepass.relay.engine")
        names = ["openssl", "tls", "relay"]
        before = {each: sys.modules[f"nodepass.relay.engine.{each}"] for each in names}
        with patch.dict(sys.modules):
            for each in names:
                del sys.modules[f"nodepass.relay.engine.{each}"]
                delattr(package, each)
            sys.modules[name] = stub
            try:
                return importlib.import_module("nodepass.relay.engine.relay")
            finally:
                for each in names:
                    setattr(package, each, before[each])

    def test_it_is_not_there(self) -> None:
        """Where pyOpenSSL keeps its functions elsewhere the engine does without."""
        relay = self.loaded("OpenSSL._util", ModuleType("_util"))
        self.assertFalse(relay.DIRECT_TLS)
        package = importlib.import_module("nodepass.relay.engine")
        self.assertIs(package.tls, module)  # type: ignore[attr-defined]

    def test_one_of_them_is_not_there(self) -> None:
        """Each of the names is asked for when the module is loaded, not with the first link."""

        class Without:
            def __getattr__(self, name: str) -> Any:
                if name == "SSL_set_fd":
                    raise AttributeError(name)
                return getattr(util.lib, name)

        util = importlib.import_module("OpenSSL._util")
        stub = SimpleNamespace(ffi=util.ffi, lib=Without())
        self.assertFalse(self.loaded("OpenSSL._util", stub).DIRECT_TLS)

    def test_a_fault_of_ours_is_seen(self) -> None:
        """Only what pyOpenSSL lacks is done without."""
        with self.assertRaises(ImportError):
            self.loaded("nodepass.relay.engine.connection", ModuleType("connection"))
        with self.assertRaises(AttributeError):
            self.loaded("select", ModuleType("select"))
