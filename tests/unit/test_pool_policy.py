"""How many idle links there should be: the last minute's demand, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodepass.pool.policy import MEMORY, STEP, DemandPolicy


def test_without_demand_the_minimum() -> None:
    """A quiet pool holds its least number."""
    assert DemandPolicy(8, 1024).idle(0.0, 0) == 8


def test_a_minimum_above_the_maximum_is_lowered() -> None:
    """The maximum counts."""
    assert DemandPolicy(100, 10).idle(0.0, 0) == 10


def test_what_was_in_use_at_once_is_kept_ready() -> None:
    """As sessions of a burst end, their links stay for the next one."""
    policy = DemandPolicy(8, 1024)
    policy.used(0.0, 500)
    assert policy.idle(1.0, 500) == 8
    assert policy.idle(2.0, 100) == 408
    assert policy.idle(3.0, 0) == 508


def test_a_wave_after_another_needs_no_more() -> None:
    """What idle ones there were beside the busiest moment stay as well: the next wave, as high,
    finds them and has none made."""
    policy = DemandPolicy(8, 1024)
    for wave in (0.0, 10.0, 20.0):
        for in_use in (1, 30, 100, 30, 0):
            policy.used(wave, in_use)
            if wave:
                assert in_use + policy.idle(wave, in_use) == 108


def test_the_burst_is_forgotten() -> None:
    """After a minute without its like, and not before."""
    policy = DemandPolicy(8, 1024)
    policy.used(0.0, 500)
    assert policy.idle(MEMORY, 0) == 508
    assert policy.idle(MEMORY + STEP, 0) == 8


def test_the_maximum_bounds_idle_links_only() -> None:
    """However many were in use."""
    policy = DemandPolicy(8, 20)
    policy.used(0.0, 500)
    assert policy.idle(0.0, 0) == 20
    assert policy.idle(0.0, 490) == 18


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 100)), max_size=60),
)
def test_any_demand(minimum: int, maximum: int, steps: list[tuple[float, int]]) -> None:
    """The answer is within bounds, its memory is small, and it follows a plain model."""
    policy = DemandPolicy(minimum, maximum)
    now, seen = 0.0, []
    for wait, in_use in steps:
        now += wait
        policy.used(now, in_use)
        seen.append((now, in_use))
        idle = policy.idle(now, in_use)
        assert min(minimum, maximum) <= idle <= maximum
        assert len(policy._marks) <= (MEMORY + STEP) / STEP + 1
        recent = max(used for at, used in seen if now - at < MEMORY)
        least = min(minimum, maximum)
        assert idle >= min(maximum, least + max(0, recent - in_use))
        older = max(used for at, used in seen if now - at <= MEMORY + 2 * STEP)
        assert idle <= min(maximum, least + max(0, older - in_use))


def test_what_is_no_news() -> None:
    """As many links in use as were lately need no look at how many there should be: what one more
    takes, one fewer needs to be idle."""
    policy = DemandPolicy(2, 100)
    assert not policy.knows(0, 1)
    policy.used(0, 5)
    assert policy.knows(0, 4) and policy.knows(STEP - 0.1, 5)
    assert policy.idle(0, 4) + 4 == policy.idle(0, 5) + 5
    assert not policy.knows(0, 6)
    assert not policy.knows(STEP, 5)  # to be remembered for another minute it must be noted again
