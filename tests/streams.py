"""Doubles of streams and sinks, which hold both sides to the contract of `relay.stream`."""

from __future__ import annotations

from nodepass.relay.session import Session
from nodepass.relay.stream import Cause, Sink


class FakeOwner:
    """Who a session belongs to: notes how it ended, and has no other stream for it.

    @ivar over: the causes of the sessions that ended, in order.
    """

    def __init__(self) -> None:
        self.over: list[Cause | None] = []

    def another(self, cause: Cause) -> None:
        pass

    def session_over(self, session: Session, cause: Cause | None) -> None:
        self.over.append(cause)


class FakeStream:
    """A stream that notes what it is asked, for tests that play its other end.

    @ivar told: what was asked of it, in order: bytes written, and "finish", "pause", "resume", or
        the cause of an abort.
    @ivar lasts: bytes written that may wait for "finish".
    """

    def __init__(self, name: str = "stream") -> None:
        self.name = name
        self.sink: Sink | None = None
        self.told: list[object] = []
        self.lasts: list[bytes] = []
        self.paused = True  # nothing is read before the first resume
        self.finished = False
        self.over = False

    # Stream

    def attach(self, sink: Sink) -> None:
        self.sink = sink

    def write(self, data: bytes) -> None:
        assert not self.finished, f"{self.name}: written to after finish"
        assert not self.over, f"{self.name}: written to when it was over"
        self.told.append(bytes(data))

    def write_last(self, data: bytes) -> None:
        self.write(data)
        self.lasts.append(bytes(data))

    def finish(self) -> None:
        assert not self.over, f"{self.name}: finished when it was over"
        self.finished = True
        self.told.append("finish")

    def abort(self, cause: Cause) -> None:
        assert not self.over, f"{self.name}: aborted when it was over"
        self.over = True
        self.sink = None
        self.told.append(cause)

    def pause(self) -> None:
        assert not self.over, f"{self.name}: paused when it was over"
        self.paused = True
        self.told.append("pause")

    def resume(self) -> None:
        assert not self.over, f"{self.name}: resumed when it was over"
        self.paused = False
        self.told.append("resume")

    # The other end, played by the test

    def receive(self, data: bytes) -> None:
        """Bytes come."""
        assert not self.paused, f"{self.name}: a paused stream does not read"
        self._sink.received(data)

    def ending(self) -> None:
        """The other program sends no more than what comes next."""
        self._sink.ending()

    def end(self) -> None:
        """The other program sends no more."""
        assert not self.paused, f"{self.name}: a paused stream does not read"
        self._sink.ended()

    def close(self, cause: Cause | None) -> None:
        """The stream is gone."""
        sink = self._sink
        self.over = True
        self.sink = None
        sink.closed(cause)

    def congested(self) -> None:
        """What was written waits."""
        self._sink.congested()

    def drained(self) -> None:
        """It has left."""
        self._sink.drained()

    @property
    def _sink(self) -> Sink:
        assert self.sink is not None, f"{self.name}: nobody listens"
        return self.sink

    @property
    def written(self) -> bytes:
        """All that was written."""
        return b"".join(told for told in self.told if isinstance(told, bytes))


class NotingSink:
    """A sink that notes what it hears, and holds its stream to "no call after closed"."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.over = False
        self.ends = False  # "ended" was foretold
        self.instead: object = None  # what the one that it was attached to has become

    def takes_pipes(self) -> bool:
        return False

    def received(self, data: bytes) -> None:
        self._note(data)

    def ending(self) -> None:
        self.ends = True

    def ended(self) -> None:
        self._note("ended")

    def congested(self) -> None:
        self._note("congested")

    def drained(self) -> None:
        self._note("drained")

    def became(self, stream: object) -> None:
        self.instead = stream

    def closed(self, cause: Cause | None) -> None:
        self._note(("closed", cause))
        self.over = True

    def _note(self, what: object) -> None:
        assert not self.over, f"{what!r} after closed"
        self.heard.append(what)

    @property
    def data(self) -> bytes:
        """All bytes that came."""
        return b"".join(heard for heard in self.heard if isinstance(heard, bytes))
