"""A data link's session as a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nodepass.relay.stream import Cause, Chunk, Pipe, Sink

if TYPE_CHECKING:
    from .datalink import DataLink

__all__ = ["LinkStream"]


class LinkStream:
    """The current session of a data link as a stream.

    :ivar sink: who hears what it has to say, if anybody does.
    :ivar write: the link's, until the session is over.
    :ivar ended_before: the end that comes was told on the link that the session shared.
    """

    __slots__ = ("_link", "_over", "ended_before", "number", "paused", "sink", "write")

    def __init__(self, link: DataLink, number: int) -> None:
        self._link = link
        self.number = number
        self.write: Callable[[Chunk], None] = link.write
        self.sink: Sink | None = None
        self._over: tuple[Cause | None] | None = None
        self.paused = False
        self.ended_before = False

    # Stream

    def attach(self, sink: Sink) -> None:
        self.sink = sink
        if self._over is not None:
            sink.closed(self._over[0])
        elif self._link.congested:
            sink.congested()

    def write_last(self, data: Chunk) -> None:
        if self._over is None:
            self._link.write_last(data)

    def takes_pipes(self) -> bool:
        return self._over is None and self._link.takes_pipes

    def write_pipe(self, pipe: Pipe) -> None:
        if self._over is None:
            self._link.write_pipe(pipe)
        else:
            pipe.release()

    def finish(self) -> None:
        if self._over is None:
            self._link.finish()

    def abort(self, cause: Cause) -> None:
        self.sink = None
        if self._over is None:
            self._end(cause)
            self.paused = False
            self._link.reset(cause)

    def pause(self) -> None:
        # Where the end has come before, nothing comes here that could wait for a slow reader; and
        # who has finished writing to one does not say any more when to go on.
        if self._over is None and not self.ended_before:
            self.paused = True
            self._link.read_on(False)

    def resume(self) -> None:
        if self._over is None and self.paused:
            self.paused = False
            self._link.read_on(True)

    @property
    def over(self) -> bool:
        """Whether nothing happens any more."""
        return self._over is not None

    @property
    def cause(self) -> Cause | None:
        """Why it is over, if it is."""
        return None if self._over is None else self._over[0]

    @property
    def backed_up(self) -> bool:
        """Whether what was written waits to leave; `Sink.drained` follows."""
        return self._link.congested

    # From the link

    def received(self, data: Chunk) -> None:
        sink = self.sink
        if sink is not None:
            sink.received(data)

    @property
    def sink_takes_pipes(self) -> bool:
        """Whether bytes may come by `piped` now."""
        return self.sink is not None and self.sink.takes_pipes()

    def piped(self, pipe: Pipe) -> None:
        if self.sink is not None:
            self.sink.piped(pipe)
        else:
            pipe.release()

    def ending(self) -> None:
        if self.sink is not None:
            self.sink.ending()

    def ended(self) -> None:
        if self.sink is not None and not self.ended_before:
            self.sink.ended()

    def congested(self, congested: bool) -> None:
        if self.sink is not None:
            if congested:
                self.sink.congested()
            else:
                self.sink.drained()

    def closed(self, cause: Cause | None) -> None:
        if self._over is None:
            self._end(cause)
            sink, self.sink = self.sink, None
            if sink is not None:
                sink.closed(cause)

    def _end(self, cause: Cause | None) -> None:
        self._over = (cause,)
        self.write = _drop


def _drop(data: Chunk) -> None:
    pass
