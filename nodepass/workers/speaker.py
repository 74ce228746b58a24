"""What a parent logs for its workers: one voice for all of them."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from nodepass.config import ClientConfig, ServerConfig
from nodepass.health import Health
from nodepass.logs import Level
from nodepass.roles.register import Change, Register

from .chorus import Chorus
from .messages import Line, News, Trouble

__all__ = ["Speaker"]


class Speaker:
    """Logs the lines, troubles and joins of all workers as those of one role.

    :param left: called when the last peer is gone.
    :ivar stopping: peers that go are no news any more.
    """

    def __init__(
        self,
        config: ServerConfig | ClientConfig,
        health: Health,
        clock: IReactorTime,
        left: Callable[[], None],
    ) -> None:
        self._config = config
        self._serves = isinstance(config, ServerConfig)
        self._health = health
        self.log = health.log
        self._clock = clock
        self._left = left
        self._chorus = Chorus()
        self._register = Register()
        self._troubles: dict[str, set[int]] = {}
        self.stopping = False

    @property
    def nodes(self) -> int:
        """Nodes that the workers are joined with, however many processes each has."""
        return self._register.count

    def forget(self, worker: int) -> None:
        """A worker is no more."""
        for cause in list(self._troubles):
            self.well(worker, cause)
        for name in self._register.forget(worker):
            self._say_left(name)

    def trouble(self, worker: int, trouble: Trouble) -> None:
        """A worker can't do something; said once, however many can't."""
        self._troubles.setdefault(trouble.cause, set()).add(worker)
        self._health.trouble(
            trouble.cause, "{reason}", level=Level(trouble.level), reason=trouble.reason
        )

    def well(self, worker: int, cause: str) -> None:
        """A worker can do it again; all is well when the last one can."""
        workers = self._troubles.get(cause, set())
        workers.discard(worker)
        if not workers and self._troubles.pop(cause, None) is not None:
            self._health.well(cause)

    def line(self, worker: int, line: Line) -> None:
        """A worker has something to log."""
        level, text = Level(line.level), line.text
        if line.key:
            self.log.limited(("worker", line.key), "{line}", level=level, line=text)
            return
        if level is not Level.DEBUG and not self._chorus.is_news(
            worker, text, self._clock.seconds()
        ):
            return
        say = {
            Level.DEBUG: self.log.debug,
            Level.INFO: self.log.info,
            Level.WARN: self.log.warn,
            Level.ERROR: self.log.error,
        }.get(level, self.log.event)
        say("{line}", line=text)

    def news(self, worker: int, news: News) -> None:
        """Something has become of a worker's peer."""
        origin = (news.node, news.worker)
        change = self._register.note(worker, news.peer, news.what, origin, news.name)
        if change is Change.RETURNED and not self._chorus.is_news(
            worker, f"{news.name} again", self._clock.seconds()
        ):
            return  # as with the line of its loss: one worker of it was the peer of several of ours
        if change in (Change.JOINED, Change.RETURNED):
            again = " again" if change is Change.RETURNED else ""
            if self._serves:
                self.log.info(
                    "tunnel established{again} with {peer}, {words}; clients: {count}",
                    again=again, peer=news.name, words=news.words, count=self.nodes,
                )  # fmt: skip
            else:
                self.log.info(
                    "tunnel established{again} with {peer}, {words}",
                    again=again, peer=news.name, words=news.words,
                )  # fmt: skip
        elif change is Change.LOST and not self._serves and not self.stopping:
            self.log.info("restarting: {url}", url=self._config.effective_url())
        elif change is Change.LEFT:
            self._say_left(news.name)

    def _say_left(self, name: str) -> None:
        if self.stopping:
            return
        if self._serves:
            self.log.info("client {peer} is gone; clients: {count}", peer=name, count=self.nodes)
        else:
            self.log.info("server {peer} is gone", peer=name)
        if self._register.empty:
            self._left()
