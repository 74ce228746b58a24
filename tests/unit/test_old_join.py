"""Old dialects at both ends: who is let in, what becomes of links, and how a session ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from nodepass.address import Endpoint
from nodepass.logs import Level, Log
from nodepass.relay.stream import Cause
from nodepass.wire import UNKNOWN, Flow, Opening
from nodepass.wire.native.budget import GUESS_BURST
from nodepass.wire.old.acceptor import UNDISTURBED
from nodepass.wire.old.channel import LinkChannel
from nodepass.wire.old.connector import ID_TIMEOUT, UNUSED_GRANT
from nodepass.wire.old.dialect import ID_WAIT, INTERVAL, JOIN_TIMEOUT, Dialect
from nodepass.wire.old.handshake import HTTPClientHandshake, hello_line
from nodepass.wire.old.peer import VERIFY_TIMEOUT
from nodepass.wire.old.signals import (
    Flush,
    Launch,
    Ping,
    Pong,
    Signal,
    SignalReader,
    Verify,
    encode,
)
from nodepass.wire.search import JITTER
from tests.loopback import MemoryTransport, connect
from tests.memnet import HANDSHAKE, MemoryNet
from tests.oldnet import KEY, OldClientEnd, OldServerEnd
from tests.streams import FakeStream, NotingSink

OPENING = Opening(visitor=Endpoint("198.51.100.7", 4711), local=Endpoint("198.51.100.8", 80))
FLOWS = pytest.mark.parametrize("flow", Flow)
WIRES = pytest.mark.parametrize("wire", ["1.14", "2.0", "1.6"])
#: More than a silent connection is watched for.
QUIET = 0.1


class Raw(Protocol):
    """One end of a connection, played by the test."""

    transport: Any

    def __init__(self) -> None:
        self.got = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class OldNode:
    """A client of 1.14 without TLS, played by the test."""

    def __init__(self, net: MemoryNet, host: str = "192.0.2.1", key: str = KEY) -> None:
        self.net = net
        self.host = host
        self.key = key.encode()
        self.control = Raw()
        self._reader = SignalReader(Dialect.V1_14, self.key)

    def connect(self) -> Raw:
        """A connection to the server."""
        assert self.net.server is not None
        raw = Raw()
        server = self.net.server.buildProtocol(None)
        assert server is not None
        self.net.pairs.append(connect(raw, server, host=self.host))
        self.net.flush()
        return raw

    def ask(self) -> bytes:
        """Shake hands; what the server answered."""
        raw = self.connect()
        raw.transport.write(HTTPClientHandshake(self.key, None).request())
        self.net.flush()
        assert raw.lost
        return raw.got

    def link(self) -> tuple[Raw, str]:
        """A link and its number."""
        raw = self.connect()
        self.net.later(QUIET, 0.01)
        return raw, raw.got[:4].hex()

    def join(self) -> OldNode:
        """Shake hands and bring the control link."""
        assert b"200 OK" in self.ask()
        self.control, number = self.link()
        assert number == "00000000"
        self.control.got = self.control.got[4:]
        return self

    def say(self, signal: Signal) -> None:
        """Say something on the control link."""
        self.control.transport.write(encode(signal, Dialect.V1_14, self.key))
        self.net.flush()

    def heard(self) -> list[Signal]:
        """What the server has said since the last time."""
        got, self.control.got = self.control.got, b""
        return self._reader.feed(got)


class HelloNode:
    """A client of 1.6, played by the test, that has said hello and nothing else."""

    def __init__(self, net: MemoryNet) -> None:
        self.raw = OldNode(net).connect()
        self.raw.transport.write(hello_line(KEY.encode()))
        net.flush()

    @property
    def granted(self) -> bool:
        """Whether the server has answered."""
        return bool(self.raw.got)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings and errors that are logged from now on."""
    found: list[str] = []

    def emit(self: Log, level: Level, format: str, fields: dict[str, object]) -> None:
        if level >= Level.WARN:
            found.append(format.format(**fields))

    monkeypatch.setattr(Log, "_emit", emit)
    return found


@pytest.fixture
def net() -> Iterator[MemoryNet]:
    """A network; who still looks for a server on it at the end stops doing so, or it would when it
    is freed, within another test."""
    net = MemoryNet()
    yield net
    for search in OldClientEnd.searches:
        search.stop()
    OldClientEnd.searches.clear()


