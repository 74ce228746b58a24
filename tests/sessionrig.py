"""What tests of the engine's sessions share: two sockets of other programs, with one session or a
whole tunnel between them, under a loop turned by hand."""

from __future__ import annotations

import gc
import random
import socket
from collections.abc import Callable

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from nodepass.address import Address, Endpoint
from nodepass.meter import Meter
from nodepass.rate import RateLimiter
from nodepass.relay.engine.port import EnginePort
from nodepass.relay.engine.sockets import listening, stream_socket
from nodepass.relay.engine.transport import EngineTransport
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.session import Session, SessionContext
from nodepass.relay.stream import Cause, Stream
from nodepass.wire import Opening
from nodepass.wire.native.datalink import DataLink
from tests.enginerig import SMALL, Rig, descriptors
from tests.streams import FakeOwner

#: More than what is held anywhere on the way, so that both ends have to wait for each other.
BULK = random.Random(7).randbytes(6 << 20)
#: Where a visitor comes from, which nobody asks about here.
NOWHERE = Endpoint("127.0.0.1", 1)


@define
class Joined(FakeOwner):
    """Two sockets of other programs, with the engine between them.

    :ivar over: how each session on the way has ended.
    """

    near: socket.socket
    far: socket.socket
    sessions: list[Session] = field(factory=list)
    over: list[Cause | None] = field(factory=list)


class Owner:
    """The end of a data link that starts a session for each that is opened."""

    def __init__(self, opened: Callable[[Stream], None]) -> None:
        self._opened = opened
        self.free = 0

    def link_opened(self, link: DataLink, opening: Opening, stream: Stream) -> None:
        self._opened(stream)

    def link_free(self, link: DataLink) -> None:
        self.free += 1

    def link_ending(self, link: DataLink) -> None:
        pass

    def link_backed_up(self, link: DataLink, session: int, cause: Cause) -> bool:
        """Pass it on as the control link would."""
        self.other.abort_session(session, cause)
        return True

    def link_lost(self, link: DataLink, reason: str, *, wrong: bool) -> None:
        self.lost = reason

    other: DataLink


class SessionTestCase(SynchronousTestCase):
    """Makes sessions.

    :ivar inbound: what limits the rate of what each session's near end sends, if anything does.
    :ivar outbound: and its far end.
    :cvar tunnel: with a data link in the middle; it is used again by one session after another.
    :cvar buffers: what those of all sockets are asked to be, bytes.
    :cvar system: what the system holds of a session at most with such buffers, in one direction.
    """

    tunnel = False
    buffers = SMALL
    system = 100_000
    inbound: RateLimiter | None = None
    outbound: RateLimiter | None = None

    def setUp(self) -> None:
        gc.collect()
        before = descriptors()
        self.rig = Rig(self.addCleanup)
        self.loop = self.rig.loop
        self.watch = HangupWatch(self.loop)
        self.meter = Meter()
        self.streams: list[Stream] = []
        sock = self.sized(listening(Address("127.0.0.1", 0), 100))
        self.port = EnginePort(
            self.loop, self.rig.poller, self.rig.log, sock,
            lambda stream, peer, local: self.streams.append(stream),
        )  # fmt: skip
        self.port.startListening()
        self.links: list[DataLink] = []
        if self.tunnel:
            self.make_link()

        def check() -> None:
            self.port.stopListening()
            for link in self.links:
                link.abort("the end")
            self.loop.until(lambda: not self.loop.readers)
            self.loop.advance(10)  # the last look at paused sockets
            self.assertEqual(self.loop.getDelayedCalls(), [])
            gc.collect()
            self.assertLessEqual(descriptors(), before)

        self.addCleanup(check)

    def sized(self, sock: socket.socket) -> socket.socket:
        """Set a socket's buffers, which those accepted on it inherit."""
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, self.buffers)
        return sock

    def make_link(self) -> None:
        """A data link, both ends in this loop."""
        with self.sized(socket.create_server(("127.0.0.1", 0))) as listener:
            one = self.sized(stream_socket(socket.AF_INET, local=True))
            one.connect_ex(listener.getsockname())
            other, _ = listener.accept()
            other.setblocking(False)
        self.owners = [Owner(self.opened), Owner(self.opened)]
        for takes, sock in enumerate((other, one)):
            link = DataLink(
                1, bool(takes), self.owners[takes], self.loop, self.watch, self.rig.poller.soon
            )
            EngineTransport(self.rig.poller, sock).begin(link)
            self.links.append(link)
        self.owners[0].other, self.owners[1].other = self.links[1], self.links[0]

    def opened(self, stream: Stream) -> None:
        """A session was opened on the link: join it with the far connection."""
        self.session(self.far_stream, stream, self.joined)

    def socket(self) -> tuple[socket.socket, Stream]:
        """A connection: the other program's end, and the engine's."""
        sock = self.sized(socket.socket())
        sock.connect(("127.0.0.1", self.port.getHost().port))
        sock.setblocking(False)
        self.addCleanup(sock.close)
        self.loop.until(lambda: self.streams)
        return sock, self.streams.pop()

    def session(self, near: Stream, far: Stream, joined: Joined) -> None:
        """Join two streams."""
        context = SessionContext(
            clock=self.loop, log=self.rig.log, meter=self.meter, read=0,
            inbound=self.inbound, outbound=self.outbound,
        )  # fmt: skip
        session = Session(near, far, context=context, owner=joined)
        joined.sessions.append(session)
        session.start()

    def join(self) -> Joined:
        """A new session between two programs."""
        (near, near_stream), (far, self.far_stream) = self.socket(), self.socket()
        self.joined = joined = Joined(near, far)
        if self.tunnel:
            taker = self.links[1]
            self.loop.until(lambda: taker.idle)
            opening = Opening(visitor=NOWHERE, local=NOWHERE, target=0)
            self.session(near_stream, taker.open(opening), joined)
            self.loop.until(lambda: len(joined.sessions) == 2)
        else:
            self.session(near_stream, self.far_stream, joined)
        return joined

    @property
    def nodes(self) -> int:
        """How many there are on the way."""
        return 2 if self.tunnel else 1

    def fill(self, sock: socket.socket, most: int = 32 << 20) -> int:
        """Send until nothing more is taken; how much that is."""
        sent = still = 0
        while still < 20 and sent < most:
            self.loop.turn(0.001)
            try:
                place = sent % len(BULK)
                sent += sock.send(BULK[place : place + 65536])
                still = 0
            except BlockingIOError:
                still += 1
        return sent

    def expect(self, sock: socket.socket, data: bytes) -> None:
        """All of this, and then FIN."""
        got = self.rig.read(sock)
        self.assertEqual(len(got), len(data))
        self.assertTrue(got == data)

    def expect_reset(self, sock: socket.socket) -> None:
        """A reset, whatever came before it."""

        def was_reset() -> bool:
            try:
                while sock.recv(1 << 20):
                    pass
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            raise AssertionError("a reset became a FIN")

        self.loop.until(was_reset)

    def end(self, joined: Joined) -> None:
        """Both programs have closed: nothing is left of the session."""
        joined.near.close()
        joined.far.close()
        self.loop.until(lambda: len(joined.over) == self.nodes)
