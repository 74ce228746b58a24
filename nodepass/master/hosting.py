"""What the master asks of those who run its instances, and what it hears from them.

An instance is started many times in its life; each time is a *run* with a number of its own, so
that the last words of a run that is draining are not taken for those of the next.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from attrs import frozen
from twisted.internet.defer import Deferred

from nodepass.logs import Level
from nodepass.meter import Stats

__all__ = ["Host", "LogLine", "Tenants"]


@frozen
class LogLine:
    """A line of an instance's log.

    :ivar when: Unix time, seconds.
    :ivar text: the message: masked, escaped, one line, without instance or level.
    """

    when: float
    level: Level
    text: str

    def stamp(self) -> str:
        """Return date and time in local time, with milliseconds."""
        when = datetime.fromtimestamp(self.when)
        return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d}"


class Tenants(Protocol):
    """What the master is told about its instances. None of these may raise."""

    def status(self, id: str, run: int, trouble: str | None) -> None:
        """A run is up (``trouble`` is None), or can't bind, dial or authenticate and tries on.

        Called at each change, and once when the run has started.
        """

    def counted(self, reports: list[tuple[str, int, Stats]]) -> None:
        """Checkpoints ``(id, run, stats)``: counters are bytes since the run began."""

    def ended(self, id: str, run: int) -> None:
        """Nothing more comes of a run: it has drained, or its process is gone."""

    def logged(self, id: str, run: int, line: LogLine) -> None:
        """A run logged something; checkpoint lines are not among it."""

    def moved(self, id: str, run: int, new: int) -> None:
        """A run goes on as another one elsewhere: its process died, or was drained."""


class Host(Protocol):
    """Runs instances."""

    def start(self) -> Deferred[None]:
        """Make ready; fires when instances can be hosted, fails with FatalError when never."""

    def stop(self) -> Deferred[None]:
        """Stop all instances side by side, gracefully; fires when nothing of them is left."""

    def host(self, id: str, url: str, source: str) -> int:
        """Start an instance and return the number of the run.

        :param url: a URL that `nodepass.config.parse_url` has accepted, with the key in it.
        :param source: what stands in brackets at the end of its log lines.
        """

    def release(self, id: str) -> Deferred[None]:
        """End the instance's run. Fires, within a second, when its ports are closed; its sessions
        drain behind, and `Tenants.ended` tells when they are gone. An id that is not hosted: at
        once."""
