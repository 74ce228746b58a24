"""How a data link writes: short frames wait a moment for what follows them."""

from __future__ import annotations

from typing import Any

from nodepass.relay.stream import Chunk, Pipe

from .frames import DATA_WORD, MAX_DATA, data_header, pack_word
from .link import LinkState

__all__ = ["LinkWriter"]

#: Bytes from which a frame's header is handed to the system beside them: to put it in front of
#: fewer costs less than a second piece.
SEPARATE_FROM = 4096


class LinkWriter:
    """What a data link's sessions and flows write to its transport.

    :ivar state: counts the bytes of the current session.
    :ivar congested: what was written waits to leave.
    """

    __slots__ = ("_held", "_holds_back", "_lost", "congested", "state", "transport")

    transport: Any

    def __init__(self, state: LinkState) -> None:
        self.state = state
        self.congested = False
        self._held = b""  # short frames that leave with what follows them, or soon
        self._holds_back = False  # the transport says when they are to leave at the latest
        self._lost = False

    def _write_to(self, transport: Any) -> None:
        """Write to this transport from now on."""
        self.transport = transport
        self._holds_back = hasattr(transport, "last")

    # For the stream and the flows

    def write(self, data: Chunk) -> None:
        """Send bytes of the current session."""
        # All that is moved passes here, or through `dataReceived`: what most of it does not need
        # is elsewhere.
        size = len(data)
        self.state.given += size
        head = pack_word(DATA_WORD | size)
        if self._held:
            head = self._held + head
            self._held = b""
        if size < SEPARATE_FROM:
            self.transport.write(head + data)
        else:
            self.transport.writeSequence((head, data))

    def write_last(self, data: Chunk) -> None:
        """Send bytes of the current session that FIN follows."""
        size = len(data)
        if size < SEPARATE_FROM:
            self.state.given += size
            self._send(data_header(size) + data)
        else:
            self.write(data)

    @property
    def takes_pipes(self) -> bool:
        """Whether the link's transport does."""
        return getattr(self.transport, "takes_pipes", False)

    def write_pipe(self, pipe: Pipe) -> None:
        """Send many bytes of the current session, as one frame."""
        if self._lost:
            pipe.release()
            return
        assert len(pipe) <= MAX_DATA, "a pipe holds less than the longest frame"
        self.state.given += len(pipe)
        head, self._held = self._held + data_header(len(pipe)), b""
        self.transport.write_pipe(head, pipe)

    def send_frame(self, frame: bytes) -> None:
        """Send frames of a datagram link."""
        if not self._lost:
            if self._held:
                self._send_held()
            self.transport.write(frame)

    # For the link

    def _send(self, frame: bytes) -> None:
        """Send a short frame. Where it can be, it is held back for a moment, as what follows it,
        such as a visitor's first bytes after OPEN, is often about to come."""
        if not frame or self._lost:
            return
        if self._holds_back:
            if not self._held:
                self.transport.last(self._send_held)
            self._held += frame
        else:
            self.transport.write(frame)

    def _send_held(self) -> None:
        held, self._held = self._held, b""
        if held and not self._lost:
            self.transport.write(held)
