"""The token bucket, and how sessions share a rate."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from nodepass import rate
from nodepass.rate import PacedQueue, RateLimiter, TokenBucket, Waiter

CHUNK = 64 * 1024
MEGABIT = 1_000_000


def test_bucket_starts_full_and_never_overflows() -> None:
    """There is one second of burst at the start, and no more after any pause."""
    bucket = TokenBucket(1000.0, now=5.0)

    assert bucket.balance(5.0) == 1000.0
    assert bucket.balance(99.0) == 1000.0


def test_bucket_debt_is_paid_by_waiting() -> None:
    """An overdrawn bucket tells how long its debt takes to pay."""
    bucket = TokenBucket(1000.0, now=0.0)
    bucket.spend(1500, 0.0)

    assert bucket.balance(0.0) == -500.0
    assert bucket.delay(0.0) == 0.5
    assert bucket.balance(0.25) == -250.0
    assert bucket.delay(10.0) == 0.0


@given(
    st.floats(1.0, 1e9),
    st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 10**6)), max_size=50),
)
def test_bucket_never_gives_more_than_rate_and_burst(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    """Spending only on a positive balance stays within rate x time + burst + one chunk."""
    bucket = TokenBucket(rate, now=0.0)
    now, spent, largest = 0.0, 0, 0
    for pause, size in steps:
        now += pause
        if bucket.balance(now) > 0:
            bucket.spend(size, now)
            spent += size
            largest = max(largest, size)

    assert spent <= (rate * now + rate + largest) * (1 + 1e-9)


class Session:
    """A relay that always has `chunk` bytes to read, a moment after it may."""

    def __init__(self, clock: Clock, limiter: RateLimiter, chunk: int = CHUNK) -> None:
        self.clock = clock
        self.limiter = limiter
        self.chunk = chunk
        self.moved = 0
        self.waiter: Waiter | None = None
        self.resume()

    def resume(self) -> None:
        self.clock.callLater(0.0001, self.read)

    def read(self) -> None:
        self.moved += self.chunk
        self.limiter.spend(self.chunk)
        if self.limiter.ready:
            self.resume()
        else:
            self.waiter = self.limiter.wait(self.resume)


def run(clock: Clock, until: float) -> None:
    """Let time pass, stopping at every timer on the way."""
    while (calls := clock.getDelayedCalls()) and (
        soonest := min(call.getTime() for call in calls)
    ) <= until:
        clock.advance(max(0.0, soonest - clock.seconds()))
    clock.advance(until - clock.seconds())


@pytest.mark.parametrize("sessions", [1, 20])
@pytest.mark.parametrize("megabits", [1, 10, 100, 1000])
def test_long_run_rate(megabits: int, sessions: int) -> None:
    """The rate after the burst is the one asked for within 1 %, whatever its height."""
    clock = Clock()
    limiter = RateLimiter(megabits * MEGABIT, clock)
    # Long enough that single chunks don't matter, short where there are many.
    seconds = {1: 200, 10: 40, 100: 8, 1000: 4}[megabits] * (sessions if megabits == 1 else 1)
    relays = [Session(clock, limiter) for _ in range(sessions)]
    run(clock, 20.0)
    before = sum(relay.moved for relay in relays)

    run(clock, 20.0 + seconds)

    rate = (sum(relay.moved for relay in relays) - before) * 8 / seconds
    assert rate == pytest.approx(megabits * MEGABIT, rel=0.01)


@pytest.mark.parametrize("chunk", [100, 1460, 16 * 1024])
def test_small_reads_reach_the_rate(chunk: int) -> None:
    """Sessions that read little at a time still get the whole rate between them."""
    clock = Clock()
    limiter = RateLimiter(MEGABIT, clock)
    relays = [Session(clock, limiter, chunk) for _ in range(20)]
    run(clock, 5.0)
    before = sum(relay.moved for relay in relays)

    run(clock, 35.0)

    rate = (sum(relay.moved for relay in relays) - before) * 8 / 30.0
    assert rate == pytest.approx(MEGABIT, rel=0.02)


@pytest.mark.parametrize("megabits", [10, 1000])
def test_sessions_share_equally(megabits: int) -> None:
    """No session gets more than a few turns ahead of another, early or late come."""
    clock = Clock()
    limiter = RateLimiter(megabits * MEGABIT, clock)
    relays = [Session(clock, limiter) for _ in range(10)]
    run(clock, 10.0)
    relays += [Session(clock, limiter) for _ in range(10)]
    run(clock, 15.0)
    before = [relay.moved for relay in relays]

    run(clock, 15.0 + 4000 / megabits)

    shares = [relay.moved - start for relay, start in zip(relays, before, strict=True)]
    assert min(shares) > 0
    assert max(shares) - min(shares) <= max(2 * CHUNK, 0.05 * max(shares))


def spent(clock: Clock) -> RateLimiter:
    """A limiter of 1000 bytes per second that is 1000 bytes in debt."""
    limiter = RateLimiter(8000, clock)
    limiter.spend(2000)
    return limiter


def test_turns_come_in_order() -> None:
    """Those who wait are resumed first come, first served, each once."""
    clock = Clock()
    limiter = spent(clock)
    order: list[str] = []
    for name in "abc":

        def resume(name: str = name) -> None:
            order.append(name)
            limiter.spend(500)

        limiter.wait(resume)

    clock.advance(0.9)
    assert order == []
    clock.pump([0.2, 0.5, 0.5, 5.0])
    assert order == ["a", "b", "c"]


def test_nobody_passes_those_who_wait() -> None:
    """While somebody waits nobody else is ready, though the balance be positive."""
    clock = Clock()
    limiter = RateLimiter(8000, clock)
    assert limiter.ready
    limiter.wait(lambda: None)

    assert not limiter.ready
    assert not limiter.try_spend(1)
    clock.advance(1.0)
    assert limiter.ready


def test_one_timer_only_while_somebody_waits() -> None:
    """There is one timer however many wait, and none as soon as nobody does."""
    clock = Clock()
    limiter = spent(clock)
    assert clock.getDelayedCalls() == []
    waiters = [limiter.wait(lambda: None) for _ in range(5)]
    assert len(clock.getDelayedCalls()) == 1

    for waiter in waiters:
        waiter.cancel()

    assert clock.getDelayedCalls() == []
    limiter.wait(lambda: None)
    clock.advance(2.0)
    assert clock.getDelayedCalls() == []


def test_cancelled_waiters_get_no_turn() -> None:
    """Who left the queue isn't resumed, the next takes the turn, and leaving twice is harmless."""
    clock = Clock()
    limiter = spent(clock)
    resumed: list[str] = []
    first = limiter.wait(lambda: resumed.append("first"))
    second = limiter.wait(lambda: resumed.append("second"))

    first.cancel()
    clock.advance(2.0)
    second.cancel()
    first.cancel()

    assert resumed == ["second"]


