"""What a parent makes of what its workers say: joins by node, lines once."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from nodepass.config import ClientConfig, parse_url
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.roles.register import Change, Register
from nodepass.workers.chorus import SAME_NEWS, Chorus
from nodepass.workers.messages import News
from nodepass.workers.speaker import Speaker


class Noting(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(Level.INFO)
        self.lines: list[str] = []

    def info(self, format: str, /, **fields: Any) -> None:
        self.lines.append(format.format(**fields))


def test_a_node_of_many_processes_is_one_node() -> None:
    """It is there with its first association, lost with the last control link, gone with all."""
    register = Register()
    pairs = [(ours, theirs) for ours in range(2) for theirs in range(2)]

    def all_(what: str) -> list[Change]:
        return [register.note(ours, theirs, what, ("node", theirs), "n") for ours, theirs in pairs]

    nothing = Change.NOTHING
    assert all_("joined") == [Change.JOINED, nothing, nothing, nothing]
    assert register.count == 1
    assert all_("lost") == [nothing, nothing, nothing, Change.LOST]
    assert (register.count, register.empty) == (0, False)
    assert all_("returned") == [Change.RETURNED, nothing, nothing, nothing]
    assert all_("left") == [nothing, nothing, nothing, Change.LEFT]
    assert (register.count, register.empty) == (0, True)


def test_nodes_that_look_alike_are_told_apart() -> None:
    """Two processes that run one URL are two nodes, though they name the same."""
    register = Register()
    origin = ("node", 0)
    assert register.note(0, "one", "joined", origin, "n") is Change.JOINED
    assert register.note(1, "one", "joined", origin, "n") is Change.NOTHING
    assert register.note(0, "two", "joined", origin, "n") is Change.JOINED
    assert register.note(1, "two", "joined", origin, "n") is Change.NOTHING
    assert register.count == 2
    assert register.note(0, "one", "left", origin, "n") is Change.NOTHING
    assert register.note(1, "one", "left", origin, "n") is Change.LEFT
    assert register.count == 1


def test_a_part_that_comes_back_is_told() -> None:
    """The loss of each association is told, and so is its return, as the same or a new one."""
    register = Register()
    for ours in range(2):
        register.note(ours, "peer", "joined", ("node", 0), "n")
    assert register.note(1, "peer", "lost", ("node", 0), "n") is Change.NOTHING
    assert register.note(1, "peer", "left", ("node", 0), "n") is Change.NOTHING
    assert register.note(1, "new", "joined", ("node", 0), "n") is Change.RETURNED
    assert register.note(1, "more", "joined", ("node", 1), "n") is Change.NOTHING
    assert register.count == 1


def test_the_peers_of_a_dead_worker_are_forgotten() -> None:
    """Nodes that other workers are joined with stay; the others are named."""
    register = Register()
    register.note(0, 1, "joined", ("both", 0), "two of us")
    register.note(1, 1, "joined", ("both", 0), "two of us")
    register.note(1, 2, "joined", ("one", 0), "only one")
    assert register.forget(1) == ["only one"]
    assert register.count == 1


def test_what_all_say_is_one_line() -> None:
    """Once from each is one line; twice from one is two; late is news again."""
    chorus = Chorus()
    assert chorus.is_news(0, "it rains", 0.0)
    assert not chorus.is_news(1, "it rains", 1.0)
    assert chorus.is_news(1, "it snows", 1.0)
    assert chorus.is_news(0, "it rains", 2.0)
    assert not chorus.is_news(1, "it rains", 3.0)
    assert chorus.is_news(2, "it rains", 2.0 + SAME_NEWS)


def test_one_worker_that_comes_back_is_one_line() -> None:
    """However many of ours it was the peer of; when it is lost again that is told anew."""
    log, clock = Noting(), Clock()
    config = parse_url("client://k@h:1/t:2?mode=2&workers=2")
    assert isinstance(config, ClientConfig)
    speaker = Speaker(config, Health(log), clock, left=lambda: None)

    def news(what: str, peer: int, theirs: int) -> None:
        for ours in range(2):
            speaker.news(ours, News(what, peer, "node", theirs, "server (h:1)", "words"))

    news("joined", 1, 0)
    news("joined", 2, 1)
    assert log.lines == ["tunnel established with server (h:1), words"]
    for peer in (3, 4):
        del log.lines[:]
        news("lost", peer - 2 if peer == 3 else 3, 0)
        news("left", peer - 2 if peer == 3 else 3, 0)
        news("joined", peer, 0)
        assert log.lines == ["tunnel established again with server (h:1), words"]
