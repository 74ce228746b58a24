"""When a client asks an old server for links: at once, unless that may be dead."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from nodepass.pool.policy import DemandPolicy
from nodepass.wire.old.supply import REPLACE_AFTER, SEVERAL, Stock, Supply


class Rig:
    """A client that wants three idle links, and has them."""

    def __init__(self, policy: DemandPolicy | None = None) -> None:
        self.clock = Clock()
        self.stock = Stock(waiting=0, busy=0, unused=3)
        self.asked: list[int] = []
        self.supply = Supply(policy, self.clock, lambda: self.stock, self.asked.append)

    def lose(self, count: int) -> None:
        """So many idle links go."""
        for _ in range(count):
            self.stock = self.stock._replace(unused=self.stock.unused - 1)
            self.supply.gone(idle=True)


@pytest.fixture
def rig() -> Rig:
    """A client's."""
    return Rig(DemandPolicy(3, 9))


def test_what_is_coming_is_not_asked_for_again(rig: Rig) -> None:
    """Each missing link is asked for once; those that come count as unused."""
    rig.stock = Stock(waiting=2, busy=0, unused=0)
    rig.supply.balance()
    first = sum(rig.asked)
    rig.supply.balance()
    assert sum(rig.asked) == first >= 5
    rig.supply.came()
    rig.supply.balance()
    assert sum(rig.asked) == first + 1  # it was gone before it counted


def test_a_server_asks_for_none() -> None:
    """It has as many as its client makes."""
    rig = Rig()
    rig.lose(3)
    rig.supply.balance()
    assert not rig.asked and not rig.clock.getDelayedCalls()


@pytest.mark.parametrize(("lost", "held"), [(1, False), (SEVERAL, True), (SEVERAL + 1, True)])
def test_idle_links_that_go(rig: Rig, lost: int, held: bool) -> None:
    """One is replaced as soon as somebody needs one, several a little later, and each by itself."""
    rig.lose(lost)
    assert not rig.asked
    rig.supply.balance()
    assert sum(rig.asked) == (0 if held else lost)
    rig.clock.advance(REPLACE_AFTER)
    assert sum(rig.asked) == lost
    assert not rig.clock.getDelayedCalls()


def test_sessions_that_are_over(rig: Rig) -> None:
    """Any number of them ends at once without a word about the peer."""
    rig.stock = rig.stock._replace(unused=0)
    for _ in range(9):
        rig.supply.gone(idle=False)
    rig.supply.balance()
    assert sum(rig.asked) == 3


def test_idle_links_that_go_behind_a_session(rig: Rig) -> None:
    """The time is counted from the idle links, whatever went before."""
    rig.supply.gone(idle=False)
    rig.clock.advance(REPLACE_AFTER - 0.01)
    rig.lose(SEVERAL)
    rig.clock.advance(REPLACE_AFTER - 0.01)
    rig.supply.balance()
    assert not rig.asked
    rig.clock.advance(0.01)
    assert sum(rig.asked) == SEVERAL


def test_many_that_go_do_not_put_it_off_for_ever(rig: Rig) -> None:
    """Links of a peer that closes each soon after it has come."""
    rig.lose(SEVERAL)
    for _ in range(5):
        rig.clock.advance(REPLACE_AFTER / 5)
        rig.supply.gone(idle=True)
    assert rig.asked


def test_idle_links_that_go_now_and_then(rig: Rig) -> None:
    """They are not several."""
    for _ in range(5):
        rig.lose(1)
        rig.supply.balance()
        rig.clock.advance(REPLACE_AFTER)
        rig.supply.came()
        rig.stock = rig.stock._replace(unused=3)
    assert rig.asked == [1] * 5


def test_a_peer_that_is_heard_of(rig: Rig) -> None:
    """It is there, and links are asked for at once again."""
    rig.lose(SEVERAL)
    rig.supply.heard()
    rig.supply.balance()
    assert sum(rig.asked) == SEVERAL


def test_the_end(rig: Rig) -> None:
    """None is asked for any more, and nothing is left that would."""
    rig.lose(SEVERAL)
    rig.supply.close()
    rig.supply.gone(idle=True)
    rig.supply.balance()
    assert not rig.asked and not rig.clock.getDelayedCalls()
