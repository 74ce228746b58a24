"""PAKE work is bounded, and so are guesses at the key."""

from __future__ import annotations

import pytest

from nodepass.wire.native.budget import (
    GUESS_BURST,
    GUESS_DEBT,
    GUESS_REFILL,
    MAX_ADDRESSES,
    PAKE_BURST,
    PAKE_COST,
    PAKE_QUEUE,
    PAKE_SHARE,
    GuessLimit,
    PakeBudget,
)

HOST = "192.0.2.1"


def test_a_burst_is_served_at_once_and_the_rest_in_turn() -> None:
    """After the burst one PAKE may be done in each tenth of a second."""
    budget = PakeBudget()
    now = 1000.0
    burst = round(PAKE_BURST / PAKE_COST)
    assert [budget.delay(now) for _ in range(burst)] == pytest.approx([0.0] * burst, abs=1e-6)
    interval = PAKE_COST / PAKE_SHARE
    for n in range(1, 4):
        assert budget.delay(now) == pytest.approx(n * interval, abs=1e-6)


def test_the_share_of_the_cpu_in_the_long_run() -> None:
    """Who takes every turn takes the share, and no more."""
    budget = PakeBudget()
    now, done = 0.0, 0
    while now < 1000.0:
        delay = budget.delay(now)
        assert delay is not None
        now += delay
        done += 1
    assert done * PAKE_COST == pytest.approx(1000.0 * PAKE_SHARE + PAKE_BURST, rel=0.02)


def test_the_queue_is_bounded() -> None:
    """One more than may wait is refused, and costs nothing."""
    budget = PakeBudget()
    budget.waiting = PAKE_QUEUE
    assert budget.delay(0.0) is None
    budget.waiting -= 1
    assert budget.delay(0.0) == 0.0


def test_guesses_run_out_and_come_back() -> None:
    """An address has so many, then one in a while."""
    limit = GuessLimit()
    for _ in range(GUESS_BURST):
        assert limit.allows(HOST, 0.0)
        limit.failed(HOST, 0.0)
    assert not limit.allows(HOST, GUESS_REFILL - 1)
    assert limit.allows(HOST, GUESS_REFILL)
    limit.failed(HOST, GUESS_REFILL)
    assert not limit.allows(HOST, GUESS_REFILL)
    assert limit.allows("192.0.2.2", GUESS_REFILL), "others are not concerned"


def test_guesses_side_by_side_are_paid_for() -> None:
    """Many handshakes that were let in together are owed, up to a bound."""
    limit = GuessLimit()
    for _ in range(GUESS_BURST + 20):
        limit.failed(HOST, 0.0)
    assert not limit.allows(HOST, 20 * GUESS_REFILL)
    assert limit.allows(HOST, 21 * GUESS_REFILL)
    for _ in range(1000):
        limit.failed(HOST, 0.0)
    assert limit.allows(HOST, (GUESS_DEBT + 1) * GUESS_REFILL)


def test_guesses_do_not_pile_up() -> None:
    """After any time an address has its burst and no more."""
    limit = GuessLimit()
    limit.failed(HOST, 0.0)
    for _ in range(GUESS_BURST):
        limit.failed(HOST, 1e9)
    assert not limit.allows(HOST, 1e9)


def test_a_network_counts_as_one_address() -> None:
    """An IPv6 /64 is one; scopes are left out; what is no address counts by itself."""
    limit = GuessLimit()
    for n in range(GUESS_BURST):
        limit.failed(f"2001:db8::{n:x}", 0.0)
    assert not limit.allows("2001:db8::ffff:1", 0.0)
    assert limit.allows("2001:db8:0:1::1", 0.0)
    for _ in range(GUESS_BURST):
        limit.failed("fe80::1%eth0", 0.0)
        limit.failed("a name", 0.0)
    assert not limit.allows("fe80::2%eth1", 0.0)
    assert not limit.allows("a name", 0.0)


def test_the_table_is_bounded() -> None:
    """The address unseen for longest is forgotten first."""
    limit = GuessLimit()
    for _ in range(GUESS_BURST):
        limit.failed("old", 0.0)
        limit.failed("seen", 0.0)
    for n in range(MAX_ADDRESSES - 2):
        limit.failed(f"host {n}", 0.0)
    limit.failed("seen", 0.0)
    limit.failed("one more", 0.0)
    assert len(limit._table) == MAX_ADDRESSES
    assert limit.allows("old", 0.0)
    assert not limit.allows("seen", 0.0)
