"""Who may use the interface: whoever knows the key, and guessing it is slow.

Only failures are delayed. A right key is let in at once, whatever came from its address before:
behind a reverse proxy all visitors have one address, and none may lock out the rest.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

from attrs import define, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from nodepass.logs import Log, printable

__all__ = ["Access", "Refusal"]

#: Seconds that the first wrong key of an address waits for its answer; each further one twice as
#: long as the one before.
FIRST_DELAY = 0.05
#: The longest such delay, seconds: it slows a guesser down, and a person who mistyped hardly.
LONGEST_DELAY = 1.0
#: Seconds without a wrong key after which an address counts as new.
FORGOTTEN_AFTER = 60.0
#: Addresses whose failures are remembered; the one that failed longest ago makes room.
MOST_ADDRESSES = 1024
#: Answers to one address that may be delayed at a time. More are given at once, with the end of
#: the connection, so that they cost the guesser a new one and the master nothing.
MOST_DELAYED_EACH = 16
#: Answers that may be delayed at a time, of all addresses.
MOST_DELAYED = 256
#: Bits of an IPv6 address that count: whoever has one has all that begin like it.
IPV6_PREFIX = 64

REQUIRED = "Unauthorized: API key required"
INVALID = "Unauthorized: Invalid API key"


@frozen
class Refusal:
    """Why a request is not served.

    :ivar message: what its answer, a 401, says.
    :ivar close: whether the connection ends with it.
    """

    message: str
    close: bool = False


@define(eq=False)
class _Guesser:
    """What is known of an address that sent wrong keys."""

    failures: int = 0
    latest: float = 0.0
    delayed: int = 0


class Access:
    """Checks keys.

    :param key: returns the key that is right at the moment.
    """

    def __init__(self, clock: IReactorTime, key: Callable[[], str], log: Log) -> None:
        self._clock = clock
        self._key = key
        self._log = log
        # Longest without a failure first.
        self._guessers: dict[str, _Guesser] = {}
        self._delayed = 0

    @property
    def delayed(self) -> int:
        """Answers that are being delayed."""
        return self._delayed

    def knows(self, given: bytes | None) -> bool:
        """Tell whether a key is the right one."""
        return given is not None and hmac.compare_digest(given, self._key().encode())

    def check(self, given: bytes | None, address: str) -> Deferred[Refusal | None]:
        """Tell whether a request may be served; fires with None at once when it may.

        :param given: the key that the request came with, None without one.
        :param address: where it came from.
        :returns: To be cancelled when nobody waits for the answer any more.
        """
        if not given:
            # This guesses nothing.
            return succeed(Refusal(REQUIRED))
        if self.knows(given):
            return succeed(None)
        self._log.limited(
            ("access", _network(address)),
            "access denied to {address}: wrong API key",
            address=printable(address),
        )
        guesser = self._failed(_network(address))
        if guesser.delayed >= MOST_DELAYED_EACH or self._delayed >= MOST_DELAYED:
            return succeed(Refusal(INVALID, close=True))
        return self._later(guesser)

    def _failed(self, network: str) -> _Guesser:
        """Count a failure."""
        now = self._clock.seconds()
        guesser = self._guessers.pop(network, None) or _Guesser()
        if now - guesser.latest > FORGOTTEN_AFTER:
            guesser.failures = 0
        guesser.failures += 1
        guesser.latest = now
        while len(self._guessers) >= MOST_ADDRESSES:
            del self._guessers[next(iter(self._guessers))]
        self._guessers[network] = guesser
        return guesser

    def _later(self, guesser: _Guesser) -> Deferred[Refusal | None]:
        # The exponent is bounded, as failures are not.
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(guesser.failures - 1, 10))
        self._delayed += 1
        guesser.delayed += 1

        def over() -> None:
            self._delayed -= 1
            guesser.delayed -= 1

        def answer() -> None:
            over()
            result.callback(Refusal(INVALID))

        def cancel(_: Deferred[Refusal | None]) -> None:
            call.cancel()
            over()

        call = self._clock.callLater(delay, answer)
        result: Deferred[Refusal | None] = Deferred(cancel)
        return result


def _network(address: str) -> str:
    """Return what stands for all addresses that a stranger may well have together."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ip_network((ip, IPV6_PREFIX), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)
