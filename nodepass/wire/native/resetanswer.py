"""What a data link waits for after a RESET: the other end's answer."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

__all__ = ["ResetAnswer"]

#: Seconds after which a RESET that was not answered is repeated over the control link: what the
#: link carries may be waiting, with the RESET behind it, for a peer that has stopped reading it.
RESET_PATIENCE = 1.0
#: Seconds in which a peer must answer a RESET. It answers as soon as it reads; one that does not
#: is stuck, and the link, which can't be used again before the answer, is given up.
RESET_ANSWER_TIMEOUT = 10.0


class ResetAnswer:
    """Waits for the answer to a RESET until it is told to `stop`.

    :param repeat: says the same by another way; whether there is one.
    :param give_up: called with the reason when no answer will come.
    """

    __slots__ = ("_clock", "_give_up", "_repeat", "_timer")

    def __init__(
        self, clock: IReactorTime, repeat: Callable[[], bool], give_up: Callable[[str], None]
    ) -> None:
        self._clock = clock
        self._repeat = repeat
        self._give_up = give_up
        self._timer = clock.callLater(RESET_PATIENCE, self._late)

    def stop(self) -> None:
        """It has come, or the link is gone."""
        if self._timer.active():
            self._timer.cancel()

    def _late(self) -> None:
        if self._repeat():
            self._timer = self._clock.callLater(
                RESET_ANSWER_TIMEOUT - RESET_PATIENCE, self._give_up, "a reset was not answered"
            )
        else:
            self._give_up("a reset was not answered, and could not be repeated")
