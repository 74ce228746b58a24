"""What became of Deferreds and log lines, for tests that do all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda *texts, **fields: self.lines.append((level, texts[-1].format(**fields)))


def got(deferred: Deferred[T]) -> T:
    """The result of a Deferred that has fired, or the failure it fired with, raised."""
    outcome: list[Any] = []
    deferred.addBoth(outcome.append)
    assert outcome, "it has not fired"
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    result: T = outcome[0]
    return result
