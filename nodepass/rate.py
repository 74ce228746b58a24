"""What an instance allows itself: a rate of bytes, shared by its sessions in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: The bucket holds what the rate yields in this many seconds.
BURST_SECONDS = 1.0

#: Shortest pause between two rounds of resuming, in seconds. Resumed sessions spend only when the
#: reactor gets to their sockets, so that a round needs a moment before its effect can be judged.
ROUND_SECONDS = 0.002

#: What a round reckons with for each session it resumes, in bytes: one TLS record. A session may
#: read more before it notices; the debt is paid before the next round.
TURN_BYTES = 16 * 1024

#: What a turn of delayed datagrams is worth, in bytes: the most that a stream on Twisted's
#: transports reads in its turn, so that flows and streams get the same share. The engine's streams
#: read up to four times as much, and beside them flows get less.
DATAGRAM_TURN_BYTES = 64 * 1024

#: Most bytes that one queue of delayed datagrams keeps: four datagrams of the largest size.
QUEUE_BYTES = 256 * 1024

#: Most datagrams that one queue keeps, so that tiny ones are bounded as well; enough of the small
#: ones of a call or a game for a whole turn.
QUEUE_DATAGRAMS = 1024


class TokenBucket:
    """A token bucket that may be overdrawn: who finds it above zero may spend, and debt is paid by
    waiting. It starts full.

    :param rate: bytes per second.
    :param now: the time in seconds, as in every method.
    """

    __slots__ = ("_balance", "_stamp", "capacity", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.capacity = rate * BURST_SECONDS
        self._balance = self.capacity
        self._stamp = now

    def balance(self, now: float) -> float:
        """Bytes that may be spent; negative when in debt."""
        self._balance = min(self.capacity, self._balance + (now - self._stamp) * self.rate)
        self._stamp = now
        return self._balance

    def spend(self, size: float, now: float) -> None:
        """Deduct ``size`` bytes, into debt if need be."""
        self._balance = self.balance(now) - size

    def delay(self, now: float) -> float:
        """Seconds until the debt is paid; 0.0 when there is none."""
        return max(0.0, -self.balance(now) / self.rate)


class Waiter:
    """One session's place in the queue of a :class:`RateLimiter`."""

    __slots__ = ("_limiter", "resume")

    def __init__(self, limiter: RateLimiter, resume: Callable[[], object]) -> None:
        self._limiter = limiter
        self.resume = resume

    def cancel(self) -> None:
        """Leave the queue; harmless when the turn has come already."""
        self._limiter._forget(self)


class RateLimiter:
    """One direction's rate, shared by the sessions of an instance in turn.

    A session that moved bytes tells with :meth:`spend`; when :attr:`ready` is then false it stops
    reading and takes a place with :meth:`wait`. Places are served in order, and a session that has
    had its turn queues again at the tail, so that each gets as many turns as the others.

    :param bits_per_second: the rate, above 0; an instance without a limit has no limiter.
    :param clock: tells the time and runs the one timer, which exists only while somebody waits.
    """

    _log = Logger()

    def __init__(self, bits_per_second: float, clock: IReactorTime) -> None:
        self._clock = clock
        self._bucket = TokenBucket(bits_per_second / 8, clock.seconds())
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._timer: IDelayedCall | None = None

    @property
    def ready(self) -> bool:
        """Whether a session may go on without a turn: nobody waits and the balance is positive."""
        return not self._waiting and self._bucket.balance(self._clock.seconds()) > 0

    def spend(self, size: int) -> None:
        """Deduct ``size`` bytes that were moved."""
        self._bucket.spend(size, self._clock.seconds())

    def try_spend(self, size: int) -> bool:
        """Deduct ``size`` bytes and return True, or return False when it isn't :attr:`ready`."""
        if not self.ready:
            return False
        self.spend(size)
        return True

    def wait(self, resume: Callable[[], object]) -> Waiter:
        """Queue; ``resume`` is called once, from a timer, when the turn has come."""
        waiter = Waiter(self, resume)
        self._waiting[waiter] = None
        if self._timer is None:
            self._schedule()
        return waiter

    def stop(self) -> None:
        """Forget everybody who waits, without resuming them, and stop the timer."""
        self._waiting.clear()
        self._cancel_timer()

    def _forget(self, waiter: Waiter) -> None:
        self._waiting.pop(waiter, None)
        if not self._waiting:
            self._cancel_timer()

    def _schedule(self) -> None:
        delay = max(ROUND_SECONDS, self._bucket.delay(self._clock.seconds()))
        self._timer = self._clock.callLater(delay, self._round)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _round(self) -> None:
        """Resume as many sessions as the balance has turns for.

        One timer per session would cap the rate at one chunk per timer; and sessions resumed beyond
        what the balance can pay would all overdraw it at once.
        """
        self._timer = None
        now = self._clock.seconds()
        turns = self._bucket.balance(now)
        # A resumed session may spend, queue again or cancel others before its call returns.
        while self._waiting and turns > 0 and self._bucket.balance(now) > 0:
            turns -= TURN_BYTES
            waiter, _ = self._waiting.popitem(last=False)
            try:
                waiter.resume()
            except Exception:
                self._log.failure("a session failed to resume after waiting for its rate")
        if self._waiting and self._timer is None:
            self._schedule()


class PacedQueue:
    """Datagrams of one flow, or of one link's flows, that are delayed to keep the rate.

    It waits in the limiter's queue like a TCP session. It keeps at most :data:`QUEUE_BYTES` and
    :data:`QUEUE_DATAGRAMS`: whoever sends faster than the rate loses datagrams, as users of UDP
    expect, rather than see them late.
    """

    __slots__ = ("_bytes", "_limiter", "_queue", "_waiter")

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._queue: deque[tuple[int, Callable[[], object]]] = deque()
        self._bytes = 0
        self._waiter: Waiter | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, size: int, send: Callable[[], object]) -> bool:
        """Send a datagram of ``size`` bytes by calling ``send``, at once or when its turn has come.

        :returns: False when the queue is full: the datagram is dropped, and ``send`` never called.
        """
        if not self._queue and self._limiter.try_spend(size):
            send()
            return True
        if len(self._queue) >= QUEUE_DATAGRAMS or self._bytes + size > QUEUE_BYTES:
            return False
        self._queue.append((size, send))
        self._bytes += size
        if self._waiter is None:
            self._waiter = self._limiter.wait(self._turn)
        return True

    def clear(self) -> None:
        """Forget the delayed datagrams and leave the limiter's queue."""
        self._queue.clear()
        self._bytes = 0
        if self._waiter is not None:
            self._waiter.cancel()
            self._waiter = None

    def _turn(self) -> None:
        self._waiter = None
        spent = 0
        try:
            while self._queue and spent < DATAGRAM_TURN_BYTES:
                size, send = self._queue.popleft()
                self._bytes -= size
                self._limiter.spend(size)
                spent += size
                send()
        finally:
            if self._queue and self._waiter is None:
                self._waiter = self._limiter.wait(self._turn)
