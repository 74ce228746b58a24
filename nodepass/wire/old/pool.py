"""The links of an old peer: which are idle, who waits for one, which signal waits for its link."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.errors import PeerError
from nodepass.logs import Log
from nodepass.pool.policy import DemandPolicy
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import TakeOver
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening

from .awaited import AwaitedLaunches
from .channel import LinkChannel
from .dialect import ID_WAIT, INTERVAL, Dialect
from .link import OldLink
from .signals import Launch, LineUnwritable

__all__ = ["OldPool", "PoolOwner"]

#: Seconds within which a visitor gets a link that has just come, at a peer that has no other.
FRESH = 1.0
#: Seconds by which that link must be younger than one that counts as lost. Links that are made side
#: by side change places between the one end's count and the other's.
YOUNGER = 0.25
#: Seconds by which it must be younger than one that is closed for it: none change places by these.
CERTAIN = 5.0
#: Seconds after which a 1.6 node surely has filed a link whose number it was given, on a machine
#: with much to do too. One that has not does not find it, and its visitor waits in vain.
FILING_TIME = 0.25
#: Seconds by which another link must be younger for a link to count as filed by then: a 1.6 node
#: makes one link after the other. By less, they may have changed places on the way.
NEXT_LINK = 0.01
#: Seconds that links have to close when the peer is parted with.
PARTING_TIMEOUT = 2.0
#: Seconds until links are made for others that are gone. Where the server was killed its control
#: link is gone by then as well. It may be there again at once, and must not meet links of the one
#: before: in 1.6 it takes each for a client that says nothing, and pauses for three seconds.
REPLACE_AFTER = 0.25


class PoolOwner(Protocol):
    """What a pool of links asks of its peer."""

    @property
    def name(self) -> str:
        """The peer, for log lines."""

    @property
    def serves(self) -> bool:
        """Whether visitors may be given to it now."""

    def launch(self, launch: Launch) -> None:
        """Tell the peer to dial.

        :raises LineUnwritable: that can't be said of this link.
        """

    def launched(self, launch: Launch, link: OldLink) -> None:
        """The peer has a visitor on this link, which is taken for it."""

    def need_links(self, count: int) -> None:
        """At the client: make so many more links."""

    def idle_changed(self) -> None:
        """There is an idle link more."""


class OldPool:
    """All links of a peer. It is the `LinkOwner` of each.

    Rule 1: a link is used once. Either end knows it by its number.

    Rule 2: idle links are never closed because they are many: the other end would go on counting
    them. `flush` is for both ends.

    Rule 3: the end with the visitors takes the newest idle link. Old nodes take their oldest for
    their verify, and so the two rarely meet.

    Rule 4: links that the peer closes are not replaced at once: it may be no more.

    Rule 5: where a peer takes a link that has only just come, it may have lost those before: while
    visitors wait an old node hands out numbers before it has filed their links. So these do not
    count, and are closed when that is certain.

    :param takes: this end has the visitors.
    :param policy: at the client, how many idle links there should be; the server has as many as
        the client makes.
    :param maximum: most idle links.
    """

    def __init__(
        self,
        owner: PoolOwner,
        dialect: Dialect,
        *,
        takes: bool,
        maximum: int,
        policy: DemandPolicy | None,
        clock: IReactorTime,
        watch: HangupWatch,
        log: Log,
        take_over: TakeOver,
    ) -> None:
        self._owner = owner
        self._dialect = dialect
        self._takes = takes
        self._maximum = maximum
        self._policy = policy
        self._clock = clock
        self._watch = watch
        self._log = log
        self._take_over = take_over
        self._links: dict[str, OldLink] = {}
        self._idle: dict[str, OldLink] = {}  # the newest is the last
        self._filing: dict[OldLink, IDelayedCall] = {}  # not yet known to the peer
        self._doubtful: dict[OldLink, float] = {}  # not taken, and said something, since when
        self._passed: dict[OldLink, None] = {}  # passed over by the peer, the newest is the last
        self._busy: set[OldLink] = set()
        self._waiting: dict[Deferred[Stream] | LinkChannel, Opening] = {}
        self._awaited = AwaitedLaunches(clock, self._unknown)
        self._coming = 0  # links asked for and not there yet
        self._arriving: set[OldLink] = set()  # there, and not ready to be taken yet
        self._errors = 0
        self._later: IDelayedCall | None = None  # when links are asked for again
        self._held = False  # none are until then
        self._dry_since: float | None = None  # visitors wait, and no link has come
        self._closed = False
        self._parted: Deferred[None] | None = None
        self._parting: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, number: str) -> bool:
        return number in self._links

    @property
    def idle(self) -> int:
        """Links that wait to be taken."""
        return len(self._idle)

    @property
    def full(self) -> bool:
        """Whether there are as many links without a session as there may be."""
        return len(self._links) - len(self._busy) >= self._maximum

    @property
    def sessions(self) -> int:
        """TCP sessions and flows, those that wait for a link included."""
        return len(self._busy) + len(self._waiting)

    # For visitors.

    def take(self, opening: Opening) -> Stream | None:
        """A stream on an idle link; None when there is none."""
        link = self._launch(False, opening)
        self.balance()
        return link

    def open(self, opening: Opening) -> Deferred[Stream]:
        """A stream on the next link. Cancel it to stop waiting."""
        stream = self.take(opening)
        if stream is not None:
            return succeed(stream)
        result: Deferred[Stream] = Deferred(lambda result: self._stop_waiting(result))
        self._wait(result, opening)
        return result

    def open_flow(self, opening: Opening) -> LinkChannel:
        """A channel for a new flow."""
        channel = LinkChannel(self._dialect)
        link = self._launch(True, opening)
        if link is not None:
            channel.begin(link)
            self.balance()
        else:
            self._wait(channel, opening)
        return channel

    def serve_waiting(self) -> None:
        """Visitors may be given to the peer, or a link has come."""
        while self._waiting and self._idle and self._owner.serves:
            waiter, opening = next(iter(self._waiting.items()))
            if isinstance(waiter, LinkChannel) and waiter.over:
                self._stop_waiting(waiter)
                continue
            link = self._launch(isinstance(waiter, LinkChannel), opening)
            if link is None:
                return
            self._stop_waiting(waiter)
            if isinstance(waiter, LinkChannel):
                waiter.begin(link)
            else:
                waiter.callback(link)

    def refuse_waiting(self, cause: Cause, reason: str) -> None:
        """Fail all who wait for a link."""
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if isinstance(waiter, LinkChannel):
                waiter.refuse(cause)
            else:
                waiter.errback(PeerError(reason))

    def _wait(self, waiter: Deferred[Stream] | LinkChannel, opening: Opening) -> None:
        if not self._waiting:
            self._dry_since = self._clock.seconds()
        self._waiting[waiter] = opening
        self.balance()

    def _stop_waiting(self, waiter: Deferred[Stream] | LinkChannel) -> None:
        self._waiting.pop(waiter, None)
        if not self._waiting:
            self._dry_since = None

    def _launch(self, udp: bool, opening: Opening) -> OldLink | None:
        """Take an idle link for a visitor, and tell the peer; None when there is none."""
        if not self._owner.serves:
            return None
        for number in reversed(self._idle):
            link = self._idle[number]
            if not link.fresh:
                continue  # its end is being told of
            try:
                self._owner.launch(Launch(udp, opening.visitor, number))
            except LineUnwritable:
                continue
            del self._idle[number]
            self._busy.add(link)
            link.take()
            return link
        return None

    def sample(self) -> OldLink | None:
        """Take the newest idle link out, for a verify."""
        for number in reversed(self._idle):
            link = self._idle[number]
            if link.fresh:
                del self._idle[number]
                self.balance()
                return link
        return None

    def give_up(self, number: str) -> str:
        """The peer uses this link for its verify.

        :returns: the fingerprint of the certificate on it; empty where there is no such link.
        """
        link = self._links.get(number)
        if link is None or link.taken:
            return ""
        self._idle.pop(number, None)
        self._passed.pop(link, None)
        self._doubtful.pop(link, None)
        link.close()
        self.balance()
        return link.fingerprint

    # For the peer's visitors.

    def launched(self, launch: Launch) -> None:
        """The peer names the link of a visitor of its own."""
        link = self._links.get(launch.id)
        if link is not None and link in self._arriving:
            link = None  # it has no connection yet that a session can use
        if link is not None and not link.taken:
            self._open(launch, link)
        elif link is not None or not self._awaited.add(launch):
            self._unknown(launch.id)

    def _open(self, launch: Launch, link: OldLink) -> None:
        if link.number in self._idle:
            self._pass_over(link)
        self._idle.pop(link.number, None)
        self._passed.pop(link, None)
        self._doubtful.pop(link, None)
        self._busy.add(link)
        link.take()
        self.balance()
        self._owner.launched(launch, link)

    def _pass_over(self, link: OldLink) -> None:
        """The peer takes this link, and none of those that are older."""
        if self._clock.seconds() - link.came >= FRESH:
            return
        for number, older in list(self._idle.items()):
            if link.came - older.came < YOUNGER:
                break
            del self._idle[number]
            self._passed[older] = None
        for older in list(self._passed):
            if link.came - older.came < CERTAIN:
                break
            del self._passed[older]
            older.close()

    def _unknown(self, number: str) -> None:
        self._errors += 1
        self._log.debug(
            "{peer} names data link {number}, which is not there", peer=self._owner.name,
            number=number,
        )  # fmt: skip

    # Links come and go.

    def add(self, number: str, transport: Any, fingerprint: str, rest: bytes = b"") -> None:
        """A link has its number.

        :param transport: its connection, the reactor's.
        :param fingerprint: of the certificate that was shown on it; empty without TLS.
        :param rest: what came behind the number.
        :raises PeerError: there is one of that number.
        """
        if number in self._links:
            raise PeerError(f"data link {number} exists already")
        link = OldLink(number, fingerprint, self, self._clock, self._watch)
        self._links[number] = link
        self._arriving.add(link)
        self._coming = max(0, self._coming - 1)
        self._take_over(transport, link, lambda: self._ready(link, rest))

    def _ready(self, link: OldLink, rest: bytes) -> None:
        if self._closed:
            link.close()
            return
        if self._takes and not self._dialect.traits.http:
            # A 1.6 node looks for a link once, when it is told of a visitor.
            link.begin(rest)
            self._file_before(link)
            self._filing[link] = self._clock.callLater(FILING_TIME, self._file, link)
            return
        self._arriving.discard(link)
        self._idle[link.number] = link
        link.begin(rest)
        launch = self._awaited.take(link.number)
        if launch is not None:
            self._open(launch, link)
        elif link.number in self._idle:
            self._one_more()

    def _file_before(self, link: OldLink) -> None:
        """The peer has filed what came before this link."""
        for older, timer in list(self._filing.items()):
            if link.came - older.came >= NEXT_LINK:
                timer.cancel()
                self._file(older)

    def _file(self, link: OldLink) -> None:
        del self._filing[link]
        self._arriving.discard(link)
        if link.fresh:
            self._idle[link.number] = link
            self._one_more()

    def _one_more(self) -> None:
        if self._dry_since is not None:
            self._dry_since = self._clock.seconds()
        self._owner.idle_changed()
        self.serve_waiting()

    def link_spoke(self, link: OldLink) -> None:
        self._doubt(link)

    def link_ended(self, link: OldLink) -> None:
        self._doubt(link)

    def _doubt(self, link: OldLink) -> None:
        """An idle link is not quiet. At the end that dials its launch may be on the way."""
        if link.taken:
            return
        self._idle.pop(link.number, None)
        self._passed.pop(link, None)
        if self._takes:
            link.close()
        else:
            self._doubtful[link] = self._clock.seconds()
        self._balance_later(hold=True)

    def link_lost(self, link: OldLink) -> None:
        if self._links.get(link.number) is link:
            del self._links[link.number]
        self._busy.discard(link)
        self._arriving.discard(link)
        filing = self._filing.pop(link, None)
        if filing is not None:
            filing.cancel()
        self._doubtful.pop(link, None)
        self._passed.pop(link, None)
        idle = self._idle.pop(link.number, None) is not None
        if idle:
            self._errors += 1
        if self._parted is not None and not self._links:
            parted, self._parted = self._parted, None
            if self._parting is not None and self._parting.active():
                self._parting.cancel()
            parted.callback(None)
        self._balance_later(hold=idle)

    # How many there should be.

    def balance(self) -> None:
        """At the client: ask for the links that are missing."""
        if self._policy is None or self._closed or self._held:
            return
        now = self._clock.seconds()
        waiting = len(self._waiting)
        in_use = len(self._busy) + waiting
        self._policy.used(now, in_use)
        there = len(self._idle) + len(self._arriving) + self._coming
        missing = waiting + self._policy.idle(now, in_use) - there
        if missing > 0:
            self._coming += missing
            self._owner.need_links(missing)

    def _balance_later(self, *, hold: bool) -> None:
        """Links are gone, and so may be the peer.

        :param hold: ask for none until then, whoever asks.
        """
        if self._policy is None or self._closed:
            return
        if self._later is None:
            self._later = self._clock.callLater(REPLACE_AFTER, self._balance_now)
        elif hold and not self._held:
            self._later.reset(REPLACE_AFTER)
        self._held = self._held or hold

    def _balance_now(self) -> None:
        self._later = None
        self._held = False
        self.balance()

    def tidy(self) -> bool:
        """Each interval: close links that said something and were not launched.

        :returns: whether both ends should drop their idle links: this one has met so many errors,
            or the other end counts links that are not there.
        """
        now = self._clock.seconds()
        for link, since in list(self._doubtful.items()):
            if now - since >= ID_WAIT:
                del self._doubtful[link]
                link.close()
        self.balance()
        dry = self._dry_since is not None and now - self._dry_since >= INTERVAL
        return dry or self._errors > len(self._idle) // 2

    def flush(self) -> None:
        """Drop all idle links."""
        self._errors = 0
        if self._dry_since is not None:
            self._dry_since = self._clock.seconds()
        idle = [*self._passed, *self._idle.values()]
        self._passed.clear()
        self._idle.clear()
        for link in idle:
            link.close()
        self.balance()

    # The end.

    def close(self, cause: Cause, reason: str, *, linger: bool) -> Deferred[None]:
        """Refuse who waits and close all links.

        :param linger: let sessions under way end by themselves.
        :returns: fires when no link is left; without `linger` within `PARTING_TIMEOUT`.
        """
        self._closed = True
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self.refuse_waiting(cause, reason)
        self._awaited.clear()
        for link in list(self._links.values()):
            if not link.taken:
                self._idle.pop(link.number, None)
                link.close()
            elif not linger:
                link.end(cause)
        if not self._links:
            return succeed(None)
        self._parted = Deferred()
        if not linger:
            self._parting = self._clock.callLater(PARTING_TIMEOUT, self.cut, cause)
        return self._parted

    def cut(self, cause: Cause) -> None:
        """Close what is left now."""
        for link in list(self._links.values()):
            link.end(cause)
