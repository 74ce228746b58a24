"""Look-ups in bounded threads with a cache, and dialing the addresses they give."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from nodepass.address import Endpoint
from nodepass.racing import ATTEMPT_DELAY, connect_tcp, dial_cause
from nodepass.resolver import (
    FRESH,
    MAX_ADDRESSES,
    MAX_CACHED,
    MAX_QUEUED,
    PATIENCE,
    PATIENCE_WITH_STALE,
    STALE,
    THREADS,
    CachingResolver,
    LookupTimeout,
    resolve_udp,
)


class System:
    """The operating system's resolver, with threads that run when the test says so."""

    def __init__(self) -> None:
        self.names: dict[str, list[str] | OSError] = {}
        self.asked: list[str] = []
        self.threads: list[Callable[[], None]] = []

    def getaddrinfo(self, host: str, port: None, *, type: int) -> list[Any]:
        self.asked.append(host)
        answer = self.names.get(host, socket.gaierror(socket.EAI_NONAME, "Name not known"))
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, type, 6, "", (address, 0)) for address in answer]

    def finish(self) -> None:
        """Let every look-up under way come back, and those that it made room for."""
        while self.threads:
            self.threads.pop(0)()


class Reactor(MemoryReactorClock):
    """Keeps attempts that were cancelled; calls from threads run at once."""

    def callFromThread(self, callable: Callable[..., object], *args: object, **kw: object) -> None:
        callable(*args, **kw)

    def attempts(self) -> list[str]:
        """The addresses dialed so far."""
        return [host for host, *_ in self.tcpClients]

    def fail(self, index: int, error: Exception) -> None:
        """Let one attempt fail."""
        self.tcpClients[index][2].clientConnectionFailed(self.connectors[index], Failure(error))

    def succeed(self, index: int) -> Protocol:
        """Let one attempt get through."""
        protocol: Protocol = self.tcpClients[index][2].buildProtocol(None)
        transport = StringTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport.protocol

    def cancelled(self, index: int) -> bool:
        """Whether an attempt was called off."""
        return bool(self.connectors[index].stoppedConnecting)


class ResolverCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.system = System()
        self.reactor: Any = Reactor()
        self.resolver = CachingResolver(
            self.reactor,
            getaddrinfo=self.system.getaddrinfo,
            in_thread=self.system.threads.append,
        )
        self.resolver.start()

    def find(self, host: str) -> tuple[str, ...]:
        looking = self.resolver.lookup(host)
        self.system.finish()
        found: tuple[str, ...] = self.successResultOf(looking)
        return found


