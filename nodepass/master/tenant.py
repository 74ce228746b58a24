"""One run of an instance in its worker: started, retried for ever, released, ended."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from nodepass.config import MasterConfig, parse_url
from nodepass.logs import Level, Log, printable
from nodepass.meter import Stats
from nodepass.service import RoleService
from nodepass.tuning import Tuning

from .outbox import Outbox

__all__ = ["Tenant"]

#: Seconds of the longest pause after failures that only somebody's work mends, such as a
#: certificate that can't be read: it is served soon after it was mended, at no cost meanwhile.
LONGEST_PAUSE = 60.0
#: Share of a pause by which it is varied, so that instances do not try in step.
JITTER = 0.2
#: Characters of an unforeseen error in a status: enough to find it in the log by.
LONGEST_FAULT = 200


class Tenant:
    """Runs one instance, and keeps its failures from its neighbours.

    :param run: its number, which its log lines carry as their source.
    :param url: with the key.
    :param ended: called when nothing is left of it.
    """

    def __init__(
        self,
        run: int,
        url: str,
        *,
        tuning: Tuning,
        reactor: Any,
        outbox: Outbox,
        ended: Callable[[Tenant], None],
    ) -> None:
        self.run = run
        self._url = url
        self._tuning = tuning
        self._reactor = reactor
        self._outbox = outbox
        self._ended = ended
        self._log = Log(Level.ERROR, str(run))
        self._service: RoleService | None = None
        self._failures = 0
        self._fault: str | None = None  # what none of our own code foresaw
        self._said: str | None = None
        self._started = False
        self._retry: IDelayedCall | None = None
        self._releasing = False

    def start(self) -> None:
        """Begin to serve."""
        if self._releasing:
            return
        self._again()
        self._started = True
        self._said = self._trouble
        self._outbox.status(self.run, self._said)

    def stats(self) -> Stats:
        """How it is now."""
        return Stats() if self._service is None else self._service.stats

    def reload(self) -> None:
        """Read certificate files again."""
        if self._service is not None:
            maybeDeferred(self._service.reload).addErrback(self._complain)

    def release(self) -> Deferred[None]:
        """End it. Fires when its ports are closed."""
        if not self._releasing:
            self._releasing = True
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            service = self._service
            stopping = maybeDeferred(lambda: None if service is None else service.stopService())
            stopping.addErrback(self._complain)
            stopping.addBoth(self._over)
        return succeed(None) if self._service is None else self._service.whenReleased()

    @property
    def _trouble(self) -> str | None:
        if self._fault is not None or self._service is None:
            return self._fault
        return self._service.trouble

    def _tell(self, _: object = None) -> None:
        """Report the condition if it has changed."""
        trouble = self._trouble
        if trouble is None:
            self._failures = 0
        if self._started and trouble != self._said:
            self._said = trouble
            self._outbox.status(self.run, trouble)

    def _begin(self) -> Deferred[None]:
        service = self._service
        if service is None:
            config = parse_url(self._url)
            assert not isinstance(config, MasterConfig)  # the master has seen to that
            if config.workers != 1:
                ignored = (
                    "parameter workers: ignored, a master's instances share its own workers;"
                    " NP_MASTER_WORKERS says how many"
                )
                config = evolve(config, workers=1, warnings=(*config.warnings, ignored))
            service = self._service = RoleService(
                config,
                tuning=self._tuning,
                reactor=self._reactor,
                source=str(self.run),
                condition=self._tell,
            )
        if service.running:
            begun = service.retry()
        else:
            service.startService()
            begun = succeed(None)
        service.whenFailed().addCallback(self._try_later)
        return begun

    def _begun(self, _: None) -> None:
        self._fault = None

    def _unexpected(self, failure: Failure) -> None:
        fault = f"unexpected: {printable(failure.getErrorMessage(), LONGEST_FAULT)}"
        if fault != self._fault:
            self._fault = fault
            self._log.failure("the instance failed unexpectedly", failure)
        self._try_later()

    def _try_later(self, _: object = None) -> None:
        if self._releasing or self._retry is not None:
            return
        pause = min(LONGEST_PAUSE, self._tuning.service_cooldown * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._retry = self._reactor.callLater(pause * (1 + JITTER * random.random()), self._again)

    def _again(self) -> None:
        self._retry = None
        begun = maybeDeferred(self._begin)
        begun.addCallbacks(self._begun, self._unexpected)
        begun.addBoth(self._tell)

    def _complain(self, failure: Failure) -> None:
        self._log.failure("the instance failed unexpectedly", failure)

    def _over(self, _: object) -> None:
        service = self._service
        self._outbox.end(self.run, Stats() if service is None else service.last_stats)
        self._ended(self)
