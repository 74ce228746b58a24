"""The engine's sockets for datagrams: watched by its poller, and sending many in one call."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IReactorFDSet

from nodepass.address import Address

from ..pktinfo import Ancillary
from ..udp import DatagramPort, DatagramReceiver
from ..udptarget import TargetReceiver, TargetSocket, connected
from .poller import Poller
from .segments import Runs, segments

__all__ = ["EngineDatagramPort", "EngineTargetSocket", "connect_udp", "listen_udp"]

# Level-triggered: a socket gives a bounded batch, and is told of again while there is more.
_EVENTS = select.EPOLLIN


class EngineDatagramPort(DatagramPort):
    """The socket that visitors write to."""

    def __init__(
        self,
        reactor: IReactorFDSet,
        poller: Poller,
        address: Address,
        receiver: DatagramReceiver,
        limit: int,
        bound: socket.socket | None = None,
    ) -> None:
        super().__init__(reactor, address, receiver, limit, bound)
        self._poller = poller
        self._descriptor = -1
        self._runs = Runs()

    def startReading(self) -> None:
        """Be told of what comes."""
        self._descriptor = self.socket.fileno()
        self._poller.add(self._descriptor, self, _EVENTS)

    def stopReading(self) -> None:
        """Be told no more; harmless when repeated."""
        if self._descriptor >= 0:
            self._poller.remove(self._descriptor)
            self._descriptor = -1

    def ready(self, events: int) -> None:
        """For the poller: something has come."""
        self.doRead()

    def _send(
        self, batch: list[bytes], destination: Any, source: tuple[Ancillary, ...]
    ) -> Sequence[bytes]:
        if len(batch) == 1:
            return () if self._send_one(batch[0], destination, source) else batch
        lost: list[bytes] = []
        for size, part in self._runs.split(batch):
            if size:
                try:
                    self.socket.sendmsg(part, source + segments(size), 0, destination)
                    continue
                except OSError as error:
                    self._runs.failed(size, error.errno or 0)
            lost += super()._send(part, destination, source)
        return lost


class EngineTargetSocket(TargetSocket):
    """A socket connected to one target."""

    def __init__(
        self,
        reactor: IReactorFDSet,
        poller: Poller,
        skt: socket.socket,
        receiver: TargetReceiver,
        limit: int,
    ) -> None:
        self._poller = poller
        self._runs = Runs()
        super().__init__(reactor, skt, receiver, limit)

    def _start_reading(self) -> None:
        self._poller.add(self.fileno(), self, _EVENTS)

    def _stop_reading(self) -> None:
        self._poller.remove(self.fileno())

    def ready(self, events: int) -> None:
        """For the poller: something has come, or a router has said something."""
        self.doRead()

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        if len(batch) == 1:
            return () if self._send_one(batch[0]) else batch
        lost: list[bytes] = []
        for size, part in self._runs.split(batch):
            if size and self._send_run(part, size):
                continue
            lost += super().send(part)
        return lost

    def _send_run(self, run: list[bytes], size: int) -> bool:
        """Send datagrams of one size; False when they have to go one by one."""
        if not self._open:
            return False
        try:
            self._socket.sendmsg(run, segments(size))
            return True
        except OSError as error:
            self._runs.failed(size, error.errno or 0)
            self._heard(error)
        return False


def listen_udp(
    reactor: IReactorFDSet,
    poller: Poller,
    address: Address,
    receiver: DatagramReceiver,
    limit: int,
    bound: socket.socket | None = None,
) -> DatagramPort:
    """Open the socket that visitors write to, as `nodepass.relay.udp.listen_udp` does."""
    port = EngineDatagramPort(reactor, poller, address, receiver, limit, bound)
    port.startListening()
    return port


def connect_udp(
    reactor: IReactorFDSet,
    poller: Poller,
    host: str,
    port: int,
    receiver: TargetReceiver,
    limit: int,
) -> TargetSocket:
    """Open a socket that talks to one target only, as that of `nodepass.relay.udptarget` does."""
    skt = connected(host, port)
    try:
        return EngineTargetSocket(reactor, poller, skt, receiver, limit)
    except OSError:  # the poller has no room for one more
        skt.close()
        raise
