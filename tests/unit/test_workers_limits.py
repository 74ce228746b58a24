"""Slots and rate of the whole, leased to workers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from attrs import define, field
from twisted.internet.task import Clock

from nodepass.meter import Stats
from nodepass.workers.board import Board
from nodepass.workers.rates import CHUNK_SECONDS, LeasedLimiter, RateShares
from nodepass.workers.slots import SharedSlots, SlotPool

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="workers need Linux")


@define
class Whole:
    """A parent with workers, all in one process."""

    limit: int
    count: int = 3
    board: Board = field(init=False)
    pool: SlotPool = field(init=False)
    workers: list[SharedSlots] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.board, self.pool = Board(self.count), SlotPool(self.limit)
        self.workers = [self.worker(number) for number in range(self.count)]

    def worker(self, number: int, files: int | None = None) -> SharedSlots:
        """The slots of one, which may have so many files open."""
        return SharedSlots(self.limit, files, self.pool.files, self.board.row(number))

    def close(self) -> None:
        self.pool.close()
        self.board.close()


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> Iterator[Whole]:
    """Three workers with four slots, or as many as the test says."""
    made = Whole(getattr(request, "param", 4))
    yield made
    made.close()


def test_all_slots_are_for_whoever_comes(whole: Whole) -> None:
    """One worker may take all; then nobody gets one until it gives one back."""
    one, two, _ = whole.workers
    assert [one.acquire_tcp() for _ in range(5)] == [True] * 4 + [False]
    assert not two.acquire_tcp() and not two.acquire_udp()
    one.release_tcp()
    assert two.acquire_tcp() and not one.acquire_tcp()


def test_flows_take_half_at_most(whole: Whole) -> None:
    """Over all workers together, and one that finds no slot has taken none of the flows' half."""
    one, two, three = whole.workers
    assert one.acquire_udp() and two.acquire_udp()
    assert not three.acquire_udp()
    assert three.acquire_tcp() and three.acquire_tcp()
    one.release_udp()
    assert two.acquire_tcp()
    assert not one.acquire_udp()
    two.release_tcp()
    assert one.acquire_udp()


def test_what_a_dead_worker_held_is_free(whole: Whole) -> None:
    """All of it and no more, and its row is another's."""
    one, two, three = whole.workers
    assert one.acquire_tcp() and one.acquire_udp() and two.acquire_tcp() and three.acquire_udp()
    row = whole.board.row(0)
    assert (row.tcps, row.udps) == (1, 1)
    whole.pool.take_back(row)
    assert (row.tcps, row.udps) == (0, 0)
    again = whole.worker(0)
    assert again.acquire_udp() and again.acquire_tcp()
    assert not two.acquire_tcp()


@pytest.mark.parametrize("whole", [100], indirect=True)
def test_open_files_are_each_workers_own(whole: Whole) -> None:
    """A worker without files refuses, and keeps no slot for it."""
    slots = whole.worker(0, files=8)
    while slots.acquire_tcp():
        pass
    taken = slots.tcp
    other = whole.workers[1]
    assert taken == 3 and [other.acquire_tcp() for _ in range(98)].count(True) == 97


@pytest.mark.parametrize("whole", [0], indirect=True)
def test_without_a_limit_nothing_is_asked(whole: Whole) -> None:
    """`slot=0`: no descriptors, and the board still tells what is held."""
    slots, row = whole.workers[0], whole.board.row(0)
    assert whole.pool.files == () and slots.acquire_tcp() and slots.acquire_udp()
    assert (row.tcps, row.udps) == (1, 1)