def served(end: Any) -> tuple[Any, NotingSink]:
    """The last stream that this end was asked to dial for, and what it has heard."""
    stream, sink = end.host.served[-1]
    stream.resume()
    return stream, sink


# Joining


@FLOWS
@WIRES
@pytest.mark.parametrize("tls", [0, 1])
def test_both_ends_join(net: MemoryNet, wire: str, flow: Flow, tls: int) -> None:
    """And have as many idle links as the client keeps; a verify costs one, which is replaced."""
    server = OldServerEnd(net, wire, flow, f"&tls={tls}")
    client = OldClientEnd(net, wire).start()
    assert server.host.told == client.host.told == ["joined"]
    assert server.peer.idle == client.peer.idle == 2
    assert client.peer.words == f"{wire} wire, flow {flow.value}, tls={tls}"
    assert len(server.lobby) == 0
    client.stop()
    net.flush()
    assert server.host.told == client.host.told == ["joined", "left"]
    assert not server.acceptor.peers


@FLOWS
@WIRES
def test_a_visitor_reaches_the_other_end(net: MemoryNet, wire: str, flow: Flow) -> None:
    """His address comes along, and bytes go both ways; the link is replaced."""
    server, client = OldServerEnd(net, wire, flow), OldClientEnd(net, wire).start()
    near, far = (server, client) if flow is Flow.REVERSE else (client, server)
    openings = []
    far.host.dial = lambda peer, opening, stream: (  # type: ignore[method-assign]
        openings.append(opening), far.host.served.append((stream, NotingSink())),
        stream.attach(far.host.served[-1][1]))  # fmt: skip
    stream, sink = near.peer.take(OPENING), NotingSink()
    assert stream is not None
    stream.attach(sink)
    stream.resume()
    stream.write(b"from the visitor")
    net.flush()
    answer, heard = served(far)
    net.flush()
    assert heard.data == b"from the visitor"
    assert openings[0].visitor == OPENING.visitor and openings[0].local == UNKNOWN
    answer.write(b"from the target")
    net.later(1.0, 0.02)
    assert sink.data == b"from the target"
    assert near.peer.sessions == far.peer.sessions == 1
    assert near.peer.idle == far.peer.idle == 2
    stream.abort(Cause.RESET)
    net.flush()
    assert heard.heard[-1] == ("closed", Cause.RESET)
    assert near.peer.sessions == far.peer.sessions == 0


def test_several_dialects_at_one_port(net: MemoryNet) -> None:
    """Each client is spoken to in its own."""
    server = OldServerEnd(net, "2.0,1.14,1.6", query="&tls=1")
    for number, wire in enumerate(("1.14", "2.0", "1.6"), 1):
        net.host = f"192.0.2.{number}"
        OldClientEnd(net, wire).start()
    words = [peer.words.split()[0] for peer in server.acceptor.joined]
    assert words == ["1.14", "2.0", "1.6"]


def test_a_wrong_key_is_refused(net: MemoryNet, lines: list[str]) -> None:
    """Both ends say so, and the client waits longer each time."""
    server = OldServerEnd(net, "1.14")
    client = OldClientEnd(net, "1.14", key="another").start()
    assert not server.acceptor.peers
    assert client.health.reason is not None and "wrong key" in client.health.reason
    assert any(
        "192.0.2.1: the client has another key; set the same on both" in line for line in lines
    )
    net.later(60, 1.0)
    first = len(net.pairs)
    net.later(60, 1.0)
    assert len(net.pairs) - first <= 1


def test_guessing_is_slowed_by_address(net: MemoryNet) -> None:
    """After some wrong tokens not even the right one is judged; another address may join."""
    OldServerEnd(net, "1.14")
    for _ in range(GUESS_BURST):
        assert b" 401 " in OldNode(net, key="wrong").ask()
    assert b" 503 " in OldNode(net, key="wrong").ask()
    assert b" 503 " in OldNode(net).ask()
    assert b" 200 " in OldNode(net, host="192.0.2.9").ask()


@pytest.mark.parametrize("level", [1, 2])
def test_a_downgrade_is_refused(net: MemoryNet, level: int) -> None:
    """A server that offers less than the client's URL asks for."""
    OldServerEnd(net, "1.14")
    client = OldClientEnd(net, "1.14", f"&tls={level}").start()
    assert client.connector.peer is None
    assert client.health.reason is not None
    assert f"it offers tls=0, below the tls={level}" in client.health.reason
    assert f"; set tls={level} at the server, or take tls out of" in client.health.reason


