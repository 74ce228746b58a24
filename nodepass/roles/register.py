"""Who is joined with the whole: the peers of all workers, as nodes. No I/O.

A node with several workers, or joined with several of ours, is one node. Each of its associations
is between one of its workers and one of ours; where the same two have more than one, there are as
many nodes that look alike, such as two processes that run one URL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum

from attrs import define

__all__ = ["Change", "Register"]


class Change(Enum):
    """What news of an association are for the whole."""

    NOTHING = "nothing new"
    JOINED = "a node is there"
    RETURNED = "a node that was lost, or a part of it, is back"
    LOST = "no association of the node has a control link"
    LEFT = "the last association of the node is over"


@define
class _Association:
    node: str
    worker: int
    name: str
    present: bool


class Register:
    """The associations of all workers."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, object], _Association] = {}
        self._missed: set[tuple[int, str, int]] = set()  # whose loss was told, as that of each is

    @property
    def count(self) -> int:
        """Nodes that have a control link now."""
        return self._count(lambda one: one.present)

    @property
    def empty(self) -> bool:
        """Whether no association is left, with a control link or without."""
        return not self._known

    def note(
        self, ours: int, peer: object, what: str, origin: tuple[str, int], name: str
    ) -> Change:
        """There is news of a peer.

        :param ours: which of our workers it is the peer of.
        :param peer: what that worker knows it by.
        :param what: "joined", "returned", "lost" or "left".
        :param origin: the other node, and which of its workers.
        :param name: the node's, for log lines.
        """
        before, nodes = self.count, self._nodes
        if what == "left":
            self._known.pop((ours, peer), None)
            return Change.LEFT if self._nodes < nodes else Change.NOTHING
        self._known[ours, peer] = _Association(*origin, name, what != "lost")
        one = (ours, *origin)
        if what == "lost":
            self._missed.add(one)
            return Change.LOST if self.count < before else Change.NOTHING
        missed = one in self._missed
        self._missed.discard(one)
        if self.count > before:
            # It is told of as a whole.
            self._missed = {each for each in self._missed if each[1] != origin[0]}
            return Change.RETURNED if what == "returned" else Change.JOINED
        return Change.RETURNED if missed else Change.NOTHING

    def forget(self, ours: int) -> list[str]:
        """One of our workers is no more.

        :returns: the names of nodes that have no association any more.
        """
        gone = {one.node: one.name for (worker, _), one in self._known.items() if worker == ours}
        self._known = {key: one for key, one in self._known.items() if key[0] != ours}
        self._missed = {one for one in self._missed if one[0] != ours}
        left = {one.node for one in self._known.values()}
        return [name for node, name in gone.items() if node not in left]

    @property
    def _nodes(self) -> int:
        return self._count(lambda one: True)

    def _count(self, counts: Callable[[_Association], bool]) -> int:
        alike: Counter[tuple[str, int, int]] = Counter()
        for (ours, _), one in self._known.items():
            alike[one.node, one.worker, ours] += counts(one)
        most: Counter[str] = Counter()
        for (node, _, _), number in alike.items():
            most[node] = max(most[node], number)
        return sum(most.values())
