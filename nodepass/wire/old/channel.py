"""A UDP flow of an old dialect: a channel on a link of its own."""

from __future__ import annotations

from collections.abc import Sequence

from nodepass.relay.stream import Cause, Chunk, FlowSink, Pipe, Stream

from .datagrams import DatagramReader, frames
from .dialect import Dialect
from .link import OldLink

__all__ = ["LinkChannel"]

#: Datagrams that a flow may hold while it waits for a link or for room on it, and their bytes: what
#: a visitor sends at once. More would be stale when they leave.
HELD_DATAGRAMS = 64
HELD_BYTES = 256 * 1024


class LinkChannel:
    """Datagrams on a link, which it may have to wait for.

    2.0 has the length of each in front of it. In 1.14 and 1.6 a write is a datagram and a read is
    one, as far as TCP keeps them apart, and empty ones do not arrive.

    What the peer's buffer is too small for is dropped: it would arrive in pieces, or end the flow.
    """

    def __init__(self, dialect: Dialect) -> None:
        traits = dialect.traits
        self._largest = traits.udp_read
        self._reader = DatagramReader() if traits.framed_udp else None
        self._link: OldLink | None = None
        self._sink: FlowSink | None = None
        self._congested = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._over = False
        self._cause: Cause | None = None

    @property
    def over(self) -> bool:
        """Whether the flow has ended."""
        return self._over

    def begin(self, link: OldLink) -> None:
        """The flow has its link, which was taken for it."""
        self._link = link
        link.attach(self)
        self._send_held()
        if not self._over and self._sink is not None:
            link.resume()

    def refuse(self, cause: Cause) -> None:
        """There will be no link."""
        self.closed(cause)

    # Channel

    def attach(self, sink: FlowSink) -> None:
        self._sink = sink
        if self._over:
            sink.closed(self._cause)
        elif self._link is not None:
            self._link.resume()

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        if self._over:
            return batch
        largest = self._largest
        fit = [data for data in batch if len(data) <= largest]
        lost = [] if len(fit) == len(batch) else [data for data in batch if len(data) > largest]
        link = self._link
        if link is not None and self._reader is not None and not self._congested:
            if fit:
                link.write(frames(fit))
            return lost
        for place, data in enumerate(fit):
            if link is None or self._congested:
                lost += [data for data in fit[place:] if not self._hold(data)]
                break
            if data:
                link.write(data)
        return lost

    def _hold(self, data: bytes) -> bool:
        size = len(data)
        if len(self._held) >= HELD_DATAGRAMS or self._held_bytes + size > HELD_BYTES:
            return False
        self._held.append(data)
        self._held_bytes += size
        return True

    def _send_held(self) -> None:
        if self._held and not self._over:
            held, self._held, self._held_bytes = self._held, [], 0
            self.send(held)

    def close(self, cause: Cause | None = None) -> None:
        self._sink = None
        if not self._over:
            self._over = True
            self._held.clear()
            if self._link is not None:
                self._link.close()

    # Sink, of the link

    def takes_pipes(self) -> bool:
        return False

    def piped(self, pipe: Pipe) -> None:
        raise AssertionError("a flow takes no pipes")

    def received(self, data: Chunk) -> None:
        if self._sink is None or self._over:
            return
        batch = [bytes(data)] if self._reader is None else self._reader.feed(bytes(data))
        if batch:
            self._sink.datagrams(batch)

    def ending(self) -> None:
        pass  # datagrams wait for nothing

    def ended(self) -> None:
        self.closed(None)

    def congested(self) -> None:
        self._congested = True

    def drained(self) -> None:
        self._congested = False
        self._send_held()

    def became(self, stream: Stream) -> None:
        raise AssertionError("a link stays what it is")

    def closed(self, cause: Cause | None) -> None:
        if self._over:
            return
        self._over = True
        self._cause = cause
        self._held.clear()
        if self._link is not None:
            self._link.close()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.closed(cause)
