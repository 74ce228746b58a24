"""A client joins a server, comes back, and makes links: both ends of the native wire, with TLS, in
memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from nodepass.config import TLSLevel
from nodepass.errors import PeerError
from nodepass.identity import self_signed
from nodepass.relay.stream import Cause
from nodepass.wire import Flow
from nodepass.wire.linkmaker import SIDE_BY_SIDE
from nodepass.wire.lobby import LOBBY_SIZE
from nodepass.wire.native.budget import GUESS_BURST
from nodepass.wire.native.handshake import ClientHandshake
from nodepass.wire.native.messages import MAX_HELLO, Confirm, Hello, Leave, Pin, encode
from nodepass.wire.native.peer import QUIET_INTERVALS
from nodepass.wire.native.proof import MAGIC
from nodepass.wire.native.settings import SILENT_INTERVALS
from nodepass.workers.addressee import addressed
from tests.loopback import connect
from tests.memnet import ADOPTION, HANDSHAKE, INTERVAL, OPENING, Client, MemoryNet, Server
from tests.streams import NotingSink

FLOWS = pytest.mark.parametrize("flow", Flow)
LEVELS = pytest.mark.parametrize("tls", [TLSLevel.PLAIN, TLSLevel.SELF_SIGNED])


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[str]]:
    """The log's lines; an unexpected failure among them fails the test."""
    said: list[str] = []
    failures: list[str] = []

    def observe(event: LogEvent) -> None:
        said.append(formatEvent(event))
        if "log_failure" in event or event.get("log_level") is LogLevel.critical:
            failures.append(f"{said[-1]}: {event.get('log_failure')}")

    globalLogPublisher.addObserver(observe)
    yield said
    globalLogPublisher.removeObserver(observe)
    assert not failures


@pytest.fixture
def net() -> MemoryNet:
    """Where both ends are."""
    return MemoryNet()


def visit(peer: Any) -> Any:
    """A visitor's end of a new session."""
    streams: list[Any] = []
    peer.open(OPENING).addCallback(streams.append)
    (stream,) = streams
    sink = NotingSink()
    stream.attach(sink)
    return stream, sink


def nothing_left(net: MemoryNet) -> None:
    """No connection and no timer."""
    net.flush()
    assert not net.pairs
    assert not [call for call in net.getDelayedCalls() if call.active()]


@FLOWS
@LEVELS
def test_from_joining_to_leaving(net: MemoryNet, flow: Flow, tls: TLSLevel) -> None:
    """Both hosts are told, links come, a session runs, and nothing stays behind."""
    server, client = Server(net, flow=flow, tls=tls), Client(net).start()
    assert server.host.told == client.host.told == ["joined"]
    assert server.peer.association == client.peer.association
    assert server.peer.secrets == client.peer.secrets
    assert server.peer.idle == client.peer.idle == 2
    assert len(server.lobby) == 0
    assert (client.connector.flow, client.connector.link_level) == (flow, tls)
    assert "the client" in server.peer.name and "the server" in client.peer.name

    taking, serving = (server, client) if flow is Flow.REVERSE else (client, server)
    stream, heard = visit(taking.peer)
    stream.write(b"question")
    stream.finish()
    net.flush()
    far, far_heard = serving.host.served[0]
    assert far_heard.heard == [b"question", "ended"]
    far.write(b"answer")
    far.finish()
    net.flush()
    assert heard.heard == [b"answer", "ended", ("closed", None)]
    client.stop()
    assert server.host.told == client.host.told == ["joined", "left"]
    assert not server.acceptor.peers
    nothing_left(net)


@LEVELS
def test_coming_back_keeps_the_sessions(net: MemoryNet, tls: TLSLevel) -> None:
    """A lost control link takes no data link with it."""
    server, client = Server(net, tls=tls), Client(net).start()
    stream, heard = visit(server.peer)
    net.flush()
    association, links = client.peer.association, len(net.pairs)
    net.pairs[0][0].lose()
    assert server.host.told[-1] == client.host.told[-1] == "lost"
    assert not server.peer.available(net.seconds())
    net.later(5)
    assert "returned" in server.host.told and "returned" in client.host.told
    assert client.peer.association == association
    assert len(net.pairs) == links
    stream.write(b"still here")
    net.flush()
    assert client.host.served[0][1].data == b"still here"
    assert heard.heard == []
    client.stop()
    nothing_left(net)


