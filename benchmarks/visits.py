"""What visitors and targets do to a tunnel, and to each other, in an hour of mixed load.

A *visit* is one connection of a visitor. Both its ends are in this process, so that what one end
has sent and what the other has received are compared here, every byte of it, and so that neither
end can wait without a bound for what the other has done.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import threading
import time
from typing import ClassVar

#: Seconds in which an end must hear of what the other end did, and after which it gives up.
BOUND = 30.0
#: Bytes read or sent at a time.
PIECE = 64 * 1024
#: Bytes that tell a target which visit it is.
NAME = struct.Struct("!Q")

_RESET = struct.pack("ii", 1, 0)
# All that is sent is a part of this, from a place of its own, so that bytes of another visit, and
# bytes that are missing or out of order, are noticed.
_BLOCK = random.Random(5).randbytes(4_000_037)
_TEXT = memoryview(_BLOCK + _BLOCK[:PIECE])


class Wrong(Exception):
    """A promise that was not kept."""


class Text:
    """The bytes that go one way in a visit.

    :ivar sent, received: how many so far.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = self.received = 0
        self._start = random.randrange(len(_BLOCK))
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()

    def _piece(self, at: int, most: int) -> memoryview:
        place = (self._start + at) % len(_BLOCK)
        return _TEXT[place : place + most]

    def send(self, line: socket.socket, upto: int | None = None) -> None:
        """Send up to a place in the text, by default its end."""
        end = self.size if upto is None else upto
        while self.sent < end:
            piece = self._piece(self.sent, min(PIECE, end - self.sent))
            line.sendall(piece)
            self._sent.update(piece)
            self.sent += len(piece)

    def take(self, line: socket.socket, upto: int | None = None, rest: float = 0) -> None:
        """Read up to a place in the text, by default its end.

        :param rest: seconds to wait between reads.
        :raises EOFError: the other end sent FIN before.
        """
        end = self.size if upto is None else upto
        while self.received < end:
            data = line.recv(min(PIECE, end - self.received))
            if not data:
                raise EOFError(f"FIN after {self.received} of {end} bytes")
            self._received.update(data)
            self.received += len(data)
            if rest:
                time.sleep(rest)

    def check(self, whole: bool = True) -> None:
        """Compare what came with what was sent.

        :param whole: all of it must have come; otherwise the beginning, after a reset.
        :raises Wrong: it differs.
        """
        if whole:
            good = self.size == self.sent == self.received
            good = good and self._sent.digest() == self._received.digest()
        else:
            wanted, at = hashlib.sha256(), 0
            while at < self.received:
                piece = self._piece(at, min(PIECE, self.received - at))
                wanted.update(piece)
                at += len(piece)
            good = wanted.digest() == self._received.digest()
        if not good:
            raise Wrong(f"{self.received} bytes came of {self.sent} sent, and are not the same")


class Visit:
    """One connection, seen from both ends.

    :ivar rate: how many a second are begun under a load of 1, over all tunnels.
    :ivar most: how many may be there at a time.
    :ivar longest: seconds that one lasts, and then some.
    :ivar hears: whether the target hears of the visit, whatever comes.
    """

    rate: ClassVar[float]
    most: ClassVar[int] = 40
    longest: ClassVar[float] = 2 * BOUND
    hears: ClassVar[bool] = True
    up_size: ClassVar[tuple[int, int]] = (0, 0)
    down_size: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(self, number: int) -> None:
        self.number = number
        self.turn = number % 2  # most kinds have two forms
        self.up = Text(random.randint(*self.up_size))
        self.down = Text(random.randint(*self.down_size))
        self.served = threading.Event()
        self.trouble: Exception | None = None  # at the target

    def run(self, where: tuple[str, int]) -> None:
        """Be the visitor, and check all of it.
        :raises Exception: something went wrong at either end.
        """
        with socket.create_connection(where, BOUND) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                line.sendall(NAME.pack(self.number))
                self.visit(line)
            except Exception as error:
                raise Wrong(f"visitor: {said(error)}{self._also()}") from error
        if self.hears and not self.served.wait(BOUND):
            raise Wrong(f"the target heard nothing of the end in {BOUND:g} s")
        if self.trouble is not None:
            raise Wrong(f"target: {said(self.trouble)}") from self.trouble
        self.check()

    def _also(self) -> str:
        self.served.wait(1)
        return f"; target: {said(self.trouble)}" if self.trouble is not None else ""

    def serve_and_note(self, line: socket.socket) -> None:
        """Be the target, and note what went wrong."""
        try:
            self.serve(line)
        except Exception as error:
            self.trouble = error
        finally:
            self.served.set()

    def visit(self, line: socket.socket) -> None:
        """What the visitor does."""
        raise NotImplementedError

    def serve(self, line: socket.socket) -> None:
        """What the target does."""
        raise NotImplementedError

    def check(self) -> None:
        """Look at what came, when both are done."""
        self.up.check()
        self.down.check()


