"""What is sent through a tunnel. Each load counts what went well, and never raises."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.address import Endpoint
from tests.interop.matrix import Outcome
from tests.ports import HERE
from tests.scenarios.datagrams import Programs, Visitor
from tests.scenarios.harness import sleep

#: Bytes that sessions send, each from another place of them on.
_BLOCK = Random(1).randbytes(1 << 20)
#: Bytes that are written at a time.
_PIECE = 1 << 16
#: How a session begins: what is wanted of the target, which session it is, and how many bytes.
_HEAD = 1 + 8 + 8
#: Where a target's bytes begin, as seen from its visitor's.
_APART = 1 << 19
#: Seconds without a byte for any session after which those that are left are given up: three times
#: as long as old nodes wait for a link.
STALLED = 15.0
#: Of the answer to a short question.
_SHORT = b"what was asked for, in full"


def _digest(number: int, size: int) -> bytes:
    heard = hashlib.sha256()
    for piece in _pieces(number, size):
        heard.update(piece)
    return heard.digest()


def _pieces(number: int, size: int) -> Any:
    """What belongs to a number: views of the block, from its own place on, round and round."""
    at = number * 4099 % len(_BLOCK)
    block = memoryview(_BLOCK)
    while size:
        piece = block[at : at + min(_PIECE, size)]
        yield piece
        size -= len(piece)
        at = (at + len(piece)) % len(_BLOCK)


@implementer(IPullProducer)
class _Party(Protocol):
    """One end of a session: sends what belongs to its number, and hears what belongs to the other
    end's."""

    transport: Any

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self._supply: Any = None
        self._left = 0
        self._heard = hashlib.sha256()
        self._expected = b""

    @property
    def left(self) -> int:
        """Bytes that it still waits for."""
        return 0 if self.done.called else self._left

    def give_up(self) -> None:
        """Nothing comes any more."""
        self._end(TimeoutError())

    def exchange(self, said: int, heard: int, size: int) -> None:
        """Send and hear so many bytes."""
        self._left, self._expected = size, _digest(heard, size)
        self._supply = _pieces(said, size)
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        piece = next(self._supply, None)
        if piece is not None:
            self.transport.write(bytes(piece))
            return
        self.transport.unregisterProducer()
        self._supply = None
        self._look()

    def stopProducing(self) -> None:
        self._supply = None

    def dataReceived(self, data: bytes) -> None:
        if len(data) > self._left:
            self._end(ValueError("more bytes than were sent"))
            return
        self._left -= len(data)
        self._heard.update(data)
        self._look()

    def _look(self) -> None:
        if self._left or self._supply is not None:
            return
        same = self._heard.digest() == self._expected
        self._end(None if same else ValueError("other bytes than were sent"))

    def _end(self, error: Exception | None) -> None:
        if not self.done.called:
            if error is None:
                self.done.callback(None)
            else:
                self.done.errback(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(EOFError("ended early"))
        self.gone.callback(None)


class _Answerer(_Party):
    """A target's end: what it does is told by the first bytes."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._head = b""
        self.done.addErrback(lambda failure: None)  # the visitor tells

    def connectionMade(self) -> None:
        self._target.parties.add(self)
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if len(self._head) == _HEAD:
            super().dataReceived(data)
            return
        self._head += data
        rest, self._head = self._head[_HEAD:], self._head[:_HEAD]
        if self._head[:1] == b"e":  # everything back
            self.transport.write(self._head + rest)
            self._head = b""
            return
        if self._head[:1] == b"v":  # the visitor closes
            self.transport.write(_SHORT)
            self._head = b""
            return
        if self._head[:1] == b"t":  # the target closes
            self.transport.write(_SHORT)
            self.transport.loseConnection()
            return
        if len(self._head) < _HEAD:
            return
        number, size = int.from_bytes(self._head[1:9], "big"), int.from_bytes(self._head[9:], "big")
        self.exchange(number + _APART, number, size)
        if rest:
            super().dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._target.parties.discard(self)
        super().connectionLost(reason)


class Target:
    """What tunnels lead to: TCP, and UDP on the same port, which comes back as it is."""

    def __init__(self) -> None:
        self.parties: set[_Party] = set()
        self._udp = Programs()
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda address: _Answerer(self)  # type: ignore[method-assign]
        while True:
            self._port = reactor.listenTCP(0, factory, backlog=4096, interface=HERE)
            self.endpoint = Endpoint(HERE, self._port.getHost().port)
            try:
                self._udp.target(at=self.endpoint)
                break
            except OSError:
                self._port.stopListening()

    async def stop(self) -> None:
        """Close everything."""
        await self._port.stopListening()
        await self._udp.__aexit__()
        for party in list(self.parties):
            party.transport.abortConnection()
            await party.gone


class _Asker(Protocol):
    """A visitor that reads as much as it waits for."""

    transport: Any

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred()
        self.lost = False
        self._heard = b""
        self._waiting: Deferred[None] | None = None

    async def ask(self, question: bytes, size: int) -> bytes:
        """Send something, and wait for so many bytes, or fewer if it ends before."""
        self.transport.write(question)
        while len(self._heard) < size and not self.lost:
            self._waiting = Deferred()
            await self._waiting
        answer, self._heard = self._heard[:size], self._heard[size:]
        return answer

    async def end(self) -> None:
        """Wait for the other end's end."""
        await self.gone

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self.gone.callback(None)
        self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)


