"""Two pools of data links near each other; the links deliver when and as far as a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from nodepass.address import Endpoint
from nodepass.logs import Level, Log
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import take_over
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.native import datalink
from nodepass.wire.native.datalink import DataLink
from nodepass.wire.native.linkpool import LinkPool
from nodepass.wire.native.muxframes import DATA_WORD, WINDOW, pack_head
from nodepass.wire.native.muxlink import MuxLink
from nodepass.wire.native.muxstream import MuxStream
from tests.loopback import HIGH_WATER, MemoryTransport, connect
from tests.streams import NotingSink

#: What one direction has to send, more than the window; and what the other has.
MUCH, LITTLE = b"m" * (WINDOW + 1000), b"l" * 500
BEHIND = b"behind"
LOCAL = Endpoint("192.0.2.2", 2)
#: Seconds of a round trip within which sessions share a link here, and of the one there is.
WITHIN, NEAR, FAR = 0.005, 0.001, 0.05


#: Which end does it.
SIDES = pytest.mark.parametrize("taking", [True, False], ids=["taking", "serving"])


def data(number: int, body: bytes) -> bytes:
    """A whole DATA."""
    return pack_head(DATA_WORD + len(body), number) + body


def know_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a connection in memory say what the rig says of it."""
    monkeypatch.setattr(datalink, "round_trip", lambda handle: handle.distance)
    monkeypatch.setattr(datalink, "slowed", lambda handle: handle.slowed)
    monkeypatch.setattr(datalink, "sending", lambda handle: handle.sending)


class Handle:
    """What the system knows of a connection.

    :ivar distance: seconds of the round trip.
    :ivar slowed: by loss.
    :ivar sending: bytes are on their way.
    """

    def __init__(self, distance: float | None) -> None:
        self.distance = distance
        self.slowed = self.sending = False


def _know(transport: Any, handle: Handle) -> None:
    transport.getHandle = lambda: handle


