"""Takes visitors to a peer: which peer, how long to wait for one, and what if its dial fails."""

from __future__ import annotations

from collections import OrderedDict

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from nodepass.relay.session import Session
from nodepass.relay.stream import DIAL_FAILURES, Cause, Channel, Chunk, Pipe, Stream
from nodepass.wire import Opening, Peer

from .instance import Instance

#: Seconds for which a peer whose dial failed is passed over, and the longest such time.
FIRST_PENALTY = 1.0
LONGEST_PENALTY = 60.0


@define
class _Penalty:
    until: float
    failures: int


class Carrier:
    """The `Destination` of visitors that leave through peers.

    A visitor goes to the available peer with the fewest sessions; while there is none it waits, for
    `NP_POOL_GET_TIMEOUT` altogether.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.peers: list[Peer] = []
        self._penalties: dict[Peer, _Penalty] = {}
        self._waiting: OrderedDict[_Visitor, None] = OrderedDict()
        self._stopped = False
        #: Visitors that wait, for a peer or for a link.
        self.undialed = 0

    # Peers come and go.

    def add(self, peer: Peer) -> None:
        """A peer is there."""
        self.peers.append(peer)
        self.available()

    def remove(self, peer: Peer) -> None:
        """A peer is gone."""
        if peer in self.peers:
            self.peers.remove(peer)
        self._penalties.pop(peer, None)

    def available(self) -> None:
        """A peer may be available again: place those who wait."""
        for visitor in list(self._waiting):
            if self.choose() is None:
                return
            if visitor in self._waiting:  # placing another may have ended it
                del self._waiting[visitor]
                visitor.place()

    def choose(self, but: Peer | None = None) -> Peer | None:
        """The best peer for a new visitor, or None.

        One whose dials fail is passed over while another works.
        """
        now = self._instance.reactor.seconds()
        if len(self.peers) == 1 and but is None:
            return self.peers[0] if self.peers[0].available(now) else None
        able = [peer for peer in self.peers if peer is not but and peer.available(now)]
        if len(able) < 2:
            return able[0] if able else None
        return min(able, key=lambda peer: (self._punished(peer, now), peer.sessions))

    def _punished(self, peer: Peer, now: float) -> bool:
        penalty = self._penalties.get(peer)
        return penalty is not None and now < penalty.until

    def dial_failed(self, peer: Peer) -> None:
        """A peer could not reach its target."""
        now = self._instance.reactor.seconds()
        penalty = self._penalties.setdefault(peer, _Penalty(now, 0))
        if now >= penalty.until:
            pause = min(LONGEST_PENALTY, FIRST_PENALTY * 2.0 ** min(penalty.failures, 16))
            penalty.until = now + pause
            penalty.failures += 1

    def dial_worked(self, peer: Peer) -> None:
        """A peer reached its target."""
        self._penalties.pop(peer, None)

    # Destination

    def carry(self, stream: Stream, opening: Opening) -> None:
        _Visitor(self, self._instance, stream, opening).place()

    def open_flow(self, opening: Opening) -> Channel | None:
        peer = self.choose()
        return None if peer is None else peer.open_flow(opening)

    def wait(self, visitor: _Visitor) -> bool:
        """Keep a visitor until a peer is available; False when this node is stopping."""
        if self._stopped:
            return False
        self._waiting[visitor] = None
        return True

    def stop_waiting(self, visitor: _Visitor) -> None:
        """A visitor waits no more."""
        self._waiting.pop(visitor, None)

    def refuse_waiting(self, cause: Cause) -> None:
        """No peer will come for those who wait."""
        for visitor in list(self._waiting):
            visitor.give_up(cause)

    def stop(self) -> None:
        """Refuse those who wait, and from now on all for whom there is no peer."""
        self._stopped = True
        self.refuse_waiting(Cause.STOPPED)


class _Visitor:
    """A TCP visitor from its arrival until it is gone. It owns the session.

    While it waits it is the sink of its own stream, to notice that the visitor has left.
    """

    __slots__ = (
        "_carrier",
        "_instance",
        "_opened",
        "_opening",
        "_over",
        "_peer",
        "_stream",
        "_timer",
        "_told",
    )

    def __init__(
        self, carrier: Carrier, instance: Instance, stream: Stream, opening: Opening
    ) -> None:
        self._carrier = carrier
        self._instance = instance
        self._stream = stream
        self._opening = opening
        self._peer: Peer | None = None
        self._opened: Deferred[Stream] | None = None
        self._told: Cause | None = None  # the dial failure of this peer that was logged
        self._over = False
        self._timer: IDelayedCall | None = None  # there is one as long as it waits

    def __str__(self) -> str:
        return f"tcp {self._opening.visitor} through {self._peer}"

    def place(self) -> None:
        """Give the visitor to a peer, or let it wait."""
        if self._over:
            return
        peer = self._peer = self._carrier.choose()
        far = None if peer is None else peer.take(self._opening)
        if far is not None:
            self._join(far)
        elif self._timer is not None or self._begin_to_wait():
            self._wait_for(peer)

    def give_up(self, cause: Cause) -> None:
        """Reset the visitor that waits."""
        if self._end():
            self._stream.abort(cause)

    def _begin_to_wait(self) -> bool:
        """Whether it may wait, and is still there."""
        carrier, instance = self._carrier, self._instance
        if carrier.undialed >= instance.tuning.semaphore_limit:
            instance.log.limited(
                "waiting", "NP_SEMAPHORE_LIMIT: too many visitors wait; one was refused"
            )
            self.give_up(Cause.NO_SLOT)
            return False
        carrier.undialed += 1
        self._timer = instance.reactor.callLater(instance.tuning.pool_get_timeout, self._timed_out)
        self._stream.attach(self)
        return not self._over

    def _wait_for(self, peer: Peer | None) -> None:
        if peer is not None:
            self._opened = opened = peer.open(self._opening)
            opened.addCallbacks(self._join, self._not_opened)
        elif not self._carrier.wait(self):
            self.give_up(Cause.STOPPED)

    def _join(self, far: Stream) -> None:
        self._opened = None
        if self._timer is not None:
            self._settle()
        instance = self._instance
        instance.sessions.start(
            Session(self._stream, far, context=instance.context, owner=self, movable=True)
        )

    def _not_opened(self, failure: Failure) -> None:
        self._opened = None
        if not self._over and failure.check(CancelledError) is None:
            self.place()  # the peer went before it had a link

    # SessionOwner

    def another(self, cause: Cause) -> Deferred[Stream] | None:
        """The dial failed before a byte came back: another peer, if there is one."""
        self._tell_failure(cause)
        assert self._peer is not None
        other = self._carrier.choose(but=self._peer)
        if other is None:
            return None
        opened = other.open(self._opening).addTimeout(
            self._instance.tuning.pool_get_timeout, self._instance.reactor
        )
        return opened.addCallback(self._moved, other)

    def session_over(self, session: Session, cause: Cause | None) -> None:
        """The session has ended."""
        self._instance.sessions.discard(session)
        if cause in DIAL_FAILURES and cause is not self._told:
            assert cause is not None
            self._tell_failure(cause)
        elif session.sent and self._peer is not None:
            self._carrier.dial_worked(self._peer)
        self._end()

    def _moved(self, far: Stream, peer: Peer) -> Stream:
        self._peer = peer
        self._told = None
        return far

    def _tell_failure(self, cause: Cause) -> None:
        assert self._peer is not None
        self._told = cause
        self._carrier.dial_failed(self._peer)
        self._instance.log.limited(
            # Not by its name, which is the peer's to choose as often as it likes.
            ("dial failed", self._peer.origin, cause),
            "visitor {visitor}: target {target} of {peer}: {cause}",
            visitor=self._opening.visitor,
            target=self._peer.targets,
            peer=self._peer.name,
            cause=cause.words,
        )

    def _timed_out(self) -> None:
        self._instance.log.limited(
            "no link",
            "visitor {visitor} was refused: {why} within {timeout:g} s",
            visitor=self._opening.visitor,
            why="no peer could take it" if self._carrier.peers else "no other node has joined",
            timeout=self._instance.tuning.pool_get_timeout,
        )
        self.give_up(Cause.TIMED_OUT)

    def _end(self) -> bool:
        """Give back what the visitor holds; False when that was done before."""
        if self._over:
            return False
        self._over = True
        if self._timer is not None:
            self._settle()
        if self._opened is not None:
            self._opened.cancel()
        self._instance.release_tcp()
        return True

    def _settle(self) -> None:
        """It waits no more."""
        timer, self._timer = self._timer, None
        assert timer is not None, "only who waits has one"
        self._carrier.undialed -= 1
        self._carrier.stop_waiting(self)
        if timer.active():
            timer.cancel()

    # Sink, while it waits

    def takes_pipes(self) -> bool:
        return False

    def piped(self, pipe: Pipe) -> None:
        raise AssertionError("a stream that was not resumed does not read")

    def received(self, data: Chunk) -> None:
        raise AssertionError("a stream that was not resumed does not read")

    def ending(self) -> None:
        raise AssertionError("a stream that was not resumed does not read")

    def ended(self) -> None:
        raise AssertionError("a stream that was not resumed does not read")

    def congested(self) -> None:
        pass  # nothing is written yet

    def drained(self) -> None:
        pass  # nothing is written yet

    def became(self, stream: Stream) -> None:
        raise AssertionError("a visitor's stream is what it is")

    def closed(self, cause: Cause | None) -> None:
        self._end()