@pytest.mark.parametrize(
    ("wire", "pause"), [("1.14", UNUSED_GRANT), ("2.0", UNUSED_GRANT), ("1.6", 3.0)]
)
def test_a_server_whose_grant_was_refused_is_left_alone(
    net: MemoryNet, wire: str, pause: float
) -> None:
    """Until it listens again: of 1.6 that is after its pause; others wait for a link first, and
    would take another try for that."""
    OldServerEnd(net, wire)
    server, tries = net.server, []
    assert server is not None
    build = server.buildProtocol

    def count(address: Any) -> Any:
        tries.append(net.seconds())
        return build(address)

    server.buildProtocol = count  # type: ignore[method-assign]
    client = OldClientEnd(net, wire, "&tls=1").start()
    net.later(2 * pause, 0.05)
    first, second, *_ = tries
    assert pause <= second - first <= pause * (1 + JITTER) + 0.2
    assert client.health.reason is not None and "it offers tls=0" in client.health.reason


def test_nobody_is_let_in_while_stopping(net: MemoryNet) -> None:
    """The client asks again later."""
    OldServerEnd(net, "1.14").acceptor.refuse()
    assert b" 503 " in OldNode(net).ask()


def test_a_client_without_a_control_link_is_forgotten(net: MemoryNet, lines: list[str]) -> None:
    """Its address is free for another."""
    server = OldServerEnd(net, "1.14")
    assert b" 200 " in OldNode(net).ask()
    net.later(JOIN_TIMEOUT + 1)
    assert not server.acceptor.peers and "no control link within 10 s" in lines[-1]
    assert server.host.told == []


def test_a_lost_answer_is_asked_for_again(net: MemoryNet) -> None:
    """Soon, and the session that was granted before makes room."""
    server = OldServerEnd(net, "1.14")
    OldNode(net).ask()
    net.later(UNDISTURBED)
    OldNode(net).join()
    assert server.host.told == ["joined"]


def test_the_second_client_of_an_address_waits(net: MemoryNet, lines: list[str]) -> None:
    """While the first one answers; it is never taken for a link."""
    server = OldServerEnd(net, "1.14")
    client = OldClientEnd(net, "1.14").start()
    idle = server.peer.idle
    raw = OldNode(net)
    assert b" 503 " in raw.ask()
    assert server.peer.idle == idle and client.peer.joined
    assert "old dialects have one client per address" in lines[-1]


def test_two_clients_of_an_address_at_once(net: MemoryNet) -> None:
    """The link of the first one is never the control link of the second."""
    server = OldServerEnd(net, "1.14")
    first, second = OldNode(net), OldNode(net)
    assert b" 200 " in first.ask()
    (granted,) = server.acceptor.peers.values()
    assert b" 503 " in second.ask()
    assert first.link()[1] == "00000000"
    assert list(server.acceptor.peers.values()) == [granted] and granted.joined


def test_a_client_that_is_gone_makes_room(net: MemoryNet) -> None:
    """When it does not answer within a second."""
    server = OldServerEnd(net, "1.14")
    first, second = OldNode(net).join(), OldNode(net)
    raw = second.connect()
    raw.transport.write(HTTPClientHandshake(second.key, None).request())
    net.flush()
    net.later(2)
    assert b" 200 " in raw.got
    assert server.host.told == ["joined", "left"] and first.control.lost


def test_of_two_clients_that_come_together_one_is_let_in(net: MemoryNet, lines: list[str]) -> None:
    """The other one finds it there."""
    server = OldServerEnd(net, "1.6")
    gone, *coming = (HelloNode(net) for _ in range(3))
    assert gone.granted and server.host.told == ["joined"]
    assert not any(node.granted for node in coming)
    net.later(1.5)
    other, one = sorted(coming, key=lambda node: node.granted)
    assert one.granted and server.host.told == ["joined", "left", "joined"]
    assert not other.granted and not other.raw.lost
    one.raw.transport.write(encode(Pong(), Dialect.V1_6, KEY.encode()))
    net.flush()
    assert other.raw.lost and "old dialects have one client per address" in lines[-1]
    assert server.host.told == ["joined", "left", "joined"]