def test_cancelled_by_another_in_its_turn() -> None:
    """A session that ends another while it is resumed takes that one's turn away at once."""
    clock = Clock()
    limiter = spent(clock)
    resumed: list[str] = []
    limiter.wait(lambda: other.cancel())
    other = limiter.wait(lambda: resumed.append("other"))

    clock.advance(5.0)

    assert resumed == []
    assert clock.getDelayedCalls() == []


def test_a_failing_session_holds_up_nobody() -> None:
    """An exception in one session's turn is logged, and the next has its turn all the same."""
    clock = Clock()
    limiter = spent(clock)
    resumed: list[str] = []
    limiter.wait(lambda: 1 // 0)
    limiter.wait(lambda: resumed.append("next"))
    with capturedLogs() as events:
        clock.pump([2.0, 2.0])

    assert resumed == ["next"]
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]


def test_stop_forgets_everybody() -> None:
    """After a stop nobody is resumed and no timer is left."""
    clock = Clock()
    limiter = spent(clock)
    resumed: list[str] = []
    waiter = limiter.wait(lambda: resumed.append("x"))

    limiter.stop()

    assert clock.getDelayedCalls() == []
    clock.advance(10.0)
    waiter.cancel()
    assert resumed == []


def test_a_round_does_not_overdraw_with_everybody() -> None:
    """A balance just above zero resumes one session, not all that wait."""
    clock = Clock()
    limiter = spent(clock)
    resumed: Counter[int] = Counter()
    for number in range(100):
        limiter.wait(lambda number=number: resumed.update([number]))  # type: ignore[misc]

    clock.advance(1.001)

    assert resumed == {0: 1}


