"""The record of how a tunnel is, and the checkpoint line."""

from __future__ import annotations

import pytest
from attrs.exceptions import FrozenInstanceError

from nodepass.meter import Stats


def test_line_of_an_idle_instance() -> None:
    """A fresh instance reports zeros in the exact form that programs parse."""
    assert Stats(mode=1, ping=0.003, pool=64).line() == (
        "CHECK_POINT|MODE=1|PING=3ms|POOL=64|TCPS=0|UDPS=0|TCPRX=0|TCPTX=0|UDPRX=0|UDPTX=0"
    )


def test_every_counter_has_its_place() -> None:
    """Each counter appears under its own name, with no two exchanged."""
    stats = Stats(
        mode=2, ping=0.007, pool=8, peers=9, tcps=1, udps=2, tcp_rx=3, tcp_tx=4, udp_rx=5, udp_tx=6
    )

    assert stats.line() == (
        "CHECK_POINT|MODE=2|PING=7ms|POOL=8|TCPS=1|UDPS=2|TCPRX=3|TCPTX=4|UDPRX=5|UDPTX=6"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "0ms"), (0.00001, "1ms"), (0.0126, "13ms"), (2.5, "2500ms")]
)
def test_ping_is_in_milliseconds(seconds: float, shown: str) -> None:
    """Only what nothing answered is 0: a faster answer than a millisecond shows as one."""
    assert f"|PING={shown}|" in Stats(ping=seconds).line()


def test_stats_can_not_be_changed() -> None:
    """A record of a moment stays what it was."""
    with pytest.raises(FrozenInstanceError):
        Stats().tcp_rx = 1  # type: ignore[misc]


def test_counters_are_unbounded() -> None:
    """Counts beyond 64 bits are written in full."""
    assert Stats(udp_tx=1 << 70).line().endswith(f"UDPTX={1 << 70}")
