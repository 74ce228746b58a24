"""Scenarios run on a real reactor, and must leave it as they found it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from nodepass.wire.native.datalink import DataLink
from tests.scenarios.harness import QUICK, running, running_here

#: On the portable relay, which `make test` tries second, the usual way is enough.
LINKS = ["shared"] if QUICK.portable_relay else ["shared", "apart"]


def _sockets() -> set[Any]:
    return set(reactor.getReaders()) | set(reactor.getWriters())


async def _settle(left: Callable[[], bool]) -> None:
    # Connections that were aborted are told of it in the reactor's next turns.
    for _ in range(10):
        await deferLater(reactor, 0.01)
        if not left():
            return


async def _stop_all() -> list[str]:
    """Stop what a scenario that failed has left, which would be found again after each of the
    others; what could not be stopped is returned."""
    failed: list[str] = []
    stops = [one.stop for one in running_here]
    stops += [partial(node.stop, signal.SIGKILL) for node in running]
    for stop in stops:
        try:
            await stop()
        except Exception as error:
            failed.append(f"{stop}: {error!r}")
    running_here.clear()  # also of those that failed before they were forgotten
    return failed


@pytest.fixture(autouse=True)
def clean_reactor() -> Iterator[None]:
    """Fail a scenario that leaves a socket or timer behind, or a failure nobody handled."""
    import pytest_twisted

    unhandled: list[str] = []
    pytest_twisted.blockon(deferLater(reactor, 0))  # the reactor's own start

    def observe(event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical or "log_failure" in event:
            unhandled.append(str(event.get("log_failure") or event.get("log_format")))

    sockets, timers = _sockets(), set(reactor.getDelayedCalls())

    def late() -> list[Any]:
        return [call for call in set(reactor.getDelayedCalls()) - timers if call.active()]

    globalLogPublisher.addObserver(observe)
    try:
        yield
        settling = _settle(lambda: bool(_sockets() - sockets or late()))
        pytest_twisted.blockon(Deferred.fromCoroutine(settling))
    finally:
        globalLogPublisher.removeObserver(observe)
        forgotten = [node.transport.pid for node in running]
        open_sockets, timers_left = _sockets() - sockets, late()
        not_stopped = pytest_twisted.blockon(Deferred.fromCoroutine(_stop_all()))
    wrong = {
        "nodes left running": forgotten,
        "sockets left behind": open_sockets,
        "timers left behind": timers_left,
        "unhandled failures": unhandled,
        "could not be stopped": not_stopped,
    }
    found = [f"{what}: {them}" for what, them in wrong.items() if them]
    assert not found, "; ".join(found)


@pytest.fixture(params=LINKS)
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of a pair of nodes share a link, or have one each."""
    if request.param == "apart":
        monkeypatch.setenv("NP_SHARE_WITHIN", "0")
        monkeypatch.delattr(DataLink, "share")  # no node of this process does it all the same