async def _connect(where: Endpoint, protocol: Protocol) -> None:
    await connectProtocol(TCP4ClientEndpoint(reactor, where.host, where.port, 10), protocol)


def _why(failure: Failure) -> str:
    late = failure.check(TimeoutError) is not None
    return "not done in time" if late else str(failure.value) or failure.type.__name__


async def _counted(
    attempts: list[Callable[[], Coroutine[Any, Any, None]]], patience: float
) -> tuple[int, Counter[str]]:
    """Run all side by side; how many went well, and why the others did not.

    :param patience: seconds for all of them together.
    """
    reasons: Counter[str] = Counter()

    def one(attempt: Callable[[], Coroutine[Any, Any, None]]) -> Deferred[bool]:
        trial = Deferred.fromCoroutine(attempt())
        trial.addTimeout(patience, reactor)

        def failed(failure: Failure) -> bool:
            reasons[_why(failure)] += 1
            return False

        return trial.addCallbacks(lambda _: True, failed)

    went = await gatherResults([one(attempt) for attempt in attempts])
    return sum(went), reasons


def _told(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} x {why}" for why, count in reasons.most_common(3))


async def echoed(where: Endpoint, patience: float) -> bool:
    """Whether a visitor who comes now gets an answer within so many seconds."""
    asker = _Asker()

    async def attempt() -> None:
        await _connect(where, asker)
        if await asker.ask(b"echo", 4) != b"echo":
            raise EOFError("ended early")

    good, _ = await _counted([attempt], patience)
    await _leave([asker])
    return good == 1


async def _leave(visitors: list[Any]) -> None:
    """Close what visitors have open."""
    for visitor in visitors:
        if visitor.transport is not None and not visitor.gone.called:
            visitor.transport.abortConnection()
            await visitor.gone


async def served(where: Endpoint, patience: float) -> float | None:
    """Seconds until the first visitor got an answer; None where there is none in time."""
    began = reactor.seconds()
    while reactor.seconds() - began < patience:
        if await echoed(where, 5.0):
            return float(reactor.seconds() - began)
        await sleep(0.1)
    return None


class _StalledWatch:
    """Gives all up when nothing has come for any of them for `STALLED`."""

    def __init__(self, parties: list[_Party]) -> None:
        self._parties = parties
        self._left = 0
        self._since = reactor.seconds()

    def __call__(self) -> None:
        left = sum(party.left for party in self._parties)
        if left != self._left:
            self._left, self._since = left, reactor.seconds()
        elif reactor.seconds() - self._since > STALLED:
            for party in self._parties:
                party.give_up()