def test_who_does_not_come_back_is_given_up(net: MemoryNet) -> None:
    """After the time for adoption its sessions are reset, and the hosts told once."""
    server, client = Server(net), Client(net).start()
    _, heard = visit(server.peer)
    net.flush()
    net.server = None
    net.pairs[0][0].lose()
    net.later(ADOPTION - 0.5)
    assert heard.heard == []
    net.later(1)
    assert heard.heard == [("closed", Cause.LOST)]
    assert server.host.told == client.host.told == ["joined", "lost", "left"]
    client.stop()
    assert client.host.told.count("left") == 1
    nothing_left(net)


def test_a_server_that_started_anew(net: MemoryNet) -> None:
    """It knows nothing of the association: the client joins anew, at once."""
    Server(net)
    client = Client(net).start()
    old = client.peer
    net.pairs[0][0].lose()
    again = Server(net)
    net.later(5)
    assert old.closed
    assert client.peer is not old and client.peer.joined
    assert again.host.told == ["joined"]
    client.stop()


def test_silence_is_a_lost_link(net: MemoryNet) -> None:
    """First the peer gets no new visitors, then the link counts as lost; coming back mends it."""
    server, client = Server(net), Client(net).start()
    net.silent = True
    net.later(QUIET_INTERVALS * INTERVAL)
    assert not server.peer.available(net.seconds())
    assert server.peer.joined
    net.later(INTERVAL)
    net.silent = False
    net.flush()
    assert server.peer.available(net.seconds())
    assert "available" in server.host.told
    net.silent = True
    net.later(SILENT_INTERVALS * INTERVAL + INTERVAL)
    net.silent = False
    net.later(10)
    assert server.host.told[-1] in ("returned", "available")
    assert client.peer.joined
    client.stop()


def test_pings_are_measured(net: MemoryNet) -> None:
    """The time that an answer took; 0 without a control link."""
    server, client = Server(net), Client(net).start()
    net.silent = True
    net.advance(INTERVAL)
    net.advance(0.25)
    net.silent = False
    net.flush()
    assert server.peer.ping == pytest.approx(0.25)
    net.pairs[0][0].lose()
    assert server.peer.ping == 0
    client.stop()


# Refusals.


@pytest.mark.parametrize(
    "server_key, client_key, reason",
    [
        (b"one", b"two", "wrong key"),
        (None, b"two", "this server has none"),
        (b"one", None, "has one; set the same"),
    ],
)
def test_keys_that_do_not_match(
    net: MemoryNet, lines: list[str], server_key: bytes, client_key: bytes, reason: str
) -> None:
    """Both logs say so, once; the client's pauses grow; the lobby is empty again."""
    server = Server(net, key=server_key)
    client = Client(net, key=client_key).start()
    net.later(0.5)
    assert any("access denied" in line for line in lines)
    assert any("can't join the server" in line and reason in line for line in lines)
    assert len(server.lobby) == 0 and not net.pairs
    net.later(40)
    assert sum("can't join the server" in line for line in lines) == 1
    assert not server.acceptor.peers
    client.stop()
    nothing_left(net)


def test_a_server_below_the_clients_tls(net: MemoryNet, lines: list[str]) -> None:
    """It is refused by both numbers, and both ends say what to do."""
    Server(net)
    client = Client(net, level=TLSLevel.SELF_SIGNED).start()
    cure = "set tls=1 at the server, or take tls out of the client's URL"
    told = [line for line in lines if "tls=1" in line and "tls=0" in line and cure in line]
    assert ["can't join the server" in line for line in told] == [False, True]
    client.stop()


def test_a_stopping_server_takes_nobody(net: MemoryNet, lines: list[str]) -> None:
    """The client is told."""
    Server(net).acceptor.stopping = True
    client = Client(net).start()
    assert any("this server is stopping" in line for line in lines)
    client.stop()


def test_one_client_without_a_key(net: MemoryNet, lines: list[str]) -> None:
    """The one that is there stays while it answers, also when two come at once."""
    server = Server(net, key=None)
    one, two = Client(net, key=None), Client(net, key=None, node=b"m" * 16)
    one.connector.start()
    two.connector.start()
    net.later(3)
    assert len(server.acceptor.peers) == 1
    assert any("serves one client" in line for line in lines)
    first, second = (one, two) if one.connector.peer is not None else (two, one)
    first.stop()
    net.later(5)
    assert second.peer.joined
    second.stop()
    nothing_left(net)


