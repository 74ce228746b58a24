"""Taking connections off a listening socket: some at a time, none for a while when they can't be
had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Accepting"]

#: Connections accepted before others have their turn.
MOST_ACCEPTS = 64
#: Seconds without accepting after the system had no descriptor or memory for a connection: it does
#: not say when there is one again, and would be asked without end.
ACCEPT_PAUSE = 0.5

# Who came was gone before it was accepted; the next one may be there.
_NEXT = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR)


class Accepting:
    """A listening socket whose owner is told when somebody has come, and asks for it.

    It should be watched level-triggered: who is not accepted now is told of again.

    :param sock: listens; it becomes the object's.
    :param watch: begins to watch the socket, or ends it; the former may raise OSError.
    :param taken: gets each connection, which does not block, and the name of its other end.
    :param complain: told why none can be taken for a while.
    """

    def __init__(
        self,
        clock: IReactorTime,
        sock: socket.socket,
        *,
        watch: Callable[[bool], None],
        taken: Callable[[socket.SocketType, Any], None],
        complain: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._socket = sock
        self._kind = int(sock.family), int(sock.type), sock.proto
        self._watch = watch
        self._taken = taken
        self._complain = complain
        self._pause: IDelayedCall | None = None
        self._open = False

    def start(self) -> None:
        """Begin.

        :raises OSError: the system can't watch one more socket; it is closed.
        """
        try:
            self._watch(True)
        except OSError:
            self._socket.close()
            raise
        self._open = True

    def close(self) -> None:
        """Accept nobody any more; harmless when repeated."""
        if not self._open:
            return
        self._open = False
        if self._pause is None:
            self._watch(False)
        else:
            self._pause.cancel()
            self._pause = None
        self._socket.close()

    def accept(self) -> None:
        """Take those who have come, a bounded number of them."""
        listener: Any = self._socket
        kind = self._kind
        for _ in range(MOST_ACCEPTS):
            if not self._open:
                return
            try:
                # As `socket.accept` does, which takes longer to find out of what kind it is.
                fd, name = listener._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NEXT:
                    continue
                self._watch(False)
                self._rest(error)
                return
            sock = socket.SocketType(*kind, fd)
            sock.setblocking(False)
            self._taken(sock, name)

    def _rest(self, error: OSError) -> None:
        self._complain(error.strerror or str(error))
        self._pause = self._clock.callLater(ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        try:
            self._watch(True)
        except OSError as error:
            self._rest(error)
