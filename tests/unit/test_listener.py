"""The tunnel port's lobby and first bytes, with a dialect that only notes what it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from nodepass.address import Endpoint
from nodepass.logs import Level, Log
from nodepass.wire.listener import LOBBY_SIZE, Guest, Lobby, TunnelFactory
from tests.loopback import connect, flush

TIMEOUT = 10.0


class Noting(Protocol):
    """Notes what it is given."""

    def __init__(self) -> None:
        self.got = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class Dialect:
    """Takes plain connections that begin with "N"."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []
        self.protocols: list[Noting] = []

    def plain(self, guest: Guest, first: bytes) -> Protocol | None:
        if not first.startswith(b"N"):
            return None
        self.guests.append(guest)
        self.protocols.append(Noting())
        return self.protocols[-1]

    def encrypted(self, guest: Guest, alpn: bytes | None) -> Protocol | None:
        raise AssertionError("no TLS in these tests")


class Case:
    """A tunnel port."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lobby = Lobby(self.clock, Log(Level.NONE), TIMEOUT)
        self.dialect = Dialect()
        self.contexts = 0
        self.factory = TunnelFactory(self.lobby, self.dialect, self._context, Log(Level.NONE))
        self.pairs: list[Any] = []

    def _context(self) -> Any:
        self.contexts += 1
        raise AssertionError("no TLS in these tests")

    def knock(self, said: bytes = b"") -> Noting:
        """Somebody connects, and may say something."""
        protocol = Noting()
        self.pairs.append(connect(protocol, self.factory.buildProtocol(None), host="192.0.2.9"))
        if said:
            protocol.transport.write(said)  # type: ignore[union-attr]
            flush(*self.pairs)
        return protocol


def test_the_first_bytes_reach_the_dialect() -> None:
    """And all that follow; its guest says where they come from."""
    case = Case()
    visitor = case.knock(b"Nat")
    visitor.transport.write(b"ive")  # type: ignore[union-attr]
    flush(*case.pairs)
    assert case.dialect.protocols[0].got == b"Native"
    assert case.dialect.guests[0].address == Endpoint("192.0.2.9", 40000)
    assert len(case.lobby) == 1


def test_who_is_admitted_no_longer_counts() -> None:
    """Its time does not run out, and admitting it twice does no harm."""
    case = Case()
    visitor = case.knock(b"N")
    for _ in range(2):
        case.dialect.guests[0].admit()
    case.clock.advance(2 * TIMEOUT)
    flush(*case.pairs)
    assert not visitor.lost and len(case.lobby) == 0
    assert not case.clock.getDelayedCalls()


def test_who_leaves_before_a_word_no_longer_counts() -> None:
    """No timer stays behind."""
    case = Case()
    case.knock()
    case.pairs[0][0].lose()
    assert len(case.lobby) == 0 and not case.clock.getDelayedCalls()


@pytest.mark.parametrize("said", [b"", b"N"])
def test_time_runs_out_for_the_unproven(said: bytes) -> None:
    """Whether they have begun or not."""
    case = Case()
    visitor = case.knock(said)
    case.clock.advance(TIMEOUT)
    flush(*case.pairs)
    assert visitor.lost and len(case.lobby) == 0


def test_strangers_are_turned_away_at_once() -> None:
    """No TLS object is made for them."""
    case = Case()
    assert case.knock(b"hello").lost
    assert case.contexts == 0
    assert len(case.lobby) == 0 and not case.clock.getDelayedCalls()


def test_the_oldest_goes_first() -> None:
    """Who has proved itself is out of danger."""
    case = Case()
    proved, oldest = case.knock(b"N"), case.knock()
    case.dialect.guests[0].admit()
    for _ in range(LOBBY_SIZE):
        case.knock()
    flush(*case.pairs)
    assert oldest.lost and not proved.lost
    assert len(case.lobby) == LOBBY_SIZE


def test_clearing_the_lobby() -> None:
    """All of them go; turning one away twice does no harm."""
    case = Case()
    visitors = [case.knock(b"N"), case.knock()]
    case.lobby.clear()
    case.dialect.guests[0].turn_away()
    flush(*case.pairs)
    assert all(visitor.lost for visitor in visitors)
    assert not case.clock.getDelayedCalls()
