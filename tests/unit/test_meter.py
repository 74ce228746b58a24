"""Counters and the checkpoint line."""

from __future__ import annotations

import pytest
from attrs.exceptions import FrozenInstanceError

from nodepass.config import Mode
from nodepass.meter import Meter


def test_line_of_an_idle_instance() -> None:
    """A fresh instance reports zeros in the exact form that programs parse."""
    line = Meter().checkpoint(mode=Mode.ONE, ping_ms=3, pool=64).line()

    assert line == (
        "CHECK_POINT|MODE=1|PING=3ms|POOL=64|TCPS=0|UDPS=0|TCPRX=0|TCPTX=0|UDPRX=0|UDPTX=0"
    )


def test_every_counter_has_its_place() -> None:
    """Each counter appears under its own name, with no two exchanged."""
    meter = Meter(tcps=1, udps=2, tcp_rx=3, tcp_tx=4, udp_rx=5, udp_tx=6)

    line = meter.checkpoint(mode=Mode.TWO, ping_ms=7, pool=8).line()

    assert line == (
        "CHECK_POINT|MODE=2|PING=7ms|POOL=8|TCPS=1|UDPS=2|TCPRX=3|TCPTX=4|UDPRX=5|UDPTX=6"
    )


def test_checkpoint_does_not_move() -> None:
    """A checkpoint keeps the values of its moment while the meter runs on, and can't be changed."""
    meter = Meter()
    checkpoint = meter.checkpoint(mode=Mode.ONE, ping_ms=0, pool=0)

    meter.tcp_rx += 10

    assert checkpoint.tcp_rx == 0
    with pytest.raises(FrozenInstanceError):
        checkpoint.tcp_rx = 1  # type: ignore[misc]


def test_counters_are_unbounded() -> None:
    """Counts beyond 64 bits are written in full."""
    meter = Meter()
    meter.udp_tx += 1 << 70

    assert meter.checkpoint(mode=Mode.ONE, ping_ms=0, pool=0).line().endswith(f"UDPTX={1 << 70}")