class End(NotingSink):
    """The program at one end of a session.

    :ivar stream: what it has of the session, also when that has moved.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        stream.attach(self)

    @property
    def mux(self) -> MuxStream:
        """Its stream, which shares a link."""
        assert isinstance(self.stream, MuxStream)
        return self.stream

    @property
    def moved(self) -> bool:
        """Whether it has a link of its own."""
        return not isinstance(self.stream, MuxStream)

    @property
    def events(self) -> list[object]:
        """What it heard but for bytes."""
        return [heard for heard in self.heard if not isinstance(heard, bytes)]

    def received(self, data: bytes) -> None:
        assert "ended" not in self.heard, "bytes after the end"
        super().received(bytes(data))

    def ended(self) -> None:
        assert "ended" not in self.heard, "ended twice"
        super().ended()

    def became(self, stream: Any) -> None:
        super().became(stream)
        self.stream = stream


class Side:
    """One node: the owner of its pool.

    :ivar ends: its ends of the sessions, by the visitor's port.
    :ivar around: resets that are to go by the control link: link, session, cause.
    :ivar wanted: links that were asked for.
    :ivar denies: it refuses all sessions.
    """

    name, address = "the peer", "192.0.2.9:1"

    def __init__(self, rig: Rig, takes: bool, within: float) -> None:
        self.joined = True
        self.ends: dict[int, End] = {}
        self.unwanted: list[int] = []
        self.around: list[tuple[int, int, Cause]] = []
        self.wanted = 0
        self.denies = False
        self.pool = LinkPool(
            self,
            takes=takes,
            minimum=rig.minimum,
            maximum=100,
            clock=rig.clock,
            watch=HangupWatch(rig.clock),
            log=Log(Level.NONE),
            take_over=take_over,
            soon=rig.soon.append,
            share_within=within,
        )

    # PoolOwner

    def need_links(self, count: int) -> None:
        self.wanted += count

    def ask_to_retire(self, link: int) -> None:
        self.unwanted.append(link)

    def opened(self, opening: Opening, stream: Stream) -> None:
        assert opening.visitor.port not in self.ends, "opened twice"
        if self.denies:
            stream.abort(Cause.DENIED)
            return
        self.ends[opening.visitor.port] = End(stream)

    def flow_opened(self, channel: Any) -> None:
        raise AssertionError("there are no flows")

    def reset_around(self, link: int, session: int, cause: Cause) -> bool:
        self.around.append((link, session, cause))
        return True


class _Unconfirmed(Protocol):
    """The serving end of a link that has not been told yet that it is one."""

    def __init__(self) -> None:
        self.rest = b""

    def dataReceived(self, data: bytes) -> None:
        self.rest += data


class Rig:
    """Both nodes, and the lines between them.

    :param minimum: idle links that the taking end keeps.
    :param distance: seconds of the round trip; None: not known.
    :param within: seconds of it within which sessions share a link.
    :param high_water: bytes that a link holds before it is backed up.
    :ivar lines: the transports of each link by its number, the taking end's first.
    :ivar soon: what is to be called when all that has come was passed on.
    """

    def __init__(
        self,
        minimum: int = 4,
        *,
        distance: float | None = NEAR,
        within: float = WITHIN,
        high_water: int = HIGH_WATER,
    ) -> None:
        self.clock = Clock()
        self.minimum = minimum
        self.distance = distance
        self.high_water = high_water
        self.lines: dict[int, tuple[MemoryTransport, MemoryTransport]] = {}
        self.soon: list[Callable[[], None]] = []
        self.taking = Side(self, True, within)
        self.serving = Side(self, False, within)
        self._links = 0
        self._visitors = 0

    # Links

    def start(self) -> Rig:
        """The first links come."""
        self.taking.pool.start_over()
        return self.bring()

    def bring(self, *, confirm: bool = True) -> Rig:
        """Make the links that were asked for.

        :param confirm: the serving end has heard that they are ready.
        """
        count, self.taking.wanted = self.taking.wanted, 0
        for _ in range(count):
            self._links += 1
            number = self._links
            link = self.taking.pool.add(number)
            pair = connect(Protocol(), _Unconfirmed(), high_water=self.high_water)
            handle = Handle(self.distance)
            for transport in pair:
                _know(transport, handle)
            self.lines[number] = pair
            if confirm:
                self.confirm(number)
            self.taking.pool.connect(link, pair[0], b"")
        return self

    def confirm(self, number: int) -> None:
        """The serving end hears that a link is ready, and has what came meanwhile."""
        transport = self.lines[number][1]
        waiting = transport.protocol
        if isinstance(waiting, _Unconfirmed) and transport.connected:
            pool = self.serving.pool
            pool.connect(pool.add(number), transport, waiting.rest)

    def link(self, side: Side, number: int) -> DataLink:
        """An end of a link."""
        link = side.pool.get(number)
        assert link is not None
        return link

    @property
    def shared(self) -> int:
        """The number of the one link that is shared."""
        (number,) = (mux.number for mux in self.taking.pool._sharing._links)
        return number

    def mux(self, side: Side) -> MuxLink:
        """An end of the one link that is shared."""
        mux = self.link(side, self.shared).mux
        assert mux is not None
        return mux

    def handle(self, number: int) -> Any:
        """What the system knows of a link."""
        return self.lines[number][0].getHandle()

    # Sessions

    def visit(self) -> int:
        """A visitor comes, and waits if there is no link; its port."""
        self._visitors += 1
        port = self._visitors
        opened = self.taking.pool.open(Opening(Endpoint("192.0.2.1", port), LOCAL))
        opened.addCallback(self._begin, port)
        return port

    def _begin(self, stream: Stream, port: int) -> None:
        self.taking.ends[port] = End(stream)

    def open(self) -> tuple[End, End]:
        """A session, both ends of it; the taking end's first."""
        port = self.visit()
        self.flush()
        return self.taking.ends[port], self.serving.ends[port]

    def rest(self) -> None:
        """Time passes until links that nobody uses are closed."""
        self.taking.pool.tidy()
        self.taking.pool.tidy()
        self.flush()

    # What is on its way

    def turn(self) -> None:
        """All that has come was passed on."""
        calls = self.soon[:]
        self.soon.clear()
        for call in calls:
            call()

    def flush(self, *numbers: int) -> None:
        """Deliver all, or all of these links, and bring no new ones."""
        moved = True
        while moved:
            self.turn()
            moved = False
            for number, pair in list(self.lines.items()):
                if not numbers or number in numbers:
                    for transport in pair:
                        moved = transport.deliver() or moved
            moved = moved or bool(self.soon)

    def deliver(self, number: int, to_server: bool, size: int = 1 << 30) -> None:
        """Let so many bytes of a link arrive at one end."""
        self.lines[number][0 if to_server else 1].deliver(size)

    def pass_around(self, side: Side) -> None:
        """What one end says by the control link arrives."""
        other = self.serving if side is self.taking else self.taking
        for number, session, cause in side.around:
            link = other.pool.get(number)
            if link is not None:
                link.abort_session(session, cause)
        side.around.clear()

    def settle(self) -> None:
        """Everything arrives, the links that are wanted come, and time passes."""
        for _ in range(4):
            for number in self.lines:
                self.confirm(number)
            self.bring()
            self.flush()
            self.pass_around(self.taking)
            self.pass_around(self.serving)
            self.flush()
            self.taking.pool.tidy()
            self.serving.pool.tidy()

    def nothing_left(self) -> None:
        """Assert that nothing remembers a session that is over."""
        self.settle()
        for side in (self.taking, self.serving):
            pool, sharing = side.pool, side.pool._sharing
            assert pool.sessions == 0
            assert not (pool._busy or pool._ending or pool._waiting)
            assert not (sharing._waiting or sharing._moving)
            for mux in sharing._links:
                assert not (mux.streams or mux.gathered or mux._held)
            assert len(pool) == sum(pair[0].connected for pair in self.lines.values())
        assert not self.clock.getDelayedCalls()


