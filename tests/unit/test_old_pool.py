"""The links of an old peer: which are there, and which visitor each is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from nodepass.address import Endpoint
from nodepass.logs import Level, Log
from nodepass.pool.policy import DemandPolicy
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause
from nodepass.wire.old.awaited import MOST_AWAITED, AwaitedLaunches
from nodepass.wire.old.dialect import ID_WAIT, Dialect
from nodepass.wire.old.filed import FILING_TIME, NEXT_LINK
from nodepass.wire.old.link import FINISHED_PATIENCE, OldLink
from nodepass.wire.old.passed import CERTAIN, YOUNGER
from nodepass.wire.old.pool import OldPool
from nodepass.wire.old.signals import Launch
from nodepass.wire.old.supply import REPLACE_AFTER
from tests.loopback import MemoryTransport, connect, flush

LAUNCH = Launch(False, Endpoint("192.0.2.1", 80), "a1b2c3d4")


class Owner:
    """A peer that notes which visitors it is told of, and on which link."""

    name = "peer"
    serves = True

    def __init__(self) -> None:
        self.sessions: list[tuple[Launch, OldLink]] = []
        self.needs = 0

    def launch(self, launch: Launch) -> None:
        raise AssertionError("this end has no visitors")

    def launched(self, launch: Launch, link: OldLink) -> None:
        self.sessions.append((launch, link))

    def need_links(self, count: int) -> None:
        self.needs += count

    def idle_changed(self) -> None:
        pass


class Lines(Log):
    """Notes warnings and errors."""

    def __init__(self) -> None:
        super().__init__(Level.WARN)
        self.found: list[str] = []

    def _emit(self, level: Level, format: str, fields: dict[str, object]) -> None:
        if level >= self.level:
            self.found.append(format.format(**fields))


class Pool:
    """The pool of an end, one that dials unless told otherwise, whose links get their connections
    when `settle` is called.

    :param policy: at a client, how many idle links there should be.
    """

    def __init__(
        self, dialect: Dialect, *, takes: bool = False, policy: DemandPolicy | None = None
    ) -> None:
        self.clock = Clock()
        self.log = Lines()
        self.owner = Owner()
        self._moving: list[Callable[[], None]] = []
        self.pairs: list[tuple[MemoryTransport, MemoryTransport]] = []
        self.links = OldPool(
            self.owner,
            dialect,
            takes=takes,
            maximum=9,
            policy=policy,
            clock=self.clock,
            watch=HangupWatch(self.clock),
            log=self.log,
            take_over=self._take_over,
        )

    def add(self, number: str) -> None:
        """A link has its number."""
        self.links.add(number, None, "")

    def _take_over(self, transport: Any, protocol: Any, ready: Callable[[], None]) -> None:
        def move() -> None:
            self.pairs.append(connect(protocol, Protocol()))
            ready()

        self._moving.append(move)

    def settle(self) -> None:
        """The connections of all links are where they belong, and what was said has arrived."""
        for move in self._moving:
            move()
        self._moving.clear()
        flush(*self.pairs)


@pytest.fixture(params=[Dialect.V1_14, Dialect.V1_6])
def pool(request: pytest.FixtureRequest) -> Pool:
    """A pool of each kind."""
    return Pool(request.param)


def test_visitor_on_a_link_that_is_there(pool: Pool) -> None:
    """A launch takes its link, once."""
    pool.add(LAUNCH.id)
    pool.settle()
    pool.links.launched(LAUNCH)
    pool.links.launched(LAUNCH)
    assert [launch for launch, _ in pool.owner.sessions] == [LAUNCH]


def test_visitor_on_a_link_that_is_not_there_yet(pool: Pool) -> None:
    """A launch that overtakes its link waits for it, as long as old nodes do."""
    pool.links.launched(LAUNCH)
    pool.clock.advance(ID_WAIT - 0.1)
    pool.add(LAUNCH.id)
    pool.settle()
    assert [launch for launch, _ in pool.owner.sessions] == [LAUNCH]
    late = Launch(False, None, "00000007")
    pool.links.launched(late)
    pool.clock.advance(ID_WAIT)
    pool.add(late.id)
    pool.settle()
    assert len(pool.owner.sessions) == 1


def test_visitor_on_a_link_whose_connection_moves(pool: Pool) -> None:
    """A launch of a link that has its number and not yet the connection that sessions use, waits
    for that too: what a session wrote before would be lost, and the session with it."""
    pool.add(LAUNCH.id)
    pool.links.launched(LAUNCH)
    assert pool.owner.sessions == []
    pool.settle()
    ((launch, link),) = pool.owner.sessions
    assert launch is LAUNCH and link.taken and pool.links.idle == 0


def test_visitor_that_is_named_twice_before_its_link_is_there(pool: Pool) -> None:
    """The first launch has the link, and nothing is left that waits."""
    pool.links.launched(LAUNCH)
    pool.links.launched(LAUNCH)
    pool.add(LAUNCH.id)
    pool.settle()
    assert [launch for launch, _ in pool.owner.sessions] == [LAUNCH]
    pool.links.launched(Launch(False, None, "00000007"))
    pool.links.launched(Launch(False, None, "00000007"))
    pool.links.close(Cause.STOPPED, "it is over", linger=True)
    assert not [call for call in pool.clock.getDelayedCalls() if call.active()]


def test_few_links_that_are_not_there_are_awaited(pool: Pool) -> None:
    """A peer that names any number of them makes this node hold a bounded number."""
    for number in range(MOST_AWAITED + 9):
        pool.links.launched(Launch(False, None, f"{number:08x}"))
    assert len(pool.clock.getDelayedCalls()) == MOST_AWAITED
    pool.clock.advance(ID_WAIT)
    assert not pool.clock.getDelayedCalls()


@pytest.mark.parametrize("dialect", [Dialect.V1_6, Dialect.V1_6_RAW])
def test_a_peer_that_misreads_numbers_is_told_of(dialect: Dialect) -> None:
    """A client of the other kind of 1.6 names the start of a link's number: it is said once, with
    the cure. Other numbers that are not there say nothing of the kind."""
    pool = Pool(dialect)
    pool.add("a1b2c3d4")
    pool.settle()
    for number in ("61316233", "a1b2c3d5"):  # "a1b3" is no link's start
        pool.links.launched(Launch(False, None, number))
    assert pool.log.found == []
    for _ in range(2):
        pool.links.launched(Launch(False, None, b"a1b2".hex()))
    if dialect is Dialect.V1_6_RAW:
        assert pool.log.found == []
    else:
        (line,) = pool.log.found
        assert "peer takes numbers of data links as raw bytes" in line
        assert "write wire=1.6-raw at this server" in line


def test_launches_beyond_the_bound_cost_little() -> None:
    """A peer that names any number of links which are not there does not have those that are looked
    through for each: only for launches that are awaited."""
    looked: list[None] = []

    class Numbers(list[str]):
        def __contains__(self, number: object) -> bool:
            looked.append(None)
            return False

    awaited = AwaitedLaunches(Dialect.V1_6, Numbers(), Clock(), Lines(), "peer", lambda: None)
    for number in range(MOST_AWAITED + 9):
        awaited.add(Launch(False, None, f"6131{number:04x}"))
        awaited.add(Launch(False, None, f"6131{number:04x}"))
    assert len(looked) == MOST_AWAITED


def test_links_that_a_dry_peer_has_lost(pool: Pool) -> None:
    """A peer that takes the link that has only just come has lost those before: they do not count,
    and when that is certain they are closed. One that it names after all is as good as any."""
    for number in ("00000001", "00000002"):
        pool.add(number)
    pool.settle()
    pool.clock.advance(CERTAIN - 2 * YOUNGER)
    pool.add("00000003")
    pool.settle()
    pool.clock.advance(YOUNGER)
    for number in ("00000004", "00000005"):
        pool.add(number)
    pool.settle()
    pool.links.launched(Launch(False, None, "00000005"))
    assert (pool.links.idle, len(pool.links)) == (1, 5)
    pool.links.launched(Launch(False, None, "00000002"))
    assert (pool.links.idle, len(pool.owner.sessions)) == (1, 2)
    pool.clock.advance(YOUNGER)
    pool.add("00000006")
    pool.settle()
    pool.links.launched(Launch(False, None, "00000006"))
    pool.settle()
    assert "00000001" not in pool.links
    assert "00000003" in pool.links and "00000004" in pool.links


def test_any_link_of_a_pool_at_rest(pool: Pool) -> None:
    """Which of its links a peer takes that has some is its own affair."""
    for number in ("00000001", "00000002"):
        pool.add(number)
        pool.settle()
        pool.clock.advance(CERTAIN)
    pool.links.launched(Launch(False, None, "00000002"))
    assert (pool.links.idle, len(pool.links)) == (1, 2)


def test_a_flush_is_for_links_that_count_as_lost_too(pool: Pool) -> None:
    """All that no visitor has are dropped."""
    pool.add("00000001")
    pool.settle()
    pool.clock.advance(YOUNGER)
    for number in ("00000002", "00000003"):
        pool.add(number)
    pool.settle()
    pool.links.launched(Launch(False, None, "00000002"))
    pool.links.flush()
    pool.settle()
    assert (pool.links.idle, len(pool.links)) == (0, 1)


def test_a_link_that_the_other_end_does_not_let_go(pool: Pool) -> None:
    """As a TLS connection that waits for the other's end. It is cut."""
    pool.add(LAUNCH.id)
    pool.settle()
    pool.links.flush()
    assert len(pool.links) == 1
    pool.clock.advance(FINISHED_PATIENCE - 1)
    assert not pool.pairs[0][0].aborting
    pool.clock.advance(1)
    assert pool.pairs[0][0].aborting


