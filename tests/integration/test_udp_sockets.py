"""Visitors' and targets' UDP sockets on the loopback interface."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

from attrs import Factory, define
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface.verify import verifyObject

from nodepass.address import Address, Endpoint
from nodepass.relay import pktinfo
from nodepass.relay.udp import BATCH, DatagramPort, listen_udp
from nodepass.relay.udptarget import TargetSocket, connect_udp

reactor = cast(Any, global_reactor)

LIMIT = 65507

#: Some may leave together, others not: sizes change, some are empty, some longer than a packet, and
#: there are more than a call may take.
MIXED = [
    *(b"%03d" % number for number in range(150)),
    b"",
    b"",
    b"long" * 500,
    b"long" * 500,
    b"short",
    b"longer" * 5000,
    b"longer" * 5000,
    b"end",
]


@define
class Visitors:
    """A receiver that keeps what came, and answers when it is told how."""

    came: list[tuple[bytes, Endpoint, Endpoint | None]] = Factory(list)
    too_large: list[Endpoint | None] = Factory(list)
    on_datagram: Callable[[bytes, Endpoint, Endpoint | None], object] | None = None

    def datagrams(self, batch: list[bytes], visitor: Endpoint, local: Endpoint | None) -> None:
        for data in batch:
            self.came.append((data, visitor, local))
            if self.on_datagram is not None:
                self.on_datagram(data, visitor, local)

    def oversized(self, visitor: Endpoint | None) -> None:
        self.too_large.append(visitor)
        if self.on_datagram is not None and visitor is not None:
            self.on_datagram(b"oversized", visitor, None)


@define
class Target:
    """A receiver that keeps what the target sent."""

    came: list[bytes] = Factory(list)
    too_large: int = 0
    refusals: int = 0
    losses: int = 0
    on_datagram: Callable[[bytes], object] | None = None

    def datagrams(self, batch: list[bytes]) -> None:
        for data in batch:
            self.came.append(data)
            if self.on_datagram is not None:
                self.on_datagram(data)

    def oversized(self) -> None:
        self.too_large += 1

    def refused(self) -> None:
        self.refusals += 1

    def lost(self) -> None:
        self.losses += 1


class SocketsCase(TestCase):
    """Closes what a test opens, and waits for what it asks for."""

    timeout = 20

    def listen(
        self, host: str, receiver: Visitors, port: int = 0, limit: int = LIMIT
    ) -> DatagramPort:
        listening = self.open_port(Address(host=host, port=port), receiver, limit)
        self.addCleanup(lambda: maybeDeferred(listening.stopListening))
        return listening

    def connect(self, host: str, port: int, receiver: Target, limit: int = LIMIT) -> TargetSocket:
        connected = self.open_target(host, port, receiver, limit)
        self.addCleanup(connected.close)
        return connected

    def open_port(self, address: Address, receiver: Visitors, limit: int) -> DatagramPort:
        """Listen, on the reactor here."""
        return listen_udp(reactor, address, receiver, limit)

    def open_target(self, host: str, port: int, receiver: Target, limit: int) -> TargetSocket:
        """Connect, on the reactor here."""
        return connect_udp(reactor, host, port, receiver, limit)

    def watched(self) -> list[Any]:
        """The sockets that are watched for what comes."""
        return list(reactor.getReaders())

    def raw(self, host: str) -> socket.socket:
        """A program's own socket, bound to `host`, non-blocking."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        skt = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(skt.close)
        try:
            skt.bind(socket.getaddrinfo(host, 0, family, socket.SOCK_DGRAM)[0][-1])
        except OSError as error:
            raise SkipTest(f"this host has no {host}: {error}") from None
        skt.setblocking(False)
        return skt

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the reactor run until the condition holds; the test's timeout is the bound."""
        while not condition():
            await deferLater(reactor, 0.002)

    async def receive(self, skt: socket.socket) -> tuple[bytes, Any]:
        """One datagram from a program's own socket, with its sender."""
        got: list[tuple[bytes, Any]] = []

        def attempt() -> bool:
            try:
                got.append(skt.recvfrom(LIMIT + 1))
            except BlockingIOError:
                return False
            return True

        await self.until(attempt)
        return got[0]


