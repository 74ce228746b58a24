"""The engine's end of connecting to a target."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import TimeoutError, getConnectError
from twisted.internet.interfaces import IReactorTime

from .deadlines import Deadlines
from .poller import Poller
from .sockets import stream_socket
from .transport import EngineTransport

__all__ = ["Dialer"]

_UNDER_WAY = (0, errno.EINPROGRESS, errno.EINTR)
_DONE = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP


class Dialer:
    """Connects to IP addresses."""

    def __init__(self, clock: IReactorTime, poller: Poller) -> None:
        self._clock = clock
        self._poller = poller
        self._deadlines: dict[float, Deadlines] = {}  # of a role, one or two

    def connect(self, host: str, port: int, factory: Any, timeout: float) -> Deferred[Any]:
        """Connect to one address.

        :param host: an IP literal, with a zone or without.
        :param factory: has `buildProtocol`; it is not told of anything else.
        :param timeout: seconds.
        :returns: fires with the protocol that the factory built, connected. Fails as Twisted's
            endpoints do, with a ConnectError. It may be cancelled.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = None
        try:
            name: Any = (host, port)
            if "%" in host:
                name = socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
                )[0][4]
            sock = stream_socket(family)
            status = sock.connect_ex(name)
            if status in _UNDER_WAY:
                return _Attempt(self._poller, sock, name, factory, self._within(timeout)).connected
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
        sock: socket.socket,
        name: Any,
        factory: Any,
        deadlines: Deadlines,
    ) -> None:
        self._poller = poller
        self._socket = sock
        self._fd = sock.fileno()
        self._name = name
        self._factory = factory
        poller.add(self._fd, self)
        self.connected: Deferred[Any] = Deferred(self._cancelled)
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
        protocol = self._factory.buildProtocol(None)
        transport = EngineTransport(self._poller, self._socket, peer=self._name)
        transport.begin(protocol, told=events)
        self.connected.callback(protocol)

    def _timed_out(self) -> None:
        self._end()
        self.connected.errback(TimeoutError())

    def _cancelled(self, _: Deferred[Any]) -> None:
        self._end()

    def _end(self) -> None:
        self._deadlines.remove(self._timed_out)
        self._poller.remove(self._fd, closing=True)
        self._socket.close()


def _refused(status: int) -> Exception:
    error: Exception = getConnectError((status, os.strerror(status)))
    return error
