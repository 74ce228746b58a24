"""Connections at the tunnel port reach their worker unread, by descriptors in messages."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from nodepass.address import Address
from nodepass.logs import Level, Log
from nodepass.relay.tcp import LINGER_RESET
from nodepass.wire.native.proof import Preface

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

reactor: Any = global_reactor

if sys.platform == "linux":
    import resource

    from nodepass.workers.conversation import LONGEST, SHORT_PAUSE, Conversation
    from nodepass.workers.door import Door
    from nodepass.workers.messages import Link, encode
    from nodepass.workers.ports import SharedPorts, tunnel_socket
    from nodepass.workers.roles import WorkerServer
    from nodepass.workers.worker import Worker

FIRST = Preface(3, b"a" * 16, 7, b"n" * 16).encode()


async def turns(count: int = 5) -> None:
    """Let the reactor go round."""
    for _ in range(count):
        await deferLater(reactor, 0.01)


def failing(number: int) -> Callable[..., None]:
    """What the system refuses with an error."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class Doors(TestCase):
    """A door, and who knocks."""

    def setUp(self) -> None:
        self.given: list[tuple[int, bytes]] = []
        self.willing = True
        self.looks = 0
        self.door = Door(
            reactor, Log(Level.ERROR), tunnel_socket(Address("127.0.0.1", 0)), 0.3, self.hand_over
        )
        self.addCleanup(self.door.close)
        look = self.door.doRead

        def count() -> None:
            self.looks += 1
            look()

        self.door.doRead = count  # type: ignore[method-assign]

    def hand_over(self, worker: int, sock: socket.socket, waited: float) -> bool:
        """Take a connection, and read what a worker would."""
        if self.willing:
            with socket.socket(fileno=os.dup(sock.fileno())) as mine:
                self.given.append((worker, mine.recv(4096)))
        return self.willing

    def knock(self) -> socket.socket:
        """A connection to the door."""
        sock = socket.create_connection(self.door.address[:2])
        self.addCleanup(sock.close)
        return sock

    async def _pieces(self) -> None:
        caller = self.knock()
        for at in range(7):
            assert not self.given
            caller.send(FIRST[at : at + 1])
            await turns(2)
        assert self.given == [(3, FIRST[:7])]

    def test_whoever_dribbles_is_passed_on_whole(self) -> Deferred[None]:
        """The number may come byte by byte; the worker finds all of them unread."""
        return Deferred.fromCoroutine(self._pieces())

    async def _quiet(self) -> None:
        caller = self.knock()
        caller.send(FIRST[:5])
        await turns()
        before = self.looks
        await turns(10)
        assert self.looks - before <= 1, "bytes that were looked at keep it busy"
        assert len(self.door) == 1

    def test_unread_bytes_do_not_spin(self) -> Deferred[None]:
        """What was looked at and left stays readable, and costs nothing."""
        return Deferred.fromCoroutine(self._quiet())

    async def _silent(self) -> None:
        callers = [self.knock() for _ in range(3)]
        callers[0].send(b"\x16")
        callers[1].close()
        await turns()
        assert len(self.door) == 2
        await deferLater(reactor, 0.35)
        await turns()
        assert len(self.door) == 0 and not self.given
        callers[0].settimeout(1.0)
        with self.assertRaises((ConnectionError, AssertionError)):
            assert callers[0].recv(1)

    def test_who_says_too_little_goes(self) -> Deferred[None]:
        """After the handshake's time, or with the connection, nothing is left of it."""
        return Deferred.fromCoroutine(self._silent())

    async def _held(self) -> None:
        self.willing = False
        caller = self.knock()
        caller.send(FIRST)
        await turns()
        assert len(self.door) == 1
        self.willing = True
        self.door.try_again()
        assert self.given == [(3, FIRST)] and len(self.door) == 0

    def test_a_worker_that_is_not_there_yet(self) -> Deferred[None]:
        """Its connections wait for it."""
        return Deferred.fromCoroutine(self._held())

    def fail(self, *_: object) -> bool:
        """In the place of something that never fails."""
        raise ValueError

    async def _fails(self) -> None:
        waiting = self.knock()
        await turns()
        other, late = self.knock(), self.knock()
        for caller in (waiting, late):
            caller.send(FIRST)
        await turns()
        self.assertEqual(len(self.door), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        for caller in (waiting, late):
            caller.settimeout(1.0)
            with self.assertRaises(ConnectionResetError):
                caller.recv(1)
        self.door._hand_over = self.hand_over
        other.send(FIRST)
        await turns()
        self.assertEqual(self.given, [(3, FIRST)])

    def test_what_fails_costs_one_caller(self) -> Deferred[None]:
        """One that waited for a while and one that has just come: it is logged once for each,
        nothing is left of them, and others are served."""
        self.door._timeout = 30.0
        self.door._hand_over = self.fail
        return Deferred.fromCoroutine(self._fails())

    async def _fails_later(self) -> None:
        callers = [self.knock() for _ in range(2)]
        for caller in callers:
            caller.send(FIRST)
        await turns()
        self.assertEqual(len(self.door), 2)
        self.door._hand_over = self.fail
        self.door.try_again()
        self.assertEqual(len(self.door), 0)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_what_fails_when_a_worker_is_there(self) -> Deferred[None]:
        """The others that wait have their turn, and who said so hears nothing of it."""
        self.door._timeout = 30.0
        self.willing = False
        return Deferred.fromCoroutine(self._fails_later())

    async def _accepting_fails(self) -> None:
        accept = self.door._accepting.accept
        failed: list[None] = []

        def once() -> None:
            if not failed:
                failed.append(None)
                raise ValueError
            accept()

        self.patch(self.door._accepting, "accept", once)
        self.knock().send(FIRST)
        await turns()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.given, [(3, FIRST)])

    def test_accepting_that_fails_is_tried_again(self) -> Deferred[None]:
        """Who comes is still there."""
        return Deferred.fromCoroutine(self._accepting_fails())


