"""Sockets for datagrams connected to a target, one for each flow.

As that of visitors (`nodepass.relay.udp`) they move whole datagrams in batches, drop what can't be
sent at once, and tell of what is too large.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .binding import socket_address
from .udp import BATCH, BATCH_BYTES, CUT_SHORT, enlarge_buffers

#: Asked of the system for a target's socket, in bytes, so that a burst survives while TCP has its
#: turn: less than for visitors, as it carries one flow, and there may be many of them.
TARGET_BUFFER = 1024 * 1024

# Pending errors that an ICMP message left on a connected socket.
_REFUSED = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET}


class TargetReceiver(Protocol):
    """Who hears what a target sends."""

    def datagrams(self, batch: list[bytes]) -> None:
        """Datagrams came, at least one, in this order; the list is the receiver's to keep."""

    def oversized(self) -> None:
        """A datagram over the limit came and was dropped."""

    def lost(self) -> None:
        """The reactor gave the socket up; it is closed."""

    def refused(self) -> None:
        """The target, or a router before it, said that nobody is there. The socket stays."""


@implementer(IReadDescriptor)
class TargetSocket:
    """A UDP socket connected to one target, for one flow; made by :func:`connect_udp`.

    Not a Twisted ``Port``: there is one per flow, and a port takes a log line, a protocol object
    and a reactor's turn to come and go.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorFDSet, skt: socket.socket, receiver: TargetReceiver, limit: int
    ) -> None:
        self._reactor = reactor
        self._socket = skt
        self._receiver = receiver
        self._limit = limit
        self._open = True
        self._start_reading()

    def _start_reading(self) -> None:
        self._reactor.addReader(self)

    def _stop_reading(self) -> None:
        self._reactor.removeReader(self)

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        """Send datagrams to the target; those that were dropped are returned."""
        return [data for data in batch if not self._send_one(data)]

    def _send_one(self, data: bytes) -> bool:
        if not self._open:
            return False
        try:
            self._socket.send(data)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            first = error
        # The error may have been that of an earlier datagram, and have kept this one from leaving.
        try:
            self._socket.send(data)
            sent = True
        except OSError:
            sent = False
        self._heard(first)
        return sent

    def _heard(self, error: OSError) -> None:
        """The system refused to send; it may be because of an earlier datagram."""
        if error.errno in _REFUSED:
            self._tell_refused()

    def close(self) -> None:
        """Close the socket at once; nothing is delivered from now on. Harmless when repeated."""
        if self._open:
            self._open = False
            self._stop_reading()
            self._socket.close()

    def fileno(self) -> int:
        """For the reactor: the descriptor, -1 when closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For the reactor: who is at fault when reading fails."""
        return type(self).__name__

    def doRead(self) -> None:
        """For the reactor: deliver what has come, a bounded batch of it."""
        batch: list[bytes] = []
        oversized = 0
        size = self._limit + 1  # one byte more, to notice what is larger
        room = BATCH_BYTES
        receive = self._socket.recv
        for _ in range(BATCH):
            try:
                data = receive(size)
            except OSError as error:
                if error.errno in _REFUSED:
                    self._tell_refused()
                    continue
                if error.errno is not None and error.errno == CUT_SHORT:
                    oversized += 1
                    continue
                # Nothing more to read; an error that reading has cleared; or closed meanwhile.
                break
            room -= len(data)
            if len(data) == size:
                oversized += 1
            else:
                batch.append(data)
            if room <= 0:
                break
        try:
            for _ in range(oversized):
                self._receiver.oversized()
            if batch and self._open:
                self._receiver.datagrams(batch)
        except Exception:
            self._log.failure("a datagram's receiver failed")

    def doWrite(self) -> None:
        """For the reactor: nothing.

        It is asked when an event of the descriptor's last owner, a connection that was being made,
        is left in the round in which this socket got the descriptor.
        """

    def connectionLost(self, reason: Failure) -> None:
        """For the reactor: it has stopped watching the socket.

        Reactors on epoll and poll take a pending error for the end of a connection. Here it is an
        ICMP message, and the next datagram may get through.
        """
        if not self._open:
            return
        if reason.check(ConnectionDone):
            self._reactor.addReader(self)
            self.doRead()
        else:
            self.close()
            self._receiver.lost()

    def _tell_refused(self) -> None:
        try:
            self._receiver.refused()
        except Exception:
            self._log.failure("a datagram's receiver failed")


def connect_udp(
    reactor: IReactorFDSet, host: str, port: int, receiver: TargetReceiver, limit: int
) -> TargetSocket:
    """Open a socket that talks to one target only.

    :param host: an IP address, with its scope where it is link-local.
    :param limit: the largest datagram delivered, in bytes.
    :raises OSError: as :func:`connected`.
    """
    return TargetSocket(reactor, connected(host, port), receiver, limit)


def connected(host: str, port: int) -> socket.socket:
    """Make a socket that is connected to a target.

    :raises OSError: there is no route to the target, no descriptor left, or the host is a name.
    """
    family, target = socket_address(host, port)
    skt = socket.socket(family, socket.SOCK_DGRAM)
    try:
        skt.setblocking(False)
        enlarge_buffers(skt, TARGET_BUFFER)
        skt.connect(target)
    except OSError:
        skt.close()
        raise
    return skt
