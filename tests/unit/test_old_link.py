"""A link of an old pool: what is kept while it is idle, and how its session ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause
from nodepass.wire.old.link import FINISHED_PATIENCE, OldLink
from tests.streams import NotingSink


class Transport:
    """A connection that notes what it is asked."""

    takes_pipes = True
    disconnecting = False

    def __init__(self, half_closes: bool) -> None:
        self.half_closes = half_closes
        self.told: list[Any] = []
        self.paused = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self.told.append((name, *args) if args else name)

    def getHandle(self) -> object:
        return object()

    def fileno(self) -> int:
        return -1

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def did(self, name: str) -> bool:
        """Whether it was asked that."""
        return name in self.told


class Owner:
    """The pool."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def link_spoke(self, link: OldLink) -> None:
        self.told.append("spoke")

    def link_ended(self, link: OldLink) -> None:
        self.told.append("ended")

    def link_lost(self, link: OldLink) -> None:
        self.told.append("lost")


class Case:
    """A link with its connection."""

    def __init__(self, *, half_closes: bool = True) -> None:
        self.clock, self.owner = Clock(), Owner()
        self.link = OldLink("a1b2c3d4", "", self.owner, self.clock, HangupWatch(self.clock))
        self.transport = Transport(half_closes)
        self.link.makeConnection(self.transport)  # type: ignore[arg-type]
        self.sink = NotingSink()

    def session(self) -> Case:
        """It is taken."""
        self.link.begin(b"")
        self.link.take()
        self.link.attach(self.sink)
        self.link.resume()
        return self

    def lose(self, reason: Exception) -> None:
        """Its connection is gone."""
        self.link.connectionLost(Failure(reason))


def test_one_read_is_kept() -> None:
    """No more is read until the link is taken; then its session has it first."""
    case = Case()
    case.link.begin(b"behind the number, ")
    assert case.owner.told == ["spoke"] and case.transport.paused and not case.link.fresh
    case.link.take()
    case.link.attach(case.sink)
    case.link.resume()
    assert not case.transport.paused
    case.link.dataReceived(b"and after")
    assert case.sink.data == b"behind the number, and after"


def test_what_is_kept_may_ask_for_a_pause() -> None:
    """It is not resumed behind the session's back."""
    case = Case()
    case.link.begin(b"much")
    case.link.take()
    case.sink.received = lambda data: case.link.pause()  # type: ignore[method-assign]
    case.link.attach(case.sink)
    case.link.resume()
    assert case.transport.paused


def test_an_end_is_kept() -> None:
    """A visitor may be gone before his launch comes."""
    case = Case()
    case.link.begin(b"")
    case.link.readConnectionLost()
    assert case.owner.told == ["ended"]
    case.link.take()
    case.link.attach(case.sink)
    case.link.resume()
    case.link.resume()
    assert case.sink.heard == ["ended"]


def test_both_ends_in_order() -> None:
    """The connection is closed when both directions are done."""
    case = Case().session()
    case.link.finish()
    assert case.transport.did("loseWriteConnection")
    case.link.writeConnectionLost()
    case.link.readConnectionLost()
    assert case.transport.did("loseConnection")
    case.lose(ConnectionDone())
    assert case.sink.heard == ["ended", ("closed", None)] and case.owner.told == ["lost"]
    assert not case.clock.getDelayedCalls()


def test_a_peer_that_never_ends_is_not_awaited() -> None:
    """After this end has finished it may be silent for a while, not longer."""
    case = Case().session()
    case.link.finish()
    case.link.writeConnectionLost()
    case.clock.advance(FINISHED_PATIENCE - 1)
    case.link.dataReceived(b"still at it")
    case.clock.advance(FINISHED_PATIENCE)
    assert not case.transport.did("loseConnection")
    case.clock.advance(FINISHED_PATIENCE)
    assert case.transport.did("loseConnection")
    case.lose(ConnectionDone())
    assert case.sink.heard == [b"still at it", "ended", ("closed", None)]


def test_what_waits_to_leave_is_no_silence() -> None:
    """A peer that reads slowly is not cut off."""
    case = Case().session()
    case.link.finish()
    case.clock.advance(5 * FINISHED_PATIENCE)
    assert not case.transport.did("loseConnection")
    case.link.writeConnectionLost()
    case.clock.advance(FINISHED_PATIENCE)
    assert case.transport.did("loseConnection")


def test_without_half_close_both_ends_come_at_once() -> None:
    """Where something stands between the link and its connection; the same for one that is
    given up."""
    case = Case(half_closes=False).session()
    case.link.finish()
    case.lose(ConnectionDone())
    assert case.sink.heard == ["ended", ("closed", None)]
    case = Case(half_closes=False).session()
    case.link.finish()
    case.clock.advance(FINISHED_PATIENCE)
    assert case.transport.did("abortConnection")
    case.lose(ConnectionDone())
    assert case.sink.heard == ["ended", ("closed", None)]


def test_the_owner_ends_it() -> None:
    """Its session hears why; an idle one has none."""
    case = Case().session()
    case.link.end(Cause.STOPPED)
    assert case.transport.did("abortConnection")
    assert case.sink.heard == [("closed", Cause.STOPPED)]
    case.lose(ConnectionDone())
    assert case.owner.told == ["lost"]


def test_closing_does_not_wait_for_a_reader() -> None:
    """What nobody reads is not sent."""
    case = Case().session()
    case.link.close()
    assert case.transport.did("loseConnection")
    case = Case().session()
    case.link.pauseProducing()
    case.link.close()
    assert case.transport.did("abortConnection")
    assert Case().link.takes_pipes()
