"""What roles have in common: how they are, whom they have joined, and how they stop."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed

from nodepass.config import ServerConfig, parse_url
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.relay.stream import Cause
from nodepass.roles.client import ClientRole
from nodepass.roles.role import Role
from nodepass.roles.server import ServerRole
from nodepass.tuning import Tuning
from nodepass.wire import Flow
from tests.memnet import MemoryNet
from tests.streams import FakeStream

URLS = {
    "server": "server://a-key@127.0.0.1:1/127.0.0.1:2?mode=1",
    "client": "client://a-key@127.0.0.1:1/127.0.0.1:2?mode=2",
}


class FakePeer:
    """The other node."""

    name = "the other"
    idle = 3
    ping = 0.25
    closed = False
    sending = False
    origin = ("the other", 0)
    flow = Flow.REVERSE
    words = "native wire, flow -, tls=0"

    def close(self, *_: Any, **__: Any) -> Deferred[None]:
        return Deferred()


class Noting(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(Level.DEBUG)
        self.lines: list[str] = []

    def info(self, format: str, **fields: Any) -> None:
        self.lines.append(format.format(**fields))

    def event(self, format: str, **fields: Any) -> None:
        self.lines.append(format.format(**fields))


def make(what: str) -> tuple[Any, MemoryNet, Noting]:
    """A role that was not started, its clock and its log."""
    config, net, log = parse_url(URLS[what]), MemoryNet(), Noting()
    kind = ServerRole if isinstance(config, ServerConfig) else ClientRole
    role = kind(
        config,  # type: ignore[arg-type]
        Tuning(shutdown_timeout=5.0),
        net,
        Health(log),
        ready=lambda: None,
        failed=lambda error: None,
    )
    return role, net, log


def test_stats_and_line_tell_the_same() -> None:
    """The checkpoint line is that of the stats, and these are what slots and meter have counted."""
    role, _, log = make("server")
    instance = role.instance
    assert instance.slots.acquire_tcp() and instance.slots.acquire_tcp()
    assert instance.slots.acquire_udp()
    counted = {
        "tcp_rx": 1,
        "tcp_tx": 2,
        "udp_rx": 3,
        "udp_tx": 4,
        "udp_dropped": 5,
        "udp_oversized": 6,
    }
    for name, value in counted.items():
        setattr(instance.meter, name, value)
    stats = role.stats
    expected = {**counted, "mode": 1, "ping": 0.0, "pool": 0, "peers": 0, "tcps": 2, "udps": 1}
    assert attrs.asdict(stats) == expected
    role.say_checkpoint()
    assert log.lines == [stats.line()]


@pytest.mark.parametrize("what", URLS)
def test_a_peer_counts_while_its_control_link_is_there(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before it has joined, nor while it may come back, nor after it is gone."""
    role, _, log = make(what)
    monkeypatch.setattr(ServerRole, "peers", ())
    peer, counts = FakePeer(), []
    for happens in (role.joined, role.lost, role.returned, role.lost, role.left):
        happens(peer)
        counts.append(role.stats.peers)
    assert counts == [1, 0, 1, 0, 0]
    if what == "server":
        told = [line.rpartition("; ")[2] for line in log.lines if "; clients: " in line]
        assert told == ["clients: 1", "clients: 1", "clients: 0"]


@pytest.mark.parametrize("again", ["", " again"])
def test_both_ends_tell_of_a_join_alike(again: str) -> None:
    """Who joined, over what, and whether he had been there: in the same words at both ends."""
    told = []
    for what in URLS:
        role, _, log = make(what)
        (role.returned if again else role.joined)(FakePeer())
        told.append(log.lines[-1])
    line = f"tunnel established{again} with the other, native wire, flow -, tls=0"
    assert told == [f"{line}; clients: 1", line]


def drained(role: Role) -> list[object]:
    """Empty until the role has nothing to wait for."""
    result: list[object] = []
    Deferred.fromCoroutine(role._drained()).addCallback(result.append)
    return result


def test_a_stop_without_sessions_waits_for_nothing() -> None:
    """A role without sessions stops at once."""
    role, net, _ = make("server")
    assert drained(role) == [None]
    assert not net.getDelayedCalls()


def test_a_stop_goes_on_when_the_last_session_has_ended() -> None:
    """Neither earlier, nor by looking from time to time, nor while that session is still ending."""
    role, net, _ = make("server")
    for name in ("one", "two"):
        assert role.instance.slots.acquire_tcp()
        role.instance.start_session(FakeStream("visitor"), FakeStream(name), "a session")
    assert len(role.instance.sessions) == 2
    done = drained(role)
    for session in list(role.instance.sessions):
        net.advance(1)
        assert not done
        session.abort(Cause.IDLE)
    assert not done and not role.instance.sessions
    net.advance(0)
    assert done == [None]
    assert not net.getDelayedCalls()


def test_a_stop_waits_no_longer_than_it_may() -> None:
    """A session that does not end within the time for that is left to be cut."""
    role, net, _ = make("server")
    assert role.instance.slots.acquire_tcp()
    done = drained(role)
    net.advance(4.9)
    assert not done
    net.advance(0.2)
    assert done == [None]
    role.instance.release_tcp()
    assert not net.getDelayedCalls()


@pytest.mark.parametrize("ends", ["all has left", "its time is up"])
def test_a_stop_waits_for_what_is_on_its_way(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sessions have left behind gets the rest of the time that they had; what is aborted then
    is reset before the stop is over."""
    role, net, _ = make("server")
    reset: list[bool] = []

    class Aborting(FakePeer):
        def close(self, *_: Any, **__: Any) -> Deferred[None]:
            net.callLater(0, reset.append, True)
            return succeed(None)

    slow, other = Aborting(), FakePeer()
    other.close = lambda *_, **__: succeed(None)  # type: ignore[method-assign]
    slow.sending = True
    monkeypatch.setattr(ServerRole, "peers", (other, slow))
    done: list[object] = []
    Deferred.fromCoroutine(role.stop()).addCallback(lambda _: done.append(list(reset)))
    net.pump([0.1] * 49)
    assert not reset and not done
    if ends == "all has left":
        slow.sending = False
    net.pump([0.1, 0.01, 0.0, 0.0])
    assert done == [[True]]
    assert not net.getDelayedCalls()
