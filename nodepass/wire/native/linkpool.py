"""The data links of one peer: which are idle, who waits for one, how many there should be."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from nodepass.errors import PeerError
from nodepass.logs import Log
from nodepass.pool.policy import DemandPolicy
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import Soon, TakeOver
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.wire import Opening
from nodepass.wire.parting import Parting

from .datagrams import DatagramLink, FlowChannel
from .datalink import DataLink
from .flowlinks import FlowLinks
from .frames import Join
from .idle import IdleLinks, slowed
from .leaving import LeavingLinks
from .linkstream import LinkStream
from .muxlink import MuxLink
from .sharing import Sharing

#: Links whose sessions are over, and that wait for the serving end to have read all: as many as
#: slow targets may keep. A peer that never says that it has would keep one for each session.
MOST_ENDING = 1024
#: Links without a session above the maximum that are let in: in a burst the sessions of many links
#: are still on their way. It bounds what a peer that lies can make this node hold.
SPARE_LINKS = 1024


class PoolOwner(Protocol):
    """What a pool of links asks of its peer."""

    @property
    def name(self) -> str:
        """The peer, for log lines."""

    @property
    def address(self) -> str:
        """Where it is."""

    @property
    def joined(self) -> bool:
        """Whether links can be asked for."""

    def need_links(self, count: int) -> None:
        """So many more links are needed."""

    def ask_to_retire(self, link: int) -> None:
        """At the serving end: ask the peer to close this link."""

    def opened(self, opening: Opening, stream: Stream) -> None:
        """The peer opened a session."""

    def flow_opened(self, channel: FlowChannel) -> None:
        """The peer opened a flow."""

    def reset_around(self, link: int, session: int, cause: Cause) -> bool:
        """Pass a RESET on by the control link; False when there is none."""


class LinkPool:
    """All data links of a peer. It is the `LinkOwner` of each.

    The taking end keeps idle links in it; at the other end it only knows them.

    :param takes: this end takes links.
    :param minimum: idle links to keep.
    :param maximum: most idle links.
    :param share_within: seconds of a round trip within which sessions share a link; 0: never.
    """

    def __init__(
        self,
        owner: PoolOwner,
        *,
        takes: bool,
        minimum: int,
        maximum: int,
        clock: IReactorTime,
        watch: HangupWatch,
        log: Log,
        take_over: TakeOver,
        soon: Soon,
        share_within: float = 0.0,
    ) -> None:
        self._owner = owner
        self._takes = takes
        self._clock = clock
        self._watch = watch
        self._log = log
        self._take_over = take_over
        self._soon = soon
        self._policy = DemandPolicy(minimum, maximum)
        self._links: dict[int, DataLink] = {}
        self._idle = IdleLinks()  # of the taking end
        self._busy: set[DataLink] = set()  # carrying a TCP session
        self._ending: dict[DataLink, None] = {}  # the last bytes of one; the oldest comes first
        self._retired: set[DataLink] = set()  # to be closed when they become free
        self._leaving = LeavingLinks()
        self._coming = 0  # links asked for and not there yet
        self._fresh: set[DataLink] = set()  # those of them that have proved that they belong
        self._waiting: dict[Deferred[Stream], Opening] = {}  # visitors, the first comes first
        self._flows = FlowLinks(self._flows_need_link)
        self._sharing = Sharing(self, owner.opened, share_within)
        self._closed = False
        self._parting = Parting(self._links, clock)

    def bound(self, minimum: int, maximum: int) -> None:
        """Go on with other bounds of the idle links; what is too many is closed by and by."""
        self._policy.bound(minimum, maximum)

    @property
    def sessions(self) -> int:
        """TCP sessions and flows, those that wait for a link included."""
        alone = len(self._busy) + len(self._waiting)
        return alone + self._sharing.sessions + self._flows.sessions

    @property
    def idle(self) -> int:
        """Links ready for a visitor."""
        if self._takes:
            return len(self._idle)
        return sum(1 for link in self._links.values() if link.idle)

    @property
    def sending(self) -> bool:
        """Whether bytes are on their way to the peer, those of flows aside."""
        return any(link.sending for link in self._links.values() if link.flows is None)

    # For visitors.

    def take(self, opening: Opening) -> Stream | None:
        """A stream on the shared link, or on an idle one; None when there is none."""
        mux = self._sharing.current
        if mux is not None and not mux.link.congested:
            return mux.open(opening)
        link = self._idle.take()
        if link is None:
            return None
        stream = self._open_on(link, opening)
        self._taken()
        return stream

    def _open_on(self, link: DataLink, opening: Opening) -> Stream:
        stream = self._sharing.begin(link, opening)
        if stream is not None:
            return stream
        self._busy.add(link)
        return link.open(opening)

    def open(self, opening: Opening) -> Deferred[Stream]:
        """A Deferred that fires with a stream on the next idle link. Cancel it to stop waiting; it
        fails with PeerError when the peer is gone."""
        stream = self.take(opening)
        if stream is not None:
            return succeed(stream)
        result: Deferred[Stream] = Deferred(self._stop_waiting)
        self._waiting[result] = opening
        self.balance()
        return result

    def open_flow(self, opening: Opening) -> Channel:
        """A channel for a new flow."""
        return self._flows.open(opening)

    def refuse_waiting(self, cause: Cause, reason: str) -> None:
        """Fail all who wait for a link."""
        waiting, self._waiting = self._waiting, {}
        for result in waiting:
            result.errback(PeerError(reason))
        self._flows.refuse(cause)

    def _stop_waiting(self, result: Deferred[Stream]) -> None:
        self._waiting.pop(result, None)

    # Links come and go.

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, number: int) -> bool:
        return number in self._links

    def get(self, number: int) -> DataLink | None:
        """The link of this id."""
        return self._links.get(number)

    def add(self, number: int) -> DataLink:
        """A link that has proved that it belongs; `connect` it.

        :raises PeerError: the peer has too many links already.
        """
        others = len(self._links) - len(self._busy) - len(self._ending)
        if others >= self._policy.maximum + SPARE_LINKS:
            raise PeerError("it makes more data links than it was asked for")
        link = DataLink(number, self._takes, self, self._clock, self._watch, self._soon)
        self._links[number] = link
        self._fresh.add(link)
        return link

    def connect(self, link: DataLink, transport: Any, rest: bytes) -> None:
        """Give a link the connection on which it was proved; from then on it may carry sessions.

        :param rest: what came behind the proof.
        """

        def connected() -> None:
            if rest:
                link.dataReceived(rest)
            self.ready(link)

        self._take_over(transport, link, connected)

    def ready(self, link: DataLink) -> None:
        """The link may carry sessions."""
        self._came(link)
        if self._takes:
            self._put(link)

    def _came(self, link: DataLink) -> None:
        """A link has come, or is lost: it is not waited for any more."""
        if link in self._fresh:
            self._fresh.discard(link)
            self._coming = max(0, self._coming - 1)

    def retire(self, number: int) -> None:
        """At the taking end: close this link, now if it is idle, else when it becomes free.

        A shared one gets no new sessions. A datagram link is let be: it is closed soon after its
        last flow anyway.
        """
        link = self._links.get(number)
        if link is None or not self._takes:
            return
        if link.mux is not None:
            self._sharing.leave(link.mux)
        elif link in self._idle:
            self.drop(link)
        else:
            self._retired.add(link)

    def close(self, cause: Cause, reason: str, *, linger: bool) -> Deferred[None]:
        """Refuse who waits and close all links.

        Links whose session is over are closed in order: its last bytes may still be on their way.
        Those that are shared wait for the other end to close them when it has read all.

        :param linger: let sessions under way end by themselves, as the peer has closed its end.
        :returns: fires when no link is left, within `PARTING_TIMEOUT`.
        """
        self._closed = True
        self._sharing.close()
        self.refuse_waiting(cause, reason)
        for link in list(self._links.values()):
            if link.mux is not None and cause is Cause.STOPPED:
                if not linger:
                    link.part(cause)
                elif not link.mux.streams:
                    link.close()
            elif link.over and cause is Cause.STOPPED:
                link.close()
            elif not linger:
                link.abort(reason, cause)
        return self._parting.begin(lambda: self.cut(cause, reason))

    def cut(self, cause: Cause, reason: str) -> None:
        """Close what is left now, whatever it carries."""
        for link in list(self._links.values()):
            link.abort(reason, cause)

    # LinkOwner

    def link_opened(self, link: DataLink, opening: Opening, stream: Stream) -> None:
        self._busy.add(link)
        self._owner.opened(opening, stream)

    def link_joined(self, link: DataLink, join: Join, stream: LinkStream) -> None:
        self._busy.add(link)
        self._sharing.joined(join, stream)

    def link_shared(self, link: DataLink, mux: MuxLink) -> None:
        self._sharing.add(link, mux)

    def link_free(self, link: DataLink) -> None:
        self._busy.discard(link)
        self._ending.pop(link, None)
        self._sharing.link_free(link)
        if self._takes:
            self._put(link)

    def link_ending(self, link: DataLink) -> None:
        self._busy.discard(link)
        self._ending[link] = None
        if len(self._ending) > MOST_ENDING:
            self._log.limited(
                "ending",
                "{peer} does not say that it has read all of {count} sessions that are over; "
                "the oldest of their data links is closed",
                peer=self._owner.name,
                count=len(self._ending),
            )
            next(iter(self._ending)).abort("its session is over, and the peer does not say so")

    def link_backed_up(self, link: DataLink, session: int, cause: Cause) -> bool:
        return self._owner.reset_around(link.number, session, cause)

    def link_lost(self, link: DataLink, reason: str, *, wrong: bool) -> None:
        if self._links.get(link.number) is link:
            del self._links[link.number]
        self._idle.lost(link, self._clock.seconds())
        self._busy.discard(link)
        self._ending.pop(link, None)
        self._leaving.discard(link)
        self._retired.discard(link)
        self._came(link)
        self._sharing.link_lost(link)
        self._flows.lost(link)
        self._say_lost(link.number, reason, wrong)
        self._parting.look()
        self.balance()

    def _say_lost(self, number: int, reason: str, wrong: bool) -> None:
        peer = self._owner.name
        self._log.debug(
            "data link {number} of {peer}: {reason}", number=number, peer=peer, reason=reason
        )
        if wrong:
            # Not by the name: that is the peer's to choose, as often as it likes.
            self._log.limited(
                ("wrong", self._owner.address),
                "a data link of {peer} is cut: {reason}",
                peer=peer,
                reason=reason,
            )

    def flows_opened(self, link: DataLink, flows: DatagramLink) -> None:
        self._flows.add(link, flows)
        flows.flow_opened = self._owner.flow_opened

    # SharingOwner

    def take_idle(self) -> DataLink | None:
        link = self._idle.take()
        if link is not None:
            self._busy.add(link)
            self._taken()
        return link

    # Idle links.

    def _taken(self) -> None:
        """An idle link was taken: see whether others are to take its place."""
        if not self._policy.knows(self._clock.seconds(), self._in_use):
            self.balance()

    def _put(self, link: DataLink) -> None:
        """An idle link: for who waits, or to be kept, unless it was retired."""
        if not link.idle or self._closed:
            return
        if link in self._retired:
            self.drop(link)
        elif self._waiting:
            result = next(iter(self._waiting))
            opening = self._waiting.pop(result)
            result.callback(self._open_on(link, opening))
            self._share_waiting()
        elif self._sharing.waiting and self._sharing.give(link):
            self._busy.add(link)
        elif self._flows.waiting:
            self._flows.give(link)
        elif len(self._idle) < self._policy.maximum:
            self._idle.add(link)
        else:
            self.drop(link)

    def _share_waiting(self) -> None:
        """Let those who wait share the link that has come, if it is to be shared."""
        mux = self._sharing.current
        while self._waiting and mux is not None and not mux.congested:
            result = next(iter(self._waiting))
            opening = self._waiting.pop(result)
            result.callback(mux.open(opening))
            mux = self._sharing.current

    def drop(self, link: DataLink) -> None:
        """Close a link that nobody needs."""
        self._idle.discard(link)
        self._leaving.close(link, self._clock.seconds())

    def _flows_need_link(self) -> None:
        link = self._idle.take()
        if link is not None:
            # Not at once: the flow that asked is only being opened.
            self._clock.callLater(0, self._put, link)
        self.balance()

    # How many there should be.

    @property
    def _in_use(self) -> int:
        return len(self._links) - len(self._idle) - len(self._leaving)

    def start_over(self) -> None:
        """What was asked for over the last control link will not come."""
        self._coming = 0
        self.balance()

    def balance(self) -> None:
        """At the taking end: ask for the links that are missing."""
        if not self._takes or self._closed or not self._owner.joined:
            return
        now = self._clock.seconds()
        waiting = len(self._waiting) + self._flows.waiting + self._sharing.waiting
        in_use = self._in_use + waiting
        self._policy.used(now, in_use)
        missing = waiting + self._policy.idle(now, in_use) - len(self._idle) - self._coming
        if missing > 0:
            self._coming += missing
            self._owner.need_links(missing)

    def tidy(self) -> None:
        """At the taking end: close links that are too many, too old, slowed by loss, or without a
        flow, and all idle ones when more than half of them have broken since the last time.

        The serving end knows what loss has done to its own direction, and asks for the same.
        """
        if not self._takes:
            idle = [link for link in self._links.values() if link.idle]
            for slow in (*slowed(idle), *self._sharing.slowed()):
                self._owner.ask_to_retire(slow.number)
            return
        self._sharing.tidy()
        now = self._clock.seconds()
        for link in self._flows.unused(now):
            self.drop(link)
        self._leaving.cut_late(now)
        for link in self._idle.unfit(now, self._policy.idle(now, self._in_use)):
            self.drop(link)
        self.balance()
