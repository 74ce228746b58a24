"""The state of one data link: which session it carries, and whose turn it is to end it.

Rule 1: one TCP session at a time, where rule 6 does not change that. Sessions are numbered from 1;
an OPEN that is not the last number + 1, or that comes before the last session is over, is an error.

Rule 2: a session is over at an end that has sent its own FIN or RESET and has the peer's.

Rule 3: a link may be taken again when the session is done: over, and nothing of it left on the link
but a frame that means nothing any more. Else the next OPEN could wait behind bytes that the last
session's target is slow to read. The serving end says so, in one of two ways.

Rule 3a: its FIN has the number of bytes that it has read, dropped ones included, if it is not
pausing and would pause for further bytes alone. Where the taking end sends FIN too, and has sent
just so many bytes, the session is done with both FINs, whatever RESETs cross with them.

Rule 3b: in all other cases it sends DONE when the session is over there. By then it is over at the
taking end too, as the FIN or RESET of either end went before.

Whoever moves the bytes counts them in `given` and `taken`, all of them.

Rule 4: a RESET of the current session is answered with one's own FIN or RESET unless that was sent
before. One that comes when the session is over, even if the next has begun, has crossed with its
end and means nothing.

Rule 5: a link that closes while a session is not over has reset it.

Rule 6: a FLOW_OPEN on an idle link makes it a datagram link, for good; MUX makes it one that many
sessions share, likewise. The serving end answers MUX with MUX: a RESET of the last session may come
before that.

Rule 7: JOIN begins a session as OPEN does, one that has been under way on a shared link.
"""

from __future__ import annotations

from enum import Enum

from nodepass.errors import PeerError
from nodepass.relay.stream import Cause
from nodepass.wire import Opening

from .frames import (
    COUNT_MASK,
    Data,
    Done,
    Fin,
    FlowOpen,
    Frame,
    Join,
    Mux,
    Open,
    Reset,
    done,
    encode,
    fin,
    join,
    mux,
    open_session,
)


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
    :ivar given: bytes of the current session that were sent, as the link counts them.
    :ivar taken: those that were read.
    :ivar done: nothing of the session is left on the link.
    :ivar over: no session is under way at this end.
    :ivar receiving: bytes of the current session may come and are wanted.
    :ivar datagrams: it is a datagram link.
    :ivar shared: many sessions share it.
    """

    __slots__ = (
        "_read",
        "_share_asked",
        "_taker_finished",
        "datagrams",
        "done",
        "given",
        "got",
        "number",
        "over",
        "receiving",
        "sent",
        "shared",
        "taken",
        "takes",
    )

    def __init__(self, takes: bool) -> None:
        self.takes = takes
        self.number = 0
        self.sent = _FIN
        self.got = _FIN
        self.over = True
        self.receiving = False
        self.done = True
        self.datagrams = self.shared = False
        self._share_asked = False  # and not answered
        self.given = self.taken = 0
        # Of the current session: whether the taking end has sent FIN, and how much the serving end
        # has read, as its FIN says.
        self._taker_finished = False
        self._read: int | None = None

    @property
    def idle(self) -> bool:
        """Whether the link may be taken."""
        return self.over and self.done and not (self.datagrams or self.shared)

    # What this end does.

    def open(self, opening: Opening) -> bytes:
        """Begin the next session."""
        self._take()
        self._begin(self.number + 1)
        return open_session(self.number, opening)

    def join(self, link: int, stream: int) -> bytes:
        """Go on with a session that has been under way on a shared link."""
        self._take()
        self._begin(self.number + 1)
        return join(self.number, link, stream)

    def share(self) -> bytes:
        """Let many sessions have the link from now on."""
        self._take()
        self.shared = self._share_asked = True
        return mux()

    def _take(self) -> None:
        if not self.takes or not self.idle:
            raise RuntimeError("only an idle link may be taken, and only by the taking end")

    def finish(self, reads: bool) -> bytes:
        """Say that no more bytes follow in the current session.

        :param reads: the link is being read, and will be as long as no more bytes come; the taking
            end need not know.
        """
        if self.sent is not _OPEN:
            return b""
        self.sent = _FIN
        self._look()
        if self.takes:
            self._taker_finished = True
        elif reads or self.over:
            self._read = self.taken & COUNT_MASK
        self._see_if_done()
        return fin(self.number, None if self.takes else self._read) + self.conclude()

    def reset(self, cause: Cause) -> bytes:
        """Give the current session up; what the peer still sends of it is dropped."""
        if self.sent is _RESET or self.over:
            return b""
        self.sent = _RESET
        self._look()
        return encode(Reset(self.number, cause)) + self.conclude()

    def conclude(self) -> bytes:
        """At the serving end: say, once, that the session is done, unless that is known."""
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
        if isinstance(frame, (Open, Join)):
            if self.takes or not self.idle or frame.session != self.number + 1:
                raise LinkError(f"session {frame.session} opened after {self.number}, out of turn")
            self._begin(frame.session)
            return frame
        if isinstance(frame, Fin):
            if frame.session != self.number or self.got is not _OPEN:
                raise LinkError(f"session {frame.session} ended out of turn")
            self.got = _FIN
            if self.takes:
                self._read = frame.read
            else:
                self._taker_finished = True
            self._look()
            self._see_if_done()
            return None if self.sent is _RESET else frame
        if isinstance(frame, Done):
            if not self.takes or frame.session != self.number or self.done or not self.over:
                raise LinkError(f"session {frame.session} done out of turn")
            self.done = True
            return frame
        if isinstance(frame, Reset):
            return self._receive_reset(frame)
        if isinstance(frame, Mux):
            if self.takes:
                if not self._share_asked:
                    raise LinkError("a link shared out of turn")
                self._share_asked = False
            elif not self.idle:
                raise LinkError("a link to be shared that can't be")
            else:
                self.shared = True
        elif isinstance(frame, FlowOpen):
            if self.takes or not (self.datagrams or self.idle):
                raise LinkError("a flow opened on a link that can't take it")
            self.datagrams = True
        elif not self.datagrams:
            raise LinkError("a datagram on a link that carries none")
        return frame

    def _receive_reset(self, frame: Reset) -> Frame | None:
        if frame.session != self.number:
            if self.takes and frame.session == self.number - 1:
                return None  # that session was done with FIN
            raise LinkError(f"session {frame.session} reset out of turn")
        if self.got is _RESET or self.over:
            return None
        self.got = _RESET
        self._look()
        return None if self.sent is _RESET else frame

    def _begin(self, number: int) -> None:
        self.number = number
        self.sent = self.got = _OPEN
        self.done = self.over = False
        self.receiving = True
        self.given = self.taken = 0
        self._taker_finished = False
        self._read = None

    def _look(self) -> None:
        """See what is to be made of `sent` and `got`."""
        self.over = self.sent is not _OPEN and self.got is not _OPEN
        self.receiving = self.got is _OPEN and self.sent is not _RESET

    def _see_if_done(self) -> None:
        """See whether both FINs tell both ends that all has been read."""
        if self._taker_finished and self._read is not None:
            self.done = self._read == (self.given if self.takes else self.taken) & COUNT_MASK
