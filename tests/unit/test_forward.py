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
from nodepass.roles.choice import make_role
from nodepass.roles.forward import ForwardRole
from nodepass.roles.visitors import VisitorPorts
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


class Warned(Log):
    """A log that keeps its warnings."""

    def __init__(self) -> None:
        super().__init__(Level.WARN)
        self.lines: list[str] = []

    def warn(self, format: str, /, **fields: Any) -> None:
        self.lines.append(format.format(**fields))


@pytest.mark.parametrize(
    ("query", "lines"), [("mode=0&tls=1", 1), ("mode=1&tls=1", 0), ("mode=0", 0)]
)
def test_a_client_that_turns_out_to_be_a_forwarder(
    query: str, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its `tls` is unused is told where the mode was found here; where it was given, reading
    the URL has done so."""
    monkeypatch.setattr(VisitorPorts, "bind", lambda _: None)
    config, net, log = parse_url(f"client://127.0.0.1:0/127.0.0.1:2?{query}"), MemoryNet(), Warned()
    assert isinstance(config, ClientConfig)
    role = make_role(
        config, Tuning(), net, Health(log), ready=lambda: None, failed=lambda error: None
    )
    assert isinstance(role, ForwardRole)
    assert len(log.lines) == lines
    assert all("tls=1 is unused" in line and line.endswith("write mode=2") for line in log.lines)