class VisitorSocketTests(SocketsCase):
    """The socket that visitors write to."""

    async def answers_come_from(self, listen: str, hosts: list[str]) -> None:
        """Write to each of `hosts`; the answer must come from there, and `local` must say so."""
        receiver = Visitors()
        port = self.listen(listen, receiver)
        receiver.on_datagram = lambda data, visitor, local: port.send([data], visitor, local)
        number = port.getHost().port
        for host in hosts:
            visitor = self.raw("::1" if ":" in host else "127.0.0.1")
            visitor.sendto(host.encode(), (host, number))

            data, sender = await self.receive(visitor)

            self.assertEqual(data, host.encode())
            self.assertEqual(sender[:2], (host, number))
            expected = Endpoint(*visitor.getsockname()[:2]), Endpoint(host, number)
            self.assertEqual(receiver.came[-1][1:], expected)

    async def test_every_interface_answers_from_the_address_written_to(self) -> None:
        """On every interface each visitor is answered from the very address it wrote to."""
        self.raw("::1")
        await self.answers_come_from("", ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"])

    async def test_ipv6_wildcard_takes_ipv4(self) -> None:
        """The wildcard written as :: means every interface of both families."""
        self.raw("::1")
        await self.answers_come_from("::", ["127.0.0.2", "::1"])

    async def test_ipv4_wildcard(self) -> None:
        """On every interface of IPv4 answers leave from the address written to."""
        await self.answers_come_from("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.0.0.3"])

    async def test_one_address(self) -> None:
        """Bound to one address, that is where datagrams were written to and answers come from."""
        await self.answers_come_from("127.0.0.2", ["127.0.0.2"])
        self.raw("::1")
        await self.answers_come_from("::1", ["::1"])

    async def test_link_local_visitor(self) -> None:
        """A link-local visitor is answered on its link and from the address written to."""
        hosts = link_local_addresses()
        if not hosts:
            raise SkipTest("this host has no link-local address")
        for listen in ("", hosts[0]):
            host = hosts[0]
            receiver = Visitors()
            port = self.listen(listen, receiver)
            receiver.on_datagram = lambda data, visitor, local: port.send([data], visitor, local)  # noqa: B023
            visitor = self.raw(host)
            scope = visitor.getsockname()[3]
            visitor.sendto(b"hello", (host.partition("%")[0], port.getHost().port, 0, scope))

            data, sender = await self.receive(visitor)

            self.assertEqual((data, sender[3]), (b"hello", scope))
            bare = host.partition("%")[0]
            self.assertEqual(sender[:2], (bare, port.getHost().port))
            self.assertEqual(receiver.came[0][1].host, f"{bare}%{scope}")
            self.assertFalse(port.send([b"from anywhere"], receiver.came[0][1], None))
            self.assertEqual((await self.receive(visitor))[0], b"from anywhere")

    async def test_a_host_without_pktinfo_still_answers(self) -> None:
        """Where the system doesn't tell the address written to, answers leave all the same."""
        self.patch(pktinfo, "enable", lambda skt: False)
        receiver = Visitors()
        port = self.listen("", receiver)
        receiver.on_datagram = lambda data, visitor, local: port.send([data], visitor, local)
        visitor = self.raw("127.0.0.1")
        visitor.sendto(b"hello", ("127.0.0.1", port.getHost().port))

        self.assertEqual((await self.receive(visitor))[0], b"hello")
        self.assertEqual(receiver.came[0][2], None)

    async def test_a_source_that_cannot_be_sent_from(self) -> None:
        """An answer that would leave from a broadcast address leaves from another one."""
        self.raw("::1")
        port = self.listen("", Visitors())
        visitor = self.raw("127.0.0.1")
        number = port.getHost().port

        lost = port.send(
            [b"x"], Endpoint(*visitor.getsockname()), Endpoint("255.255.255.255", number)
        )

        self.assertFalse(lost)
        self.assertEqual((await self.receive(visitor))[0], b"x")

    async def test_boundaries_order_and_sizes(self) -> None:
        """Datagrams arrive whole and in order, from 0 bytes up to the largest there is."""
        receiver = Visitors()
        port = self.listen("", receiver)
        visitor = self.raw("127.0.0.1")
        sent = [b"", b"a", b"", b"b" * 9000, b"c" * 65507, b"d"]
        for data in sent:
            visitor.sendto(data, ("127.0.0.1", port.getHost().port))

        await self.until(lambda: len(receiver.came) == len(sent))

        self.assertEqual([data for data, _, _ in receiver.came], sent)
        self.assertEqual(receiver.too_large, [])

    async def test_answers_of_any_size(self) -> None:
        """Answers of 0 bytes and of the largest size leave whole; a larger one is dropped."""
        port = self.listen("", Visitors())
        visitor = self.raw("127.0.0.1")
        endpoint = Endpoint(*visitor.getsockname())
        local = Endpoint("127.0.0.1", port.getHost().port)

        self.assertFalse(port.send([b""], endpoint, local))
        self.assertFalse(port.send([b"x" * 65507], endpoint, local))
        self.assertEqual(port.send([b"x" * 65508], endpoint, local), [b"x" * 65508])

        self.assertEqual((await self.receive(visitor))[0], b"")
        self.assertEqual(len((await self.receive(visitor))[0]), 65507)

    async def test_oversized_is_dropped_and_told(self) -> None:
        """A datagram over the limit is told and never delivered in part; one at the limit is."""
        for host in ("", "127.0.0.1"):
            receiver = Visitors()
            port = self.listen(host, receiver, limit=100)
            visitor = self.raw("127.0.0.1")
            for size in (101, 100, 5000, 1):
                visitor.sendto(b"x" * size, ("127.0.0.1", port.getHost().port))

            await self.until(lambda: len(receiver.came) == 2)  # noqa: B023

            self.assertEqual([len(data) for data, _, _ in receiver.came], [100, 1])
            self.assertEqual(receiver.too_large, [Endpoint(*visitor.getsockname())] * 2)

    async def test_a_failing_receiver_does_not_end_the_port(self) -> None:
        """An exception in the receiver is logged and costs what it was given, not the socket."""
        failures: list[str] = ["datagram", "oversized"]

        def fail_twice(*_: object) -> None:
            if failures:
                raise ValueError(failures.pop())

        receiver = Visitors(on_datagram=fail_twice)
        port = self.listen("", receiver, limit=10)
        visitor = self.raw("127.0.0.1")
        for data in (b"x" * 11, b"first"):
            visitor.sendto(data, ("127.0.0.1", port.getHost().port))
        await self.until(lambda: not failures)
        visitor.sendto(b"second", ("127.0.0.1", port.getHost().port))

        await self.until(lambda: len(receiver.came) == 2)

        self.assertEqual([data for data, _, _ in receiver.came], [b"first", b"second"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    async def test_a_flood_leaves_room_for_others(self) -> None:
        """One turn delivers a bounded batch, in number and in bytes, and the rest comes later."""
        receiver = Visitors()
        port = self.listen("127.0.0.1", receiver)
        visitor = self.raw("127.0.0.1")
        for size, most in ((1, BATCH), (60_000, 8)):
            del receiver.came[:]
            sent = 0
            while sent < 3 * most:
                try:
                    sent += visitor.sendto(b"x" * size, ("127.0.0.1", port.getHost().port)) // size
                except BlockingIOError:
                    break

            port.doRead()

            self.assertTrue(0 < len(receiver.came) <= most)
            self.assertLess(len(receiver.came), sent)
            await self.until(lambda: len(receiver.came) == sent)  # noqa: B023

    async def test_a_turn_is_shared(self) -> None:
        """Each visitor of a turn is told of once, with all of its datagrams in their order."""
        batches: list[tuple[list[bytes], Endpoint]] = []

        class Batches(Visitors):
            def datagrams(
                self, batch: list[bytes], visitor: Endpoint, local: Endpoint | None
            ) -> None:
                batches.append((batch, visitor))

        port = self.listen("", Batches())
        flood, quiet = self.raw("127.0.0.1"), self.raw("127.0.0.1")
        sent = [b"%d" % number for number in range(100)]
        for data in sent:
            flood.sendto(data, ("127.0.0.1", port.getHost().port))
            if data == b"50":
                quiet.sendto(b"quiet", ("127.0.0.1", port.getHost().port))

        port.doRead()

        self.assertEqual(
            batches,
            [
                (sent, Endpoint(*flood.getsockname())),
                ([b"quiet"], Endpoint(*quiet.getsockname())),
            ],
        )

    async def test_a_burst_survives(self) -> None:
        """A burst that comes while the process is busy with other things isn't lost."""
        receiver = Visitors()
        port = self.listen("", receiver)
        visitor = self.raw("127.0.0.1")
        granted = port.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.assertGreaterEqual(
            granted, self.raw("127.0.0.1").getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        )
        for number in range(150):
            visitor.sendto(b"%d" % number, ("127.0.0.1", port.getHost().port))

        await self.until(lambda: len(receiver.came) == 150)

        self.assertEqual(receiver.came[-1][0], b"149")

    async def test_life_of_a_port(self) -> None:
        """A port is watched from its start on, and gone with its socket once it has stopped."""
        receiver = Visitors()
        port = self.listen("127.0.0.1", receiver)
        number = port.getHost().port
        descriptor = port.fileno()
        self.assertIn(port, self.watched())
        self.assertTrue(verifyObject(IListeningPort, port))

        await maybeDeferred(port.stopListening)

        self.assertNotIn(port, self.watched())
        self.assertRaises(OSError, os.fstat, descriptor)
        self.assertEqual(port.send([b"late"], Endpoint("127.0.0.1", number), None), [b"late"])
        self.listen("127.0.0.1", receiver, port=number)

    async def test_nothing_is_delivered_after_a_stop(self) -> None:
        """A receiver that stops the port hears nothing more, though other visitors' datagrams have
        been read."""
        receiver = Visitors()
        port = self.listen("", receiver)
        receiver.on_datagram = lambda *_: port.stopListening()
        for _ in range(5):
            self.raw("127.0.0.1").sendto(b"x", ("127.0.0.1", port.getHost().port))

        await self.until(lambda: port not in self.watched())
        await deferLater(reactor, 0.01)

        self.assertEqual(len(receiver.came), 1)

    async def test_binding_is_exclusive(self) -> None:
        """An address in use is refused, on one address and on every interface, with no leak."""
        receiver = Visitors()
        number = self.listen("127.0.0.1", receiver).getHost().port
        for host in ("127.0.0.1", "0.0.0.0", ""):
            with self.assertRaises(CannotListenError):
                self.listen(host, receiver, port=number)
        self.assertEqual([r for r in self.watched() if isinstance(r, DatagramPort)][1:], [])

    async def test_an_address_of_another_host(self) -> None:
        """An address that isn't this host's is refused as Twisted refuses it."""
        with self.assertRaises(CannotListenError):
            self.listen("203.0.113.1", Visitors())


class TargetSocketTests(SocketsCase):
    """The socket of one flow, connected to its target."""

    async def round_trip(self, host: str) -> None:
        """Datagrams go to the target at `host` and come back from it, whole."""
        target = self.raw(host)
        receiver = Target()
        connected = self.connect(host, target.getsockname()[1], receiver)
        sent = [b"", b"x", b"y" * 65507]
        for data in sent:
            self.assertFalse(connected.send([data]))
            got, sender = await self.receive(target)
            self.assertEqual(got, data)
            target.sendto(got, sender)

        await self.until(lambda: len(receiver.came) == len(sent))

        self.assertEqual(receiver.came, sent)
        self.assertEqual((receiver.too_large, receiver.refusals), (0, 0))

    async def test_round_trip(self) -> None:
        """Datagrams of any size go to the target and back."""
        await self.round_trip("127.0.0.1")

    async def test_round_trip_ipv6(self) -> None:
        """A target may be an IPv6 address."""
        await self.round_trip("::1")

    async def test_strangers_are_not_heard(self) -> None:
        """Only the target's datagrams are delivered, not those of others that know the port."""
        target, stranger = self.raw("127.0.0.1"), self.raw("127.0.0.1")
        receiver = Target()
        connected = self.connect("127.0.0.1", target.getsockname()[1], receiver)
        connected.send([b"hello"])
        _, flow = await self.receive(target)
        stranger.sendto(b"forged", flow)
        target.sendto(b"genuine", flow)

        await self.until(lambda: receiver.came)

        self.assertEqual(receiver.came, [b"genuine"])

    async def test_oversized_is_dropped_and_told(self) -> None:
        """An answer over the limit is told and never delivered in part."""
        target = self.raw("127.0.0.1")
        receiver = Target()
        connected = self.connect("127.0.0.1", target.getsockname()[1], receiver, limit=100)
        connected.send([b"hello"])
        _, flow = await self.receive(target)
        for size in (101, 100):
            target.sendto(b"x" * size, flow)

        await self.until(lambda: receiver.came)

        self.assertEqual(([len(data) for data in receiver.came], receiver.too_large), ([100], 1))

    async def test_a_refusal_is_told_and_not_fatal(self) -> None:
        """A target that isn't there is told, again and again, and heard as soon as it is there."""
        target = self.raw("127.0.0.1")
        address = target.getsockname()
        target.close()
        receiver = Target()
        connected = self.connect(address[0], address[1], receiver)
        for count in (1, 2):
            self.assertFalse(connected.send([b"anyone?"]))
            await self.until(lambda: receiver.refusals == count)  # noqa: B023
        self.assertIn(connected, self.watched())

        late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(late.close)
        late.bind(address)
        late.setblocking(False)
        connected.send([b"now?"])
        data, flow = await self.receive(late)
        late.sendto(b"yes", flow)
        await self.until(lambda: receiver.came)

        self.assertEqual((data, receiver.came), (b"now?", [b"yes"]))

    async def test_a_refusal_costs_no_other_datagram(self) -> None:
        """A refusal found while sending is told, and what is being sent leaves all the same."""
        target = self.raw("127.0.0.1")
        address = target.getsockname()
        target.close()
        receiver = Target()
        connected = self.connect(address[0], address[1], receiver)
        connected.send([b"refused"])
        late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(late.close)
        late.bind(address)
        late.setblocking(False)

        self.assertFalse(connected.send([b"delivered"]))

        self.assertEqual((await self.receive(late))[0], b"delivered")
        self.assertEqual(receiver.refusals, 1)
        await deferLater(reactor, 0.01)
        self.assertIn(connected, self.watched())

    async def test_closing_on_refusal(self) -> None:
        """A receiver may close the socket from within a refusal or a datagram."""
        target = self.raw("127.0.0.1")
        address = target.getsockname()
        receiver = Target()
        connected = self.connect(address[0], address[1], receiver)
        receiver.on_datagram = lambda data: connected.close()
        connected.send([b"hello"])
        _, flow = await self.receive(target)
        target.sendto(b"x", flow)
        await self.until(lambda: receiver.came)
        target.sendto(b"late", flow)
        await deferLater(reactor, 0.01)
        self.assertEqual(receiver.came, [b"x"])

        target.close()
        closing = Closing()
        closing.socket = self.connect(address[0], address[1], closing)
        closing.socket.send([b"refused"])
        await self.until(lambda: closing.refusals)
        self.assertNotIn(closing.socket, self.watched())

    async def test_a_flood_leaves_room_for_others(self) -> None:
        """One turn delivers a bounded batch, in number and in bytes, and the rest comes later."""
        target = self.raw("127.0.0.1")
        receiver = Target()
        connected = self.connect("127.0.0.1", target.getsockname()[1], receiver)
        connected.send([b"hello"])
        _, flow = await self.receive(target)
        for size, most in ((1, BATCH), (60_000, 5)):
            del receiver.came[:]
            sent = 0
            while sent < most + 5:
                sent += target.sendto(b"x" * size, flow) // size

            connected.doRead()

            self.assertEqual(len(receiver.came), most)
            await self.until(lambda: len(receiver.came) == sent)  # noqa: B023

    async def test_a_failing_receiver_does_not_end_the_socket(self) -> None:
        """An exception in the receiver is logged and costs what it was given, not the flow."""
        target = self.raw("127.0.0.1")
        receiver = Target()
        connected = self.connect("127.0.0.1", target.getsockname()[1], receiver)
        failures = [ValueError("once")]

        def fail_once(data: bytes) -> None:
            if failures:
                raise failures.pop()

        receiver.on_datagram = fail_once
        connected.send([b"hello"])
        _, flow = await self.receive(target)
        target.sendto(b"first", flow)
        await self.until(lambda: not failures)
        target.sendto(b"second", flow)

        await self.until(lambda: len(receiver.came) == 2)

        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_life_of_a_socket(self) -> None:
        """A socket is watched until it is closed; its descriptor goes with it."""
        receiver = Target()
        connected = self.connect("127.0.0.1", self.raw("127.0.0.1").getsockname()[1], receiver)
        descriptor = connected.fileno()
        self.assertIn(connected, self.watched())

        connected.close()
        connected.close()

        self.assertNotIn(connected, self.watched())
        self.assertRaises(OSError, os.fstat, descriptor)
        self.assertEqual(connected.send([b"late"]), [b"late"])

    async def test_a_full_socket_drops(self) -> None:
        """When the system takes no more, a datagram is dropped and said to be."""
        connected = self.connect("127.0.0.1", 9, Target())
        full = FullSocket()
        self.patch(connected, "_socket", full)

        self.assertEqual(connected.send([b"x"]), [b"x"])
        self.assertEqual(full.tries, 1)

    async def test_names_are_not_looked_up(self) -> None:
        """A name instead of an address is an error at once, not a blocking look-up."""
        with self.assertRaises(OSError):
            self.connect("localhost", 9, Target())


@define
class Closing(Target):
    """A receiver that closes its socket when it is refused."""

    socket: TargetSocket | None = None

    def refused(self) -> None:
        super().refused()
        assert self.socket is not None
        self.socket.close()


class EngineSockets(SocketsCase):
    """The same on the engine's poller."""

    def setUp(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("the engine runs on Linux alone")
        from nodepass.relay.engine.poller import Poller

        self.poller = Poller(reactor)

    def open_port(self, address: Address, receiver: Visitors, limit: int) -> DatagramPort:
        from nodepass.relay.engine.udp import listen_udp

        return listen_udp(reactor, self.poller, address, receiver, limit)

    def open_target(self, host: str, port: int, receiver: Target, limit: int) -> TargetSocket:
        from nodepass.relay.engine.udp import connect_udp

        return connect_udp(reactor, self.poller, host, port, receiver, limit)

    def watched(self) -> list[Any]:
        owners = self.poller._watched.values()
        return [getattr(owner, "__self__", owner) for owner in owners]


class EngineVisitorSocketTests(EngineSockets, VisitorSocketTests):
    """The engine's socket for visitors keeps the same promises."""

    async def test_several_at_a_time(self) -> None:
        """Datagrams sent together arrive one by one, in order and from the right address, be their
        sizes equal or not, on every kind of socket."""
        batch = MIXED
        for listen in ("", "0.0.0.0", "127.0.0.2", "::1"):
            port = self.listen(listen, Visitors())
            visitor = self.raw("::1" if listen == "::1" else "127.0.0.1")
            local = Endpoint("::1" if listen == "::1" else "127.0.0.2", port.getHost().port)

            lost = port.send(list(batch), Endpoint(*visitor.getsockname()[:2]), local)

            self.assertFalse(lost)
            for data in batch:
                got, sender = await self.receive(visitor)
                self.assertEqual((got, sender[:2]), (data, local))


class EngineTargetSocketTests(EngineSockets, TargetSocketTests):
    """The engine's sockets for targets keep the same promises."""

    async def test_several_at_a_time(self) -> None:
        """Datagrams sent together arrive one by one and in order, be their sizes equal or not."""
        for host in ("127.0.0.1", "::1"):
            target = self.raw(host)
            connected = self.connect(host, target.getsockname()[1], Target())

            self.assertFalse(connected.send(list(MIXED)))

            for data in MIXED:
                self.assertEqual((await self.receive(target))[0], data)

    async def test_several_after_a_refusal(self) -> None:
        """A refusal found while sending several is told, and costs none of them."""
        target = self.raw("127.0.0.1")
        address = target.getsockname()
        target.close()
        receiver = Target()
        connected = self.connect(address[0], address[1], receiver)
        connected.send([b"refused"])
        late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(late.close)
        late.bind(address)
        late.setblocking(False)

        self.assertFalse(connected.send([b"one", b"two"]))

        self.assertEqual([(await self.receive(late))[0] for _ in "12"], [b"one", b"two"])
        self.assertEqual(receiver.refusals, 1)

    async def test_what_cannot_leave_together_leaves_alone(self) -> None:
        """Where the system can't cut datagrams apart they go one by one, and it is not asked again:
        for their size, or at all. What fails for another reason is tried again."""
        batch = [b"a" * 600] * 3 + [b"b" * 550] * 2 + [b"small"] * 2
        for error, asked in (
            (errno.EINVAL, [600, 550, 5, 5]),
            (errno.EMSGSIZE, [600, 550, 5, 5]),
            (errno.EIO, [600]),
            (errno.ENOBUFS, [600, 550, 5, 600, 550, 5]),
        ):
            target = self.raw("127.0.0.1")
            connected = self.connect("127.0.0.1", target.getsockname()[1], Target())
            unable = UnableSocket(connected._socket, error)
            self.patch(connected, "_socket", unable)
            for _ in range(2):
                self.assertFalse(connected.send(list(batch)))
                for data in batch:
                    self.assertEqual((await self.receive(target))[0], data)
            self.assertEqual(unable.asked, asked)

    async def test_a_full_socket_drops_several(self) -> None:
        """When the system takes no more, all that is left is dropped and said to be."""
        connected = self.connect("127.0.0.1", 9, Target())
        self.patch(connected, "_socket", FullSocket())
        self.assertEqual(connected.send([b"x"] * 3), [b"x"] * 3)


@define
class UnableSocket:
    """A socket on a card that can't cut datagrams apart."""

    real: socket.socket
    error: int
    asked: list[int] = Factory(list)

    def sendmsg(self, buffers: list[bytes], *_: object) -> int:
        self.asked.append(len(buffers[0]))
        raise OSError(self.error, "not on this card")

    def send(self, data: bytes) -> int:
        return self.real.send(data)

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()


class ForeignEventTests(SocketsCase):
    """Events that belong to somebody else, and a reactor that gives the socket up."""

    def test_a_stale_event_to_write_is_nothing(self) -> None:
        """An event left of a connection that had the same descriptor ends no flow."""
        target = Target()
        connected = self.connect("127.0.0.1", 9, target)
        connected.doWrite()
        self.assertTrue(connected.fileno() >= 0)
        self.assertEqual(target.losses, 0)

    def test_a_socket_that_is_given_up_is_told(self) -> None:
        """Whoever uses a socket that the reactor drops hears of it, so that its flow can end."""
        target = Target()
        connected = self.connect("127.0.0.1", 9, target)
        connected.connectionLost(Failure(RuntimeError("broken")))
        self.assertEqual(connected.fileno(), -1)
        self.assertEqual(target.losses, 1)


class FullSocket:
    """A socket whose send queue is full."""

    tries = 0

    def send(self, data: bytes) -> int:
        self.tries += 1
        raise BlockingIOError

    def sendmsg(self, buffers: list[bytes], ancillary: object) -> int:
        raise BlockingIOError

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


def link_local_addresses() -> list[str]:
    """This host's link-local addresses with their scopes, where Linux lists them."""
    try:
        with open("/proc/net/if_inet6") as table:
            rows = [row.split() for row in table]
    except OSError:
        return []
    return [
        f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0]))}%{row[5]}"
        for row in rows
        if row[0].startswith("fe80")
    ]
