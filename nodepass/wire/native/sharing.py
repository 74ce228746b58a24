"""Which sessions of a peer share a link.

Where the nodes are near each other what a session costs is the work of both, and sharing saves up
to half of it. Farther apart it is the line: there a lost packet would hold up all who share a link,
and each session has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening

from .datalink import DataLink
from .frames import Join
from .link import LinkError
from .linkstream import LinkStream
from .muxlink import MuxLink
from .muxstream import MuxStream

__all__ = ["Sharing", "SharingOwner"]

#: What JOIN has brought before OPEN came: as many as may have overtaken it in a burst. A peer that
#: lies would have a link kept for each, though it has no session.
MOST_EARLY = 1024
#: Looks in a row after which a shared link that nobody uses is closed though bytes wait to leave
#: it: ten minutes with the usual interval. It bounds what a peer that reads nothing has kept.
MOST_RESTS = 120


class SharingOwner(Protocol):
    """The pool of links, as far as it concerns those that are shared."""

    def take_idle(self) -> DataLink | None:
        """An idle link, which now carries a session; None when there is none."""

    def balance(self) -> None:
        """Ask for the links that are missing; `Sharing.give` is called with one that comes."""

    def get(self, number: int) -> DataLink | None:
        """The link of this id."""

    def drop(self, link: DataLink) -> None:
        """Close a link that nobody needs."""


class Sharing:
    """The shared links of a peer. It is the `MuxOwner` of each.

    The taking end has one at a time for new sessions, and perhaps older ones that their last
    sessions are about to leave.

    :param opened: hears of each session that the peer opens.
    :param within: seconds of a round trip within which sessions share a link; 0: never.
    :ivar current: the one that new sessions share, if any. While it is backed up they have links of
        their own.
    """

    def __init__(
        self, owner: SharingOwner, opened: Callable[[Opening, Stream], None], within: float
    ) -> None:
        self._owner = owner
        self._opened = opened
        self._within = within
        self._apart = not within  # the peer is known not to be near
        self.current: MuxLink | None = None
        self._rested: dict[MuxLink, int] = {}  # at how many looks in a row nobody used them
        self._links: dict[MuxLink, DataLink] = {}
        self._waiting: dict[MuxStream, MuxLink] = {}  # for a link of their own
        self._moving: dict[DataLink, MuxStream] = {}  # at the taking end
        # At the serving end: what JOIN has brought before OPEN came, by link and stream.
        self._early: dict[tuple[int, int], LinkStream] = {}
        self._closed = False

    @property
    def sessions(self) -> int:
        """Sessions that share links."""
        return sum(len(mux.streams) for mux in self._links)

    @property
    def waiting(self) -> int:
        """Sessions that wait for a link of their own."""
        return len(self._waiting)

    # The taking end

    def begin(self, link: DataLink, opening: Opening) -> MuxStream | None:
        """Begin a session on this idle link if it is to be shared from now on.

        It is opened even where the link is backed up: what was written before may not have left.
        """
        if self._apart or self.current is not None:
            return None
        distance = link.round_trip
        if distance is None or distance > self._within:
            self._apart = True
            return None
        self.current = mux = link.share()
        self.add(link, mux)
        return mux.open(opening)

    def move(self, mux: MuxLink, stream: MuxStream) -> None:
        if stream.moving or stream in self._waiting or self._closed:
            return
        link = self._owner.take_idle()
        if link is None:
            self._waiting[stream] = mux
            self._owner.balance()
        else:
            self._move(mux, stream, link)

    def give(self, link: DataLink) -> bool:
        """Let a session that waits go on on this idle link; whether there is one."""
        while self._waiting:
            stream = next(iter(self._waiting))
            mux = self._waiting.pop(stream)
            if not stream.moving:
                self._move(mux, stream, link)
                return True
        return False

    def _move(self, mux: MuxLink, stream: MuxStream, link: DataLink) -> None:
        new = link.join(mux.number, stream.number)
        new.pause()
        self._moving[link] = stream
        stream.move(new)

    def tidy(self) -> None:
        """To be called now and then: see again whether the peer is near, let the link be that was
        slowed by loss, and close those that nobody has used since the last time."""
        waiting = self._waiting.items()
        self._waiting = {stream: mux for stream, mux in waiting if not stream.moving}
        self._apart = not self._within
        mux = self.current
        if mux is not None and self._links[mux].slowed:
            self.current = None
        unused = {mux: self._rested.get(mux, 0) + 1 for mux in self._links if not mux.streams}
        for mux, looks in unused.items():
            # What its last session has sent may take its time, where the line is slow.
            if looks > (MOST_RESTS if mux.congested else 1):
                if mux is self.current:
                    self.current = None
                self._owner.drop(self._links[mux])
        self._rested = unused

    def leave(self, mux: MuxLink) -> None:
        """Begin no new session on this link. It is closed by and by when its last one has left."""
        if mux is self.current:
            self.current = None

    # The serving end

    def slowed(self) -> list[DataLink]:
        """Those that loss has made slow in this end's direction."""
        return [link for link in self._links.values() if link.slowed]

    def joined(self, join: Join, stream: LinkStream) -> None:
        """A session that shared a link is to go on by this stream of another one.

        :raises LinkError: too many have come before their time.
        """
        link = self._owner.get(join.link)
        mux = None if link is None else link.mux
        moving = None if mux is None else mux.streams.get(join.stream)
        place = join.link, join.stream
        if moving is not None and not moving.moving:
            moving.joined(stream)
        elif (mux is None or mux.awaits(join.stream)) and place not in self._early:
            # JOIN has overtaken OPEN, or MUX, or the word that the other link is ready.
            if len(self._early) >= MOST_EARLY:
                raise LinkError("too many sessions go on that have not begun")
            self._early[place] = stream
        else:
            stream.abort(Cause.RESET)  # it was over

    # Links

    def add(self, link: DataLink, mux: MuxLink) -> None:
        """Many sessions share this link from now on."""
        mux.owner = self
        self._links[mux] = link

    def link_free(self, link: DataLink) -> None:
        """A link has done with its session."""
        self._not_moved(link)
        self._forget_early()

    def link_lost(self, link: DataLink) -> None:
        """A link is gone."""
        self._not_moved(link)
        mux = link.mux
        if mux is not None:
            self._links.pop(mux, None)
            self._rested.pop(mux, None)
        self._forget_early()

    def _not_moved(self, link: DataLink) -> None:
        stream = self._moving.pop(link, None)
        if stream is not None:
            stream.not_moved()

    def _forget_early(self) -> None:
        if self._early:
            early = self._early.items()
            self._early = {place: stream for place, stream in early if not stream.over}

    def close(self) -> None:
        """No link is there for long any more."""
        self._closed = True
        self.current = None
        self._waiting.clear()

    # MuxOwner

    def stream_opened(self, opening: Opening, stream: MuxStream) -> None:
        self._opened(opening, stream)
        if self._early:
            new = self._early.pop((stream.link_number, stream.number), None)
            if new is not None:
                if stream.moving:
                    new.abort(Cause.RESET)
                else:
                    stream.joined(new)

    def unused(self, mux: MuxLink) -> None:
        # Not closed at once, unless this end is to be closed: the next session may come soon.
        self._rested.pop(mux, None)
        if self._closed and mux in self._links:
            self._owner.drop(self._links[mux])
