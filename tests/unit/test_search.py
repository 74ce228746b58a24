"""A client's search for its server by several dialects."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock

from nodepass.errors import PeerError
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.wire.search import LONGEST_PAUSE, Pauses, Search

PORT = "is this its tunnel port, and not that of visitors or of another program?"


class FakeWay:
    """A dialect's way: works when it is told to."""

    def __init__(self, dialect: str, tried: list[str], trusted: bool = False) -> None:
        self.dialect = dialect
        self.trusted = trusted
        self.works = False
        self.pause = 3.0
        self.stopped = False
        self.error: Exception = ValueError(f"no {dialect} here")
        self.peer: object | None = None
        self._tried = tried

    @property
    def joined(self) -> bool:
        return self.works

    async def join(self) -> None:
        self._tried.append(self.dialect)
        if not self.works:
            raise self.error

    def failed(self, error: Exception) -> float:
        return self.pause

    def lost(self) -> float:
        return 1.0

    def stop(self) -> None:
        self.stopped = True


class Case:
    """A search by native, 1.14 and 1.6, or what is named."""

    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.tried: list[str] = []
        self.ways = [FakeWay(name, self.tried, name == "native") for name in
                     names or ("native", "1.14", "1.6")]  # fmt: skip
        self.health = Health(Log(Level.NONE))
        self.search = Search(self.ways, self.clock, self.health)  # type: ignore[arg-type]
        self.search.start()

    def later(self, seconds: float) -> list[str]:
        """What is tried in this time, and a little more, as pauses vary."""
        self.tried.clear()
        self.clock.advance(seconds * 1.2)
        return list(self.tried)


def test_each_is_tried_in_turn() -> None:
    """And again after a pause; what is wrong names each."""
    case = Case()
    assert case.tried == ["native", "1.14", "1.6"]
    assert case.health.reason is not None
    for words in ("wire native: no native here", "wire 1.14: no 1.14", "wire 1.6: no 1.6"):
        assert words in case.health.reason
    assert case.later(3.0) == ["native", "1.14", "1.6"]


def test_each_has_its_own_pause() -> None:
    """One that only an owner can mend is left alone for as long as it says, and keeps nobody from
    another; what is wrong names both all the while."""
    case = Case()
    case.ways[0].pause = 100.0
    case.later(3.0)
    assert case.later(3.0) == ["1.14", "1.6"]
    assert case.health.reason is not None
    assert "no native here" in case.health.reason and "no 1.6 here" in case.health.reason
    for _ in range(40):
        case.later(3.0)
        if "native" in case.tried:
            break
    assert 90 < case.clock.seconds() < 140


@pytest.mark.parametrize(
    ("dialect", "error", "cure"),
    [
        ("native", SSL.Error([("", "", "wrong version number")]), f"write wire=1.14; else: {PORT}"),
        ("native", PeerError("handshake timed out"), PORT),
        ("native", SSL.Error([("", "", "tlsv1 alert no application protocol")]), "write wire=2.0"),
        ("native", ConnectionLost(), "else see its log: its wire= may not admit native"),
        ("2.0", SSL.Error([("", "", "wrong version number")]), "write wire=1.14"),
        ("1.6", ConnectionLost(), "it may have another key, or not speak 1.6"),
        ("1.14", PeerError("the answer is HTTP status 400: no tunnel port"), "write wire=2.0"),
    ],
)
def test_a_server_of_another_dialect(dialect: str, error: Exception, cure: str) -> None:
    """What the URL might lack is said, unless it names several dialects."""
    case = Case(dialect)
    case.ways[0].error = error
    case.later(3.0)
    assert case.health.reason is not None and case.health.reason.endswith(f"{cure}; trying on")
    case = Case(dialect, "1.6-raw")
    case.ways[0].error = error
    case.later(3.0)
    assert case.health.reason is not None and cure not in case.health.reason


def test_a_server_that_was_there_and_is_slow_now() -> None:
    """Its port was the right one."""
    case = Case("native")
    case.ways[0].peer = object()
    case.ways[0].error = PeerError("handshake timed out")
    case.later(3.0)
    assert case.health.reason == "can't join the server: handshake timed out; trying on"


@pytest.mark.parametrize("names", [("native",), ("1.14",), ("native", "1.14")])
def test_no_server_at_the_address(names: tuple[str, ...]) -> None:
    """Nobody listens there: said once, in words that help, however many dialects were tried."""
    case = Case(*names)
    for way in case.ways:
        way.error = ConnectionRefusedError(111, "Connection refused")
    case.later(3.0)
    said = "can't join the server: connection refused: is the server started, and are host and port"
    assert case.health.reason == f"{said} right?; trying on"


def test_one_of_two_ways_is_refused() -> None:
    """In a list of reasons the refusal is two words."""
    case = Case("native", "1.14")
    case.ways[0].error = ConnectionRefusedError(111, "Connection refused")
    case.later(3.0)
    assert "wire native: connection refused; wire 1.14: no 1.14" in str(case.health.reason)


def test_a_server_that_was_there_speaks_the_dialect() -> None:
    """One that closes connections while it starts anew is not taken for another node."""
    case = Case("native")
    case.ways[0].error = ConnectionLost()
    case.ways[0].peer = object()
    case.later(3.0)
    assert case.health.reason is not None and "1.6" not in case.health.reason


def test_the_one_that_worked_comes_first() -> None:
    """From the next loss on."""
    case = Case()
    case.ways[1].works = True
    assert case.later(3.0) == ["native", "1.14"]
    assert case.health.reason is None
    assert case.later(60.0) == []
    case.ways[1].works = False
    case.search.lost()
    assert case.later(1.0) == ["1.14", "native", "1.6"]


def test_after_native_nothing_else_is_tried() -> None:
    """Who can cut the line can't make the client speak something weaker."""
    case = Case()
    case.ways[0].works = True
    assert case.later(3.0) == ["native"]
    case.ways[0].works = False
    for way in case.ways[1:]:
        way.works = True
    case.ways[0].error = ConnectionLost()
    case.search.lost()
    assert case.later(1.0) == ["native"]
    assert case.health.reason is not None
    assert "it spoke native before, so other dialects are not tried" in case.health.reason
    assert case.later(3.0) == ["native"]


def test_a_stop_ends_it() -> None:
    """Nothing is tried any more, and nothing is wrong."""
    case = Case()
    case.search.stop()
    assert all(way.stopped for way in case.ways) and case.health.reason is None
    assert case.later(10.0) == [] and not case.clock.getDelayedCalls()


def test_a_loss_that_nobody_waits_for() -> None:
    """Before the first join there is nothing to lose."""
    case = Case()
    case.search.lost()
    assert case.later(3.0) == ["native", "1.14", "1.6"]


def test_pauses_grow_while_only_an_owner_can_help() -> None:
    """Up to a bound, and not else."""
    pauses = Pauses(3.0)
    assert [pauses.after(False) for _ in range(3)] == [3.0] * 3
    assert [pauses.after(True) for _ in range(4)] == [3.0, 6.0, 12.0, 24.0]
    for _ in range(20):
        longest = pauses.after(True)
    assert longest == LONGEST_PAUSE
    pauses.worked()
    assert pauses.after(True) == 3.0