class Shut(TestCase):
    """A door that can't be opened."""

    def refused(self, number: int, reactor: Any = reactor) -> None:
        """It is said as of a port that can't be bound, which is tried again; nothing stays open."""
        before = os.listdir("/proc/self/fd")
        sock = tunnel_socket(Address("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with self.assertRaises(CannotListenError) as caught:
            Door(reactor, Log(Level.NONE), sock, 0.3, lambda *_: True)
        error = caught.exception
        self.assertEqual((error.port, error.socketError.errno), (port, number))
        self.assertEqual(sock.fileno(), -1)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_no_descriptor_to_watch_with(self) -> None:
        """The process has as many open as it may."""
        self.patch(select, "epoll", failing(errno.EMFILE))
        self.refused(errno.EMFILE)

    def test_no_room_to_watch_the_port(self) -> None:
        """The user's sockets are as many as the system watches."""
        self.patch(Door, "_watch", failing(errno.ENOSPC))
        self.refused(errno.ENOSPC)

    def test_no_room_in_the_reactor(self) -> None:
        """The port could be watched, and what watches it can't."""
        self.refused(errno.ENOSPC, SimpleNamespace(addReader=failing(errno.ENOSPC)))


class Conversations(TestCase):
    """Two ends in one process."""

    def setUp(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.heard: list[tuple[bytes, list[int]]] = []
        self.lost: list[str] = []
        self.one = Conversation(reactor, ours, self.hear, lambda: self.lost.append("one"))
        self.two = Conversation(reactor, theirs, self.hear, lambda: self.lost.append("two"))
        self.addCleanup(self.one.close)
        self.addCleanup(self.two.close)

    def hear(self, message: bytes, files: list[int]) -> None:
        """Keep what came."""
        self.heard.append((message, files))

    async def _files(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            name = sock.getsockname()
            self.one.send(b"take this", [sock.fileno()])
            await turns(2)
        ((message, (file,)),) = self.heard
        with socket.socket(fileno=file) as copy:
            assert (message, copy.getsockname()) == (b"take this", name)
            assert not os.get_inheritable(file)

    async def _late_files(self) -> None:
        await turns(1)  # the reactor has what it needs
        before = len(os.listdir("/proc/self/fd"))
        filler = bytes(1000)
        while not self.one.backlog:
            self.one.send(filler)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            name = sock.getsockname()
            self.one.send(b"take this", [sock.fileno()])
        while self.one.backlog:
            await turns(1)
        await turns(2)
        message, (file,) = self.heard[-1]
        with socket.socket(fileno=file) as copy:
            assert (message, copy.getsockname()) == (b"take this", name)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_a_descriptor_that_is_closed_while_its_message_waits(self) -> Deferred[None]:
        """It arrives all the same, and nothing of it is left."""
        return Deferred.fromCoroutine(self._late_files())

    def test_a_descriptor_comes_with_its_message(self) -> Deferred[None]:
        """It is another one for the same socket, and no child of ours would inherit it."""
        return Deferred.fromCoroutine(self._files())

    async def _many(self) -> None:
        messages = [b"%d" % number * 2000 for number in range(3000)]
        for message in messages:
            self.one.send(message)
        assert self.one.backlog > 0
        assert not self.one.offer(b"no room", [])
        while len(self.heard) < len(messages):
            await turns(1)
        assert [message for message, _ in self.heard] == messages
        assert self.one.backlog == 0 and self.one.offer(b"room", [])

    def test_a_flood_is_kept_in_order(self) -> Deferred[None]:
        """Nobody waits for who reads slowly, nothing is lost, and what can't wait is told so."""
        return Deferred.fromCoroutine(self._many())

    async def _end(self) -> None:
        self.one.close()
        await turns(2)
        assert self.lost == ["two"]

    def test_the_end_of_one_is_told_to_the_other(self) -> Deferred[None]:
        """Once, and only there."""
        return Deferred.fromCoroutine(self._end())

    async def _short(self) -> None:
        tries: list[int] = []
        send_fds = socket.send_fds

        def short(*_: object) -> None:
            tries.append(1)
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

        with socket.socket() as sock:
            files = [sock.fileno()]
            self.patch(socket, "send_fds", short)
            self.assertFalse(self.one.offer(b"offered", files))
            self.one.send(b"take this", files)
        self.one.send(b"and that")
        await deferLater(reactor, 3.5 * SHORT_PAUSE)
        self.assertLessEqual(len(tries), 5)
        self.assertEqual(self.heard, [])
        self.patch(socket, "send_fds", send_fds)
        while self.one.backlog:
            await turns(1)
        await turns(2)
        self.assertEqual([message for message, _ in self.heard], [b"take this", b"and that"])
        for file in self.heard[0][1]:
            os.close(file)

    def test_what_the_system_has_no_means_for(self) -> Deferred[None]:
        """It is not taken for sent. What can wait is tried again after a while, in its order."""
        return Deferred.fromCoroutine(self._short())

    def test_the_end_while_the_system_has_no_means(self) -> None:
        """No timer is left."""
        self.patch(socket, "send_fds", failing(errno.ENOBUFS))
        with socket.socket() as sock:
            self.one.send(b"take this", [sock.fileno()])
        self.one.close()

    def test_a_message_that_can_never_be_sent(self) -> None:
        """It is too long: that is a fault of ours, which is not to be passed over."""
        with self.assertRaises(OSError):
            self.one.send(bytes(64 * LONGEST))

    def test_who_is_gone_is_spoken_to_in_vain(self) -> None:
        """What is said before reading has told of it is nobody's, and no failure."""
        self.two.close()
        self.one.send(b"words")
        with socket.socket() as sock:
            self.assertTrue(self.one.offer(b"take this", [sock.fileno()]))


class Ports(TestCase):
    """Sockets for visitors."""

    def test_connections_wait_for_the_next_worker(self) -> None:
        """Each of the sockets gets some, and a worker's copy that is closed resets nothing."""
        ports = SharedPorts(reactor, 3)
        port: Any = ports.listen_tcp(Address("127.0.0.1", 0), lambda *_: None)
        self.addCleanup(port.stopListening)
        where = ("127.0.0.1", port.getHost().port)
        visitors = [socket.create_connection(where) for _ in range(60)]
        for sock in port.sockets:
            with socket.socket(fileno=os.dup(sock.fileno())) as worker:
                worker.setblocking(False)
                worker.accept()[0].close()
        served = 3
        for sock in port.sockets:
            sock.setblocking(False)
            while True:
                try:
                    sock.accept()[0].close()
                    served += 1
                except BlockingIOError:
                    break
        assert served == 60
        for visitor in visitors:
            visitor.close()


def accepted() -> tuple[socket.socket, socket.socket]:
    """A caller with its first words, and its connection as the parent has it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    caller.send(FIRST)
    return caller, connection


class Taker:
    """What a server's worker has to take connections with.

    :ivar lines: what it has logged.
    """

    def __init__(self, adopt: Callable[..., None]) -> None:
        self._stopping = False
        self.instance = SimpleNamespace(reactor=SimpleNamespace(adoptStreamConnection=adopt))
        self.wires = SimpleNamespace(factory=Factory)
        self.log = self
        self.lines: list[str] = []

    def take_link(self: Any, sock: socket.socket) -> None:
        WorkerServer.take_link(self, sock)

    def lose_link(self: Any, reason: str) -> None:
        WorkerServer.lose_link(self, reason)

    def limited(self, key: object, format: str, /, **fields: object) -> None:
        self.lines.append(format.format(**fields))


def test_a_caller_that_resets_on_its_way_to_the_worker() -> None:
    """Costs the worker nothing, not even a line: what it raised where messages are heard would end
    the worker, and anybody who reaches the tunnel port may do it."""
    caller, connection = accepted()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    caller.close()
    with pytest.raises(OSError):
        connection.getpeername()
    worker: Any = Taker(reactor.adoptStreamConnection)
    worker.take_link(connection)
    assert (connection.fileno(), worker.lines) == (-1, [])


def test_a_worker_without_means_says_so() -> None:
    """The caller is gone, and somebody has to learn why."""
    caller, connection = accepted()
    worker: Any = Taker(failing(errno.EMFILE))
    with caller:
        worker.take_link(connection)
    assert connection.fileno() == -1
    assert worker.lines == ["can't take a client's connection: Too many open files"]


def test_a_worker_without_descriptors() -> None:
    """It hears of a connection and does not get it: it says so, and goes on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    role: Any = Taker(failing(errno.EMFILE))
    watching = SimpleNamespace(addReader=id, removeReader=id, removeWriter=id)
    worker = Worker(watching, theirs)
    worker._role = role
    caller, connection = accepted()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, caller, connection:
        socket.send_fds(ours, [encode(Link(0.0))], [connection.fileno()])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            worker._parent.doRead()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        worker._parent.close()
    assert role.lines == ["can't take a client's connection: Too many open files"]


def test_one_process_knows_nothing_of_workers() -> None:
    """With `workers=1` no module of theirs is loaded."""
    code = (
        "import sys; from twisted.internet import reactor;"
        "from nodepass.service import makeService;"
        "s = makeService('client://127.0.0.1:0/127.0.0.1:9?mode=1&log=none');"
        "s.startService(); reactor.callLater(0, reactor.stop); reactor.run();"
        "print([n for n in sys.modules if n.startswith('nodepass.workers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
