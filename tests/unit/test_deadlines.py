"""One timer for all that may take equally long."""

from __future__ import annotations

from twisted.internet.task import Clock

from nodepass.relay.engine.deadlines import Deadlines


def test_each_is_called_in_its_time() -> None:
    """Not before, once, and not when it was removed."""
    clock, called = Clock(), list[str]()
    deadlines = Deadlines(clock, 10.0)
    one, two, three = (lambda name=name: called.append(name) for name in ("one", "two", "three"))
    deadlines.add(one)
    clock.advance(4)
    deadlines.add(two)
    deadlines.add(three)
    deadlines.remove(two)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(6)
    assert called == ["one"]
    clock.advance(3.9)
    assert called == ["one"]
    clock.advance(0.1)
    assert called == ["one", "three"]
    assert not clock.getDelayedCalls()


def test_what_is_late_may_begin_anew() -> None:
    """One that adds another from within its call leaves one timer, which ends with the last."""
    clock, called = Clock(), list[str]()
    deadlines = Deadlines(clock, 10.0)

    def again() -> None:
        called.append("again")
        deadlines.add(last)

    def last() -> None:
        called.append("last")

    def other() -> None:
        called.append("other")

    deadlines.add(again)
    clock.advance(5)
    deadlines.add(other)
    clock.advance(5)
    assert called == ["again"]
    assert len(clock.getDelayedCalls()) == 1
    deadlines.remove(other)
    deadlines.remove(last)
    assert not clock.getDelayedCalls()


def test_one_may_remove_another_that_is_due() -> None:
    """It is not called any more."""
    clock, called = Clock(), list[str]()
    deadlines = Deadlines(clock, 1.0)

    def second() -> None:
        called.append("second")

    def first() -> None:
        called.append("first")
        deadlines.remove(second)

    deadlines.add(first)
    deadlines.add(second)
    clock.advance(1)
    assert called == ["first"]
    assert not clock.getDelayedCalls()
