"""What keeps an instance from its work: said once for each cause, and known while it lasts.

The log and the condition come from one call, so that they can't disagree, and the condition is
known whatever ``log=`` says.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.logger import formatEvent

from nodepass.logs import Level, Log, mask, printable

__all__ = ["Health"]

#: Reasons of one cause that are remembered as told: a server may word its refusals as it likes.
MAX_REASONS = 32
#: Characters of a reason: more than any of ours has, far below what a message to a master takes.
LONGEST_REASON = 1000


@define
class _Trouble:
    reason: str
    told: set[str] = field(factory=set)


class Health:
    """The troubles of one instance.

    :param log: where they are told.
    :param changed: called with each change of `reason`, with the new one.
    """

    def __init__(
        self, log: Log, changed: Callable[[str | None], None] = lambda reason: None
    ) -> None:
        self.log = log
        self._changed = changed
        self._troubles: dict[str, _Trouble] = {}
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """What is wrong, in one line without a key: the cause that lasts longest; None if nothing
        is."""
        return self._reason

    def trouble(
        self, cause: str, format: str, /, *, level: Level = Level.WARN, **fields: object
    ) -> None:
        """Something can't be done now, and is tried again.

        It is logged unless the same was since the last `well` of this cause: one line per reason,
        not per try.

        :param cause: what can't be done.
        :param format: the line, in the form of `nodepass.logs.Log`.
        """
        event = {"log_format": format, **fields}
        reason = printable(mask(formatEvent(event)), LONGEST_REASON)
        trouble = self._troubles.setdefault(cause, _Trouble(reason))
        trouble.reason = reason
        if reason not in trouble.told:
            if len(trouble.told) >= MAX_REASONS:
                trouble.told.clear()
            trouble.told.add(reason)
            say = self.log.error if level is Level.ERROR else self.log.warn
            say(format, **fields)
        self._tell()

    def well(self, cause: str) -> None:
        """It can be done after all."""
        if self._troubles.pop(cause, None) is not None:
            self._tell()

    def clear(self) -> None:
        """Nothing is tried any more, so that nothing is wrong."""
        self._troubles.clear()
        self._tell()

    def _tell(self) -> None:
        first = next(iter(self._troubles.values()), None)
        reason = None if first is None else first.reason
        if reason != self._reason:
            self._reason = reason
            self._changed(reason)
