"""Lines that sum up what happens often."""

from __future__ import annotations

from twisted.internet.task import Clock

from nodepass.relay.tally import INTERVAL, Tally


def test_one_line_a_minute() -> None:
    """The first time is said at once; later ones together, without another one to wait for."""
    clock, said = Clock(), list[int]()
    tally = Tally(clock, said.append)
    tally.add()
    assert (said, clock.getDelayedCalls()) == ([1], [])
    clock.advance(INTERVAL / 2)
    for _ in range(5):
        tally.add()
    clock.advance(INTERVAL / 2 - 1)
    assert said == [1]
    clock.advance(1)
    assert (said, clock.getDelayedCalls()) == ([1, 5], [])


def test_the_pause_follows_every_line() -> None:
    """While it goes on there is a line a minute; after a quiet minute the next time is a first."""
    clock, said = Clock(), list[int]()
    tally = Tally(clock, said.append)
    for _ in range(180):
        tally.add()
        clock.advance(1)
    assert said == [1, 59, 60, 60]
    clock.advance(INTERVAL)
    assert len(said) == 4
    tally.add()
    assert said[4:] == [1]


def test_flush() -> None:
    """What is unsaid can be asked for before its time; nothing is left to run."""
    clock, said = Clock(), list[int]()
    tally = Tally(clock, said.append)
    tally.flush()
    tally.add()
    tally.add()
    tally.flush()
    tally.flush()
    assert (said, clock.getDelayedCalls()) == ([1, 1], [])
