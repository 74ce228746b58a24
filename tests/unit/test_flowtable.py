"""The flow table: activity, expiry, and who goes first when there is no room."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from nodepass.relay.flowtable import FlowTable


def table(*keys: str) -> FlowTable[str, str]:
    """A table with a flow of each key, entered a second apart from 0.0 on."""
    flows: FlowTable[str, str] = FlowTable()
    for second, key in enumerate(keys):
        flows.add(key, key.upper(), float(second))
    return flows


def test_lookup() -> None:
    """A flow is found by its key, and an unknown key finds nothing."""
    flows = table("a", "b")

    assert flows.get("a") == "A"
    assert flows.get("x") is None
    assert flows.touch("x", 2.0) is None
    assert flows.answered("x", 2.0) is None
    assert flows.remove("x") is None
    assert "b" in flows and "x" not in flows
    assert len(flows) == 2


def test_a_key_is_entered_once() -> None:
    """Entering a key twice is a mistake of the caller and leaves the first flow in place."""
    flows = table("a")

    with pytest.raises(KeyError):
        flows.add("a", "other", 1.0)
    assert flows.get("a") == "A"


def test_expiry_takes_the_silent_ones() -> None:
    """Flows silent for the whole time go, with those at the very limit; others stay."""
    flows = table("a", "b", "c")

    assert flows.expire(10.9, 10.0, 100) == [("a", "A")]
    assert flows.expire(11.0, 10.0, 100) == [("b", "B")]
    assert flows.flows() == ["C"]


def test_expiry_is_bounded() -> None:
    """No more flows go at a time than asked for, the longest silent first; the rest stay due."""
    flows = table("a", "b", "c")

    assert flows.expire(100.0, 10.0, 2) == [("a", "A"), ("b", "B")]
    assert flows.next_expiry(10.0) == 12.0
    assert flows.expire(100.0, 10.0, 2) == [("c", "C")]


def test_activity_either_way_postpones_expiry() -> None:
    """A datagram towards the target and one from it both count as activity; a look-up does not."""
    flows = table("a", "b", "c")
    assert flows.touch("a", 5.0) == "A"
    assert flows.answered("b", 6.0) == "B"
    flows.get("c")

    assert flows.expire(14.0, 10.0, 100) == [("c", "C")]
    assert flows.expire(16.0, 10.0, 100) == [("a", "A"), ("b", "B")]


def test_next_expiry() -> None:
    """The next expiry is that of the longest silent flow; without flows there is none."""
    flows = table("a", "b")
    flows.touch("a", 3.0)

    assert flows.next_expiry(10.0) == 11.0
    flows.expire(100.0, 10.0, 100)
    assert flows.next_expiry(10.0) is None


def test_victim_is_the_oldest_unanswered() -> None:
    """The oldest flow without an answer goes first, however active it is; answered ones never."""
    flows = table("a", "b", "c")
    flows.answered("a", 3.0)
    flows.touch("b", 4.0)

    assert flows.choose_victim() == "b"
    flows.remove("b")
    assert flows.choose_victim() == "c"
    flows.answered("c", 5.0)
    assert flows.choose_victim() is None


def test_expired_flows_are_no_victims() -> None:
    """A flow that has expired is not offered as a victim any more."""
    flows = table("a")
    flows.expire(100.0, 1.0, 100)

    assert flows.choose_victim() is None


class Model(RuleBasedStateMachine):
    """The table against a plain dict that is searched whole."""

    def __init__(self) -> None:
        super().__init__()
        self.flows: FlowTable[int, int] = FlowTable()
        self.model: dict[int, tuple[float, bool]] = {}  # in order of entry: last activity, answered
        self.now = 0.0

    keys = st.integers(0, 5)

    @rule(step=st.floats(0, 5))
    def pass_time(self, step: float) -> None:
        self.now += step

    @rule(key=keys)
    def add(self, key: int) -> None:
        if key not in self.model:
            self.flows.add(key, key, self.now)
            self.model[key] = (self.now, False)

    @rule(key=keys, answer=st.booleans())
    def datagram(self, key: int, answer: bool) -> None:
        hit = (self.flows.answered if answer else self.flows.touch)(key, self.now)
        assert (hit is not None) == (key in self.model)
        if hit is not None:
            self.model[key] = (self.now, self.model[key][1] or answer)

    @rule(key=keys)
    def remove(self, key: int) -> None:
        assert (self.flows.remove(key) is None) == (self.model.pop(key, None) is None)

    @rule(idle=st.floats(0, 20))
    def expire(self, idle: float) -> None:
        gone = {key for key, (last, _) in self.model.items() if last + idle <= self.now}
        assert {key for key, _ in self.flows.expire(self.now, idle, 100)} == gone
        for key in gone:
            del self.model[key]

    @invariant()
    def agree(self) -> None:
        assert set(self.flows.flows()) == set(self.model)
        unanswered = [key for key, (_, answered) in self.model.items() if not answered]
        assert self.flows.choose_victim() == (unanswered[0] if unanswered else None)


def test_against_model() -> None:
    """Any sequence of events leaves the table as a search through all flows would have it."""
    run_state_machine_as_test(Model)
