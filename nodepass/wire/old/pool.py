"""The links of an old peer: which are idle, and which visitor each is for."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from nodepass.errors import PeerError
from nodepass.logs import Log
from nodepass.pool.policy import DemandPolicy
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import TakeOver
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.parting import Parting

from .awaited import AwaitedLaunches
from .channel import LinkChannel
from .dialect import Dialect
from .filed import Filing
from .idle import IdleLinks
from .link import OldLink
from .signals import Launch, LineUnwritable
from .supply import Stock, Supply
from .waiting import Waiting

__all__ = ["OldPool", "PoolOwner"]


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

    Rule 3: a visitor is given the newest link (`IdleLinks`) that the peer knows (`Filing`).

    Rule 4: where the peer closes several links they are not replaced at once (`Supply`): it may be
    no more.

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
        self._clock = clock
        self._watch = watch
        self._log = log
        self._take_over = take_over
        self._links: dict[str, OldLink] = {}
        self._idle = IdleLinks(clock)
        self._filing = Filing(clock, self._filed)
        self._busy: set[OldLink] = set()
        self._arriving: set[OldLink] = set()  # there, and not ready to be taken yet
        self._waiting = Waiting(clock)
        self._awaited = AwaitedLaunches(dialect, self._links, clock, log, owner.name, self._missed)
        self._supply = Supply(policy, clock, self._stock, owner.need_links)
        self._parting = Parting(self._links, clock)
        self._errors = 0
        self._closed = False

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
        result = self._waiting.stream(opening)
        self.balance()
        return result

    def open_flow(self, opening: Opening) -> LinkChannel:
        """A channel for a new flow."""
        channel = LinkChannel(self._dialect)
        link = self._launch(True, opening)
        if link is not None:
            channel.begin(link)
        else:
            self._waiting.flow(channel, opening)
        self.balance()
        return channel

    def serve_waiting(self) -> None:
        """Visitors may be given to the peer, or a link has come."""
        while self._idle and self._owner.serves:
            first = self._waiting.first()
            if first is None:
                return
            waiter, opening = first
            link = self._launch(isinstance(waiter, LinkChannel), opening)
            if link is None:
                return
            self._waiting.serve(waiter, link)

    def _launch(self, udp: bool, opening: Opening) -> OldLink | None:
        """Take an idle link for a visitor, and tell the peer; None when there is none."""
        if not self._owner.serves:
            return None
        for link in self._idle.newest_first():
            try:
                self._owner.launch(Launch(udp, opening.visitor, link.number))
            except LineUnwritable:
                continue
            self._idle.discard(link)
            self._busy.add(link)
            link.take()
            return link
        return None

    def sample(self) -> OldLink | None:
        """Take the newest idle link out, for a verify."""
        for link in self._idle.newest_first():
            self._idle.discard(link)
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
        self._idle.discard(link)
        link.close()
        self.balance()
        return link.fingerprint

    # For the peer's visitors.

    def launched(self, launch: Launch) -> None:
        """The peer names the link of a visitor of its own."""
        self._supply.heard()
        link = self._links.get(launch.id)
        if link is None or link in self._arriving:  # without a connection that sessions can use
            self._awaited.add(launch)
        elif link.taken:
            self._awaited.miss(launch.id)
        else:
            self._open(launch, link)

    def _open(self, launch: Launch, link: OldLink) -> None:
        self._idle.named(link)
        self._busy.add(link)
        link.take()
        self.balance()
        self._owner.launched(launch, link)

    def _missed(self) -> None:
        self._errors += 1

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
        self._supply.came()
        self._take_over(transport, link, lambda: self._ready(link, rest))

    def _ready(self, link: OldLink, rest: bytes) -> None:
        if self._closed:
            link.close()
            return
        if self._takes and not self._dialect.traits.http:
            link.begin(rest)
            self._filing.add(link)
            return
        self._arriving.discard(link)
        self._idle.add(link)
        link.begin(rest)
        launch = self._awaited.take(link.number)
        if launch is not None:
            self._open(launch, link)
        elif link in self._idle:
            self._one_more()

    def _filed(self, link: OldLink) -> None:
        self._arriving.discard(link)
        if link.fresh:
            self._idle.add(link)
            self._one_more()

    def _one_more(self) -> None:
        self._waiting.link_came()
        self._owner.idle_changed()
        self.serve_waiting()

    def link_spoke(self, link: OldLink) -> None:
        # No dead peer speaks, and where this end dials the bytes are a visitor's.
        self._doubt(link, dead=self._takes)

    def link_ended(self, link: OldLink) -> None:
        self._doubt(link, dead=True)

    def _doubt(self, link: OldLink, *, dead: bool) -> None:
        """An idle link is not quiet. At the end that dials its launch may be on the way."""
        if link.taken:
            return
        if self._takes:
            self._idle.discard(link)
            link.close()
        else:
            self._idle.doubt(link)
        self._supply.gone(idle=dead)

    def link_lost(self, link: OldLink) -> None:
        if self._links.get(link.number) is link:
            del self._links[link.number]
        self._busy.discard(link)
        self._arriving.discard(link)
        self._filing.discard(link)
        idle = self._idle.discard(link)
        if idle:
            self._errors += 1
        self._parting.look()
        self._supply.gone(idle=idle)

    # How many there should be.

    def balance(self) -> None:
        """At the client: ask for the links that are missing."""
        self._supply.balance()

    def _stock(self) -> Stock:
        unused = len(self._idle) + len(self._arriving)
        return Stock(len(self._waiting), len(self._busy), unused)

    def tidy(self) -> bool:
        """Each interval: close links that said something and were not launched.

        :returns: whether both ends should drop their idle links: this one has met so many errors,
            or the other end counts links that are not there.
        """
        self._idle.tidy()
        self.balance()
        return self._waiting.dry or self._errors > len(self._idle) // 2

    def flush(self) -> None:
        """Drop all idle links."""
        self._errors = 0
        self._waiting.link_came()
        self._idle.close()
        self.balance()

    # The end.

    def close(self, cause: Cause, reason: str, *, linger: bool) -> Deferred[None]:
        """Refuse who waits and close all links.

        :param linger: let sessions under way end by themselves.
        :returns: fires when no link is left; without `linger` within `PARTING_TIMEOUT`.
        """
        self._closed = True
        self._supply.close()
        self._waiting.refuse(cause, reason)
        self._awaited.clear()
        for link in list(self._links.values()):
            if not link.taken:
                self._idle.discard(link)
                link.close()
            elif not linger:
                link.end(cause)
        return self._parting.begin(None if linger else lambda: self.cut(cause))

    def cut(self, cause: Cause) -> None:
        """Close what is left now."""
        for link in list(self._links.values()):
            link.end(cause)