class Moving:
    """A session that one end has made move, both links holding what they were given.

    :param taking: it was the taking end.
    :param fresh: it wrote at once, so that OPEN is under way as well.
    """

    def __init__(
        self, taking: bool, *, fresh: bool = False, idle: int = 2, high_water: int = 1 << 20
    ) -> None:
        self.rig = Rig(idle + 1, high_water=high_water).start()
        self.keeper = self.rig.open()  # so that the shared link is kept
        if fresh:
            port = self.rig.visit()
            self.near: End = self.rig.taking.ends[port]
        else:
            self.near, _ = self.rig.open()
            port = 2
        self.port = port
        self.wrote = {True: b"", False: b""}  # by the taking end, and by the serving end
        self.shared = self.rig.shared
        self.write(taking, MUCH)
        if not fresh:
            self.write(not taking, LITTLE)
        self.rig.turn()
        while not taking and self.rig.lines[self.shared][1].outbox:
            self.rig.deliver(self.shared, False)
        self.rig.turn()

    @property
    def far(self) -> End | None:
        """The serving end, when it is there."""
        return self.rig.serving.ends.get(self.port)

    def end(self, taking: bool) -> End | None:
        """One end, if it is there."""
        return self.near if taking else self.far

    @property
    def new(self) -> int:
        """The link that is to be its own."""
        (link,) = self.rig.taking.pool._sharing._moving
        return link.number

    def write(self, taking: bool, data: bytes) -> None:
        """One end sends bytes."""
        end = self.end(taking)
        assert end is not None
        self.wrote[taking] += data
        end.stream.write(data)

    def come(self, *links: str) -> None:
        """What is under way to the serving end on these arrives there."""
        for link in links:
            self.rig.deliver(self.new if link == "JOIN" else self.shared, True)
