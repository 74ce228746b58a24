"""A forked process whose sockets can't be had: nothing is left of the attempt."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.protocol import ProcessProtocol

from nodepass.master.forker import ForkedProcess, Forker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")


class Transport:
    """Notes that it was aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Reactor:
    """Adopts so many sockets, and then has no descriptor left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.adopted: list[tuple[Any, Transport]] = []
        self.readers: list[object] = []

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        if len(self.adopted) == self.room:
            raise OSError(errno.EMFILE, "Too many open files")
        protocol, transport = factory.buildProtocol(None), Transport()
        protocol.makeConnection(transport)
        self.adopted.append((protocol, transport))

    def addReader(self, reader: object) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.remove(reader)


class Worker(ProcessProtocol):
    """Hears nothing of a process that never was."""

    def makeConnection(self, transport: Any) -> None:
        raise AssertionError("it was never made")

    childConnectionLost = childDataReceived = processEnded = makeConnection  # type: ignore[assignment]


class Refusing(Forker):
    """Has no process to give, and counts how often it was asked."""

    asked = 0

    def __init__(self) -> None:
        pass

    def watch(self, reactor: Any) -> None:
        pass

    def fork(self, conversation: socket.socket, errors: socket.socket) -> int:
        self.asked += 1
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize(("room", "asked"), [(0, 0), (1, 0), (2, 1)])
def test_nothing_is_left(room: int, asked: int) -> None:
    """No process is asked for before all else is there; sockets that are there are closed again,
    and the protocol hears of nothing."""
    reactor, forker = Reactor(room), Refusing()
    with pytest.raises(OSError):
        ForkedProcess(reactor, forker, Worker())
    assert forker.asked == asked
    assert [transport.aborted for _, transport in reactor.adopted] == [True] * room
    for protocol, _ in reactor.adopted:
        protocol.dataReceived(b"late")
        protocol.connectionLost()


@pytest.fixture
def answering() -> Iterator[Forker]:
    """A forker that answers every question with 7, until it is killed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        while theirs.recv(64):
            theirs.send(b"7")
        os._exit(0)
    theirs.close()
    forker = Forker(pid, ours)
    yield forker
    forker.close()


def test_a_stopped_forker_goes_on(answering: Forker) -> None:
    """One that somebody stopped does not stop the master, which waits for its answers."""
    os.kill(answering._pid, signal.SIGSTOP)
    os.waitpid(answering._pid, os.WUNTRACED)
    began = time.monotonic()
    assert answering.reap(1) == 7
    assert time.monotonic() - began < 0.5


def test_its_end_is_noticed(answering: Forker) -> None:
    """The reactor watches it; at its end it is reaped, and watched no more."""
    reactor = Reactor(0)
    answering.watch(reactor)
    answering.watch(reactor)
    assert reactor.readers == [answering]
    os.kill(answering._pid, signal.SIGKILL)
    answering.doRead()
    assert reactor.readers == []
    with pytest.raises(ChildProcessError):
        os.waitpid(answering._pid, os.WNOHANG)
