"""Answers that do not end: the event stream, and a log that is followed.

A stream ends in one of two ways, and clients tell them apart: *finished*, with the last chunk of
the answer, when the master has said so in an event; *aborted*, with a reset, in every other case,
so that the client comes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.logs import Log

from .hub import COMMENT, PREAMBLE, EventHub
from .logtail import LogTail
from .request import MasterRequest

__all__ = ["Stream", "Streams"]

#: Streams that may be open at a time: hundreds of dashboards and followed logs, and a bound on what
#: each event costs.
MOST_STREAMS = 1000
#: Most bytes that wait for one subscriber; then it is cut off, and comes back for `initial`. It has
#: room for a report of 2,000 instances at once. The bytes are shared: a hundred subscribers who
#: do not read cost hardly more than one.
QUEUE_BYTES = 2 << 20
#: Seconds of silence after which a comment goes out: proxies give up after 30 to 60.
SILENCE = 15.0
#: Seconds that subscribers get to take the last event before they are cut off: they hold up the
#: master's end.
FINISH_TIMEOUT = 2.0
#: Bytes that are written at a time: as many as a transport takes before it asks for a pause.
BATCH = 64 << 10


@implementer(IPushProducer)
class Stream:
    """Writes what it is given to a request, as fast as the client takes it.

    :param comment: what is sent after a silence; empty: nothing.
    :ivar done: fires when the request is over, one way or the other.
    """

    def __init__(self, streams: Streams, request: MasterRequest, comment: bytes = b"") -> None:
        self.done: Deferred[None] = Deferred()
        self._streams = streams
        self._clock = streams.clock
        self._request = request
        self._channel = request.channel
        self._backlog: Iterator[bytes] | None = None
        self._comment = comment
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._woken = False
        self._paused = False
        self._finishing = False
        self._over = False
        self._written_at = self._clock.seconds()
        self._timer: IDelayedCall | None = None
        if comment:
            self._timer = self._clock.callLater(SILENCE, self._tick)
        self._unsubscribe: Callable[[], object] = lambda: None
        request.notifyFinish().addBoth(self._gone)
        request.streaming = True
        request.registerProducer(self, True)

    def start(self, backlog: Iterator[bytes], unsubscribe: Callable[[], object]) -> None:
        """Begin to write.

        :param backlog: what goes first, made as it is asked for.
        :param unsubscribe: called when nothing more can be written, perhaps more than once.
        """
        self._backlog = backlog
        self._unsubscribe = unsubscribe
        self.flush()

    def write(self, data: bytes) -> None:
        """Write ``data`` after all that was given before, with what else this turn brings."""
        if self._over or self._finishing:
            return
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > QUEUE_BYTES:
            self.abort()
        else:
            self._wake()

    def finish(self) -> Deferred[None]:
        """End the answer as complete once all is written, and close the connection.

        Fires when the connection is closed, at the latest `FINISH_TIMEOUT` seconds from now.
        """
        lost: Deferred[None] = self._channel.when_lost()
        if not self._over and not self._finishing:
            self._finishing = True
            self._unsubscribe()
            self._wake()
        late = self._clock.callLater(FINISH_TIMEOUT, self._channel.abort)
        return lost.addCallback(lambda _: late.cancel() if late.active() else None)

    def abort(self) -> None:
        """Reset the connection, which no client takes for an end."""
        if not self._over:
            self._release()
            self._channel.abort()

    def flush(self) -> None:
        """Write what waits, until the transport asks for a pause."""
        self._woken = False
        while not self._paused and not self._over:
            batch = self._batch()
            if batch:
                self._written_at = self._clock.seconds()
                self._request.write(batch)
            else:
                if self._finishing:
                    self._end()
                return

    # IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        # At once: the transport has nothing left.
        self.flush()

    def stopProducing(self) -> None:
        self._release()

    def _wake(self) -> None:
        if not self._woken and not self._paused:
            self._woken = True
            self._streams.wake(self)

    def _batch(self) -> bytes:
        """Take what is to be written next: `BATCH` bytes or little more, empty when nothing is."""
        parts: list[bytes] = []
        size = 0
        while size < BATCH and self._backlog is not None:
            part = next(self._backlog, None)
            if part is None:
                self._backlog = None
            else:
                parts.append(part)
                size += len(part)
        while size < BATCH and self._queue:
            part = self._queue.popleft()
            self._queued -= len(part)
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _tick(self) -> None:
        """Look whether it is time for a comment."""
        silent = self._clock.seconds() - self._written_at
        if silent >= SILENCE:
            silent = 0.0
            if not self._paused:  # what waits for the client says enough
                self.write(self._comment)
        # One call each time that it is due, rather than one moved by each event.
        self._timer = self._clock.callLater(SILENCE - silent, self._tick)

    def _end(self) -> None:
        request = self._request
        request.unregisterProducer()
        # The client is told nothing more on this connection; closing it flushes it.
        self._channel.persistent = False
        request.finish()

    def _release(self) -> None:
        """Give back all that is held; nothing is written after it."""
        if self._over:
            return
        self._over = True
        self._backlog = None
        self._queue.clear()
        self._queued = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unsubscribe()
        self._streams.remove(self)

    def _gone(self, result: object) -> None:
        """The request is finished, or its connection lost."""
        self._release()
        if not self.done.called:
            self.done.callback(None)


class Streams:
    """The streams that are open.

    :param most: how many there may be.
    """

    def __init__(self, clock: IReactorTime, log: Log, most: int = MOST_STREAMS) -> None:
        self.clock = clock
        self._log = log
        self._most = most
        self._closed = False
        self._open: dict[Stream, None] = {}
        self._woken: list[Stream] = []
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def refusal(self) -> str | None:
        """Why no other one may be opened now; None when one may."""
        if self._closed:
            return "the master stops; try again later"
        if len(self._open) >= self._most:
            return "too many streams are open; close one, or try again later"
        return None

    def events(
        self,
        request: MasterRequest,
        hub: EventHub,
        *,
        types: frozenset[str] | None = None,
        instance: str | None = None,
        resume: bool = False,
        last_id: str | None = None,
    ) -> Deferred[None]:
        """Answer a request with the events of a hub; see `EventHub.subscribe`.

        Fires when the request is over: it needs no `finish`.
        """
        request.setHeader(b"Content-Type", b"text/event-stream")
        request.setHeader(b"Cache-Control", b"no-cache")
        # nginx would collect events until its buffer is full.
        request.setHeader(b"X-Accel-Buffering", b"no")
        stream = self._add(request, COMMENT)
        subscription = hub.subscribe(
            stream.write, types=types, instance=instance, resume=resume, last_id=last_id
        )
        stream.start(chain([PREAMBLE], subscription.backlog), subscription.cancel)
        return stream.done

    def follow(self, request: MasterRequest, tail: LogTail, id: str, lines: int) -> Deferred[None]:
        """Answer a request with the last lines of an instance's log, and each line to come.

        Fires when the request is over: it needs no `finish`.
        """
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        request.setHeader(b"Cache-Control", b"no-cache")
        request.setHeader(b"X-Accel-Buffering", b"no")
        stream = self._add(request)
        unfollow = tail.follow(id, stream.write, stream.finish)
        stream.start(iter([tail.tail(id, lines)]), unfollow)
        return stream.done

    def wake(self, stream: Stream) -> None:
        """Flush a stream once all that happens in this turn of the reactor has happened."""
        self._woken.append(stream)
        if self._call is None:
            self._call = self.clock.callLater(0, self._flush)

    def remove(self, stream: Stream) -> None:
        """Count a stream no more."""
        self._open.pop(stream, None)

    def close(self) -> Deferred[None]:
        """Finish all, and take no more: one that is opened now would never hear of the end."""
        self._closed = True
        return self.finish()

    def finish(self) -> Deferred[None]:
        """Finish all that are open, as complete; fires when they are gone, within
        `FINISH_TIMEOUT` seconds."""
        if not self._open:
            return succeed(None)
        return gatherResults([stream.finish() for stream in list(self._open)]).addCallback(
            lambda _: None
        )

    def _add(self, request: MasterRequest, comment: bytes = b"") -> Stream:
        stream = Stream(self, request, comment)
        self._open[stream] = None
        return stream

    def _flush(self) -> None:
        self._call = None
        woken, self._woken = self._woken, []
        for stream in woken:
            try:
                stream.flush()
            except Exception:
                self._log.failure("a stream failed unexpectedly and was cut off", Failure())
                stream.abort()
