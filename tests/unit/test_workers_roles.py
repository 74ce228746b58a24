"""A role as a worker runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred

from nodepass.config import ClientConfig, parse_url
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.tuning import Tuning
from nodepass.workers.board import Board
from nodepass.workers.roles import COUNT_INTERVAL, Desk, WorkerForward
from tests.memnet import MemoryNet

pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="workers need Linux")


@pytest.fixture
def board() -> Iterator[Board]:
    """What two workers write on."""
    made = Board(2)
    yield made
    made.close()


def test_counting_ends_with_the_role(board: Board) -> None:
    """It goes on while sessions have their time to end, and leaves no timer."""
    config = parse_url("client://127.0.0.1:1/127.0.0.1:2?mode=1&log=none")
    assert isinstance(config, ClientConfig)
    net, row = MemoryNet(), board.row(1)
    role = WorkerForward(
        Desk(1, 2, row, lambda message: None),
        config,
        Tuning(),
        net,
        Health(Log(Level.NONE)),
        ready=lambda: None,
        failed=lambda error: None,
    )
    role.start()
    role.keep_counting()
    role.instance.slots.acquire_tcp()
    Deferred.fromCoroutine(role.release())
    stopping = Deferred.fromCoroutine(role.stop())
    for count in (1, 2):
        role.instance.meter.tcp_rx = count
        net.advance(COUNT_INTERVAL)
        assert row.read().tcp_rx == count
    assert not stopping.called
    net.advance(Tuning().shutdown_timeout)
    net.advance(COUNT_INTERVAL)
    assert stopping.called
    assert net.getDelayedCalls() == []
