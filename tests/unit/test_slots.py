"""Slots: who gets in when they are taken."""

from __future__ import annotations

import pytest

from nodepass.slots import Slots


def test_slots_bound_both_kinds_together() -> None:
    """TCP sessions and flows share one bound, and a slot given back can be taken again."""
    slots = Slots(4)
    assert [slots.acquire_udp(), slots.acquire_tcp()] == [True, True]
    assert [slots.acquire_tcp(), slots.acquire_tcp()] == [True, True]

    assert not slots.acquire_tcp()
    assert not slots.acquire_udp()
    slots.release_udp()
    assert slots.acquire_tcp()
    assert (slots.tcp, slots.udp) == (4, 0)


def test_flows_take_at_most_half() -> None:
    """Flows stop at half of the slots, while TCP sessions may take all."""
    slots = Slots(5)

    assert [slots.acquire_udp() for _ in range(3)] == [True, True, False]
    assert [slots.acquire_tcp() for _ in range(4)] == [True, True, True, False]
    slots.release_udp()
    slots.release_tcp()
    assert slots.acquire_udp()


def test_sessions_leave_files_for_links() -> None:
    """A process without a free file serves nobody, so sessions stop at half of its files."""
    few, many = Slots(0, 64), Slots(65536, 1024)
    assert "1024 open files" in many.why
    assert [few.acquire_tcp() for _ in range(25)] == [True] * 24 + [False]
    assert [many.acquire_tcp() for _ in range(449)] == [True] * 448 + [False]
    assert not many.acquire_udp()


def test_a_flow_counts_as_one_file() -> None:
    """Flows take half of the files and as many as those are; TCP sessions find the other half."""
    slots = Slots(65536, 1024)
    assert slots.flow_limit == 448
    assert [slots.acquire_udp() for _ in range(449)] == [True] * 448 + [False]
    assert [slots.acquire_tcp() for _ in range(225)] == [True] * 224 + [False]
    slots.release_udp()
    assert not slots.acquire_tcp()
    slots.release_udp()
    assert slots.acquire_tcp()


def test_the_limit_asked_for_counts_where_files_abound() -> None:
    """With files enough the limit is that of the URL, and so is its name."""
    slots = Slots(10, 100_000)
    assert (slots.limit, slots.flow_limit, slots.why) == (10, 5, "slot=10")
    assert Slots(0).flow_limit is None


def test_a_single_slot_serves_either_kind() -> None:
    """With one slot a flow is let in as long as no TCP session is there."""
    slots = Slots(1)

    assert slots.acquire_udp()
    assert not slots.acquire_tcp()
    slots.release_udp()
    assert slots.acquire_tcp()
    assert not slots.acquire_udp()


def test_no_limit() -> None:
    """A limit of 0 refuses nobody and still counts."""
    slots = Slots(0)

    assert all(slots.acquire_tcp() and slots.acquire_udp() for _ in range(1000))
    assert (slots.tcp, slots.udp) == (1000, 1000)


@pytest.mark.parametrize("release", ["release_tcp", "release_udp"])
def test_slots_are_given_back_once(release: str) -> None:
    """Giving back more than was taken is noticed instead of raising the limit."""
    with pytest.raises(AssertionError):
        getattr(Slots(10), release)()
