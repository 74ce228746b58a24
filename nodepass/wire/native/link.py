"""The state of one data link: which session it carries, and whose turn it is to end it.

Rule 1: one TCP session at a time. Sessions are numbered from 1; an OPEN that is not the last
number + 1, or that comes before the last session is over, is an error.

Rule 2: a session is over at an end that has sent its own FIN or RESET and has the peer's.

Rule 3: the serving end sends DONE when a session is over there. By then it is over at the taking
end too, as the FIN or RESET of either end went before. With DONE the link is idle and may be taken
again: nothing of the session is left on it, in either direction, but perhaps the taking end's RESET
behind its FIN. Without DONE the next OPEN would wait behind bytes that the last session's target
is slow to read.

Rule 4: a RESET of the current session is answered with one's own FIN or RESET unless that was sent
before. One that comes when the session is over has crossed with its end and means nothing.

Rule 5: a link that closes while a session is not over has reset it.

Rule 6: a FLOW_OPEN on an idle link makes it a datagram link, for good.
"""

from __future__ import annotations

from enum import Enum

from nodepass.errors import PeerError
from nodepass.relay.stream import Cause
from nodepass.wire import Opening

from .frames import Data, Done, Fin, FlowOpen, Frame, Open, Reset, done, encode, fin


class LinkError(PeerError):
    """The peer broke the rules of a data link."""


class End(Enum):
    """How far one direction of the current session is."""

    OPEN = "open"
    FIN = "fin"
    RESET = "reset"


# To ask an enumeration for its members takes longer than all else that is done with them.
_OPEN, _FIN, _RESET = End


class LinkState:
    """One end of a data link, without I/O: actions return bytes to send, frames are judged.

    :ivar takes: this end opens sessions; the other end serves them.
    :ivar number: the current session, or the last one; 0 before the first.
    :ivar done: DONE of this session was sent, or at the taking end came.
    :ivar over: no session is under way at this end.
    :ivar receiving: bytes of the current session may come and are wanted.
    """

    __slots__ = ("datagrams", "done", "got", "number", "over", "receiving", "sent", "takes")

    def __init__(self, takes: bool) -> None:
        self.takes = takes
        self.number = 0
        self.sent = _FIN
        self.got = _FIN
        self.over = True
        self.receiving = False
        self.done = True
        self.datagrams = False

    @property
    def idle(self) -> bool:
        """Whether the link may be taken."""
        return self.over and self.done and not self.datagrams

    # What this end does.

    def open(self, opening: Opening) -> bytes:
        """Begin the next session."""
        if not self.takes or not self.idle:
            raise RuntimeError("only an idle link may be taken, and only by the taking end")
        self._begin(self.number + 1)
        return encode(Open(self.number, opening))

    def finish(self) -> bytes:
        """Say that no more bytes follow in the current session."""
        if self.sent is not _OPEN:
            return b""
        self.sent = _FIN
        self._look()
        return fin(self.number) + self.conclude()

    def reset(self, cause: Cause) -> bytes:
        """Give the current session up; what the peer still sends of it is dropped."""
        if self.sent is _RESET or self.over:
            return b""
        self.sent = _RESET
        self._look()
        return encode(Reset(self.number, cause)) + self.conclude()

    def conclude(self) -> bytes:
        """At the serving end: say, once, that the session is over."""
        if self.takes or self.done or not self.over:
            return b""
        self.done = True
        return done(self.number)

    # What the other end does.

    def receive(self, frame: Frame) -> Frame | None:
        """Judge a frame. What comes back concerns the local stream; None: nothing does.

        After a `Reset` came back the caller must answer with `reset` (it returns nothing where no
        answer is due). After each FIN and RESET it must send what `conclude` gives.

        :raises LinkError: the peer broke a rule; the link must be closed.
        """
        if isinstance(frame, Data):
            if self.got is not _OPEN:
                raise LinkError("bytes outside a session")
            return None if self.sent is _RESET else frame
        if isinstance(frame, Open):
            if self.takes or not self.idle or frame.session != self.number + 1:
                raise LinkError(f"session {frame.session} opened after {self.number}, out of turn")
            self._begin(frame.session)
            return frame
        if isinstance(frame, Fin):
            if frame.session != self.number or self.got is not _OPEN:
                raise LinkError(f"session {frame.session} ended out of turn")
            self.got = _FIN
            self._look()
            return None if self.sent is _RESET else frame
        if isinstance(frame, Done):
            if not self.takes or frame.session != self.number or self.done or not self.over:
                raise LinkError(f"session {frame.session} done out of turn")
            self.done = True
            return frame
        if isinstance(frame, Reset):
            return self._receive_reset(frame)
        if isinstance(frame, FlowOpen):
            if self.takes or not (self.datagrams or self.idle):
                raise LinkError("a flow opened on a link that can't take it")
            self.datagrams = True
        elif not self.datagrams:
            raise LinkError("a datagram on a link that carries none")
        return frame

    def _receive_reset(self, frame: Reset) -> Frame | None:
        if frame.session != self.number:
            raise LinkError(f"session {frame.session} reset out of turn")
        if self.got is _RESET or self.over:
            return None
        self.got = _RESET
        self._look()
        return None if self.sent is _RESET else frame

    def _begin(self, number: int) -> None:
        self.number = number
        self.sent = self.got = _OPEN
        self.done = False
        self._look()

    def _look(self) -> None:
        """See what is to be made of `sent` and `got`."""
        self.over = self.sent is not _OPEN and self.got is not _OPEN
        self.receiving = self.got is _OPEN and self.sent is not _RESET
