"""`rate`: so many megabits a second in each direction, however many sessions share them."""

from __future__ import annotations

import os

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.scenarios.harness import sleep, tunnel
from tests.scenarios.programs import connect, listen

#: Megabits a second that are asked for.
RATE = 80
#: Seconds of measuring; `make soak` measures for longer.
SECONDS = float(os.environ.get("NP_TEST_RATE_SECONDS", "3"))
#: The share by which the measured rate may differ: 5 % over ten seconds, and more over less, as a
#: busy machine runs late by some tens of milliseconds.
TOLERANCE = 0.05 if SECONDS >= 10 else 0.08


@pytest.mark.parametrize(
    ("flow", "tls", "sessions", "up", "node"),
    [
        ("-", 0, 1, True, "server"),
        ("+", 0, 1, False, "server"),
        ("-", 0, 20, False, "client"),
        ("+", 1, 20, True, "client"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_rate(flow: str, tls: int, sessions: int, up: bool, node: str) -> None:
    """After the second of burst the sum of all sessions moves at the rate asked for, whichever node
    it is asked of, and each session has its share of it."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, tls=tls, **{node: f"rate={RATE}"})
    senders, readers = [], []
    for _ in range(sessions):
        visitor = await connect(pair.visitor)
        far = await target.accept()
        visitor.keep = far.keep = False
        senders.append(visitor if up else far)
        readers.append(far if up else visitor)
    for sender in senders:
        sender.flood()
    await sleep(2.0)  # the burst, and what fits on the way
    before = [conn.received for conn in readers]
    began = reactor.seconds()
    await sleep(SECONDS)
    took = reactor.seconds() - began
    moved = [conn.received - was for conn, was in zip(readers, before, strict=True)]
    measured = sum(moved) * 8 / took / 1e6
    print(f"flow {flow} tls={tls} {sessions} sessions, {node}: {measured:.2f} Mbit/s")
    assert measured == pytest.approx(RATE, rel=TOLERANCE)
    fair = sum(moved) / sessions
    assert min(moved) > fair / 2, f"shares: {sorted(moved)}"
    assert max(moved) < fair * 2, f"shares: {sorted(moved)}"
    for sender in senders:
        sender.reset()
    await pair.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_both_directions_have_the_rate_for_themselves() -> None:
    """What goes up takes nothing from what comes down."""
    target = listen()
    pair = await tunnel(target.endpoint, server=f"rate={RATE}")
    visitor = await connect(pair.visitor)
    far = await target.accept()
    visitor.keep = far.keep = False
    visitor.flood()
    far.flood()
    await sleep(2.0)
    before = visitor.received, far.received
    began = reactor.seconds()
    await sleep(SECONDS)
    took = reactor.seconds() - began
    for conn, was in zip((visitor, far), before, strict=True):
        measured = (conn.received - was) * 8 / took / 1e6
        print(f"both ways: {measured:.2f} Mbit/s")
        assert measured == pytest.approx(RATE, rel=TOLERANCE)
    visitor.reset()
    await pair.stop()
    await target.stop()