def test_the_board_says_what_was_written(whole: Whole) -> None:
    """All of it, to whoever has the memory, and each row its own."""
    board = whole.board
    seen = Board(whole.count, os.dup(board.file))
    stats = Stats(ping=0.25, pool=3, peers=1, tcp_rx=1 << 40, tcp_tx=2, udp_rx=3, udp_tx=4,
                  udp_dropped=5, udp_oversized=6)  # fmt: skip
    board.row(1).write(stats)
    board.row(1).tcps = 7
    read = seen.row(1).read()
    assert (read.tcps, read.tcp_rx, read.ping, read.udp_oversized) == (7, 1 << 40, 0.25, 6)
    assert seen.row(0).read() == Stats()
    seen.row(1).clear()
    assert board.row(1).read() == Stats()
    seen.close()


MEGABIT = 1_000_000
RATE = 8 * MEGABIT
BYTES = RATE / 8  # a second's


@define
class Leases:
    """A parent's rate and two workers, on one clock."""

    clock: Clock = field(factory=Clock)
    granted: list[tuple[int, float]] = field(factory=list)
    shares: RateShares = field(init=False)
    workers: list[LeasedLimiter] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.shares = RateShares(RATE, self.clock, self._grant)
        self.workers = [
            LeasedLimiter(
                RATE, self.clock, lambda size, sessions, n=n: self.shares.want(n, size, sessions)
            )
            for n in range(2)
        ]

    def _grant(self, worker: int, size: float) -> None:
        self.granted.append((worker, size))
        self.workers[worker].granted(size)

    def run(self, seconds: float, sessions: list[int], chunk: int = 16384) -> list[int]:
        """Sessions of both workers that move all they may; what each worker has moved."""
        moved = [0, 0]

        def session(number: int) -> None:
            limiter = self.workers[number]

            def turn() -> None:
                limiter.spend(chunk)
                moved[number] += chunk
                limiter.wait(turn)

            limiter.wait(turn)

        for number, count in enumerate(sessions):
            for _ in range(count):
                session(number)
        for _ in range(int(seconds * 1000)):
            self.clock.advance(0.001)
        return moved


@pytest.mark.parametrize("sessions", [[1, 0], [1, 1], [3, 1], [40, 40]])
def test_the_whole_keeps_the_rate(sessions: list[int]) -> None:
    """Whoever moves it: a second's burst and then the rate, within 5 %."""
    moved = sum(Leases().run(10.0, sessions))
    assert moved == pytest.approx(11 * BYTES, rel=0.05)


def test_the_rate_is_shared_by_sessions() -> None:
    """A worker with three sessions moves three times what one with a single session does."""
    leases = Leases()
    leases.run(2.0, [0, 0])
    one, two = leases.run(20.0, [3, 1])
    assert one / two == pytest.approx(3.0, rel=0.15)


def test_nobody_waits_while_there_is_enough() -> None:
    """Below the rate a lease is there before it is used up."""
    leases = Leases()
    limiter = leases.workers[0]
    limiter.wait(lambda: None)
    leases.clock.advance(0.01)
    for _ in range(2000):
        assert limiter.ready
        limiter.spend(int(BYTES / 2000))
        leases.clock.advance(0.001)


def test_what_is_granted_is_one_bucket() -> None:
    """Grants never exceed the burst and what the rate yields, also when a worker takes its lease
    with it to the grave."""
    leases = Leases()
    limiter = leases.workers[0]
    for number in range(50):
        leases.shares.want(number % 2, BYTES, 1)
        leases.shares.forget(number % 2)
        limiter.spend(1000)
        leases.clock.advance(0.05)
        total = sum(size for _, size in leases.granted)
        assert total <= BYTES * (1 + leases.clock.seconds()) + 1


def test_little_is_lent_at_a_time() -> None:
    """Where the rate is short, a grant is no more than a chunk."""
    leases = Leases()
    leases.run(3.0, [2, 2])
    recent = [size for _, size in leases.granted[-10:]]
    assert max(recent) <= BYTES * CHUNK_SECONDS * 1.1


def test_stopped_shares_leave_no_timer() -> None:
    """Nothing is left on the clock."""
    leases = Leases()
    leases.run(2.0, [1, 1])
    leases.shares.stop()
    for worker in leases.workers:
        worker.stop()
    assert leases.clock.getDelayedCalls() == []
