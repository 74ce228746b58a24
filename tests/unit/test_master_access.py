"""Keys of the master's interface: who gets in, and how long the others wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from nodepass.logs import Level, Log
from nodepass.master import access as access_module
from nodepass.master.access import (
    FIRST_DELAY,
    FORGOTTEN_AFTER,
    INVALID,
    LONGEST_DELAY,
    MOST_ADDRESSES,
    MOST_DELAYED,
    MOST_DELAYED_EACH,
    REQUIRED,
    Access,
    Refusal,
)

KEY = "0123456789abcdef0123456789abcdef"


class Bench:
    """An access on a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.key = KEY
        log = Log(Level.INFO, clock=self.clock.seconds)
        self.access = Access(self.clock, lambda: self.key, log)

    def check(self, given: bytes | None, address: str = "192.0.2.1") -> list[Refusal | None]:
        """Check a key; the list gets the outcome when it is there."""
        outcome: list[Refusal | None] = []
        self.access.check(given, address).addCallback(outcome.append)
        return outcome

    def delay(self, address: str = "192.0.2.1") -> float:
        """Send a wrong key and return how long the answer took."""
        outcome = self.check(b"wrong", address)
        start = self.clock.seconds()
        if not outcome:
            self.clock.advance(min(call.time for call in self.clock.getDelayedCalls()) - start)
        assert outcome == [Refusal(INVALID)]
        return self.clock.seconds() - start


@pytest.fixture
def bench() -> Bench:
    """A bench."""
    return Bench()


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """Events logged while the test runs."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def test_right_key(bench: Bench) -> None:
    """The right key gets in at once; after it was changed the old one does not."""
    assert bench.check(KEY.encode()) == [None]
    bench.key = "f" * 32
    assert bench.check(KEY.encode()) == []
    assert bench.check(b"f" * 32) == [None]


@pytest.mark.parametrize("given", [None, b""])
def test_no_key(bench: Bench, given: bytes | None) -> None:
    """Without a key the answer is immediate: it guesses nothing, and delays nobody after it."""
    for _ in range(100):
        assert bench.check(given) == [Refusal(REQUIRED)]
    assert bench.delay() == pytest.approx(FIRST_DELAY)


@pytest.mark.parametrize(
    "given", [b"x", b"\xff\x00\xfe" * 11, KEY.encode() + b" ", KEY.upper().encode(),
              KEY[:-1].encode(), b"x" * 16_000, "é".encode()]
)  # fmt: skip
def test_wrong_keys(bench: Bench, given: bytes) -> None:
    """Any other bytes are a wrong key, answered after a while."""
    outcome = bench.check(given)
    assert outcome == []
    bench.clock.advance(FIRST_DELAY)
    assert outcome == [Refusal(INVALID)]
    assert str(Refusal(INVALID).message) == "Unauthorized: Invalid API key"
    assert REQUIRED == "Unauthorized: API key required"


def test_compared_in_constant_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is the one made for secrets, on all bytes of both."""
    compared: list[tuple[bytes, bytes]] = []
    real = access_module.hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(access_module.hmac, "compare_digest", compare)
    bench.check(b"x")
    assert compared == [(b"x", KEY.encode())]


def test_delays_grow_to_a_bound(bench: Bench) -> None:
    """Each wrong key of an address waits twice as long as the one before, up to a second."""
    delays = [bench.delay() for _ in range(2000)]
    assert delays[:4] == pytest.approx([FIRST_DELAY * 2**n for n in range(4)])
    assert delays[-1] == pytest.approx(LONGEST_DELAY)
    assert max(delays) <= LONGEST_DELAY + 1e-6
    # Another address is not concerned, and time heals.
    assert bench.delay("192.0.2.2") == pytest.approx(FIRST_DELAY)
    bench.clock.advance(FORGOTTEN_AFTER + 1)
    assert bench.delay() == pytest.approx(FIRST_DELAY)