def test_a_client_that_left_while_it_waited_is_not_let_in(
    net: MemoryNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address stays free for who comes back."""
    server = OldServerEnd(net, "2.0")
    first, second = OldClientEnd(net, "2.0").start(), OldClientEnd(net, "2.0")
    monkeypatch.setattr(first.peer, "_send", lambda signal: None)  # it hangs
    first.search.stop()
    second.search.start()
    net.later(0.5, 0.02)
    second.search.stop()
    net.later(2)
    assert server.host.told == ["joined", "left"] and not server.acceptor.peers


def test_another_address_has_a_client_of_its_own(net: MemoryNet) -> None:
    """And links of its own."""
    server = OldServerEnd(net, "1.14")
    one, other = OldNode(net).join(), OldNode(net, "192.0.2.2").join()
    one.link()
    assert [peer.idle for peer in server.acceptor.joined] == [1, 0]
    assert other.control.got != b""


def test_a_silent_stranger_is_no_link(net: MemoryNet) -> None:
    """Who has not shaken hands gets no number."""
    OldServerEnd(net, "1.14")
    raw, _ = OldNode(net, "192.0.2.3").link()
    assert raw.got == b"" and not raw.lost


# Links


def test_the_server_keeps_its_maximum(net: MemoryNet) -> None:
    """What is too much is closed without a number."""
    OldServerEnd(net, "1.14", query="&max=2")
    node = OldNode(net).join()
    links = [node.link()[0] for _ in range(3)]
    assert [link.lost for link in links] == [False, False, True]
    assert links[2].got == b""


def test_a_link_too_many_that_does_not_close(net: MemoryNet) -> None:
    """Under TLS the other end has to close as well: until then it counts as unproven, and not for
    longer than a handshake."""
    server = OldServerEnd(net, "1.14", query="&max=1")
    node = OldNode(net).join()
    node.link()
    raw = node.connect()
    net.pairs[-1][1].registerProducer(object(), True)  # keeps it from being closed
    net.later(QUIET, 0.01)
    assert len(server.lobby) == 1 and not raw.lost
    net.later(HANDSHAKE)
    assert raw.lost and len(server.lobby) == 0


def test_a_launch_may_come_before_its_link(net: MemoryNet) -> None:
    """It is awaited."""
    server = OldServerEnd(net, "1.14", Flow.FORWARD)
    node = OldNode(net).join()
    node.say(Launch(False, OPENING.visitor, "01020304"))
    server.acceptor.peers["192.0.2.1"].links.add("01020304", _spare(net), "")
    assert len(server.host.served) == 1


def _spare(net: MemoryNet) -> MemoryTransport:
    """A transport for a link."""
    one, two = connect(Raw(), Raw())
    net.pairs.append((one, two))
    return two


def test_launches_of_unknown_links_are_counted(net: MemoryNet) -> None:
    """More of them than half of the idle links, and all idle ones are dropped at both ends."""
    server = OldServerEnd(net, "1.14", Flow.FORWARD)
    node = OldNode(net).join()
    link, _ = node.link()
    node.say(Launch(False, OPENING.visitor, "01020304"))
    node.heard()
    net.later(ID_WAIT + INTERVAL + 0.5)
    assert Flush() in node.heard()
    assert link.lost and server.peer.idle == 0 and server.host.served == []


def test_a_flush_is_obeyed(net: MemoryNet) -> None:
    """Idle links go, sessions stay; a client makes new ones."""
    server = OldServerEnd(net, "1.14", Flow.FORWARD)
    node = OldNode(net).join()
    (busy, number), (idle, _) = node.link(), node.link()
    node.say(Launch(False, OPENING.visitor, number))
    node.say(Flush())
    assert idle.lost and not busy.lost
    assert len(server.host.served) == 1


def test_a_client_makes_its_links_anew_after_a_flush(net: MemoryNet) -> None:
    """As many as before."""
    server = OldServerEnd(net, "1.14")
    client = OldClientEnd(net, "1.14").start()
    before = set(client.peer.links._links)
    server.peer._send(Flush())
    server.peer.links.flush()
    net.later(1.0, 0.02)
    assert client.peer.idle == server.peer.idle == 2
    assert not before & set(client.peer.links._links)


def test_bytes_before_the_launch_are_kept(net: MemoryNet) -> None:
    """The visitor's first bytes may overtake the signal."""
    server = OldServerEnd(net, "1.14", Flow.FORWARD)
    node = OldNode(net).join()
    link, number = node.link()
    link.transport.write(b"early")
    net.flush()
    assert server.peer.idle == 0
    node.say(Launch(False, OPENING.visitor, number))
    link.transport.write(b" and late")
    net.flush()
    _, heard = served(server)
    net.flush()
    assert heard.data == b"early and late"


def test_a_link_that_speaks_and_is_not_launched_goes(net: MemoryNet) -> None:
    """It was no link, or its launch is lost."""
    server = OldServerEnd(net, "1.14", Flow.FORWARD)
    node = OldNode(net).join()
    link, _ = node.link()
    link.transport.write(b"GET / HTTP/1.1\r\n")
    for _ in range(4):
        net.later(INTERVAL / 2)
        node.say(Ping())
    net.later(INTERVAL)
    assert link.lost and server.host.served == []


def test_a_link_that_speaks_takes_no_visitor(net: MemoryNet) -> None:
    """At the end with the visitors nothing may come before one."""
    server = OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    link, _ = node.link()
    link.transport.write(b"GET / HTTP/1.1\r\n")
    net.flush()
    assert link.lost and server.peer.take(OPENING) is None


def test_the_newest_link_is_taken_first(net: MemoryNet) -> None:
    """Old nodes take their oldest for the verify."""
    server = OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    numbers = [node.link()[1] for _ in range(3)]
    node.heard()
    server.peer.take(OPENING)
    net.flush()
    assert node.heard() == [Launch(False, OPENING.visitor, numbers[-1])]


def test_a_visitor_waits_for_a_link(net: MemoryNet) -> None:
    """And has the next one; the first who came is served first."""
    server = OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    got: list[str] = []
    server.peer.open(OPENING).addCallback(lambda _: got.append("first"))
    server.peer.open(OPENING).addCallback(lambda _: got.append("second"))
    third = server.peer.open(OPENING)
    third.addErrback(lambda _: got.append("cancelled"))
    node.link()
    assert got == ["first"]
    third.cancel()
    node.link()
    assert got == ["first", "cancelled", "second"]
    node.link()
    assert server.peer.idle == 1


def test_links_that_do_not_come_are_asked_for(net: MemoryNet) -> None:
    """A client that counts links which are not there makes new ones after a flush."""
    server = OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    server.peer.open(OPENING).addErrback(lambda _: None)
    node.heard()
    for _ in range(3):
        net.later(INTERVAL)
        node.say(Pong())
    assert Flush() in node.heard()


def test_a_link_without_a_number_is_given_up(net: MemoryNet) -> None:
    """After a minute, and tried again."""
    OldServerEnd(net, "1.14")
    client = OldClientEnd(net, "1.14").start()
    net.silent = True
    client.peer.links.flush()
    net.silent = False
    net.later(ID_TIMEOUT + 5)
    assert client.peer.idle == 2


def test_what_is_half_made_goes_with_the_server(net: MemoryNet) -> None:
    """Not when the client is told to stop: the server may have a use for it by then."""
    OldServerEnd(net, "1.14")
    client = OldClientEnd(net, "1.14").start()
    net.silent = True
    before = len(net.pairs)
    client.peer.need_links(1)
    half_made = net.pairs[-1]
    client.search.stop()
    net.flush()
    assert len(net.pairs) == before + 1 and half_made[0].connected and not half_made[0].aborting
    client.peer.close(Cause.STOPPED, "the client is stopping")
    assert half_made[0].aborting
    net.silent = False
    client.stop()
    assert not net.pairs


# Datagrams


@FLOWS
@WIRES
def test_datagrams_go_both_ways(net: MemoryNet, wire: str, flow: Flow) -> None:
    """Each flow on a link of its own."""
    server, client = OldServerEnd(net, wire, flow), OldClientEnd(net, wire).start()
    near, far = (server, client) if flow is Flow.REVERSE else (client, server)
    channel, heard = near.peer.open_flow(OPENING), Datagrams()
    channel.attach(heard)
    assert not channel.send([b"ping"])
    net.flush()
    (other,) = far.host.channels
    answers = Datagrams()
    other.attach(answers)
    net.flush()
    assert answers.got == [b"ping"]
    other.send([b"pong"])
    net.flush()
    assert heard.got == [b"pong"]
    channel.close()
    net.flush()
    assert answers.over and near.peer.sessions == 0


def test_a_flow_waits_for_its_link(net: MemoryNet) -> None:
    """Its datagrams are held, a bounded number of them."""
    server = OldServerEnd(net, "2.0")
    client = OldClientEnd(net, "2.0").start()
    peer = server.peer
    for _ in range(2):
        peer.take(OPENING)
    channel, heard = peer.open_flow(OPENING), Datagrams()
    channel.attach(heard)
    lost = channel.send([b"%d" % number for number in range(100)])
    assert len(lost) == 36
    net.later(1.0, 0.02)
    answers = Datagrams()
    client.host.channels[0].attach(answers)
    net.flush()
    assert answers.got == [b"%d" % number for number in range(64)]


def test_what_a_peer_has_no_room_for_is_dropped(net: MemoryNet) -> None:
    """And told as lost; the flow goes on."""
    server, client = OldServerEnd(net, "2.0"), OldClientEnd(net, "2.0").start()
    channel = server.peer.open_flow(OPENING)
    channel.attach(Datagrams())
    big = bytes(16385)
    assert list(channel.send([b"", big, b"fits"])) == [big]
    net.flush()
    answers = Datagrams()
    client.host.channels[0].attach(answers)
    net.flush()
    assert answers.got == [b"", b"fits"]


@pytest.mark.parametrize("dialect", [Dialect.V1_14, Dialect.V2_0])
def test_a_flow_waits_for_room_on_its_link(dialect: Dialect) -> None:
    """As one on a link that was made a moment ago may have to."""
    channel, link = LinkChannel(dialect), FakeStream()
    link.close = lambda: None  # type: ignore[attr-defined]
    channel.attach(Datagrams())
    channel.begin(link)  # type: ignore[arg-type]
    link.congested()
    assert not channel.send([b"first"]) and not channel.send([b"second"])
    assert link.written == b""
    link.drained()
    assert not channel.send([b"third"])
    framed = [b"\0\5first\0\6second", b"\0\5third"]
    plain = [b"first", b"second", b"third"]
    sent = [told for told in link.told if isinstance(told, bytes)]
    assert sent == (framed if dialect is Dialect.V2_0 else plain)


class Datagrams:
    """Hears a channel."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.over = False

    def datagrams(self, batch: list[bytes]) -> None:
        self.got += batch

    def closed(self, cause: Cause | None) -> None:
        self.over = True


# The control link


def test_pings_are_answered(net: MemoryNet) -> None:
    """And this end pings at once."""
    OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    assert node.heard() == [Ping()]
    node.say(Ping())
    assert node.heard() == [Pong()]


def test_silence_ends_the_session(net: MemoryNet, lines: list[str]) -> None:
    """Idle links go; a TCP session that has its link goes on."""
    server = OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    idle, busy = node.link()[0], node.link()[0]
    stream, sink = server.peer.take(OPENING), NotingSink()
    assert stream is not None
    stream.attach(sink)
    stream.resume()
    peer = server.peer
    net.later(10)
    assert peer.available(net.seconds())
    net.later(3)
    assert not peer.available(net.seconds())
    net.later(3)
    assert node.control.lost and idle.lost and not busy.lost
    assert server.host.told == ["joined", "left"] and "1 sessions go on without it" in lines[-1]
    busy.transport.write(b"still here")
    net.flush()
    assert sink.data == b"still here"
    peer.close(Cause.STOPPED, "")
    net.flush()
    assert busy.lost and sink.heard[-1] == ("closed", Cause.STOPPED)


def test_who_waits_hears_that_the_peer_is_gone(net: MemoryNet) -> None:
    """He may find another."""
    server = OldServerEnd(net, "1.14")
    node = OldNode(net).join()
    failed: list[Any] = []
    server.peer.open(OPENING).addErrback(failed.append)
    flow = server.peer.open_flow(OPENING)
    node.control.transport.loseConnection()
    net.flush()
    assert len(failed) == 1
    heard = Datagrams()
    flow.attach(heard)
    assert heard.over


def test_nothing_is_obeyed_after_the_end(net: MemoryNet) -> None:
    """A launch behind what ended the session."""
    server = OldServerEnd(net, "1.14", Flow.FORWARD)
    node = OldNode(net).join()
    _, number = node.link()
    signals: list[Signal] = [Verify("01020304", "sha256:00")]
    signals += [Launch(False, OPENING.visitor, each) for each in (number, "0a0b0c0d")]
    said = b"".join(encode(each, Dialect.V1_14, node.key) for each in signals)
    node.control.transport.write(said)
    net.flush()
    assert node.control.lost and server.host.served == []
    assert net.getDelayedCalls() == []


def test_a_client_says_what_is_wrong_with_the_certificate(net: MemoryNet) -> None:
    """And not only that the server has closed."""
    OldServerEnd(net, "2.0", query="&tls=1")
    client = OldClientEnd(net, "2.0", "&tls=2").start()
    assert client.health.reason is not None
    assert "certificate" in client.health.reason


class _Clinging(Protocol):
    """A server that lets a client in, and whose connection does not close."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.other.registerProducer(object(), True)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n")
        self.transport.write(b'{"flow":"+","max":4,"tls":"0","type":"0"}\n')


