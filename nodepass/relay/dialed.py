"""A stream to a target that is still being dialed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from nodepass.address import Endpoint
from nodepass.racing import dial_cause

from .stream import Cause, Chunk, Pipe, Sink, Stream

__all__ = ["Connected", "DialedStream", "Header", "cause_of", "dialed"]

#: Bytes that a visitor may send while its target is still being dialed, before it is asked to wait;
#: the read that reaches it is kept whole.
DIAL_BUFFER = 65536

#: Makes the first bytes to a target from the target's address.
Header = Callable[[Endpoint], bytes]

_CAUSES = {
    "refused": Cause.REFUSED,
    "timed out": Cause.TIMED_OUT,
    "name not found": Cause.UNREACHABLE,
    "unreachable": Cause.UNREACHABLE,
}


class Connected(Stream, Protocol):
    """A stream that is a connection to a target."""

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""

    @property
    def congested(self) -> bool:
        """Whether what was written waits to leave."""

    @property
    def peer(self) -> Endpoint:
        """Where the target is."""


class DialedStream:
    """A stream to a target that is still being dialed: it holds what is written until then.

    :param connecting: fires with the connected stream; its failure closes this stream with the
        cause that `cause_of` finds in it.
    :param header: makes what is written before anything else, such as a PROXY line.
    """

    def __init__(
        self,
        connecting: Deferred[Connected],
        cause_of: Callable[[Failure], Cause],
        header: Callable[[Connected], bytes] | None = None,
    ) -> None:
        self._connecting: Deferred[Connected] | None = connecting
        self._cause_of = cause_of
        self._header = header
        self._stream: Connected | None = None
        self._sink: Sink | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._congested = False
        self._finished = False
        self._reading = False
        self._cause: Cause | None = None
        connecting.addCallbacks(self._connected, self._failed)

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._cause is not None:
            sink.closed(self._cause)
        elif self._stream is not None:
            self._stream.attach(sink)

    def write(self, data: Chunk) -> None:
        if self._stream is not None:
            self._stream.write(data)
            return
        self._held.append(bytes(data))
        self._size += len(data)
        if self._size >= DIAL_BUFFER and not self._congested and self._sink is not None:
            self._congested = True
            self._sink.congested()

    def write_last(self, data: Chunk) -> None:
        self.write(data)

    def takes_pipes(self) -> bool:
        return self._stream is not None and self._stream.takes_pipes()

    def write_pipe(self, pipe: Pipe) -> None:
        assert self._stream is not None, "it takes none before it is connected"
        self._stream.write_pipe(pipe)

    def finish(self) -> None:
        self._finished = True
        if self._stream is not None:
            self._stream.finish()

    def abort(self, cause: Cause) -> None:
        self._sink = None
        self._held.clear()
        if self._stream is not None:
            self._stream.abort(cause)
        elif self._connecting is not None:
            self._connecting.cancel()

    def pause(self) -> None:
        self._reading = False
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        self._reading = True
        if self._stream is not None:
            self._stream.resume()

    def _connected(self, stream: Connected) -> None:
        self._connecting = None
        self._stream = stream
        if self._header is not None:
            stream.write(self._header(stream))
        for data in self._held:
            stream.write(data)
        self._held.clear()
        if self._finished:
            stream.finish()
        # It has to do with the stream itself from now on.
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.became(stream)
            stream.attach(sink)
            if not stream.gone:
                if self._reading:
                    stream.resume()
                if self._congested and not stream.congested:
                    sink.drained()

    def _failed(self, failure: Failure) -> None:
        self._connecting = None
        if failure.check(CancelledError) is not None and self._sink is None:
            return  # our own abort
        self._cause = self._cause_of(failure)
        failure.cleanFailure()  # the frames in it know this stream
        self._held.clear()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.closed(self._cause)


def dialed(connecting: Deferred[Connected], header: Header | None) -> Stream:
    """The stream to a target that is being dialed."""
    if header is None:
        return DialedStream(connecting, cause_of)
    first = header
    return DialedStream(connecting, cause_of, lambda stream: first(stream.peer))


def cause_of(failure: Failure) -> Cause:
    """What a dial, or a look-up, has failed of."""
    return _CAUSES[dial_cause(failure)]