class LookupTests(ResolverCase):
    """What a look-up gives, and when it asks the system."""

    def test_addresses(self) -> None:
        """All addresses come in the system's order, each once."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1", "2001:db8::1"]
        self.assertEqual(self.find("a.example"), ("2001:db8::1", "192.0.2.1"))

    def test_literals(self) -> None:
        """IP literals are themselves, without a thread, even when the resolver is stopped."""
        self.resolver.stop()
        for literal in ("192.0.2.1", "2001:db8::1", "fe80::1%lo"):
            self.assertEqual(self.successResultOf(self.resolver.lookup(literal)), (literal,))
        self.assertEqual(self.system.asked, [])

    def test_localhost(self) -> None:
        """localhost needs no look-up and is IPv4 first."""
        for name in ("localhost", "LocalHost."):
            self.assertEqual(self.successResultOf(self.resolver.lookup(name)), ("127.0.0.1", "::1"))
        self.assertEqual(self.system.asked, [])

    def test_fresh_answers_are_kept(self) -> None:
        """Within five seconds the cache answers, whatever the spelling; afterwards the system."""
        self.system.names["a.example"] = ["192.0.2.1"]
        self.find("a.example")
        self.reactor.advance(FRESH)
        self.assertEqual(self.successResultOf(self.resolver.lookup("A.Example.")), ("192.0.2.1",))
        self.assertEqual(len(self.system.asked), 1)
        self.system.names["a.example"] = ["192.0.2.2"]
        self.reactor.advance(0.1)
        self.assertEqual(self.find("a.example"), ("192.0.2.2",))

    def test_same_name_is_asked_once(self) -> None:
        """Look-ups for one name share a query; each gets the answer."""
        self.system.names["a.example"] = ["192.0.2.1"]
        several = [self.resolver.lookup("a.example") for _ in range(5)]
        self.system.finish()
        for each in several:
            self.assertEqual(self.successResultOf(each), ("192.0.2.1",))
        self.assertEqual(self.system.asked, ["a.example"])

    def test_not_found(self) -> None:
        """An unknown name fails with the system's words, and is asked anew next time."""
        for _ in range(2):
            looking = self.resolver.lookup("a.example")
            self.system.finish()
            failure = self.failureResultOf(looking, DNSLookupError)
            self.assertIn("a.example: Name not known", str(failure.value))
        self.assertEqual(len(self.system.asked), 2)

    def test_impossible_name(self) -> None:
        """A name that can't be encoded is not found, it doesn't lose the look-up."""
        resolver = CachingResolver(
            self.reactor, getaddrinfo=socket.getaddrinfo, in_thread=self.system.threads.append
        )
        resolver.start()
        looking = resolver.lookup("\u00e9" * 80)
        self.system.finish()
        self.failureResultOf(looking, DNSLookupError)

    def test_empty_answer(self) -> None:
        """No address at all counts as not found."""
        self.system.names["a.example"] = []
        looking = self.resolver.lookup("a.example")
        self.system.finish()
        self.failureResultOf(looking, DNSLookupError)

    def test_stale_answer_when_the_system_fails(self) -> None:
        """For a minute beyond freshness a failing resolver gives the last answer, then not."""
        self.system.names["a.example"] = ["192.0.2.1"]
        self.find("a.example")
        self.system.names["a.example"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        self.reactor.advance(FRESH + STALE)
        self.assertEqual(self.find("a.example"), ("192.0.2.1",))
        self.reactor.advance(0.1)
        looking = self.resolver.lookup("a.example")
        self.system.finish()
        self.failureResultOf(looking, DNSLookupError)

    def test_stale_answer_when_the_system_hangs(self) -> None:
        """With a stale answer at hand nobody waits long for a resolver that hangs."""
        self.system.names["a.example"] = ["192.0.2.1"]
        self.find("a.example")
        self.reactor.advance(FRESH + 1)
        looking = self.resolver.lookup("a.example")
        self.reactor.advance(PATIENCE_WITH_STALE - 0.1)
        self.assertNoResult(looking)
        self.reactor.advance(0.1)
        self.assertEqual(self.successResultOf(looking), ("192.0.2.1",))

    def test_late_answer_is_kept(self) -> None:
        """An answer that came after everybody had given up still fills the cache."""
        self.system.names["a.example"] = ["192.0.2.1"]
        looking = self.resolver.lookup("a.example")
        self.reactor.advance(PATIENCE)
        self.failureResultOf(looking, LookupTimeout)
        self.system.finish()
        self.assertEqual(self.successResultOf(self.resolver.lookup("a.example")), ("192.0.2.1",))

    def test_the_cache_is_bounded(self) -> None:
        """Beyond its size the cache forgets the name that was looked up longest ago."""
        for number in range(MAX_CACHED + 1):
            self.system.names[f"{number}.example"] = ["192.0.2.1"]
            self.find(f"{number}.example")
        self.find(f"{MAX_CACHED}.example")
        self.assertEqual(len(self.system.asked), MAX_CACHED + 1)
        self.find("0.example")
        self.assertEqual(self.system.asked[-1], "0.example")

    def test_names_in_use_stay_in_the_cache(self) -> None:
        """A name that was looked up anew is not the first to be forgotten."""
        for number in range(MAX_CACHED):
            self.system.names[f"{number}.example"] = ["192.0.2.1"]
            self.find(f"{number}.example")
        self.reactor.advance(FRESH + 0.1)
        self.find("0.example")
        self.system.names["new.example"] = ["192.0.2.1"]
        self.find("new.example")
        asked = len(self.system.asked)
        self.find("0.example")
        self.assertEqual(len(self.system.asked), asked)

    def test_long_answers_are_cut(self) -> None:
        """Of an answer with very many addresses the first sixteen count."""
        many = [f"192.0.2.{number}" for number in range(100)]
        self.system.names["a.example"] = list(many)
        self.assertEqual(self.find("a.example"), tuple(many[:MAX_ADDRESSES]))


class BoundTests(ResolverCase):
    """A system that hangs stays harmless."""

    def fill(self, count: int) -> list[Deferred[tuple[str, ...]]]:
        return [self.resolver.lookup(f"{number}.hangs") for number in range(count)]

    def test_patience(self) -> None:
        """Without an answer a look-up fails after ten seconds."""
        looking = self.resolver.lookup("a.example")
        self.reactor.advance(PATIENCE - 0.1)
        self.assertNoResult(looking)
        self.reactor.advance(0.1)
        self.failureResultOf(looking, LookupTimeout)

    def test_threads_are_bounded(self) -> None:
        """No more than four look-ups run at once; the next one starts when one has come back."""
        for looking in self.fill(THREADS + 2):
            looking.addErrback(lambda _failure: None)
        self.assertEqual(len(self.system.threads), THREADS)
        self.system.threads.pop(0)()
        self.assertEqual(len(self.system.threads), THREADS)
        self.assertEqual(self.system.asked, ["0.hangs"])

    def test_the_queue_is_bounded(self) -> None:
        """When the queue is full a look-up fails at once, and others are not disturbed."""
        waiting = self.fill(THREADS + MAX_QUEUED)
        self.failureResultOf(self.resolver.lookup("one.more"), LookupTimeout)
        self.assertNoResult(waiting[-1])
        for looking in waiting:
            looking.addErrback(lambda _failure: None)

    def test_abandoned_queries_make_room(self) -> None:
        """A query that nobody waits for any more leaves the queue without using a thread."""
        for looking in self.fill(THREADS + MAX_QUEUED):
            looking.addErrback(lambda _failure: None)
        self.reactor.advance(PATIENCE)
        self.system.names["a.example"] = ["192.0.2.1"]
        self.assertEqual(self.find("a.example"), ("192.0.2.1",))
        self.assertEqual(len(self.system.asked), THREADS + 1)

    def test_cancel(self) -> None:
        """One caller's cancel leaves the other callers of that name alone."""
        self.system.names["a.example"] = ["192.0.2.1"]
        one, two = (self.resolver.lookup("a.example") for _ in range(2))
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.system.finish()
        self.assertEqual(self.successResultOf(two), ("192.0.2.1",))

    def test_cancel_from_a_callback(self) -> None:
        """A caller that cancels another one while answers are given out does no harm."""
        self.system.names["a.example"] = ["192.0.2.1"]
        one, two = (self.resolver.lookup("a.example") for _ in range(2))
        one.addCallback(lambda _addresses: two.cancel())
        self.system.finish()
        self.successResultOf(one)
        self.failureResultOf(two, CancelledError)

    def test_stop(self) -> None:
        """A stop cancels what is under way, leaves no timer, and refuses what comes later."""
        waiting = self.fill(THREADS + 1)
        self.resolver.stop()
        for looking in waiting:
            self.failureResultOf(looking, CancelledError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.failureResultOf(self.resolver.lookup("a.example"), DNSLookupError)
        self.system.finish()
        self.assertEqual(len(self.system.asked), THREADS)

    def test_no_thread_to_be_had(self) -> None:
        """When the system can't start a thread the look-up fails, and the next one may work."""
        answers: list[Exception | None] = [RuntimeError("can't start new thread"), None]

        def in_thread(work: Callable[[], None]) -> None:
            error = answers.pop(0)
            if error is not None:
                raise error
            work()

        self.system.names["a.example"] = ["192.0.2.1"]
        resolver = CachingResolver(
            self.reactor, getaddrinfo=self.system.getaddrinfo, in_thread=in_thread
        )
        resolver.start()
        self.failureResultOf(resolver.lookup("a.example"), DNSLookupError)
        self.assertEqual(self.successResultOf(resolver.lookup("a.example")), ("192.0.2.1",))


class ThreadTests(TestCase):
    """The real thing: a thread, the reactor, the system's resolver."""

    async def test_in_a_thread(self) -> None:
        """getaddrinfo runs in a daemon thread and its answer arrives in the reactor's."""
        seen: list[threading.Thread] = []

        def getaddrinfo(host: str, port: None, *, type: int) -> list[Any]:
            seen.append(threading.current_thread())
            return [(socket.AF_INET, type, 6, "", ("192.0.2.1", 0))]

        resolver = CachingResolver(reactor, getaddrinfo=getaddrinfo)
        resolver.start()
        self.addCleanup(resolver.stop)
        self.assertEqual(await resolver.lookup("a.example"), ("192.0.2.1",))
        self.assertIsNot(seen[0], threading.current_thread())
        self.assertTrue(seen[0].daemon)

    async def test_stop_does_not_wait(self) -> None:
        """A look-up that hangs holds up neither stop nor anything after it."""
        hang = threading.Event()
        self.addCleanup(hang.set)
        resolver = CachingResolver(reactor, getaddrinfo=lambda *_, **__: hang.wait(30) and [])
        resolver.start()
        looking = resolver.lookup("a.example")
        resolver.stop()
        self.failureResultOf(looking, CancelledError)


class ConnectTests(ResolverCase):
    """Addresses are dialed as RFC 8305 asks."""

    def connect(self, *hosts: str, timeout: float = 30.0) -> Deferred[Any]:
        factory = Factory.forProtocol(Protocol)
        connecting = connect_tcp(self.reactor, self.resolver, hosts, 80, factory, timeout)
        self.system.finish()
        return connecting

    def test_one_address(self) -> None:
        """A literal is dialed without a look-up; the factory's protocol is the result."""
        connecting = self.connect("192.0.2.1")
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 80))
        self.reactor.succeed(0)
        self.assertIsInstance(self.successResultOf(connecting), Protocol)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_families_alternate(self) -> None:
        """The system's first family begins, then the families take turns."""
        self.system.names["a.example"] = ["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]
        connecting = self.connect("a.example")
        for index in range(5):
            self.reactor.fail(index, NoRouteError())
        self.failureResultOf(connecting)
        self.assertEqual(self.reactor.attempts(), ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"])

    def test_refused_means_next_at_once(self) -> None:
        """After a failure the next address is dialed without a pause."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1"]
        connecting = self.connect("a.example")
        self.assertEqual(self.reactor.attempts(), ["2001:db8::1"])
        self.reactor.fail(0, ConnectionRefusedError())
        self.assertEqual(self.reactor.attempts(), ["2001:db8::1", "192.0.2.1"])
        self.reactor.succeed(1)
        self.successResultOf(connecting)

    def test_silence_means_a_second_attempt_beside(self) -> None:
        """An address that doesn't answer is joined by the next; the first to succeed wins."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1"]
        connecting = self.connect("a.example")
        self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(len(self.reactor.attempts()), 2)
        self.reactor.succeed(1)
        self.successResultOf(connecting)
        self.assertTrue(self.reactor.cancelled(0))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_several_hosts(self) -> None:
        """The hosts of a target that is this host are tried in order."""
        connecting = self.connect("127.0.0.1", "::1")
        self.reactor.fail(0, ConnectionRefusedError())
        self.reactor.succeed(1)
        self.successResultOf(connecting)
        self.assertEqual(self.reactor.attempts(), ["127.0.0.1", "::1"])

    def test_an_attempt_that_can_not_even_begin(self) -> None:
        """It counts as one that failed: the next address is dialed, and no timer is left."""

        def attempt(host: str, *_: object) -> Deferred[Any]:
            if ":" in host:
                raise OSError("no socket")
            return succeed("connected")

        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1"]
        factory = Factory.forProtocol(Protocol)
        connecting = connect_tcp(
            self.reactor, self.resolver, ["a.example"], 80, factory, 30.0, attempt
        )
        self.system.finish()
        self.assertEqual(self.successResultOf(connecting), "connected")
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_all_fail(self) -> None:
        """When every address failed, the cause that tells most is reported."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
        connecting = self.connect("a.example")
        self.reactor.fail(0, NoRouteError())
        self.reactor.fail(1, ConnectionRefusedError())
        self.reactor.fail(2, TCPTimedOutError())
        failure = self.failureResultOf(connecting, ConnectionRefusedError)
        self.assertEqual(dial_cause(failure), "refused")
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_timeout(self) -> None:
        """The timeout is for the whole, and ends every attempt."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1"]
        connecting = self.connect("a.example", timeout=3.0)
        self.reactor.pump([1.0, 1.0, 0.9])
        self.assertNoResult(connecting)
        self.reactor.advance(0.1)
        failure = self.failureResultOf(connecting, TimeoutError)
        self.assertEqual(dial_cause(failure), "timed out")
        self.assertTrue(self.reactor.cancelled(0) and self.reactor.cancelled(1))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_timeout_of_the_look_up(self) -> None:
        """The timeout counts while the name is being looked up."""
        factory = Factory.forProtocol(Protocol)
        connecting = connect_tcp(self.reactor, self.resolver, ["a.example"], 80, factory, 2.0)
        self.reactor.advance(2.0)
        self.assertEqual(dial_cause(self.failureResultOf(connecting)), "timed out")
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cancel(self) -> None:
        """A cancel ends every attempt and leaves no timer."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
        connecting = self.connect("a.example")
        self.reactor.advance(ATTEMPT_DELAY)
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertTrue(self.reactor.cancelled(0) and self.reactor.cancelled(1))
        self.assertEqual(len(self.reactor.attempts()), 2)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cancel_during_the_look_up(self) -> None:
        """A cancel before the name is known means that nothing is dialed."""
        factory = Factory.forProtocol(Protocol)
        self.system.names["a.example"] = ["192.0.2.1"]
        connecting = connect_tcp(self.reactor, self.resolver, ["a.example"], 80, factory, 30.0)
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.system.finish()
        self.assertEqual(self.reactor.attempts(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_name_not_found(self) -> None:
        """A name without addresses is told apart from an address that doesn't answer."""
        failure = self.failureResultOf(self.connect("nowhere.example"))
        self.assertEqual(dial_cause(failure), "name not found")
        self.assertIn("nowhere.example", str(failure.value))

    def test_causes(self) -> None:
        """Every error that a dial ends with has one of four causes."""
        for error, cause in (
            (ConnectionRefusedError(), "refused"),
            (TimeoutError(), "timed out"),
            (TCPTimedOutError(), "timed out"),
            (LookupTimeout(), "timed out"),
            (DNSLookupError(), "name not found"),
            (NoRouteError(), "unreachable"),
            (ConnectError(), "unreachable"),
            (OSError(), "unreachable"),
        ):
            self.assertEqual(dial_cause(Failure(error)), cause, error)


class ResolveUDPTests(ResolverCase):
    """Where datagrams go."""

    def test_first_choice(self) -> None:
        """The system's first address is taken."""
        self.system.names["a.example"] = ["2001:db8::1", "192.0.2.1"]
        resolving = Deferred.fromCoroutine(resolve_udp(self.resolver, "a.example", 53))
        self.system.finish()
        self.assertEqual(self.successResultOf(resolving), Endpoint("2001:db8::1", 53))

    def test_not_found(self) -> None:
        """A name without addresses fails as a dial does."""
        resolving = Deferred.fromCoroutine(resolve_udp(self.resolver, "a.example", 53))
        self.system.finish()
        self.assertEqual(dial_cause(self.failureResultOf(resolving)), "name not found")