def test_an_answer_on_a_connection_that_stays(net: MemoryNet) -> None:
    """The client lets go of it."""
    net.server = Factory.forProtocol(_Clinging)
    OldClientEnd(net, "1.14").start()
    ((mine, _),) = (pair for pair in net.pairs if pair[0].disconnecting)
    assert mine.connected
    net.later(HANDSHAKE)
    assert not mine.connected


def test_the_client_comes_back_soon(net: MemoryNet) -> None:
    """When the server is gone for a moment."""
    server, client = OldServerEnd(net, "1.14"), OldClientEnd(net, "1.14").start()
    factory, net.server = net.server, None
    server.peer.close(Cause.STOPPED, "")
    net.later(3, 0.1)
    net.server = factory
    net.later(2, 0.02)
    assert client.host.told == ["joined", "left", "joined"] and client.peer.idle == 2


# Verify


@pytest.mark.parametrize("theirs", ["sha256:00", ""])
def test_another_certificate_ends_the_tunnel(net: MemoryNet, lines: list[str], theirs: str) -> None:
    """Somebody is in between; nothing goes on."""
    server, client = OldServerEnd(net, "1.14", query="&tls=1"), OldClientEnd(net, "1.14").start()
    server.peer._send(Verify("0a0b0c0d", theirs))
    net.flush()
    assert client.host.told == ["joined", "left"]
    assert any("somebody may be in between" in line for line in lines)


