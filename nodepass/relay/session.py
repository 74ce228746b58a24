"""A TCP session: two streams joined, with its counters, its rate and its idle limit."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from nodepass.logs import Log
from nodepass.meter import Meter
from nodepass.rate import RateLimiter, Waiter

from .specialized import have_own
from .stream import DIAL_FAILURES, Cause, Chunk, Pipe, Stream

#: A session that may be moved to another client keeps what its visitor has sent so far, up to this
#: many bytes: an ordinary request fits.
REPLAY_LIMIT = 65536


class SessionOwner(Protocol):
    """Who a session belongs to."""

    def another(self, cause: Cause) -> Deferred[Stream] | None:
        """Another far stream, after a dial failed; None when there is no other client to try."""

    def session_over(self, session: Session, cause: Cause | None) -> None:
        """Nothing is left of the session. Called once, with the cause or None."""


@frozen(kw_only=True)
class SessionContext:
    """What the sessions of one instance share."""

    clock: IReactorTime
    log: Log
    meter: Meter
    #: Seconds without a byte in either direction after which a session ends; 0: never.
    read: float
    #: The buckets for bytes from and to visitors or targets; None: unlimited.
    inbound: RateLimiter | None = None
    outbound: RateLimiter | None = None


class _Half:
    """One of a session's streams as a `Sink`: what it receives goes to the other half's stream."""

    __slots__ = (
        "blocked",
        "ended_",
        "gone",
        "limiter",
        "other",
        "session",
        "stream",
        "waiter",
        "write",
    )

    other: _Half

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        have_own(cls, "__init__", "ended", "closed")

    def __init__(self, session: Session, stream: Stream, limiter: RateLimiter | None) -> None:
        self.session = session
        self.stream = stream
        self.write = stream.write
        self.limiter = limiter
        self.ended_ = False
        self.gone = False
        self.blocked = False  # the other stream is congested
        self.waiter: Waiter | None = None  # set while the rate holds this stream back

    def received(self, data: Chunk) -> None:
        raise NotImplementedError

    def count(self, size: int) -> None:
        """Bytes have come."""
        raise NotImplementedError

    def takes_pipes(self) -> bool:
        # What is kept for another client, or doled out, is copied.
        return (
            not self.gone
            and self.limiter is None
            and self.session.replays is None
            and not self.other.gone
            and self.other.stream.takes_pipes()
        )

    def piped(self, pipe: Pipe) -> None:
        if self.gone or self.other.gone:
            pipe.release()
            return
        self.count(len(pipe))
        self.other.stream.write_pipe(pipe)

    def _spend(self, limiter: RateLimiter, size: int) -> None:
        limiter.spend(size)
        if not limiter.ready and self.waiter is None and not self.gone:
            if not self.blocked:
                self.stream.pause()
            self.waiter = limiter.wait(self._rate_allows)

    def _rate_allows(self) -> None:
        self.waiter = None
        if not self.blocked and not self.gone:
            self.stream.resume()

    def ending(self) -> None:
        # What the rate may hold back can't wait for what follows it.
        if not self.other.gone and self.limiter is None:
            self.other.write = self.other.stream.write_last

    def ended(self) -> None:
        if self.gone:
            return
        self.ended_ = True
        other = self.other
        # While another client is looked for, it is told when it is found.
        if not other.gone and self.session.retrying is None:
            other.stream.finish()

    def congested(self) -> None:
        if self.gone:
            return
        source = self.other
        if not source.blocked:
            source.blocked = True
            if source.waiter is None and not source.gone:
                source.stream.pause()

    def drained(self) -> None:
        if self.gone:
            return
        source = self.other
        if source.blocked:
            source.blocked = False
            if source.waiter is None and not source.gone:
                source.stream.resume()

    def became(self, stream: Stream) -> None:
        self.stream = stream
        self.write = stream.write

    def closed(self, cause: Cause | None) -> None:
        if not self.gone:
            self.gone = True
            if self.waiter is not None:
                self.release()
            self.session.half_closed(self, cause)

    def release(self) -> None:
        self.gone = True
        if self.waiter is not None:
            self.waiter.cancel()
            self.waiter = None


class _Near(_Half):
    """The half whose bytes count as received."""

    __slots__ = ()

    def received(self, data: Chunk) -> None:
        # All that is moved passes here, or there: what is not needed for most of it is elsewhere.
        if self.gone:
            return
        session = self.session
        size = len(data)
        session.received += size
        session.meter.tcp_rx += size
        if session.replays is not None and not session.keep(data, size):
            return
        other = self.other
        if not other.gone:
            write = other.write
            write(data)
        if self.limiter is not None:
            self._spend(self.limiter, size)

    def count(self, size: int) -> None:
        self.session.received += size
        self.session.meter.tcp_rx += size


class _Far(_Half):
    """The half whose bytes count as sent."""

    __slots__ = ()

    def received(self, data: Chunk) -> None:
        if self.gone:
            return
        session = self.session
        size = len(data)
        session.sent += size
        session.meter.tcp_tx += size
        # The target was reached: from here on the session stays where it is.
        session.replays = None
        other = self.other
        if not other.gone:
            write = other.write
            write(data)
        if self.limiter is not None:
            self._spend(self.limiter, size)

    def count(self, size: int) -> None:
        self.session.sent += size
        self.session.meter.tcp_tx += size


class Session:
    """Joins the near stream (this node's visitor or target) with the far one.

    The near stream's bytes count as received (RX), what is written to it as sent (TX). The session
    ends once: when both streams are closed, or when one of them was reset, which resets the other.

    :param near: the visitor's stream, or the target's.
    :param far: the stream of a data link; in a plain forwarder the target's.
    :param owner: hears of its end.
    :param name: names the session in the log, by its text; the owner unless given.
    :param movable: the owner is asked for another far stream when the dial failed before a byte
        came back.
    """

    __slots__ = (
        "_moved",
        "_name",
        "_over",
        "_owner",
        "_quiet_since",
        "_replayed",
        "context",
        "far",
        "meter",
        "near",
        "received",
        "replays",
        "retrying",
        "sent",
    )

    def __init__(
        self,
        near: Stream,
        far: Stream,
        *,
        context: SessionContext,
        owner: SessionOwner,
        name: object = None,
        movable: bool = False,
    ) -> None:
        self.context = context
        self.meter = context.meter
        self.near: _Half = _Near(self, near, context.inbound)
        self.far: _Half = _Far(self, far, context.outbound)
        self.near.other = self.far
        self.far.other = self.near
        self._owner = owner
        self._name = name
        #: What another client would have to be given; None when the session stays where it is.
        self.replays: list[bytes] | None = [] if movable else None
        self._replayed = 0
        #: There while another client is looked for.
        self.retrying: Deferred[Stream] | None = None
        self._over = False
        self.received = 0
        self.sent = 0
        self._moved = -1  # bytes, when they were looked at last
        self._quiet_since = 0.0

    def __str__(self) -> str:
        return str(self._owner if self._name is None else self._name)

    def start(self) -> None:
        """Begin to move bytes."""
        log = self.context.log
        if log.debugs:
            log.debug("session {session}: started", session=str(self))
        self.far.stream.attach(self.far)
        if not self._over:
            self.near.stream.attach(self.near)
        if not self.far.gone and not self._over:
            self.far.stream.resume()
        if not self.near.gone and not self._over and not self.near.blocked:
            self.near.stream.resume()

    def abort(self, cause: Cause) -> None:
        """Reset both ends now."""
        if self._over:
            return
        for half in (self.near, self.far):
            if not half.gone:
                half.release()
                half.stream.abort(cause)
        self._finish(cause)

    # What the halves report, but for an end of one direction.

    def half_closed(self, half: _Half, cause: Cause | None) -> None:
        """One stream is gone."""
        if self._over:
            return
        if cause is not None:
            if half is self.far and not self.near.gone and self._try_again(cause):
                return
            self.abort(cause)
        elif half.other.gone:
            self._finish(None)

    # Another client.

    def keep(self, data: Chunk, size: int) -> bool:
        """Keep what the visitor sent, for another client.

        :returns: whether it should be passed on as well; else the replay does that.
        """
        self._replayed += size
        if self._replayed > REPLAY_LIMIT:
            self.replays = None
        elif self.replays is not None:
            self.replays.append(bytes(data))
        return self.retrying is None

    def _try_again(self, cause: Cause) -> bool:
        """Look for another client after the dial failed; False when there is none."""
        if cause not in DIAL_FAILURES or self.replays is None:
            return False
        retrying = self._owner.another(cause)
        if retrying is None:
            return False
        self.retrying = retrying
        if not self.near.blocked and self.near.waiter is None:
            self.near.stream.pause()
        self.near.blocked = True
        retrying.addCallbacks(self._again, self._not_again, errbackArgs=(cause,))
        return True

    def _again(self, stream: Stream) -> None:
        self.retrying = None
        if self._over:
            stream.abort(Cause.RESET)
            return
        del self.far.session, self.far.other
        self.far = _Far(self, stream, self.context.outbound)
        self.far.other = self.near
        self.near.other = self.far
        self.near.blocked = False  # the new stream says by itself when it is congested
        stream.attach(self.far)
        replays, self.replays = self.replays, None
        if not self.far.gone:
            for data in replays or ():
                stream.write(data)
            if self.near.ended_:
                stream.finish()
        if not self.far.gone:
            stream.resume()
        if not (self.near.blocked or self.near.gone) and self.near.waiter is None:
            self.near.stream.resume()

    def _not_again(self, failure: Failure, cause: Cause) -> None:
        self.retrying = None
        self.abort(cause)

    # The end.

    def check_idle(self, now: float) -> None:
        """End the session if nothing has moved for too long. To be called now and then, with the
        clock's seconds: that costs less than a timer, and than a look at the clock for each
        message."""
        moved = self.received + self.sent
        if moved != self._moved:
            self._moved = moved
            self._quiet_since = now
        elif now - self._quiet_since >= self.context.read:
            self.abort(Cause.IDLE)

    def _finish(self, cause: Cause | None) -> None:
        self._over = True
        retrying, self.retrying = self.retrying, None
        if retrying is not None:
            retrying.cancel()
        self.replays = None
        log = self.context.log
        if log.debugs:
            log.debug(
                "session {session}: {how}, {received} bytes received, {sent} sent",
                session=str(self),
                how="ended" if cause is None else f"reset ({cause.words})",
                received=self.received,
                sent=self.sent,
            )
        # What knows each other lets go: a session is freed at its end, not by the garbage
        # collector.
        owner, near, far = self._owner, self.near, self.far
        del self._owner, near.session, near.other, far.session, far.other
        owner.session_over(self, cause)
