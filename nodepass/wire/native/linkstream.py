"""A data link's session as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodepass.relay.stream import Cause, Chunk, Pipe, Sink

if TYPE_CHECKING:
    from .datalink import DataLink

__all__ = ["LinkStream"]


class LinkStream:
    """The current session of a data link as a stream."""

    __slots__ = ("_link", "_over", "_sink", "number", "paused")

    def __init__(self, link: DataLink, number: int) -> None:
        self._link = link
        self.number = number
        self._sink: Sink | None = None
        self._over: tuple[Cause | None] | None = None
        self.paused = False

    # Stream

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._over is not None:
            sink.closed(self._over[0])
        elif self._link.congested:
            sink.congested()

    def write(self, data: Chunk) -> None:
        if self._over is None:
            self._link.write(data)

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
        self._sink = None
        if self._over is None:
            self._over = (cause,)
            self.paused = False
            self._link.reset(cause)

    def pause(self) -> None:
        if self._over is None:
            self.paused = True
            self._link.read_on(False)

    def resume(self) -> None:
        if self._over is None and self.paused:
            self.paused = False
            self._link.read_on(True)

    # From the link

    def received(self, data: Chunk) -> None:
        sink = self._sink
        if sink is not None:
            sink.received(data)

    @property
    def sink_takes_pipes(self) -> bool:
        """Whether bytes may come by `piped` now."""
        return self._sink is not None and self._sink.takes_pipes()

    def piped(self, pipe: Pipe) -> None:
        if self._sink is not None:
            self._sink.piped(pipe)
        else:
            pipe.release()

    def ended(self) -> None:
        if self._sink is not None:
            self._sink.ended()

    def congested(self, congested: bool) -> None:
        if self._sink is not None:
            if congested:
                self._sink.congested()
            else:
                self._sink.drained()

    def closed(self, cause: Cause | None) -> None:
        if self._over is None:
            self._over = (cause,)
            sink, self._sink = self._sink, None
            if sink is not None:
                sink.closed(cause)
