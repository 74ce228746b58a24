"""Who is at the tunnel port and has not proved anything yet.

They are few, small and short-lived: the lobby holds so many connections at most, each for the
handshake's time. A TLS object is made only when a whole ClientHello is there and one of a smaller
number of places is free, so that all of them together take less than 32 kB times the size of the
lobby.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.address import Endpoint
from nodepass.logs import Log

__all__ = ["LOBBY_SIZE", "Guest", "Lobby"]

#: Unproven connections held at once; the oldest goes when one more comes.
LOBBY_SIZE = 512
#: Of these, TLS handshakes under way at once. One takes 50 to 80 kB (OpenSSL's buffers for a
#: handshake, Python's objects around them) and the others 13 kB, so that the lobby has its 16 MB.
TLS_PLACES = 96
#: Seconds that a TLS handshake keeps its place while others wait for one: several round trips of a
#: slow line. Who takes longer makes room.
TLS_PLACE_TIME = 2.0


class Guest:
    """A connection in the lobby.

    :ivar address: where it comes from.
    """

    __slots__ = ("_lobby", "_timer", "_transport", "address")

    def __init__(
        self, lobby: Lobby, transport: Any, address: Endpoint, timer: IDelayedCall
    ) -> None:
        self.address = address
        self._lobby = lobby
        self._transport = transport
        self._timer = timer

    def admit(self) -> None:
        """It has proved itself, or is gone: it no longer counts."""
        self._leave()
        self._lobby.tls_over(self)

    def begin_tls(self, begin: Callable[[], None]) -> None:
        """It sent a whole ClientHello: read no more of it until it has a place for TLS.

        :param begin: called when it has one; never when it is gone by then.
        """
        self._transport.pauseProducing()

        def go_on() -> None:
            begin()
            self._transport.resumeProducing()

        self._lobby.queue(self, go_on)

    def turn_away(self) -> None:
        """Drop the connection. A place for TLS is free when it is gone, not before."""
        self._leave()
        self._transport.abortConnection()

    def _leave(self) -> None:
        if self._lobby.remove(self) and self._timer.active():
            self._timer.cancel()


class Lobby:
    """All unproven connections of a listener.

    :param parts: worker processes that share the bounds, each with a lobby of its own.
    """

    def __init__(self, clock: IReactorTime, log: Log, timeout: float, parts: int = 1) -> None:
        self.clock = clock
        self._log = log
        self._timeout = timeout
        self._size = max(1, LOBBY_SIZE // parts)
        self._places = max(1, TLS_PLACES // parts)
        self._guests: OrderedDict[Guest, None] = OrderedDict()
        # Those with a place for TLS, by the time they got it, and those who wait for one.
        self._in_tls: OrderedDict[Guest, float] = OrderedDict()
        self._waiting: OrderedDict[Guest, Callable[[], None]] = OrderedDict()
        self._overdue: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, transport: Any, address: Endpoint) -> Guest:
        """A connection was accepted."""
        timer = self.clock.callLater(self._timeout, lambda: self._timed_out(guest))
        guest = Guest(self, transport, address, timer)
        self._guests[guest] = None
        if len(self._guests) > self._size:
            oldest = next(iter(self._guests))
            self._log.limited(
                "lobby is full",
                "access denied: more than {limit} connections that prove nothing, the latest "
                "from {address}; the oldest are dropped",
                limit=self._size,
                address=address.host,
            )
            oldest.turn_away()
        return guest

    def remove(self, guest: Guest) -> bool:
        """Forget a connection; whether it was there."""
        if guest not in self._guests:
            return False
        del self._guests[guest]
        if self._waiting.pop(guest, None) is not None:
            self._seat()
        return True

    def queue(self, guest: Guest, begin: Callable[[], None]) -> None:
        """Call ``begin`` when there is a place for one more TLS handshake."""
        self._waiting[guest] = begin
        self._seat()

    def tls_over(self, guest: Guest) -> None:
        """A guest has proved itself or is gone: its place, if it had one, is free."""
        if self._in_tls.pop(guest, None) is not None:
            self._seat()

    def _seat(self) -> None:
        """Give free places to those who wait, and see that places become free."""
        while self._waiting and len(self._in_tls) < self._places:
            guest = self._next()
            begin = self._waiting.pop(guest)
            self._in_tls[guest] = self.clock.seconds()
            begin()
        if self._waiting and self._overdue is None:
            since = next(iter(self._in_tls.values()))
            wait = max(0.0, since + TLS_PLACE_TIME - self.clock.seconds())
            self._overdue = self.clock.callLater(wait, self._make_room)
        elif not self._waiting and self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _next(self) -> Guest:
        """Of those who wait one whose address has the fewest places, the latest of them. So a crowd
        that begins handshakes and goes on with none keeps others waiting for one place to become
        free, not for all who came before."""
        if len(self._waiting) == 1:
            return next(iter(self._waiting))
        held = Counter(guest.address.host for guest in self._in_tls)
        return min(reversed(self._waiting), key=lambda guest: held[guest.address.host])

    def _make_room(self) -> None:
        self._overdue = None
        limit = self.clock.seconds() - TLS_PLACE_TIME
        late = [guest for guest, since in self._in_tls.items() if since <= limit]
        for guest in late[: len(self._waiting)]:
            self._too_slow(guest, TLS_PLACE_TIME)
        if not late:
            # Those that the look was due for have left; the next one is for who came after them.
            self._seat()

    def clear(self) -> None:
        """Drop all of them."""
        for guest in [*self._waiting, *self._guests]:
            guest.turn_away()

    def _timed_out(self, guest: Guest) -> None:
        self._too_slow(guest, self._timeout)

    def _too_slow(self, guest: Guest, timeout: float) -> None:
        self._log.limited(
            ("handshake timed out", guest.address.host),
            "access denied to {address}: handshake timed out after {timeout:g} s",
            address=guest.address.host,
            timeout=timeout,
        )
        guest.turn_away()