def test_a_round_ends_when_the_balance_is_spent() -> None:
    """A session that spends everything within its turn leaves nothing to those behind it."""
    clock = Clock()
    limiter = RateLimiter(100 * MEGABIT, clock)
    resumed: list[str] = []
    limiter.wait(lambda: limiter.spend(20_000_000))
    limiter.wait(lambda: resumed.append("next"))

    clock.advance(0.1)
    assert resumed == []
    clock.advance(0.7)
    assert resumed == ["next"]


def test_datagrams_go_at_once_within_the_rate() -> None:
    """A datagram within the balance is sent at once, and one of no bytes too."""
    sent: list[int] = []
    queue = PacedQueue(RateLimiter(8000, Clock()))

    assert queue.offer(0, lambda: sent.append(0))
    assert queue.offer(900, lambda: sent.append(900))

    assert sent == [0, 900]
    assert len(queue) == 0


def test_datagrams_are_delayed_in_order() -> None:
    """Datagrams beyond the rate leave later, in order, at the rate."""
    clock = Clock()
    queue = PacedQueue(spent(clock))
    sent: list[tuple[int, float]] = []
    for number in range(20):
        assert queue.offer(10_000, lambda number=number: sent.append((number, clock.seconds())))  # type: ignore[misc]
    assert sent == []

    run(clock, 200.0)

    assert [number for number, _ in sent] == list(range(20))
    # 1 s of debt; then a turn of 7 datagrams is paid for before the next.
    assert [round(when) for _, when in sent[::7]] == [1, 71, 141]
    assert len(queue) == 0 and clock.getDelayedCalls() == []


def test_the_queue_is_bounded_in_bytes() -> None:
    """A datagram that the queue has no room for is refused and never sent."""
    clock = Clock()
    queue = PacedQueue(spent(clock))
    sent: list[str] = []

    taken = sum(queue.offer(60_000, lambda: sent.append("sent")) for _ in range(100))

    assert taken == rate.QUEUE_BYTES // 60_000
    run(clock, 10_000.0)
    assert len(sent) == taken


def test_the_queue_is_bounded_in_datagrams() -> None:
    """Datagrams of no bytes are bounded by number."""
    queue = PacedQueue(spent(Clock()))

    assert sum(queue.offer(0, lambda: None) for _ in range(5000)) == rate.QUEUE_DATAGRAMS


def test_clear_forgets_the_delayed() -> None:
    """A cleared queue sends nothing more, leaves no timer, and has its whole room again."""
    clock = Clock()
    queue = PacedQueue(spent(clock))
    sent: list[str] = []
    while queue.offer(60_000, lambda: sent.append("old")):
        pass

    queue.clear()

    assert clock.getDelayedCalls() == []
    assert queue.offer(60_000, lambda: sent.append("new"))
    clock.advance(2.0)
    assert sent == ["new"]


def test_clear_while_sending() -> None:
    """A flow that ends while its datagram is sent sends no other and waits no more."""
    clock = Clock()
    queue = PacedQueue(spent(clock))
    sent: list[str] = []

    def send() -> None:
        sent.append("sent")
        queue.clear()

    queue.offer(10, send)
    queue.offer(10, send)
    clock.advance(5.0)

    assert sent == ["sent"]
    assert clock.getDelayedCalls() == []


def test_a_failing_send_costs_its_datagram_only() -> None:
    """An exception while a delayed datagram is sent doesn't strand those behind it."""
    clock = Clock()
    queue = PacedQueue(spent(clock))
    sent: list[str] = []
    queue.offer(10, lambda: 1 // 0)
    queue.offer(10, lambda: sent.append("sent"))
    with capturedLogs() as events:
        clock.pump([2.0, 2.0])

    assert sent == ["sent"]
    assert len(events) == 1


def test_flows_and_streams_share() -> None:
    """A flood of datagrams and a busy stream get the same share of the rate."""
    clock = Clock()
    limiter = RateLimiter(10 * MEGABIT, clock)
    queue = PacedQueue(limiter)
    moved = Counter[str]()

    def flood() -> None:
        for _ in range(20):
            queue.offer(200, lambda: moved.update(udp=200))
        clock.callLater(0.001, flood)

    stream = Session(clock, limiter)
    flood()
    run(clock, 5.0)
    moved.clear()
    before = stream.moved
    run(clock, 25.0)

    assert moved["udp"] == pytest.approx(stream.moved - before, rel=0.1)
