"""One instance as its master knows it."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IDelayedCall

from nodepass.meter import Stats

from .models import Instance
from .records import Record
from .urls import InstanceURL

__all__ = ["Entry"]


@define(eq=False)
class Entry:
    """An instance.

    :ivar record: what of it is durable.
    :ivar stats: of its latest run, as last reported.
    :ivar run: the number of its run, None while it is not hosted.
    :ivar runs: that one and those that drain; an id may have belonged to another instance before.
    :ivar starting: the start that is due when the pause of a restart is over.
    :ivar stopped_at: when it was last shown as stopped, on the reactor's clock.
    """

    record: Record
    url: InstanceURL
    status: str = "stopped"
    stats: Stats = field(factory=Stats)
    run: int | None = None
    runs: set[int] = field(factory=set)
    starting: IDelayedCall | None = None
    stopped_at: float = float("-inf")
    lock: DeferredLock = field(factory=DeferredLock)

    @property
    def startable(self) -> bool:
        """Whether `start` does anything: not where it runs, or is about to."""
        return self.status == "error" or (self.run is None and self.starting is None)

    def snapshot(self) -> Instance:
        """Show it as it is now."""
        stats = self.stats if self.status == "running" else Stats()
        totals = self.record.totals
        return Instance(
            id=self.record.id,
            alias=self.record.alias,
            type=self.url.type,
            status=self.status,
            url=self.url.url,
            config=self.url.config,
            restart=self.record.restart,
            meta=self.record.meta,
            mode=self.stats.mode,
            ping=stats.ping_milliseconds,
            pool=stats.pool,
            tcps=stats.tcps,
            udps=stats.udps,
            tcprx=totals.tcprx,
            tcptx=totals.tcptx,
            udprx=totals.udprx,
            udptx=totals.udptx,
        )
