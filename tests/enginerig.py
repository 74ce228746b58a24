"""What tests of the engine share: a reactor driven by hand, and connections on loopback."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.logs import Level, Log
from nodepass.relay.engine.poller import Poller
from nodepass.relay.engine.transport import EngineTransport

#: Seconds that a round takes by the loop's clock: what is due at once and asked for in one round
#: is for the next, as with a reactor.
ROUND = 1e-6
#: What a small socket buffer is asked to be; the kernel makes more of it, but far below a MiB.
SMALL = 8192


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def reset(sock: socket.socket) -> None:
    """Close a socket so that the other end sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Loop(Clock):
    """A reactor driven by hand: real sockets, and timers that run when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def callLater(self, delay: float, *arguments: Any, **named: Any) -> Any:
        return super().callLater(max(delay, ROUND), *arguments, **named)

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def turn(self, wait: float = 0.0) -> None:
        """One round of a reactor: what is ready, then the timers that are due."""
        poll = select.poll()
        for reader in self.readers:
            poll.register(reader.fileno(), select.POLLIN)
        if poll.poll(wait * 1000):
            for reader in list(self.readers):
                reader.doRead()
        self.advance(ROUND)

    def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Go round until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come to pass"
            self.turn(0.005)

    def settle(self, rounds: int = 5) -> None:
        """Go round a few times, for what must not happen."""
        for _ in range(rounds):
            self.turn(0.002)


class Plain(Protocol):
    """Notes what it is told, and is a producer that notes when it is to pause.

    :ivar told: names of calls, in order.
    :ivar on_data: called with each piece.
    """

    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.told: list[str] = []
        self.reason: Any = None
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_pause: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None
        self.next: tuple[int, bool] = (0, False)

    def next_bytes(self) -> tuple[int, bool]:
        """Many bytes come: how they are to be read."""
        return self.next

    def piped(self, pipe: Any) -> None:
        """They come in pipes."""
        self.dataReceived(pipe.read())

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.told.append("lost")
        self.reason = reason.type

    def pauseProducing(self) -> None:
        self.told.append("pause")
        self.on_pause()

    def resumeProducing(self) -> None:
        self.told.append("resume")
        self.on_resume()

    def stopProducing(self) -> None:
        pass


@implementer(IHalfCloseableProtocol)
class Halves(Plain):
    """The same, and hears of the end of each direction."""

    def readConnectionLost(self) -> None:
        self.told.append("read ended")

    def writeConnectionLost(self) -> None:
        self.told.append("write ended")


class Rig:
    """A loop with a poller on it, and what it takes to make connections.

    :param keep: told of each thing that is to be closed at the end.
    """

    def __init__(self, keep: Callable[..., Any]) -> None:
        self.loop = Loop()
        self.log = Log(Level.DEBUG)
        self.poller = Poller(self.loop)
        self._keep = keep

    def sockets(self, small: bool = False) -> tuple[socket.socket, socket.socket]:
        """A connection: this end, and the other, which blocks for up to 10 seconds."""
        with socket.socket() as listener:
            if small:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            near = socket.socket()
            if small:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            near.connect(listener.getsockname())
            far, _ = listener.accept()
        far.settimeout(10)
        near.setblocking(False)
        self._keep(far.close)
        self._keep(near.close)
        return near, far

    def connection(
        self, protocol: Plain | None = None, *, small: bool = False, left: bytes = b""
    ) -> tuple[Any, socket.socket]:
        """A connection of the engine: its protocol, and the socket of the other end."""
        near, far = self.sockets(small)
        if protocol is None:
            protocol = Halves()
        EngineTransport(self.poller, near, left=left).begin(protocol)
        return protocol, far

    def read(self, far: socket.socket, size: int = 1 << 30) -> bytes:
        """Read at the other end while the loop goes round: so much, or up to the end of file."""
        far.setblocking(False)
        got = bytearray()

        def more() -> bool:
            try:
                piece = far.recv(min(65536, size - len(got)))
            except BlockingIOError:
                return False
            got.extend(piece)
            return not piece or len(got) == size

        self.loop.until(more)
        return bytes(got)
