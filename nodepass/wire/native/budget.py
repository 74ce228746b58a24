"""Keeps guessing at the key slow and PAKE work cheap. No I/O and no clock of its own."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from attrs import define

#: Share of one core that PAKE work may take. An attacker's handshakes must not slow visitors.
PAKE_SHARE = 0.10
#: Seconds of CPU that one PAKE takes at the server (SPAKE2 in pure Python, both steps).
PAKE_COST = 0.010
#: Seconds of CPU that may be spent at once: some 50 clients that come back after a restart.
PAKE_BURST = 0.5
#: Handshakes that may wait for the budget; at 10 a second they wait for less than the timeout.
PAKE_QUEUE = 64

#: Wrong guesses that one address has before it must wait, and seconds until it has one more.
GUESS_BURST = 10
GUESS_REFILL = 10.0
#: Most guesses that one address can owe. Guesses made side by side are known to be wrong only when
#: all were let in, so that without a debt they would cost no more than one; without a bound to it,
#: others behind the same address would be kept out for hours.
GUESS_DEBT = 60
#: Addresses remembered; beyond them the longest unseen is forgotten.
MAX_ADDRESSES = 4096


class PakeBudget:
    """When the next PAKE may be done."""

    def __init__(self) -> None:
        self._spent_until = float("-inf")  # virtual time up to which the budget is used
        self.waiting = 0

    def delay(self, now: float) -> float | None:
        """Take the cost of one PAKE: seconds to wait first, or None when too many wait already."""
        if self.waiting >= PAKE_QUEUE:
            return None
        burst = PAKE_BURST / PAKE_SHARE
        self._spent_until = max(self._spent_until, now - burst) + PAKE_COST / PAKE_SHARE
        return max(0.0, self._spent_until - now)


@define
class _Guesses:
    left: float
    at: float


class GuessLimit:
    """Which addresses have spent their guesses.

    An attacker has an IPv6 /64 as easily as an address, so a /64 counts as one.
    """

    def __init__(self) -> None:
        self._table: OrderedDict[str, _Guesses] = OrderedDict()

    def allows(self, host: str, now: float) -> bool:
        """Whether this address may try."""
        entry = self._table.get(_network(host))
        return entry is None or self._left(entry, now) >= 1

    def failed(self, host: str, now: float) -> None:
        """This address has guessed wrong."""
        network = _network(host)
        entry = self._table.get(network)
        if entry is None:
            entry = self._table[network] = _Guesses(GUESS_BURST, now)
            if len(self._table) > MAX_ADDRESSES:
                self._table.popitem(last=False)
        entry.left = max(-float(GUESS_DEBT), self._left(entry, now) - 1)
        entry.at = now
        self._table.move_to_end(network)

    def _left(self, entry: _Guesses, now: float) -> float:
        return min(GUESS_BURST, entry.left + (now - entry.at) / GUESS_REFILL)


def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
