"""The tunnel port's lobby and first bytes, with a dialect that only notes what it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory

from nodepass.address import Endpoint
from nodepass.config import TLSLevel
from nodepass.logs import Level, Log
from nodepass.tls import ClientTLS, ServerTLS
from nodepass.wire.clienthello import MAX_RECORD
from nodepass.wire.listener import Acceptor, TunnelFactory
from nodepass.wire.lobby import LOBBY_SIZE, TLS_PLACE_TIME, TLS_PLACES, Guest, Lobby
from tests.loopback import connect, flush

TIMEOUT = 10.0
SILENCE = 0.03
SERVER = ServerTLS(TLSLevel.SELF_SIGNED, [])


def client_hello(*names: bytes) -> bytes:
    """What a TLS client says first."""
    client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    if names:
        client.set_alpn_protos(list(names))
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


HELLO = client_hello(b"some-wire")
NAMELESS = client_hello()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged."""
    found: list[str] = []

    def emit(self: Log, level: Level, format: str, fields: dict[str, object]) -> None:
        found.append(format.format(**fields))

    monkeypatch.setattr(Log, "_emit", emit)
    return found


class Noting(Protocol):
    """Notes what it is given."""

    def __init__(self) -> None:
        self.got = b""
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class Stub(Acceptor):
    """Takes plain connections that begin with "N"."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []
        self.protocols: list[Noting] = []

    def plain(self, guest: Guest, first: bytes) -> Protocol | None:
        if not first.startswith(b"N"):
            return None
        self.guests.append(guest)
        self.protocols.append(Noting())
        return self.protocols[-1]

    def encrypted(self, guest: Guest, alpn: bytes | None) -> Protocol | None:
        raise AssertionError("no handshake is completed in these tests")


class Case:
    """A tunnel port."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lobby = Lobby(self.clock, Log(Level.NONE), TIMEOUT)
        self.dialect = Stub()
        self.contexts = 0
        self.factory = TunnelFactory(self.lobby, [self.dialect], self._context, Log(Level.NONE))
        self.pairs: list[Any] = []

    def _context(self) -> Any:
        self.contexts += 1
        return SERVER.context_factory()

    def knock(self, said: bytes = b"", host: str = "192.0.2.9") -> Noting:
        """Somebody connects, and may say something."""
        protocol = Noting()
        self.pairs.append(connect(protocol, self.factory.buildProtocol(None), host=host))
        if said:
            protocol.transport.write(said)  # type: ignore[union-attr]
            flush(*self.pairs)
        return protocol


def test_the_first_bytes_reach_the_dialect() -> None:
    """And all that follow; its guest says where they come from."""
    case = Case()
    visitor = case.knock(b"Nat")
    visitor.transport.write(b"ive")  # type: ignore[union-attr]
    flush(*case.pairs)
    assert case.dialect.protocols[0].got == b"Native"
    assert case.dialect.guests[0].address == Endpoint("192.0.2.9", 40000)
    assert len(case.lobby) == 1


def test_who_is_admitted_no_longer_counts() -> None:
    """Its time does not run out, and admitting it twice does no harm."""
    case = Case()
    visitor = case.knock(b"N")
    for _ in range(2):
        case.dialect.guests[0].admit()
    case.clock.advance(2 * TIMEOUT)
    flush(*case.pairs)
    assert not visitor.lost and len(case.lobby) == 0
    assert not case.clock.getDelayedCalls()


def test_who_leaves_before_a_word_no_longer_counts() -> None:
    """No timer stays behind."""
    case = Case()
    case.knock()
    case.pairs[0][0].lose()
    assert len(case.lobby) == 0 and not case.clock.getDelayedCalls()


@pytest.mark.parametrize("said", [b"", b"N"])
def test_time_runs_out_for_the_unproven(said: bytes) -> None:
    """Whether they have begun or not."""
    case = Case()
    visitor = case.knock(said)
    case.clock.advance(TIMEOUT)
    flush(*case.pairs)
    assert visitor.lost and len(case.lobby) == 0


def test_strangers_are_turned_away_at_once() -> None:
    """No TLS object is made for them."""
    case = Case()
    assert case.knock(b"hello").lost
    assert case.contexts == 0
    assert len(case.lobby) == 0 and not case.clock.getDelayedCalls()


def test_the_oldest_goes_first() -> None:
    """Who has proved itself is out of danger."""
    case = Case()
    proved, oldest = case.knock(b"N"), case.knock()
    case.dialect.guests[0].admit()
    for _ in range(LOBBY_SIZE):
        case.knock()
    flush(*case.pairs)
    assert oldest.lost and not proved.lost
    assert len(case.lobby) == LOBBY_SIZE


