"""What waits for a link: bounded, shared fairly, served in turn."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from nodepass.wire.native.fairqueue import OVERHEAD, TURN_BYTES, FairQueue

ROOM = 100 * (100 + OVERHEAD)  # a hundred datagrams of 100 bytes


def numbered(count: int, size: int = 100) -> list[bytes]:
    """Datagrams that can be told apart."""
    return [b"%d" % number + bytes(size - len(b"%d" % number)) for number in range(count)]


def drain(queue: FairQueue[str]) -> list[tuple[str, list[bytes]]]:
    """All turns until nothing waits."""
    turns = []
    while queue:
        turns.append(queue.take())
    return turns


def test_a_flow_may_hold_as_much_as_is_free() -> None:
    """Alone it gets half of the room, a second one half of the rest, a third half of that."""
    queue: FairQueue[str] = FairQueue(ROOM)
    lost = {flow: len(queue.offer(flow, numbered(1000))) for flow in "abc"}
    assert lost == {"a": 950, "b": 975, "c": 987}
    assert queue.cost <= ROOM


def test_a_quiet_flow_loses_nothing_beside_floods() -> None:
    """What it sends is kept, whatever others send before, after and in between."""
    queue: FairQueue[str] = FairQueue(ROOM)
    for data in numbered(10):
        for flood in ("flood", "another"):
            queue.offer(flood, numbered(1000))
        assert queue.offer("quiet", [data]) == []
    left = [data for flow, batch in drain(queue) for data in batch if flow == "quiet"]
    assert left == numbered(10)


def test_flows_are_served_in_turn() -> None:
    """A turn is bounded, at least one datagram, and then it is the next flow's."""
    queue: FairQueue[str] = FairQueue(1 << 20)
    queue.offer("a", numbered(3, 10_000))
    queue.offer("b", numbered(1000, 200))
    queue.offer("c", [bytes(60_000), b"last"])
    turns = drain(queue)
    assert [flow for flow, _ in turns[:6]] == ["a", "b", "c", "a", "b", "c"]
    for _, batch in turns:
        assert sum(len(data) + OVERHEAD for data in batch[:-1]) < TURN_BYTES
    assert [data for flow, batch in turns for data in batch if flow == "b"] == numbered(1000, 200)
    assert queue.cost == 0


def test_datagrams_without_bytes_are_bounded() -> None:
    """Keeping one costs something, whatever it carries."""
    queue: FairQueue[str] = FairQueue(10 * OVERHEAD)
    assert len(queue.offer("a", [b""] * 100)) == 95


def test_what_a_flow_held_is_given_back_with_it() -> None:
    """It is returned in order, and its room is free again."""
    queue: FairQueue[str] = FairQueue(ROOM)
    queue.offer("a", numbered(50))
    queue.offer("b", [b"b"])
    assert queue.remove("a") == numbered(50)
    assert queue.remove("a") == []
    assert queue.offer("c", numbered(40)) == []
    assert {flow for flow, _ in drain(queue)} == {"b", "c"}
    queue.offer("a", numbered(1))
    queue.clear()
    assert (len(queue), queue.cost) == (0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.lists(st.integers(0, 3000), max_size=5))
        | st.just("take")
        | st.sampled_from("abcd")
    )
)
def test_whatever_happens(steps: list[tuple[str, list[int]] | str]) -> None:
    """What is kept leaves once and in each flow's order, and never costs more than the room."""
    queue: FairQueue[str] = FairQueue(ROOM)
    kept: dict[str, list[bytes]] = defaultdict(list)
    for step in steps:
        if step == "take":
            if queue:
                flow, batch = queue.take()
                assert batch
                assert kept[flow][: len(batch)] == batch
                del kept[flow][: len(batch)]
        elif isinstance(step, str):
            assert queue.remove(step) == kept.pop(step, [])
        else:
            flow, sizes = step
            batch = [bytes(size) for size in sizes]
            lost = queue.offer(flow, list(batch))
            # Of those that look alike the first are kept, as room only becomes less.
            batch.reverse()
            for data in lost:
                batch.remove(data)
            kept[flow] += reversed(batch)
        every = [data for waiting in kept.values() for data in waiting]
        assert queue.cost == sum(len(data) + OVERHEAD for data in every) <= ROOM
        assert len(queue) == sum(bool(waiting) for waiting in kept.values())
