"""The engine's connections to visitors and targets, as streams."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from nodepass.address import Endpoint, endpoint_of

from ..stream import Cause, Chunk, Pipe, Sink
from ..tcp import LINGER_OFF
from .connection import EngineConnection, drop
from .pipes import MOST_PIPED, EnginePipe
from .poller import Poller

__all__ = ["EngineStream"]


class EngineStream(EngineConnection):
    """A connection that a session has, without a protocol in between: what is read goes straight to
    the session, and what the session writes straight to the socket.

    It starts paused.
    """

    __slots__ = ("_lost", "_sink", "_write_ended")

    def __init__(
        self,
        poller: Poller,
        sock: socket.SocketType,
        *,
        peer: Any = None,
        told: int = 0,
        expects: bool = False,
    ) -> None:
        """
        :param peer: where the other end is, if known.
        :param told: the events that another owner was told of; 0: the poller has not seen the
            socket yet.
        :param expects: bytes have often come by now, though nobody has told of them yet: whoever
            says so calls `read_on` when the stream has a session.
        :raises OSError: the system can't watch one more socket; it is left to the caller.
        """
        super().__init__(poller, sock, peer=peer)
        self._sink: Sink | None = None
        self._lost: tuple[Cause | None] | None = None  # how it ended, when it has
        self._write_ended = False
        self._deaf = True
        if told:
            self._watch_on(told)
        else:
            poller.add(self._fd, self)
            self._readable = self._scheduled = expects

    # Stream; `write` is the connection's

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self._lost is not None

    @property
    def peer(self) -> Endpoint:
        """Where the other program is."""
        return endpoint_of(self.getPeer())

    @property
    def congested(self) -> bool:
        """Whether what was written waits to leave."""
        return self._throttled

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._lost is not None:
            sink.closed(self._lost[0])
            return
        self._deliver = sink.received
        if self._throttled:
            sink.congested()

    def write_last(self, data: Chunk) -> None:
        if self._left or self._pipe is not None or self._ends_writing or self._closing:
            self.write(data)
        else:
            self._send_ahead(data, socket.MSG_MORE)

    def takes_pipes(self) -> bool:
        return True

    def write_pipe(self, pipe: Pipe) -> None:
        assert isinstance(pipe, EnginePipe), "only the engine has some to give"
        self._write_pipe(b"", pipe)

    def abort(self, cause: Cause) -> None:
        self._sink = None
        self._deliver = drop
        self.abortConnection()

    def finish(self) -> None:
        if self._read_ended or self._left or self._pipe is not None:
            self.loseWriteConnection()
        elif not (self._ends_writing or self._closing):
            # At once, as who reads this has waited for it, and nobody here is told.
            self._ends_writing = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._broken()
            else:
                self._hear_finished()

    pause = EngineConnection.pauseProducing
    resume = EngineConnection.resumeProducing

    # EngineConnection

    def _next_bytes(self) -> tuple[int, bool]:
        sink = self._sink
        return (MOST_PIPED, True) if sink is not None and sink.takes_pipes() else (0, False)

    def _deliver_pipe(self, pipe: EnginePipe) -> None:
        if self._sink is not None:
            self._sink.piped(pipe)
        else:
            pipe.release()

    def _hear_ending(self) -> None:
        if self._sink is not None:
            self._sink.ending()

    def _hear_end(self) -> None:
        if self._sink is not None:
            self._sink.ended()
        if self._write_ended and not self._closing:
            self._lose(connectionDone)

    def _shut(self) -> None:
        if not self._read_ended:
            super()._shut()
        elif not self._closing:
            # Closing says as much.
            self._hear_finished()
            self._lose(connectionDone)

    def _hear_finished(self) -> None:
        self._write_ended = True
        # All that was written is the system's to deliver.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF)

    def _hear_full(self) -> None:
        if self._sink is not None:
            self._sink.congested()

    def _hear_room(self) -> None:
        if self._sink is not None:
            self._sink.drained()

    def _hear_loss(self, reason: Failure) -> None:
        clean = self._read_ended and self._write_ended and reason is connectionDone
        cause = None if clean else Cause.RESET
        self._lost = (cause,)
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.closed(cause)