def test_clearing_the_lobby() -> None:
    """All of them go; turning one away twice does no harm."""
    case = Case()
    visitors = [case.knock(b"N"), case.knock()]
    case.lobby.clear()
    case.dialect.guests[0].turn_away()
    flush(*case.pairs)
    assert all(visitor.lost for visitor in visitors)
    assert not case.clock.getDelayedCalls()


def test_half_a_hello_makes_no_tls_object() -> None:
    """However it is split; the last byte does, and the answer comes."""
    case = Case()
    visitor = case.knock(HELLO[:1])
    for byte in HELLO[1:-1]:
        visitor.transport.write(bytes([byte]))  # type: ignore[union-attr]
    flush(*case.pairs)
    assert case.contexts == 0 and visitor.got == b""
    visitor.transport.write(HELLO[-1:])  # type: ignore[union-attr]
    flush(*case.pairs)
    assert case.contexts == 1 and visitor.got[0] == 22


def test_a_hello_larger_than_a_record_is_turned_away() -> None:
    """Nothing is kept of it."""
    case = Case()
    length = (MAX_RECORD + 1).to_bytes(2, "big")
    assert case.knock(b"\x16\x03\x01" + length).lost
    assert not case.knock(b"\x16\x03\x01" + MAX_RECORD.to_bytes(2, "big")).lost
    assert case.contexts == 0


def test_tls_handshakes_beyond_the_places_wait() -> None:
    """One that ends lets the one begin that came last."""
    case = Case()
    first = case.knock(HELLO)
    for _ in range(TLS_PLACES - 1):
        case.knock(HELLO)
    before, last = case.knock(HELLO), case.knock(HELLO)
    assert case.contexts == TLS_PLACES
    assert first.got and not last.got
    case.pairs[0][0].lose()
    flush(*case.pairs)
    assert last.got and not before.got
    assert case.contexts == TLS_PLACES + 1


def test_a_crowd_does_not_keep_others_waiting() -> None:
    """However many begin handshakes and say no more: who comes from elsewhere has the next place
    that is free, and so has the latest from where they are."""
    case = Case()
    for _ in range(3 * TLS_PLACES):
        case.knock(HELLO)
    elsewhere = case.knock(HELLO, host="192.0.2.10")
    for _ in range(10):
        case.knock(HELLO)
    latest = case.knock(HELLO)
    case.pairs[0][0].lose()
    flush(*case.pairs)
    assert elsewhere.got and not latest.got
    case.clock.advance(TLS_PLACE_TIME)
    flush(*case.pairs)
    assert latest.got
    case.lobby.clear()
    assert not case.clock.getDelayedCalls()


def test_slow_tls_handshakes_make_room() -> None:
    """As many as there are waiting; where nobody waits each has its full time."""
    case = Case()
    slow = [case.knock(HELLO) for _ in range(TLS_PLACES)]
    case.clock.advance(TLS_PLACE_TIME + 1)
    assert not any(visitor.lost for visitor in slow)
    waiting = [case.knock(HELLO) for _ in range(2)]
    case.clock.advance(0)
    flush(*case.pairs)
    assert [visitor.lost for visitor in slow[:3]] == [True, True, False]
    assert all(visitor.got for visitor in waiting)
    case.lobby.clear()
    assert not case.clock.getDelayedCalls()


def test_room_is_made_by_who_took_the_place_of_others() -> None:
    """Where those that the look was due for have left by then, it is done again for who came after
    them."""
    case = Case()
    first = [case.knock(HELLO) for _ in range(TLS_PLACES)]
    waiting = [case.knock(HELLO) for _ in range(TLS_PLACES + 1)]
    case.clock.advance(TLS_PLACE_TIME / 2)
    for pair in case.pairs[:TLS_PLACES]:
        pair[0].lose()
    flush(*case.pairs)
    assert all(visitor.lost for visitor in first) and not waiting[0].got
    for _ in range(2):
        case.clock.advance(TLS_PLACE_TIME / 2)
        flush(*case.pairs)
    assert waiting[0].got
    case.lobby.clear()
    assert not case.clock.getDelayedCalls()


def test_clearing_begins_no_handshakes() -> None:
    """Those who wait go with those who don't."""
    case = Case()
    for _ in range(TLS_PLACES + 3):
        case.knock(HELLO)
    case.lobby.clear()
    assert case.contexts == TLS_PLACES and len(case.lobby) == 0
    assert not case.clock.getDelayedCalls()


class Waiting(Acceptor):
    """Takes connections that say nothing."""

    def __init__(self) -> None:
        self.given: list[Noting] = []

    def patience(self, guest: Guest, encrypted: bool) -> float | None:
        return None if encrypted else SILENCE

    def silent(self, guest: Guest, encrypted: bool) -> Protocol | None:
        self.given.append(Noting())
        return self.given[-1]