def test_visitors_wait_for_the_verify(net: MemoryNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end whose peer sends none says that it waits, and gives the tunnel up."""
    said: list[str] = []
    monkeypatch.setattr(Log, "info", lambda self, format, **fields: said.append(format))
    server = OldServerEnd(net, "1.14", query="&tls=1")
    client = OldClientEnd(net, "1.14")
    client.search.start()
    net.flush()
    client.peer._verification.due = False
    net.later(1.0, 0.02)
    assert client.host.told == ["joined"] and server.host.told == []
    assert server.peer.take(OPENING) is None
    assert sum("its verify of the certificate is awaited" in line for line in said) == 1
    net.later(VERIFY_TIMEOUT, 0.5)
    assert client.host.told[:2] == ["joined", "left"]


def test_a_verify_of_a_link_that_is_gone_is_judged(net: MemoryNet) -> None:
    """An old node closes the link before its signal comes."""
    server, client = OldServerEnd(net, "1.14", query="&tls=1"), OldClientEnd(net, "1.14").start()
    fingerprint = server.acceptor.fingerprint(Dialect.V1_14)
    server.peer._send(Verify("0a0b0c0d", fingerprint))
    net.flush()
    assert client.host.told == ["joined"] and client.peer.joined


def test_a_server_that_stops_drops_who_is_not_verified(net: MemoryNet) -> None:
    """Also when the time for a control link is over."""
    server = OldServerEnd(net, "1.14", query="&tls=1")
    client = OldClientEnd(net, "1.14")
    client.search.start()
    net.flush()
    client.peer._verification.due = False
    net.later(JOIN_TIMEOUT + 1, 0.5)
    peer = server.peer
    server.acceptor.refuse()
    server.acceptor.stop()
    net.flush()
    assert peer.closed and not server.acceptor.peers and server.host.told == []