def test_links_that_a_1_6_peer_has_filed() -> None:
    """A visitor is given a link once the peer has filed it, as one is lost that is named before:
    when a later one comes, as the peer makes one after the other, or after a while."""
    pool = Pool(Dialect.V1_6, takes=True)
    for number in ("00000001", "00000002"):
        pool.add(number)
    pool.settle()
    assert pool.links.idle == 0
    pool.clock.advance(NEXT_LINK)
    pool.add("00000003")
    pool.settle()
    assert pool.links.idle == 2
    pool.clock.advance(FILING_TIME)
    assert pool.links.idle == 3
    assert not pool.clock.getDelayedCalls()


@pytest.fixture
def full() -> Pool:
    """The pool of a client that keeps two idle links, and has them."""
    full = Pool(Dialect.V1_6, policy=DemandPolicy(2, 9))
    full.links.balance()
    for number in range(full.owner.needs):
        full.add(f"{number:08x}")
    full.settle()
    assert full.links.idle == full.owner.needs == 2
    full.owner.needs = 0
    return full


def test_links_that_the_server_closes_are_replaced_a_little_later(full: Pool) -> None:
    """Not at once, as it may be gone, and another one there already, which takes what looks for a
    link for somebody who does not shake hands."""
    for _, far in full.pairs:
        far.loseConnection()
    full.settle()
    full.links.balance()  # whoever asks
    full.clock.advance(REPLACE_AFTER - 0.01)
    assert full.links.idle == full.owner.needs == 0
    full.clock.advance(0.01)
    assert full.owner.needs == 2


