"""The tunnel port: who comes is handed to a worker, unread.

A connection waits here until its first bytes say which worker it is for, which they do at once
where all is well. They are looked at and not taken (``MSG_PEEK``). What was looked at still counts
as readable, so the sockets are watched edge-triggered: each is looked at again when more has come,
and not before.
"""

from __future__ import annotations

import select
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from attrs import define
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.logs import Log, printable
from nodepass.relay.accepting import Accepting
from nodepass.wire.lobby import LOBBY_SIZE

from .addressee import MOST_NEEDED, addressed

__all__ = ["Door"]

#: Events taken from the kernel at a time.
MOST_EVENTS = 256
#: Bytes looked at first: more than a ClientHello usually has.
FIRST_LOOK = 4096

_HANGUP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


@define(eq=False)
class _Caller:
    sock: socket.SocketType
    host: str
    since: float
    worker: int | None = None  # once it is known
    watched: bool = False


@implementer(IReadDescriptor)
class Door:
    """Accepts at the tunnel port.

    Those who say nothing are few and go soon, as in a worker's lobby.

    :param sock: listens; it becomes the door's.
    :param timeout: seconds that a connection may take to say whose it is, and to be taken.
    :param hand_over: gives a connection to the worker of this number, with the seconds it waited;
        False: it can't be given now. The socket is closed here afterwards.
    :raises CannotListenError: the system can't watch one more socket; `sock` is closed.
    """

    def __init__(
        self,
        reactor: Any,
        log: Log,
        sock: socket.socket,
        timeout: float,
        hand_over: Callable[[int, socket.SocketType, float], bool],
    ) -> None:
        self._reactor = reactor
        self._log = log
        self._socket = sock
        self._timeout = timeout
        self._hand_over = hand_over
        self._callers: OrderedDict[int, _Caller] = OrderedDict()  # the longest there comes first
        self._held: dict[_Caller, None] = {}  # known, and not to be given to their worker now
        self._timer: IDelayedCall | None = None
        self._accepting = Accepting(
            reactor, sock, watch=self._watch, taken=self._receive, complain=self._complain
        )
        name = sock.getsockname()
        try:
            with ExitStack() as opened:
                opened.callback(sock.close)
                self._epoll = opened.enter_context(select.epoll())
                self._accepting.start()
                reactor.addReader(self)
                opened.pop_all()
        except OSError as error:
            raise CannotListenError(name[0], name[1], error) from error

    @property
    def address(self) -> Any:
        """Where it is, as the socket has it."""
        return self._socket.getsockname()

    def __len__(self) -> int:
        return len(self._callers)

    def close(self) -> None:
        """Accept nobody any more; who waits is disconnected."""
        self._reactor.removeReader(self)
        self._accepting.close()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._epoll.close()

    def try_again(self) -> None:
        """A worker may take connections again."""
        for caller in list(self._held):
            with self._guarding(caller):
                self._give(caller)

    # Who comes.

    def doRead(self) -> None:
        for file, events in self._epoll.poll(0, MOST_EVENTS):
            # A descriptor may have been closed and used anew since: a look too many is no harm.
            caller = self._callers.get(file)
            with self._guarding(caller):
                if file == self._socket.fileno():
                    self._accepting.accept()
                elif caller is not None:
                    self._look(caller, bool(events & _HANGUP))

    @contextmanager
    def _guarding(self, caller: _Caller | None) -> Iterator[None]:
        """What goes wrong with one caller is the end of that one alone: let out, it would make the
        reactor drop the door, or the worker that has just said that it is there."""
        try:
            yield
        except Exception:
            self._log.failure("a connection failed unexpectedly", Failure())
            if caller is not None:
                self._drop(caller)

    def _watch(self, watched: bool) -> None:
        # Level-triggered: who is not accepted now is told of again.
        if watched:
            self._epoll.register(self._socket.fileno(), select.EPOLLIN)
        else:
            self._epoll.unregister(self._socket.fileno())

    def _receive(self, sock: socket.SocketType, name: Any) -> None:
        caller = _Caller(sock, name[0], self._reactor.seconds())
        self._callers[sock.fileno()] = caller
        with self._guarding(caller):
            self._admit(caller)

    def _admit(self, caller: _Caller) -> None:
        if not self._look(caller):
            return
        try:
            self._epoll.register(caller.sock.fileno(), _EVENTS)
            caller.watched = True
        except OSError:
            self._drop(caller)
            return
        if len(self._callers) > LOBBY_SIZE:
            self._log.limited(
                "lobby is full",
                "access denied: more than {limit} connections that prove nothing, the latest "
                "from {address}; the oldest are dropped",
                limit=LOBBY_SIZE,
                address=printable(caller.host),
            )
            self._drop(next(iter(self._callers.values())))
        if self._timer is None and self._callers:
            self._watch_oldest()

    def _look(self, caller: _Caller, hung_up: bool = False) -> bool:
        """Look at what has come; whether the connection still waits."""
        if caller.worker is not None:
            return True  # it waits for its worker, which will hear of anything else
        try:
            first = caller.sock.recv(FIRST_LOOK, socket.MSG_PEEK)
            if len(first) == FIRST_LOOK:
                first = caller.sock.recv(MOST_NEEDED, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            first = b""
        caller.worker = addressed(first) if first else None
        if not first or (hung_up and caller.worker is None):
            self._drop(caller)  # it is gone, with half a greeting or none
            return False
        return caller.worker is None or not self._give(caller)

    def _give(self, caller: _Caller) -> bool:
        assert caller.worker is not None
        waited = self._reactor.seconds() - caller.since
        if self._hand_over(caller.worker, caller.sock, waited):
            self._drop(caller)
            return True
        self._held[caller] = None
        return False

    def _drop(self, caller: _Caller) -> None:
        """Close this process's descriptor, which ends what nobody else has; harmless when
        repeated."""
        if self._callers.pop(caller.sock.fileno(), None) is None:
            return
        self._held.pop(caller, None)
        if caller.watched:
            # Closing does not do so: the worker may have the connection now.
            self._epoll.unregister(caller.sock.fileno())
        caller.sock.close()

    # Time.

    def _watch_oldest(self) -> None:
        oldest = next(iter(self._callers.values()))
        due = oldest.since + self._timeout - self._reactor.seconds()
        self._timer = self._reactor.callLater(max(0.0, due), self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        for caller in list(self._callers.values()):
            if now - caller.since < self._timeout:
                break
            self._log.limited(
                ("handshake timed out", caller.host),
                "access denied to {address}: handshake timed out after {timeout:g} s",
                address=printable(caller.host),
                timeout=self._timeout,
            )
            self._drop(caller)
        if self._callers:
            self._watch_oldest()

    def _complain(self, reason: str) -> None:
        self._log.limited(
            "accept clients", "can't accept clients: {reason}; trying on", reason=reason
        )

    # IReadDescriptor

    def fileno(self) -> int:
        return self._epoll.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up, which it does not while nothing is wrong."""

    def logPrefix(self) -> str:
        return "door"
