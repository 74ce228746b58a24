"""What the end of a pool waits for."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from nodepass.wire.parting import PARTING_TIMEOUT, Parting


def test_a_pool_without_links() -> None:
    """There is nothing to wait for."""
    clock = Clock()
    assert Parting([], clock).begin(lambda: None).called
    assert not clock.getDelayedCalls()


def test_the_last_link_goes() -> None:
    """That is the end, and nothing is cut."""
    clock, links, cut = Clock(), ["one", "two"], list[float]()
    parting = Parting(links, clock)
    parting.look()
    over = parting.begin(lambda: cut.append(clock.seconds()))
    for gone in (False, True):
        links.pop()
        parting.look()
        assert over.called is gone
    parting.look()
    clock.advance(PARTING_TIMEOUT)
    assert not cut and not clock.getDelayedCalls()


def test_links_that_stay() -> None:
    """They are cut when the time is up, where they may be."""
    clock, links = Clock(), ["one"]
    over = Parting(links, clock).begin(links.clear)
    clock.advance(PARTING_TIMEOUT - 0.01)
    assert links
    clock.advance(0.01)
    assert not links and not over.called  # who cuts says that it is gone
    Parting(["one"], clock).begin(None)
    assert not clock.getDelayedCalls()


def test_it_begins_once() -> None:
    """Another one would forget who waits for the first."""
    parting = Parting(["one"], Clock())
    parting.begin(None)
    with pytest.raises(AssertionError, match="a pool parts once"):
        parting.begin(None)