def test_the_workers_of_one_client_without_a_key(net: MemoryNet, lines: list[str]) -> None:
    """They join beside each other; another client does not, nor one in a worker's place."""
    server = Server(net, key=None)
    first, second = (Client(net, key=None, worker=number).start() for number in range(2))
    assert len(server.acceptor.peers) == 2 and not lines
    for other in (Client(net, key=None, node=b"m" * 16), Client(net, key=None, worker=1)):
        other.start()
        net.later(1.5)
        assert len(server.acceptor.peers) == 2
        assert any("serves one client" in line for line in lines)
        other.stop()
        lines.clear()
    first.stop()
    second.stop()
    nothing_left(net)


def test_the_workers_of_one_node_are_not_each_others_clones(net: MemoryNet) -> None:
    """None is asked whether it is there when another comes, so that a slow one stays."""
    server, old = Server(net), Client(net).start()
    for pair in net.pairs:
        pair[0].reading = pair[1].reading = False
    more = [Client(net, worker=number).start() for number in (1, 2)]
    net.later(2)
    assert len(server.acceptor.peers) == 3
    for client in (old, *more):
        client.stop()


@pytest.mark.parametrize("tls", list(TLSLevel)[:2])
def test_both_kinds_of_links_say_whose_they_are(net: MemoryNet, tls: TLSLevel) -> None:
    """Before anything else, the control link and each data link name the worker of the server."""
    Server(net, tls=tls, workers=8)
    client = Client(net, server_worker=5, minimum=2)
    first: list[bytes] = []
    build = net.server.buildProtocol

    def noting(address: Any) -> Any:
        protocol = build(address)
        received = protocol.dataReceived

        def note(data: bytes) -> None:
            first.append(data)
            received(data)

        protocol.dataReceived = note
        return protocol

    net.server.buildProtocol = noting
    client.start()
    net.later(1)
    assert client.connector.workers == 8
    assert len(first) == 3 and [addressed(data) for data in first] == [5] * 3
    client.stop()


@pytest.mark.parametrize("flow", list(Flow))
def test_associations_share_the_pool(net: MemoryNet, flow: Flow) -> None:
    """Of `min` and `max` each gets its part, from the first link on."""
    server = Server(net, flow=flow, maximum=8)
    client = Client(net, minimum=6, associations=4).start()
    net.later(1)
    assert client.peer.idle == server.peer.idle == 2
    policy = (server if flow is Flow.REVERSE else client).peer.links._policy
    assert (policy.minimum, policy.maximum) == (2, 2)
    client.stop()


def test_wrong_guesses_are_told_to_other_workers(net: MemoryNet) -> None:
    """Each is passed on, and one that another worker heard counts here as well."""
    server = Server(net)
    client = Client(net, key=b"wrong").start()
    net.later(0.5)
    assert len(server.guesses) == 1
    for _ in range(GUESS_BURST):
        server.acceptor.guessed(server.guesses[0])
    net.later(8)
    assert len(server.guesses) == 1  # it came again, and was not let try
    client.stop()


def test_guesses_side_by_side_are_paid_for(net: MemoryNet) -> None:
    """More wrong keys than an address has guesses keep it out, a good key included; others come."""
    server = Server(net)
    wrong = [Client(net, key=b"w%d" % n, node=b"%016d" % n) for n in range(GUESS_BURST + 5)]
    for client in wrong:
        client.connector.start()
    net.flush()
    for client in wrong:
        client.stop()
    good = Client(net).start()
    assert good.connector.peer is None
    net.host = "198.51.100.7"
    other = Client(net, node=b"o" * 16).start()
    assert other.peer.joined
    assert len(server.acceptor.peers) == 1
    good.stop()
    other.stop()