async def side_by_side(where: Endpoint, sessions: int, size: int, patience: float) -> Outcome:
    """Sessions that are all there at once, each with so many bytes each way, hashed."""
    parties = [_Party() for _ in range(sessions)]
    began = reactor.seconds()

    async def session(number: int) -> None:
        party = parties[number]
        await _connect(where, party)
        party.transport.write(b"x" + number.to_bytes(8, "big") + size.to_bytes(8, "big"))
        party.exchange(number, number + _APART, size)
        await party.done

    watch = LoopingCall(_StalledWatch(parties))
    watch.start(1.0)
    good, reasons = await _counted([lambda n=n: session(n) for n in range(sessions)], patience)
    watch.stop()
    seconds = reactor.seconds() - began
    for party in parties:
        party.done.addErrback(lambda failure: None)
    await _leave(parties)
    return Outcome(good=good, of=sessions, seconds=seconds, note=_told(reasons))


async def short(where: Endpoint, sessions: int, at_once: int, patience: float) -> Outcome:
    """Short sessions, one after the other in several rows; in half of them the target closes."""
    numbers = iter(range(sessions))
    reasons: Counter[str] = Counter()
    good = 0
    began = reactor.seconds()

    async def session(number: int) -> None:
        asker = _Asker()
        try:
            await _connect(where, asker)
            kind = b"vt"[number % 2 :][:1]
            if await asker.ask(kind, len(_SHORT)) != _SHORT:
                raise EOFError("ended early")
        finally:
            await _leave([asker])

    async def row() -> None:
        nonlocal good
        for number in numbers:
            went, why = await _counted([lambda n=number: session(n)], 10.0)
            good += went
            reasons.update(why)
            if reactor.seconds() - began > patience:
                return

    await gatherResults([Deferred.fromCoroutine(row()) for _ in range(at_once)])
    return Outcome(good=good, of=sessions, seconds=reactor.seconds() - began, note=_told(reasons))


async def datagrams(where: Endpoint, framed: bool, patience: float) -> Outcome:
    """Datagrams of a few visitors, each of which must come back as it was, in order.

    :param framed: the dialect keeps their boundaries: bursts, empty ones and large ones too.
        Otherwise each waits for the answer to the one before.
    """
    groups = (
        [[0, 1, 2, 1400, 0, 9, 1200, 3], [16384], [9000]] if framed else [[1], [2], [1400], [9]]
    )
    rounds, visitors = (20 if framed else 50), 5  # 1,000 datagrams in all
    random = Random(2)
    began = reactor.seconds()
    good, wrong = 0, Counter[str]()
    async with Programs() as programs:

        async def one(number: int) -> None:
            nonlocal good
            visitor = programs.visitor(where)
            for group in groups * rounds:
                said = [random.randbytes(size) for size in group]
                heard = await _answers(visitor, said)
                good += len(said) if heard == said else 0
                wrong["a group that did not come back as it was"] += heard != said

        _, late = await _counted([lambda n=n: one(n) for n in range(visitors)], patience)
    total = visitors * rounds * sum(map(len, groups))
    seconds = reactor.seconds() - began
    return Outcome(good=good, of=total, seconds=seconds, note=_told(+wrong + late))


async def _answers(visitor: Visitor, said: list[bytes]) -> list[bytes]:
    """Say all of it, and what came back within two seconds."""
    visitor.heard.clear()
    for data in said:
        visitor.say(data)
    deadline = reactor.seconds() + 2
    while len(visitor.heard) < len(said) and reactor.seconds() < deadline:
        await sleep(0.005)
    return list(visitor.heard)


class Held:
    """A session that stays."""

    def __init__(self) -> None:
        self._asker = _Asker()

    async def open(self, where: Endpoint) -> None:
        """Begin it."""
        await _connect(where, self._asker)
        assert await self._asker.ask(b"eone", 4) == b"eone"

    async def there(self) -> bool:
        """Whether it still answers."""
        if self._asker.lost:
            return False
        answer = Deferred.fromCoroutine(self._asker.ask(b"etwo", 4))
        answer.addTimeout(5.0, reactor).addErrback(lambda failure: b"")
        return await answer == b"etwo"

    async def close(self) -> None:
        """End it."""
        await _leave([self._asker])