def said(error: Exception) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {error}"


def expect_end(line: socket.socket) -> None:
    """The other end sends FIN, and nothing before it."""
    if line.recv(1):
        raise Wrong("more came than was sent")


def reset(line: socket.socket) -> None:
    """Close with a reset."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    line.close()


def expect_reset(line: socket.socket, text: Text) -> None:
    """The other end resets the connection, after as much of the text as may be."""
    try:
        text.take(line, 1 << 60)
    except (ConnectionResetError, BrokenPipeError):
        return
    except EOFError:
        raise Wrong("a reset became a FIN") from None


class Bulk(Visit):
    """Many bytes: one way, the other way, or both ways at once."""

    rate = 2
    most = 6
    up_size = down_size = (4_000_000, 20_000_000)

    def __init__(self, number: int) -> None:
        super().__init__(number)
        way = number % 3
        if way < 2:
            (self.up, self.down)[way].size = 0

    def visit(self, line: socket.socket) -> None:
        _both_ways(line, self.up, self.down)

    def serve(self, line: socket.socket) -> None:
        _both_ways(line, self.down, self.up)


def _both_ways(line: socket.socket, out: Text, back: Text) -> None:
    failed: list[Exception] = []

    def send() -> None:
        try:
            out.send(line)
            line.shutdown(socket.SHUT_WR)
        except Exception as error:
            failed.append(error)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    back.take(line)
    expect_end(line)
    sending.join()
    if failed:
        raise failed[0]


class Short(Visit):
    """A question and its answer; one end or the other closes first."""

    rate = 30
    up_size, down_size = (1, 500), (1, 20_000)

    def visit(self, line: socket.socket) -> None:
        self.up.send(line)
        self.down.take(line)
        if self.turn:
            expect_end(line)

    def serve(self, line: socket.socket) -> None:
        self.up.take(line)
        self.down.send(line)
        if not self.turn:
            expect_end(line)


class Chat(Visit):
    """Many questions on one connection, with time between them."""

    rate = 1.0
    up_size = down_size = (20_000, 100_000)
    questions: ClassVar[int] = 20
    pause: ClassVar[float] = 0.1

    def _places(self, text: Text) -> list[int]:
        return [text.size * (place + 1) // self.questions for place in range(self.questions)]

    def visit(self, line: socket.socket) -> None:
        for up, down in zip(self._places(self.up), self._places(self.down), strict=True):
            self.up.send(line, up)
            self.down.take(line, down)
            time.sleep(self.pause)

    def serve(self, line: socket.socket) -> None:
        for up, down in zip(self._places(self.up), self._places(self.down), strict=True):
            self.up.take(line, up)
            self.down.send(line, down)
        expect_end(line)


class Idle(Chat):
    """Two questions, with a long silence after each."""

    rate = 0.4
    up_size = down_size = (2, 200)
    questions = 2
    pause = 20.0
    longest = 2 * BOUND + 40


class HalfClose(Visit):
    """One end says all and sends FIN; then the other begins to speak."""

    rate = 4
    up_size = down_size = (0, 400_000)

    def visit(self, line: socket.socket) -> None:
        _speak_in_turn(line, self.up, self.down, first=not self.turn)

    def serve(self, line: socket.socket) -> None:
        _speak_in_turn(line, self.down, self.up, first=bool(self.turn))


def _speak_in_turn(line: socket.socket, out: Text, back: Text, first: bool) -> None:
    if first:
        out.send(line)
        line.shutdown(socket.SHUT_WR)
    back.take(line)
    expect_end(line)
    if not first:
        time.sleep(0.05)
        out.send(line)


class Reset(Visit):
    """One end resets in the middle of it; the other sees a reset, whether it reads or writes."""

    rate = 4
    up_size = down_size = (2000, 3_000_000)

    def visit(self, line: socket.socket) -> None:
        self._end(line, self.up, self.down, resets=not self.turn)

    def serve(self, line: socket.socket) -> None:
        self._end(line, self.down, self.up, resets=bool(self.turn))

    def _end(self, line: socket.socket, out: Text, back: Text, resets: bool) -> None:
        if resets:
            # So much that something of it is under way, and the other end is surely there.
            back.take(line, 1000)
            out.send(line, out.size // 2)
            reset(line)
            return
        try:
            out.send(line, 1000)
            while self.number % 4 < 2:
                out.send(line)
                out.size += PIECE
        except (ConnectionResetError, BrokenPipeError):
            return  # the system says so once
        expect_reset(line, back)

    def check(self) -> None:
        self.up.check(whole=False)
        self.down.check(whole=False)


class Vanish(Visit):
    """The visitor goes without a word, at once or while the target sends."""

    rate = 4
    down_size = (1 << 30, 1 << 30)
    # One that goes at once may never have been shown to the target.
    hears = False

    def visit(self, line: socket.socket) -> None:
        if self.turn:
            self.down.take(line, 1000)
            self.hears = True  # type: ignore[misc]
        # Closed with bytes unread, which the system makes a reset of.

    def serve(self, line: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self.down.send(line)
            raise Wrong("the target could send a GB to nobody")

    def check(self) -> None:
        self.down.check(whole=False)


class Stall(Visit):
    """A reader that stops for seconds, until all that is on the way is held up, and reads on."""

    rate = 0.4
    most = 4
    up_size = down_size = (16_000_000, 24_000_000)

    def __init__(self, number: int) -> None:
        super().__init__(number)
        (self.up, self.down)[self.turn].size = 0
        self.still = random.uniform(2, 8)

    def visit(self, line: socket.socket) -> None:
        self._end(line, self.up, self.down)

    def serve(self, line: socket.socket) -> None:
        self._end(line, self.down, self.up)

    def _end(self, line: socket.socket, out: Text, back: Text) -> None:
        out.send(line)
        if out.size:
            line.shutdown(socket.SHUT_WR)
        if back.size:
            back.take(line, back.size // 4)
            time.sleep(self.still)
            back.take(line)
        expect_end(line)


class Slow(Visit):
    """A reader that takes a little at a time."""

    rate = 0.4
    most = 4
    down_size = (4_000_000, 8_000_000)

    def visit(self, line: socket.socket) -> None:
        self.down.take(line, rest=0.03)
        expect_end(line)

    def serve(self, line: socket.socket) -> None:
        self.down.send(line)


class Refused(Visit):
    """The target refuses: the visitor sees a reset, as it would without a tunnel."""

    rate = 2

    def run(self, where: tuple[str, int]) -> None:
        try:
            with socket.create_connection(where, BOUND) as line:
                line.sendall(NAME.pack(self.number))
                expect_reset(line, self.down)
        except (ConnectionResetError, BrokenPipeError):
            pass  # the system says so once, and it may have been that quick


#: What visitors do, but for those who are refused, for whom there is a tunnel of their own.
KINDS: tuple[type[Visit], ...] = (Bulk, Short, Chat, Idle, HalfClose, Reset, Vanish, Stall, Slow)


class Target:
    """Takes connections, and lets each be what its visit says."""

    def __init__(self) -> None:
        self.visits: dict[int, Visit] = {}
        self.strangers = 0  # who went before they had said which visit they are
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            line, _ = self._listener.accept()
            threading.Thread(target=self._one, args=(line,), daemon=True).start()

    def _one(self, line: socket.socket) -> None:
        line.settimeout(BOUND)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with line:
            try:
                name = line.recv(NAME.size, socket.MSG_WAITALL)
            except OSError:
                name = b""
            visit = self.visits.get(NAME.unpack(name)[0]) if len(name) == NAME.size else None
            if visit is None:
                self.strangers += 1
                return
            visit.serve_and_note(line)
