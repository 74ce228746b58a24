"""The one interface that every relay is written against.

A *stream* is one end of a session: ordered bytes in both directions with half-close. A visitor's
socket is one, a target's socket is one, and so is a session on a data link. A session joins two of
them and never learns which kinds they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

#: Bytes on their way. A view is of a buffer that is used again: it is good until the call that gave
#: it returns, and who keeps something of it makes a copy.
Chunk = bytes | memoryview


class Cause(IntEnum):
    """Why a stream ended other than by both ends saying that they are done.

    The numbers are on the wire (RESET and FLOW_CLOSE), so they never change.
    """

    RESET = 0  # the other program reset its connection
    REFUSED = 1  # the target refused the connection
    UNREACHABLE = 2  # no route to the target, or its name was not found
    TIMED_OUT = 3  # the target did not answer in time
    DENIED = 4  # the dialing node may not or will not dial that target
    NO_SLOT = 5  # the dialing node's `slot` limit is reached
    IDLE = 6  # `read` passed without a byte, or a flow was silent for too long
    STOPPED = 7  # a node is stopping
    LOST = 8  # the data link broke

    @property
    def words(self) -> str:
        """The cause as log lines name it."""
        return self.name.lower().replace("_", " ")


#: The causes that mean "the target was never reached", so another client may be tried.
DIAL_FAILURES = frozenset(
    {Cause.REFUSED, Cause.UNREACHABLE, Cause.TIMED_OUT, Cause.DENIED, Cause.NO_SLOT}
)


class Pipe(Protocol):
    """Bytes on their way that have stayed in the kernel. Who is given them owns them."""

    def __len__(self) -> int:
        """How many there are."""

    def release(self) -> None:
        """Forget them."""


class Sink(Protocol):
    """Who hears what a stream has to say."""

    def takes_pipes(self) -> bool:
        """Whether bytes may come by `piped` now."""

    def piped(self, pipe: Pipe) -> None:
        """Many bytes came."""

    def received(self, data: Chunk) -> None:
        """Bytes came."""

    def ending(self) -> None:
        """The bytes that come next are the last, and `ended` follows them. It need not be said."""

    def ended(self) -> None:
        """No more bytes will come; writing may go on."""

    def congested(self) -> None:
        """What was written waits to leave: stop writing soon."""

    def drained(self) -> None:
        """Writing may go on."""

    def became(self, stream: Stream) -> None:
        """Another stream has taken this one's place, with all that was asked of it."""

    def closed(self, cause: Cause | None) -> None:
        """The stream is gone; the last call. None: both directions had ended."""


class Stream(Protocol):
    """One end of a session."""

    def attach(self, sink: Sink) -> None:
        """Tell `sink` all that happens from now on; another may take its place before `resume`."""

    def write(self, data: Chunk) -> None:
        """Send bytes. Never blocks; `Sink.congested` asks for a pause."""

    def write_last(self, data: Chunk) -> None:
        """Send bytes that may wait for `finish`, which is about to follow, to leave with it."""

    def takes_pipes(self) -> bool:
        """Whether `write_pipe` may be called now."""

    def write_pipe(self, pipe: Pipe) -> None:
        """Send many bytes."""

    def finish(self) -> None:
        """Send no more: the other program sees the end of file after what was written."""

    def abort(self, cause: Cause) -> None:
        """Reset both directions now. `Sink.closed` is not called for one's own abort."""

    def pause(self) -> None:
        """Stop reading until `resume`."""

    def resume(self) -> None:
        """Read again."""


class FlowSink(Protocol):
    """Who hears what a datagram channel has to say."""

    def datagrams(self, batch: list[bytes]) -> None:
        """Datagrams came, the first of them first; they are at least one."""

    def closed(self, cause: Cause | None) -> None:
        """The channel is gone; the last call."""


class Channel(Protocol):
    """One end of a UDP flow: datagrams with their boundaries."""

    def attach(self, sink: FlowSink) -> None:
        """Tell `sink` of every datagram from now on. Called once."""

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        """Send datagrams in their order; those that had to be dropped are returned."""

    def close(self, cause: Cause | None = None) -> None:
        """End the flow; `FlowSink.closed` is not called for it."""
