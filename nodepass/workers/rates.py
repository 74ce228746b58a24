"""The rate of the whole: the parent has the bucket, and workers lease from it by the chunk.

A worker spends what it was granted without asking anybody, and asks for more before it has run
out. So every byte was granted once, whoever moves it and whatever becomes of a worker, and the
bytes granted are those of one bucket.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.rate import ROUND_SECONDS, RateLimiter, TokenBucket, Waiter

__all__ = ["CHUNK_SECONDS", "LeasedLimiter", "RateShares"]

#: A lease is what the rate yields in this many seconds: seldom enough that asking costs nothing,
#: often enough that what a worker has and does not use is no loss to the others.
CHUNK_SECONDS = 0.1
#: Bytes by which the balance may fall short of what is due: sums of fractions are not exact, and
#: who waits for the last of them would wait for another round.
ROUNDING = 1e-6


@define
class _Request:
    size: float
    sessions: int


class RateShares:
    """The parent's end of one direction.

    While the bucket has enough, everybody gets what it wants at once; else what there is goes out
    each `CHUNK_SECONDS`, shared by the number of sessions that wait.

    :param bits_per_second: the rate of the whole.
    :param grant: tells a worker what it got, in bytes.
    """

    def __init__(
        self, bits_per_second: float, clock: IReactorTime, grant: Callable[[int, float], None]
    ) -> None:
        self._clock = clock
        self._grant = grant
        self._bucket = TokenBucket(bits_per_second / 8, clock.seconds())
        self._requests: dict[int, _Request] = {}
        self._timer: IDelayedCall | None = None
        self._serving = False

    def want(self, worker: int, size: float, sessions: int) -> None:
        """A worker wants so many bytes for so many sessions that wait."""
        self._requests[worker] = _Request(size, max(1, sessions))
        if self._timer is None and not self._serving:
            self._serve()

    def forget(self, worker: int) -> None:
        """A worker is no more."""
        self._requests.pop(worker, None)

    def stop(self) -> None:
        """Grant no more."""
        self._requests.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        self._timer = None
        if not self._requests:
            return
        chunk = self._bucket.rate * CHUNK_SECONDS
        due = min(chunk, sum(request.size for request in self._requests.values()))
        balance = self._bucket.balance(self._clock.seconds())
        if balance >= due - ROUNDING:
            self._serving = True
            self._share(balance)
            self._serving = False
        if self._requests:
            missing = max(0.0, due - self._bucket.balance(self._clock.seconds()))
            self._timer = self._clock.callLater(
                max(ROUND_SECONDS, missing / self._bucket.rate), self._serve
            )

    def _share(self, balance: float) -> None:
        """Give the balance away, to nobody more than it wants, else by the sessions that wait."""
        grants: dict[int, float] = {}
        left = dict(self._requests)
        while left:
            sessions = sum(request.sessions for request in left.values())
            content = [
                worker
                for worker, request in left.items()
                if request.size <= balance * request.sessions / sessions
            ]
            if not content:
                for worker, request in left.items():
                    grants[worker] = balance * request.sessions / sessions
                break
            for worker in content:
                size = left.pop(worker).size
                grants[worker] = size
                balance -= size
        for worker, size in grants.items():
            request = self._requests[worker]
            request.size -= size
            if worker not in left:
                del self._requests[worker]
            self._bucket.spend(size, self._clock.seconds())
            self._grant(worker, size)


class _Lease(TokenBucket):
    """A bucket that only grants fill."""

    __slots__ = ()

    def __init__(self, rate: float, now: float) -> None:
        super().__init__(rate, now)
        self._balance = 0.0

    def balance(self, now: float) -> float:
        return self._balance

    def spend(self, size: float, now: float) -> None:
        self._balance -= size


class LeasedLimiter(RateLimiter):
    """A worker's end of one direction, for its sessions what `RateLimiter` is.

    :param want: asks the parent for bytes: how many, and for how many sessions that wait.
    """

    def __init__(
        self, bits_per_second: float, clock: IReactorTime, want: Callable[[float, int], None]
    ) -> None:
        super().__init__(bits_per_second, clock)
        self._bucket = _Lease(bits_per_second / 8, clock.seconds())
        self._chunk = self._bucket.rate * CHUNK_SECONDS
        self._want = want
        self._outstanding = 0.0
        self._weight = 0
        self._most = 0  # that have waited at a time since it asked last

    def wait(self, resume: Callable[[], object]) -> Waiter:
        waiter = super().wait(resume)
        self._most = max(self._most, len(self._waiting))
        return waiter

    def spend(self, size: int) -> None:
        super().spend(size)
        self._look()

    def granted(self, size: float) -> None:
        """The parent has granted so many bytes."""
        self._outstanding = max(0.0, self._outstanding - size)
        self._bucket.spend(-size, 0.0)
        self._look()
        if self._waiting and self._timer is None:
            self._schedule()

    def _look(self) -> None:
        """Ask for more, soon enough, and again when others have come to wait."""
        # With sessions that wait it wants its share of the next chunk, however large that is.
        wanted = 2 * self._chunk if self._waiting else self._chunk
        missing = wanted - self._bucket.balance(0.0)
        unasked = missing - self._outstanding
        if unasked >= self._chunk / 2 or (missing > 0 and len(self._waiting) > 2 * self._weight):
            self._outstanding = missing
            self._weight, self._most = max(1, self._most), len(self._waiting)
            self._want(missing, self._weight)

    def _schedule(self) -> None:
        self._look()
        if self._bucket.balance(0.0) > 0:
            self._timer = self._clock.callLater(ROUND_SECONDS, self._round)
