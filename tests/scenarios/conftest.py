"""Scenarios run on a real reactor, and must leave it as they found it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from tests.scenarios.harness import running


async def _settle() -> None:
    # Connections that were aborted are told of it in the reactor's next turns.
    for _ in range(5):
        await deferLater(reactor, 0.02)


async def _kill() -> None:
    for node in list(running):
        await node.stop(signal.SIGKILL)


@pytest.fixture(autouse=True)
def clean_reactor() -> Iterator[None]:
    """Fail a scenario that leaves a socket or timer behind, or a failure nobody handled."""
    import pytest_twisted

    unhandled: list[str] = []
    pytest_twisted.blockon(Deferred.fromCoroutine(_settle()))  # the reactor's own start too

    def observe(event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical or "log_failure" in event:
            unhandled.append(str(event.get("log_failure") or event.get("log_format")))

    before = set(reactor.getReaders()) | set(reactor.getWriters())
    timers = set(reactor.getDelayedCalls())
    globalLogPublisher.addObserver(observe)
    try:
        yield
        pytest_twisted.blockon(Deferred.fromCoroutine(_settle()))
    finally:
        globalLogPublisher.removeObserver(observe)
        forgotten = [node.transport.pid for node in running]
        pytest_twisted.blockon(Deferred.fromCoroutine(_kill()))
    assert not forgotten, f"nodes left running: {forgotten}"
    left = (set(reactor.getReaders()) | set(reactor.getWriters())) - before
    late = [call for call in set(reactor.getDelayedCalls()) - timers if call.active()]
    assert not left, f"sockets left behind: {left}"
    assert not late, f"timers left behind: {late}"
    assert not unhandled, f"unhandled failures: {unhandled}"
