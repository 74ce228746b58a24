"""The plain forwarder's measurement of its target."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from nodepass.address import Endpoint
from nodepass.config import ClientConfig, parse_url
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.roles import forward
from nodepass.roles.forward import ForwardRole
from nodepass.tuning import Tuning
from tests.memnet import MemoryNet


class Connected:
    """A connection to a target that accepts at once."""

    @property
    def transport(self) -> Connected:
        return self

    def abortConnection(self) -> None:
        pass


def test_the_last_measurement_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """While sessions end the last measurement stands; the last checkpoint, after them, shows 0."""
    config = parse_url("client://127.0.0.1:1/127.0.0.1:2?mode=1&log=none")
    assert isinstance(config, ClientConfig)
    role = ForwardRole(config, Tuning(), MemoryNet(), Health(Log(Level.NONE)),
                       ready=lambda: None, failed=lambda error: None)  # fmt: skip
    monkeypatch.setattr(type(role.visitors), "bound", Endpoint("127.0.0.1", 1))
    dials: list[Deferred[Any]] = [succeed(Connected()), Deferred()]
    monkeypatch.setattr(forward, "connect_tcp", lambda *_: dials.pop(0))
    role.say_checkpoint()
    measured = role.ping()
    assert measured > 0
    role.say_checkpoint()
    Deferred.fromCoroutine(role.stop_accepting())
    assert role.ping() == measured
    Deferred.fromCoroutine(role.close())
    assert role.ping() == 0
