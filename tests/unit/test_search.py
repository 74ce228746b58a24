"""A client's search for its server, dialect by dialect."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from nodepass.errors import PeerError
from nodepass.health import Health
from nodepass.logs import Level, Log
from nodepass.wire.search import Search


class FakeWay:
    """A dialect that the server speaks, or does not."""

    peer = None

    def __init__(self, dialect: str, works: bool, trusted: bool = False) -> None:
        self.dialect = dialect
        self.works = works
        self.trusted = trusted
        self.joined = False
        self.tries = 0

    async def join(self) -> None:
        self.tries += 1
        if not self.works:
            raise PeerError(f"no {self.dialect} here")
        self.joined = True

    def failed(self, error: Exception) -> float:
        return 3.0

    def lost(self) -> float:
        self.joined = False
        return 3.0

    def stop(self) -> None:
        pass


def search(*ways: FakeWay) -> tuple[Search, Clock, list[str]]:
    """A search among these ways, begun, and what it warns of."""
    said: list[str] = []

    class Noting(Log):
        def warn(self, text: str, **fields: Any) -> None:
            said.append(text.format(**fields))

    clock = Clock()
    found = Search(list(ways), clock, Health(Noting(Level.NONE)))
    found.start()
    return found, clock, said


def test_falling_back_is_said() -> None:
    """A dialect that comes about because others failed is named, with their reasons; it comes first
    from then on, and is not worth a word again."""
    native, old = FakeWay("native", False, trusted=True), FakeWay("1.14", True)
    found, clock, said = search(native, old)
    assert said == [
        "wire 1.14 is spoken with the server, as others failed: wire native: no native here"
    ]
    found.lost()
    clock.advance(5.0)
    assert (native.tries, old.tries, len(said)) == (1, 2, 1)
    found.stop()


def test_no_way_below_one_that_proves_the_key() -> None:
    """Once such a one has worked the others are tried no more."""
    native, old = FakeWay("native", True, trusted=True), FakeWay("1.14", True)
    found, clock, said = search(native, old)
    native.works = False
    found.lost()
    clock.advance(5.0)
    assert (native.tries, old.tries) == (2, 0)
    assert not [line for line in said if "is spoken" in line]
    found.stop()
