"""How soon a client looks for its old server again. No I/O.

A Go node that has lost its peer rests for a while, three seconds unless its owner says otherwise,
and has its port closed until then: who finds it closed should look again soon. A port that is open
while no tunnel comes about is left alone for longer with each try.
"""

from __future__ import annotations

from twisted.internet.error import ConnectionRefusedError

__all__ = ["Comeback"]

#: Seconds between two tries at a closed port, the shortest: such a try costs the other host one
#: packet, and Go nodes, whose times are all the same, meet within a few hundredths of a second.
CLOSED_RETURN = 0.05
#: The same as a share of the time for which the port has been closed: whoever has waited for that
#: long can wait a little longer.
LATE = 0.03
#: Seconds before the first try after another failure, or after a server was lost; each further
#: pause is twice as long, up to the longest. An old server's answer is lost now and then.
QUICK_RETURN = 0.1
LONGEST_QUICK_RETURN = 1.0
#: Tries in a row that are so quick. An old server has started anew after 13 seconds at most.
QUICK_TRIES = 20


class Comeback:
    """The pauses of one client since its server was there, or since it began.

    :param cooldown: seconds, the usual pause.
    """

    def __init__(self, cooldown: float) -> None:
        self._cooldown = cooldown
        self._closed_since: float | None = None
        self._tries = 0

    def worked(self) -> None:
        """The server is there."""
        self._closed_since = None
        self._tries = 0

    def lost(self) -> float:
        """The server was there, and is not any more: seconds until the next try."""
        return self._doubled()

    def failed(self, now: float, error: Exception) -> float:
        """A try has failed: seconds until the next one."""
        if not isinstance(error, ConnectionRefusedError):
            self._closed_since = None
            return self._doubled()
        if self._closed_since is None:
            self._closed_since = now
        return min(self._cooldown, max(CLOSED_RETURN, LATE * (now - self._closed_since)))

    def _doubled(self) -> float:
        if self._tries >= QUICK_TRIES:
            return self._cooldown
        quick = min(LONGEST_QUICK_RETURN, QUICK_RETURN * 2.0**self._tries)
        self._tries += 1
        return min(self._cooldown, quick)
