"""The engine's end of connecting to a target."""

from __future__ import annotations

import errno
import os
import select
import socket
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import TimeoutError, getConnectError
from twisted.internet.interfaces import IReactorTime

from .deadlines import Deadlines
from .poller import WRITABLE, Poller
from .sockets import stream_socket
from .stream import EngineStream

__all__ = ["Dialer"]

#: Names of targets that are remembered, so that each session need not have its own: more than a
#: node has targets.
NAMES_KEPT = 1024

_UNDER_WAY = (errno.EALREADY, errno.EINPROGRESS, errno.EINTR)
_DONE = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP


class Dialer:
    """Connects to IP addresses."""

    def __init__(self, clock: IReactorTime, poller: Poller) -> None:
        self._clock = clock
        self._poller = poller
        self._deadlines: dict[float, Deadlines] = {}  # of a role, one or two

    def connect(self, host: str, port: int, timeout: float) -> Deferred[EngineStream]:
        """As `dial`, with a Deferred in any case."""
        outcome = self.dial(host, port, timeout)
        return outcome if isinstance(outcome, Deferred) else succeed(outcome)

    def dial(self, host: str, port: int, timeout: float) -> EngineStream | Deferred[EngineStream]:
        """Connect to one address.

        :param host: an IP literal, with a zone or without.
        :param timeout: seconds.
        :returns: the connection, where the target has answered by now, as one on this host has;
            else a Deferred that fires with it. That fails as Twisted's endpoints do, with a
            ConnectError, and may be cancelled.
        """
        sock = None
        try:
            family, name, local = _zoned(host, port) if "%" in host else _literal(host, port)
            sock = stream_socket(family, local=local)
            status = sock.connect_ex(name)
            if status == errno.EINPROGRESS:
                status = sock.connect_ex(name)  # asks how far that is
            if status in _UNDER_WAY:
                return _Attempt(self._poller, sock, name, self._within(timeout)).connected
            if not status:
                return EngineStream(self._poller, sock, peer=name)
        except OSError as error:
            if sock is not None:
                sock.close()
            return fail(getConnectError((error.errno or 0, str(error))))
        sock.close()
        return fail(_refused(status))

    def _within(self, seconds: float) -> Deadlines:
        deadlines = self._deadlines.get(seconds)
        if deadlines is None:
            deadlines = self._deadlines[seconds] = Deadlines(self._clock, seconds)
        return deadlines


class _Attempt:
    """A connect under way."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.SocketType,
        name: Any,
        deadlines: Deadlines,
    ) -> None:
        self._poller = poller
        self._socket = sock
        self._fd = sock.fileno()
        self._name = name
        poller.add(self._fd, self, WRITABLE)
        self.connected: Deferred[EngineStream] = Deferred(self._cancelled)
        self._deadlines = deadlines
        deadlines.add(self._timed_out)

    # Watched

    def ready(self, events: int) -> None:
        if not events & _DONE:
            return
        status = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._end()
            self.connected.errback(_refused(status))
            return
        self._deadlines.remove(self._timed_out)
        stream = EngineStream(self._poller, self._socket, peer=self._name, told=events)
        self.connected.callback(stream)

    def _timed_out(self) -> None:
        self._end()
        self.connected.errback(TimeoutError())

    def _cancelled(self, _: Deferred[EngineStream]) -> None:
        self._end()

    def _end(self) -> None:
        self._deadlines.remove(self._timed_out)
        self._poller.remove(self._fd, closing=True)
        self._socket.close()


def _zoned(host: str, port: int) -> tuple[int, Any, bool]:
    """As `_literal`; each time anew, as an interface's number may change."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return socket.AF_INET6, found[0][4], False


@lru_cache(NAMES_KEPT)
def _literal(host: str, port: int) -> tuple[int, Any, bool]:
    """An IP literal as the system takes it: its family, its name, and whether that is this host."""
    family = int(socket.AF_INET6 if ":" in host else socket.AF_INET)
    return family, (host, port), ip_address(host).is_loopback


def _refused(status: int) -> Exception:
    error: Exception = getConnectError((status, os.strerror(status)))
    return error