def test_giving_up_after_the_share_is_a_guess(
    net: MemoryNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has seen the server's share has had its guess, whether it says so or not."""
    server = Server(net)

    def give_up(*_: object) -> None:
        raise PeerError("seen enough")

    monkeypatch.setattr(ClientHandshake, "answered", give_up)
    for _ in range(GUESS_BURST):
        assert server.acceptor._guesses.allows(net.host, net.seconds())
        Client(net).start().stop()
    assert not server.acceptor._guesses.allows(net.host, net.seconds())


# The lobby.


class Raw(Protocol):
    """A stranger's end of a connection."""

    def __init__(self) -> None:
        self.got = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


def knock(net: MemoryNet, server: Server) -> Raw:
    """A stranger connects."""
    raw = Raw()
    net.pairs.append(connect(raw, server.factory.buildProtocol(None)))
    return raw


@pytest.mark.parametrize("said, name", [
    (b"GET / HTTP/1.1\r\n\r\n", "a browser"), (b"\0" * 8 + b"\n", "NodePass 1.6"),
    (b"SSH-2.0\r\n", "unknown bytes"), (b"NP3D", "unknown bytes"),
])  # fmt: skip
def test_strangers_are_turned_away(
    net: MemoryNet, lines: list[str], said: bytes, name: str
) -> None:
    """By what they said; nothing is answered."""
    server = Server(net)
    raw = knock(net, server)
    raw.transport.write(said)
    net.flush()
    assert raw.lost and raw.got == b""
    assert any("access denied" in line and name in line for line in lines)
    assert len(server.lobby) == 0
    nothing_left(net)


@pytest.mark.parametrize("said", [b"", MAGIC[:2], MAGIC + b"\x01", b"\x16", b"\x16\x03\x01\x02"])
def test_who_does_not_go_on_is_dropped(net: MemoryNet, lines: list[str], said: bytes) -> None:
    """When the handshake's time is over."""
    server = Server(net)
    raw = knock(net, server)
    if said:
        raw.transport.write(said)
    net.later(HANDSHAKE - 1)
    assert not raw.lost and len(server.lobby) == 1
    net.later(1.5)
    assert raw.lost and len(server.lobby) == 0
    assert sum("timed out" in line for line in lines) == 1
    nothing_left(net)


@pytest.mark.parametrize("said", [b"\x16" + b"\xff" * 50, b"\x16\x03\x01\x00\x05hello"])
def test_what_looks_like_tls_and_is_not(net: MemoryNet, said: bytes) -> None:
    """Ends without a traceback."""
    server = Server(net)
    raw = knock(net, server)
    raw.transport.write(said)
    net.flush()
    net.later(HANDSHAKE + 1)
    assert raw.lost and len(server.lobby) == 0
    nothing_left(net)


def test_the_lobby_is_bounded(net: MemoryNet) -> None:
    """The oldest goes when one more comes than there is room for."""
    server = Server(net)
    strangers = [knock(net, server) for _ in range(LOBBY_SIZE + 3)]
    net.flush()
    assert [raw.lost for raw in strangers[:4]] == [True, True, True, False]
    assert len(server.lobby) == LOBBY_SIZE
    server.lobby.clear()
    net.flush()
    assert all(raw.lost for raw in strangers)
    nothing_left(net)


@LEVELS
def test_a_data_link_of_the_wrong_kind(net: MemoryNet, tls: TLSLevel) -> None:
    """Plain where the server wants TLS, or the other way around: refused."""
    server, client = Server(net, tls=tls), Client(net).start()
    client.connector._maker.terms = type(client.connector._maker.terms)(  # type: ignore
        reactor=net, health=client.connector.health, handshake_timeout=1.0, most=100,
        dial=lambda host, port, factory: client.connector.terms.dial((host,), port, factory),
        interval=(0.1, 1.0),
        creator=None if tls else lambda: client.connector.terms.tls.creator([b"nodepass2-data"]),
    )  # fmt: skip
    before = server.peer.idle
    for _ in range(before):
        visit(server.peer)
    net.later(3)
    assert server.peer.idle == 0
    client.stop()


# Control links.


def test_a_flood_before_the_proof(net: MemoryNet) -> None:
    """A client that sends on and on before it has proved anything is cut off."""
    server = Server(net)
    client = Client(net)
    client.connector.start()
    (pair,) = net.pairs
    control: Any = None

    def flood() -> None:
        nonlocal control
        control = pair[0].protocol
        while hasattr(control, "wrappedProtocol") or hasattr(control, "_wrappedProtocol"):
            control = getattr(control, "wrappedProtocol", None) or control._wrappedProtocol
        control.transport.write(b"\x00\x02\xc8x" * 10_000)

    net.callLater(0, flood)
    net.flush()
    assert not server.acceptor.peers
    net.later(HANDSHAKE + 1)
    assert len(server.lobby) == 0
    client.stop()


@pytest.mark.parametrize("first", [
    encode(Confirm(proof=b"x" * 32)), (MAX_HELLO + 1).to_bytes(2, "big") + b"x" * 2000,
    b"\x00\x00", b"\x00\x01\xc8", b"\x00\x03\x01\xff\xff",
    encode(Hello(versions=b"\x01", node=b"", nonce=b"")),
], ids=lambda raw: raw[:4].hex())  # fmt: skip
def test_wrong_first_messages(
    net: MemoryNet, monkeypatch: pytest.MonkeyPatch, lines: list[str], first: bytes
) -> None:
    """Whatever comes instead of a Hello is refused in one line."""
    server = Server(net)
    client = Client(net)
    monkeypatch.setattr(
        "nodepass.wire.native.connector.ClientHandshake",
        lambda *_: type("Wrong", (), {"hello": first})(),
    )
    client.start()
    client.stop()
    net.later(HANDSHAKE + 1)
    assert sum("access denied" in line for line in lines) == 1
    assert len(server.lobby) == 0 and not server.acceptor.peers


@pytest.mark.parametrize("end", ["server", "client"])
def test_garbage_after_the_proof_loses_the_link(net: MemoryNet, end: str) -> None:
    """The peer is lost for a while, and comes back."""
    server, client = Server(net), Client(net).start()
    liar = server if end == "client" else client
    assert liar.peer.control is not None
    liar.peer.control.send_raw(b"\xff\xff" + b"x" * 100)
    net.later(8)
    assert server.host.told.count("returned") == client.host.told.count("returned") == 1
    client.stop()


def test_leave_right_behind_the_welcome(net: MemoryNet) -> None:
    """A server that leaves as soon as it has welcomed: the client looks for it again."""
    server, client = Server(net), Client(net)
    attach = server.acceptor._welcome

    def welcome(control: Any, *rest: Any) -> None:
        attach(control, *rest)
        server.peer.close(Cause.STOPPED, "just so")
        server.acceptor._welcome = attach  # type: ignore[method-assign]

    server.acceptor._welcome = welcome  # type: ignore[method-assign]
    client.start()
    net.later(6)
    assert client.peer.joined and server.peer.joined
    client.stop()


def test_a_later_process_of_the_same_node(net: MemoryNet) -> None:
    """The silent one goes after a moment; one that answers stays."""
    server, old = Server(net), Client(net).start()
    clone = Client(net).start()
    net.later(2)
    assert len(server.acceptor.peers) == 2
    clone.stop()
    assert len(server.acceptor.peers) == 1

    for pair in net.pairs:
        pair[0].reading = pair[1].reading = False
    frozen = list(net.pairs)
    again = Client(net).start()
    net.later(2)
    assert [peer.association for peer in server.acceptor.peers.values()] == [again.peer.association]
    for pair in frozen:
        if pair[0].connected:
            pair[0].lose()
    old.stop()
    again.stop()


def test_draining(net: MemoryNet) -> None:
    """A peer that is stopping gets no new visitors until it has come back."""
    server, client = Server(net), Client(net).start()
    client.peer.drain()
    net.flush()
    assert not server.peer.available(net.seconds())
    stream, _ = visit(server.peer)
    stream.write(b"x")
    net.flush()
    assert client.host.served[0][1].data == b"x"
    client.stop()


def test_nobody_waits_for_a_client_that_stops(net: MemoryNet) -> None:
    """A visitor that waits for a link of a client that is stopping is handed back at once."""
    server, client = Server(net), Client(net).start()
    net.flush()
    client.connector.stop()  # it makes no more links
    while server.peer.idle:
        visit(server.peer)
    refused: list[Any] = []
    server.peer.open(OPENING).addErrback(refused.append)
    net.flush()
    assert refused == []
    client.peer.drain()
    net.flush()
    assert len(refused) == 1
    client.stop()


@pytest.mark.parametrize("ends", ["made", "dropped"])
def test_a_link_that_is_half_made_when_its_client_stops(net: MemoryNet, ends: str) -> None:
    """The server may have given it a session by then, which goes on; it is dropped with the last
    that the client has to do with the server."""
    server, client = Server(net), Client(net).start()
    net.flush()
    before = server.peer.idle
    client.peer.need_links(1)
    at_client, at_server = net.pairs[-1]
    while server.peer.idle == before:
        assert at_client.deliver() or at_server.deliver()
    at_client.reading = False
    client.connector.stop()
    client.peer.drain()
    for _ in range(before + 1):
        visit(server.peer)[0].write(b"x")
    net.flush()
    assert len(client.host.served) == before
    if ends == "made":
        at_client.reading = True
        net.flush()
        assert [sink.data for _, sink in client.host.served] == [b"x"] * (before + 1)
    client.stop()
    nothing_left(net)


def test_links_that_fail_are_tried_one_at_a_time(net: MemoryNet) -> None:
    """While data links fail only one is tried at a time, at the pace of the pool's interval."""
    server, client = Server(net, tls=TLSLevel.SELF_SIGNED), Client(net).start()
    net.flush()
    tries: list[float] = []

    def broken(host: str, port: int, factory: Any) -> Any:
        tries.append(net.seconds())
        refused: Deferred[Any] = Deferred()
        net.callLater(0.01, refused.errback, ConnectionRefusedError())
        return refused

    maker: Any = client.connector._maker
    maker.terms = attrs.evolve(maker.terms, dial=broken)
    for _ in range(40):
        server.peer.open(OPENING).addErrback(lambda _: None)
    net.later(10)
    at_once = sum(1 for when in tries if when == tries[0])
    assert at_once <= SIDE_BY_SIDE
    assert len(tries) - at_once <= 12  # one a second, a few quicker ones first
    client.stop()


class Dialling:
    """Connections that a client is making for its data links, and that go nowhere by themselves."""

    def __init__(self, client: Client) -> None:
        self.tries: list[Deferred[Any]] = []
        maker: Any = client.connector._maker
        maker.terms = attrs.evolve(maker.terms, dial=self.dial)

    def dial(self, host: str, port: int, factory: Any) -> Deferred[Any]:
        """One more; the test says how it ends."""
        self.tries.append(Deferred())
        return self.tries[-1]


@FLOWS
def test_no_links_are_made_for_a_server_that_leaves(
    net: MemoryNet, lines: list[str], flow: Flow
) -> None:
    """Neither for its last wishes nor for the client's own; one under way that its closed port
    refuses is no trouble and no reason to try again."""
    server, client = Server(net, flow=flow), Client(net).start()
    dialling = Dialling(client)
    client.peer.need_links(1)
    server.peer.drain()
    net.flush()
    dialling.tries[0].errback(ConnectionRefusedError())
    for asking in (client.peer, server.peer):
        asking.need_links(3)
    net.later(4)
    assert len(dialling.tries) == 1
    assert not any("data link" in line for line in lines)
    assert client.connector.health.reason is None
    client.stop()
    nothing_left(net)


def test_a_server_leaves_just_after_it_refused(net: MemoryNet, lines: list[str]) -> None:
    """Its closed port may be quicker than its word; a refusal by one that stays is told."""
    server, client = Server(net), Client(net).start()
    dialling = Dialling(client)
    client.peer.need_links(1)
    for leaves in (False, True):
        lines.clear()
        dialling.tries[-1].errback(ConnectionRefusedError())
        if leaves:
            server.peer.drain()
        net.flush()
        net.later(1.5)
        assert any("can't make a data link" in line for line in lines) is not leaves
        assert (client.connector.health.reason is None) is leaves
    assert len(dialling.tries) == 2
    client.stop()
    nothing_left(net)


def test_pins(net: MemoryNet, lines: list[str]) -> None:
    """Both the present and the announced certificate count; a stranger's does not."""
    server, client = Server(net, tls=TLSLevel.SELF_SIGNED), Client(net).start()
    present, following = server.identity, self_signed()
    for _ in range(2):
        server.peer.announce_pin(following.pin)
    net.flush()
    assert set(client.connector.pins()) == {present.pin, following.pin}
    for identity in (present, following):
        server.identity = identity
        before = len(net.pairs)
        client.peer.make_links(client.peer, 1)  # type: ignore[misc]
        net.later(0.5)
        assert len(net.pairs) == before + 1

    server.identity = self_signed()
    client.peer.make_links(client.peer, 1)  # type: ignore[misc]
    net.later(5)
    assert any("not the one that the control link vouched for" in line for line in lines)
    assert not any(peer.idle > 4 for peer in (server.peer, client.peer))
    assert client.connector.pins()[-1] == following.pin
    assert client.connector._pins[following.pin] == math.inf
    client.stop()


def test_a_pin_of_a_wrong_length_is_ignored(net: MemoryNet) -> None:
    """It can't be a digest."""
    server, client = Server(net), Client(net).start()
    before = client.connector.pins()
    assert server.peer.control is not None
    server.peer.control.send(Pin(pin=b"short"))
    net.flush()
    assert client.connector.pins() == before
    client.stop()


# One exit.


def test_closing_a_peer_is_done_once(net: MemoryNet) -> None:
    """Whoever waits is told, and the host once, however often it is closed."""
    server, client = Server(net), Client(net).start()
    failures: list[Any] = []
    for _ in range(3):
        server.peer.open(OPENING).addErrback(failures.append)
    answers: list[bool] = []
    peer = server.peer
    peer.probe().addCallback(answers.append)
    for _ in range(3):
        peer.close(Cause.LOST, "over")
    assert len(failures) == 1
    assert answers == [False]
    assert server.host.told.count("left") == 1
    net.flush()
    assert client.host.told[-1] == "left"
    client.stop()
    nothing_left(net)


def test_closing_again_from_inside(net: MemoryNet) -> None:
    """A host, a visitor or a stream that closes the peer as it is being closed."""
    server, client = Server(net), Client(net).start()
    peer = server.peer
    left = server.host.on_left

    def again(_: Any) -> None:
        peer.close(Cause.LOST, "again")
        if left is not None:
            left(peer)

    server.host.on_left = again
    _, sink = visit(peer)
    sink.closed = lambda cause: peer.close(cause, "again")  # type: ignore
    visit(peer)
    peer.open(OPENING).addErrback(lambda _: peer.close(Cause.LOST, "again") and None)
    peer.close(Cause.STOPPED, "first")
    assert server.host.told.count("left") == 1
    client.stop()
    nothing_left(net)


def test_messages_after_leaving_are_not_heard(net: MemoryNet) -> None:
    """Leave is the last word of a peer."""
    server, client = Server(net), Client(net).start()
    control = client.peer.control
    assert control is not None
    control.send(Leave(reason="bye"))
    control.send(Pin(pin=b"p" * 32))
    peer = server.peer
    net.flush()
    assert peer.closed and server.host.told.count("left") == 1
    client.stop()


def test_probes(net: MemoryNet) -> None:
    """True with the next answer, False in a second without one, at once without a control link."""
    server, client = Server(net), Client(net).start()
    answers: list[bool] = []
    peer = server.peer
    peer.probe().addCallback(answers.append)
    net.flush()
    assert answers == [True]
    net.silent = True
    peer.probe().addCallback(answers.append)
    net.advance(1.0)
    assert answers == [True, False]
    net.silent = False
    net.pairs[0][0].lose()
    peer.probe().addCallback(answers.append)
    assert answers == [True, False, False]
    client.stop()


def test_stopping_while_joining(net: MemoryNet) -> None:
    """At any step of the handshake: nothing stays behind."""
    server = Server(net)
    for steps in range(12):
        client = Client(net)
        client.connector.start()
        for _ in range(steps):
            net.advance(0)
            for pair in net.pairs:
                for transport in pair:
                    transport.deliver()
        client.stop()
        net.later(HANDSHAKE + ADOPTION)
        assert not server.acceptor.peers
        assert len(server.lobby) == 0
        nothing_left(net)


def test_stopping_the_server_while_somebody_joins(net: MemoryNet) -> None:
    """Handshakes under way end with the acceptor, also those that wait for their turn."""
    server = Server(net)
    clients = [Client(net, key=b"wrong", node=b"%016d" % n) for n in range(60)]
    for client in clients:
        client.connector.start()
    for _ in range(4):
        net.advance(0)
        for pair in net.pairs:
            for transport in pair:
                transport.deliver()
    server.acceptor.stop()
    server.lobby.clear()
    for client in clients:
        client.stop()
    assert not server.acceptor._serving
    nothing_left(net)
