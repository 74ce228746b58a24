"""The control link: messages asked for one by one, then handed over; bounds; its end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost

from nodepass.wire.native.control import ControlLink
from nodepass.wire.native.messages import (
    MAX_HELLO,
    MAX_MESSAGE,
    About,
    Confirm,
    Message,
    MessageError,
    Ping,
    Pong,
    decode,
    encode,
)
from tests.loopback import connect, flush


class Case:
    """Two control links, without the TLS below them."""

    def __init__(self, encrypted: bool = True) -> None:
        self.here, self.there = ControlLink(), ControlLink()
        self.pair = connect(self.here, self.there)
        if encrypted:
            self.here.handshakeCompleted()
            self.there.handshakeCompleted()
        self.heard: list[Message] = []
        self.lost: list[str] = []

    def listen(self) -> Case:
        """Hear all messages at this end."""
        self.here.listen(self.heard.append, self.lost.append)
        return self

    def come(self, raw: bytes, *cuts: int) -> None:
        """Bytes arrive from the other end."""
        self.pair[1].write(raw)
        for cut in cuts:
            self.pair[1].deliver(cut)
        flush(self.pair)


def outcome(waiting: Deferred[Any]) -> list[Any]:
    """What a Deferred has fired with, if it has."""
    results: list[Any] = []
    waiting.addBoth(results.append)
    return results


def test_encrypted_fires_once_tls_is_up() -> None:
    """Or fails when the link is lost before."""
    case = Case(encrypted=False)
    case.here.handshakeCompleted()
    assert outcome(case.here.encrypted) == [case.here]
    case.pair[0].lose()
    (failure,) = outcome(case.there.encrypted)
    assert failure.check(ConnectionLost)


def test_messages_are_read_one_by_one() -> None:
    """Also those that came before they were asked for, and the last ones before the end."""
    case = Case()
    first = outcome(case.here.read())
    case.come(encode(Ping(time=1)) + encode(Ping(time=2)) + encode(Ping(time=3)), 3, 5)
    assert [decode(body) for body in first] == [Ping(time=1)]
    case.pair[0].lose()
    for time in (2, 3):
        assert decode(outcome(case.here.read())[0]) == Ping(time=time)
    assert outcome(case.here.read())[0].check(ConnectionLost)


def test_reading_what_is_too_long_fails() -> None:
    """By the announced length alone."""
    case = Case()
    result = outcome(case.here.read())
    case.come((MAX_HELLO + 1).to_bytes(2, "big"))
    assert result[0].check(MessageError)


def test_a_flood_during_the_handshake_is_cut_off() -> None:
    """Little is held of what nobody asked for."""
    case = Case()
    case.come(encode(Ping(time=1)) * (MAX_MESSAGE // 6 + 10))
    assert case.here.given_up
    assert not case.pair[0].connected


def test_reading_on_inside_a_message() -> None:
    """The next message may be asked for, or all listened to, from inside the one that came."""
    case = Case()
    bodies: list[bytes] = []

    def first(body: bytes) -> None:
        bodies.append(body)
        case.here.read().addCallback(second)

    def second(body: bytes) -> None:
        bodies.append(body)
        case.listen()

    case.here.read().addCallback(first)
    case.come(b"".join(encode(Ping(time=n)) for n in range(5)))
    assert [decode(body) for body in bodies] == [Ping(time=0), Ping(time=1)]
    assert case.heard == [Ping(time=2), Ping(time=3), Ping(time=4)]


def test_a_read_that_was_given_up_takes_nothing() -> None:
    """The message is there for the next one."""
    case = Case()
    reading = case.here.read()
    reading.cancel()
    assert outcome(reading)[0].check(CancelledError)
    case.come(encode(Ping(time=1)))
    assert decode(outcome(case.here.read())[0]) == Ping(time=1)


def test_listening_takes_longer_messages_and_skips_unknown_ones() -> None:
    """After the proof there is room for growth."""
    case = Case().listen()
    long = encode(About(name="n" * 64, targets="t" * 512)) + b"\x20\x00\xc8" + b"x" * 0x1FFF
    case.come(long + encode(Pong(time=1)), 1, 2, 700)
    assert case.heard == [About(name="n" * 64, targets="t" * 512), Pong(time=1)]


@pytest.mark.parametrize("raw", [b"\x00\x00", b"\xff\xff", b"\x00\x03\x11\x01\x00"], ids=repr)
def test_a_protocol_error_ends_it(raw: bytes) -> None:
    """With its reason, once; nothing after it is heard."""
    case = Case().listen()
    case.come(encode(Ping(time=1)) + raw + encode(Ping(time=2)))
    assert case.heard == [Ping(time=1)]
    assert len(case.lost) == 1 and "a protocol error" in case.lost[0]


def test_listening_to_a_link_that_is_lost() -> None:
    """It is told at once."""
    case = Case()
    case.pair[0].lose()
    case.listen()
    assert len(case.lost) == 1


def test_reasons() -> None:
    """Our own, the peer's orderly end, or the system's words."""
    case = Case().listen()
    case.here.abort("enough")
    case.here.abort("again")
    flush(case.pair)
    assert case.lost == ["enough"]

    case = Case().listen()
    gone = outcome(case.there.close())
    flush(case.pair)
    assert case.lost == ["closed by the peer"]
    assert gone == [None]
    assert outcome(case.here.gone()) == [None]

    case = Case().listen()
    case.pair[0].lose()
    assert case.lost == ["the connection was reset or cut off"]


def test_what_was_sent_leaves_before_the_end() -> None:
    """A refusal reaches its client; after the end nothing is sent any more."""
    case = Case().listen()
    case.there.send(Ping(time=1))
    case.there.close()
    flush(case.pair)
    assert case.heard == [Ping(time=1)]
    case.there.send(Ping(time=2))
    case.there.send_raw(b"x")
    case.there.abort()


def test_a_peer_that_does_not_read_is_not_read() -> None:
    """While answers wait to leave, nothing more is asked of this end; later it goes on."""
    case = Case().listen()
    case.pair[1].reading = False
    for _ in range(100):
        case.here.send_raw(encode(Confirm(proof=b"x" * 32)) * 20)
    assert not case.pair[0].reading
    case.come(encode(Ping(time=1)))
    assert case.heard == []
    case.pair[1].reading = True
    case.there.listen(lambda message: None, lambda reason: None)
    flush(case.pair)
    assert case.heard == [Ping(time=1)]