def test_links_that_a_dead_server_closes_are_not_replaced(full: Pool) -> None:
    """Its control link goes with them: there is no more to be done for it."""
    full.links.launched(Launch(False, None, "00000000"))
    assert full.owner.needs == 1  # for the one that is taken
    for _, far in full.pairs:
        far.abortConnection()
    full.settle()
    full.links.close(Cause.LOST, "its control link is lost", linger=True)
    full.clock.advance(10.0)
    assert full.owner.needs == 1 and not full.clock.getDelayedCalls()


def test_a_session_that_is_over_holds_up_no_link(full: Pool) -> None:
    """Where sessions follow each other links are asked for as they are taken."""
    full.links.launched(Launch(False, None, "00000000"))
    full.pairs[0][1].abortConnection()
    full.settle()
    assert full.owner.needs == 1
    full.links.launched(Launch(False, None, "00000001"))
    assert full.owner.needs == 2


def test_early_bytes_of_sessions_hold_up_no_link(full: Pool) -> None:
    """A visitor's bytes may be here before its launch. It is no sign of a dead peer: whoever asks
    for links gets them, and once for each visitor."""
    for _, far in full.pairs:
        far.write(b"early")
    full.settle()
    assert full.links.idle == 0
    full.links.balance()
    assert full.owner.needs == 2
    full.links.launched(Launch(False, None, "00000000"))
    full.links.launched(Launch(False, None, "00000001"))
    assert full.owner.needs == 2
    assert len(full.owner.sessions) == 2


def test_early_ends_of_sessions_hold_up_no_link(full: Pool) -> None:
    """As those of visitors that look whether somebody is there. Their launches say that the peer
    is."""
    for near, _ in full.pairs:
        near.protocol.readConnectionLost()
    full.links.balance()
    assert full.owner.needs == 0
    full.links.launched(Launch(False, None, "00000000"))
    full.links.launched(Launch(False, None, "00000001"))
    assert full.owner.needs == 2


def test_one_link_that_is_lost_holds_up_no_other(full: Pool) -> None:
    """A live peer closes one now and then: who needs a link asks for it."""
    full.pairs[0][1].abortConnection()
    full.settle()
    assert full.owner.needs == 0
    full.links.balance()
    assert full.owner.needs == 1