def test_silence_is_a_greeting_too() -> None:
    """Where somebody may be waiting for this end to speak first; what follows is for him who had
    the connection then."""
    case, waiting = Case(), Waiting()
    case.factory.acceptors = [case.dialect, waiting]
    visitor = case.knock()
    case.clock.advance(SILENCE / 2)
    assert not waiting.given
    case.clock.advance(SILENCE / 2)
    case.clock.advance(0)
    assert len(waiting.given) == 1
    visitor.transport.write(b"N")  # type: ignore[union-attr]
    flush(*case.pairs)
    assert waiting.given[0].got == b"N" and not case.dialect.protocols


def test_a_word_in_time_ends_the_silence() -> None:
    """Even one that came while this process was busy, and is read after that time."""
    case, waiting = Case(), Waiting()
    case.factory.acceptors = [case.dialect, waiting]
    case.knock(b"N")
    late = case.knock()

    def read() -> None:
        late.transport.write(b"N")  # type: ignore[union-attr]
        flush(*case.pairs)

    case.clock.callLater(SILENCE, read)
    case.clock.advance(SILENCE)
    assert not waiting.given and len(case.dialect.protocols) == 2


def test_who_leaves_in_silence() -> None:
    """No timer stays behind."""
    case, waiting = Case(), Waiting()
    case.factory.acceptors = [waiting]
    case.knock()
    case.pairs[0][0].lose()
    assert not case.clock.getDelayedCalls() and not waiting.given


def test_strangers_are_named_with_their_cure(lines: list[str]) -> None:
    """Once a minute each kind, wherever they come from; a greeting that comes in pieces is one."""
    case = Case()
    case.factory.log = Log(Level.WARN)
    head = b"GET / HTTP/1.1\r\nAuthorization: Bearer " + b"0" * 64 + b"\r\n"
    for _ in range(2):
        visitor = case.knock(b"\0\0\0")
        assert not visitor.lost
        visitor.transport.write(b"\0\n")  # type: ignore[union-attr]
        flush(*case.pairs)
        assert visitor.lost
    assert not case.knock(head).lost
    assert case.knock(head + b"\r\n").lost
    assert case.knock(NAMELESS).lost
    assert case.contexts == 0
    assert [line.partition(": ")[2] for line in lines] == [
        "a client of NodePass 1.6, which this server does not admit; wire=1.6 admits it",
        "a client of NodePass 1.14, which this server does not admit; wire=1.14 admits it",
        "a client of NodePass 2.0, or a link of an old pool, which this server does not admit; "
        "wire=2.0 admits the first",
    ]


class NoNative(Stub):
    """A wire whose connections may be TLS, and not of this name."""

    nameless = True

    def encrypted(self, guest: Guest, alpn: bytes | None) -> Protocol | None:
        return None


def secured(case: Case, client: IOpenSSLClientConnectionCreator, said: bytes = b"") -> Noting:
    """A client of TLS connects, does its handshake, and may say something at once."""
    inner = Noting()
    factory = TLSMemoryBIOFactory(client, True, Factory.forProtocol(lambda: inner), case.clock)
    case.pairs.append(connect(factory.buildProtocol(None), case.factory.buildProtocol(None)))
    inner.transport.write(said)  # type: ignore[union-attr]
    case.clock.advance(0)  # small writes are collected; this one waits for the handshake alone
    flush(*case.pairs)
    return inner


def test_a_native_client_where_native_is_not_admitted(lines: list[str]) -> None:
    """It is named too; its handshake is over by then."""
    case = Case()
    case.factory.log = Log(Level.WARN)
    case.factory.acceptors = [NoNative()]
    case.factory.context = ServerTLS(TLSLevel.SELF_SIGNED, [b"nodepass2"]).context_factory
    secured(case, ClientTLS(None, "h").creator([b"nodepass2", b"w1"]), b"hello")
    assert lines == [
        "access denied to 192.0.2.1: a client of the native wire, which this server does not "
        "admit; native in wire= admits it"
    ]
    assert len(case.lobby) == 0


def test_a_certificate_that_the_client_refuses(lines: list[str]) -> None:
    """The server hears of it, and says so once a minute for each address."""
    case = Case()
    case.factory.log = Log(Level.WARN)
    case.factory.acceptors = [NoNative()]
    for _ in range(2):
        assert secured(case, ClientTLS(None, "h").creator([], frozenset)).lost
    assert lines == [
        "access denied to 192.0.2.1: TLS handshake failed: the other end does not trust this "
        "certificate"
    ]
    assert len(case.lobby) == 0