def test_right_key_is_never_delayed(bench: Bench) -> None:
    """Whatever failed before or waits now, also from the same address, the right key gets in; and
    it does not clear those who guess beside it."""
    for _ in range(50):
        bench.delay()
    waiting = [bench.check(b"wrong") for _ in range(MOST_DELAYED_EACH)]
    assert bench.check(KEY.encode()) == [None]
    assert not any(waiting)
    bench.clock.advance(LONGEST_DELAY)
    assert all(waiting)
    assert bench.delay() == pytest.approx(LONGEST_DELAY)


def test_bound_of_delays_of_an_address(bench: Bench) -> None:
    """Beyond the bound answers come at once, and with the end of the connection."""
    waiting = [bench.check(b"wrong") for _ in range(MOST_DELAYED_EACH)]
    assert bench.check(b"wrong") == [Refusal(INVALID, close=True)]
    assert bench.check(b"wrong", "192.0.2.2") == []
    bench.clock.advance(LONGEST_DELAY)
    assert all(outcome == [Refusal(INVALID)] for outcome in waiting)
    assert bench.check(b"wrong") == []


def test_bound_of_all_delays(bench: Bench) -> None:
    """The delays of all addresses together are bounded as well."""
    for number in range(MOST_DELAYED):
        assert bench.check(b"wrong", f"198.51.100.{number}") == []
    assert bench.check(b"wrong", "192.0.2.1") == [Refusal(INVALID, close=True)]
    assert bench.access.delayed == len(bench.clock.getDelayedCalls()) == MOST_DELAYED
    bench.clock.advance(LONGEST_DELAY)
    assert bench.access.delayed == 0


def test_client_that_leaves(bench: Bench) -> None:
    """A delay nobody waits for any more gives its place back."""
    failures: list[Failure] = []
    waiting = [bench.access.check(b"wrong", "192.0.2.1") for _ in range(MOST_DELAYED_EACH)]
    for outcome in waiting:
        outcome.addErrback(failures.append)
        outcome.cancel()
    assert all(failure.check(CancelledError) for failure in failures)
    assert bench.access.delayed == 0 and bench.clock.getDelayedCalls() == []
    assert bench.check(b"wrong") == []


def test_table_is_bounded(bench: Bench) -> None:
    """Addresses without end are forgotten, those that failed longest ago first."""
    bench.delay("203.0.113.1")
    bench.delay("203.0.113.2")
    for number in range(MOST_ADDRESSES - 2):
        bench.delay(f"10.0.{number // 256}.{number % 256}")
    # All are remembered still; that this one fails again makes the second the oldest.
    assert bench.delay("203.0.113.1") == pytest.approx(2 * FIRST_DELAY)
    bench.delay("203.0.113.3")
    assert len(bench.access._guessers) == MOST_ADDRESSES
    assert bench.delay("203.0.113.1") == pytest.approx(4 * FIRST_DELAY)
    assert bench.delay("203.0.113.2") == pytest.approx(FIRST_DELAY)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True), ("2001:db8:1::1", "2001:db8:2::1", False),
     ("::ffff:192.0.2.1", "192.0.2.1", True), ("fe80::1%eth0", "fe80::2%eth0", True),
     ("a local socket", "a local socket", True), ("192.0.2.1", "192.0.2.2", False)],
)  # fmt: skip
def test_addresses_that_belong_together(bench: Bench, one: str, other: str, same: bool) -> None:
    """Whoever has an IPv6 address has a network of them, which counts as one."""
    bench.delay(one)
    assert bench.delay(other) == pytest.approx(FIRST_DELAY * (2 if same else 1))


def test_log_lines(bench: Bench, logged: list[LogEvent]) -> None:
    """A wrong key is logged once a minute for each address, and never the key; a right one, or
    none, is not."""
    for _ in range(20):
        bench.check(b"a-wrong-key")
    bench.check(b"a-wrong-key", "192.0.2.2")
    bench.check(KEY.encode())
    bench.check(None)
    assert [formatEvent(event) for event in logged] == [
        "access denied to 192.0.2.1: wrong API key",
        "access denied to 192.0.2.2: wrong API key",
    ]
    bench.clock.advance(60)
    bench.check(b"a-wrong-key")
    assert formatEvent(logged[-1]) == ("access denied to 192.0.2.1: wrong API key (19 more since)")
    assert "a-wrong-key" not in repr(logged)
