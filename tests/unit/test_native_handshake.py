"""The handshake of two nodes: who is let in, who is refused, and what counts as a guess."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodepass.wire.native.handshake import (
    SHARE_SIZE,
    ClientHandshake,
    HandshakeError,
    Secrets,
    ServerHandshake,
    key_bytes,
    refuse,
)
from nodepass.wire.native.messages import (
    Answer,
    Confirm,
    Hello,
    Refusal,
    Refuse,
    Welcome,
    decode,
    encode,
    expect,
)

KEY = b"a key"
EXPORTER = b"e" * 32
PIN = b"p" * 32
HELLO = Hello(versions=b"\x01", node=b"n" * 16, level=1, minimum=8, nonce=b"")
ANSWER = Answer(version=0, flow=ord("-"), tls=1, maximum=1024, nonce=b"")
ASSOCIATION = b"a" * 16
SECRETS = Secrets(b"l" * 32, b"r" * 32)
COMING_BACK = (ASSOCIATION, SECRETS)

Tamper = Callable[[bytes], bytes]


def known(association: bytes) -> Secrets | None:
    """The server's table of associations."""
    return SECRETS if association == ASSOCIATION else None


def same(raw: bytes) -> bytes:
    """No tampering."""
    return raw


@attrs.define
class Result:
    """What both ends have in the end."""

    client: Secrets
    server: Secrets
    association: bytes


class Run:
    """One handshake, step by step, with somebody in between."""

    def __init__(
        self,
        client_key: bytes | None = KEY,
        server_key: bytes | None = KEY,
        *,
        coming_back: tuple[bytes, Secrets] | None = None,
        hello: Hello = HELLO,
        client_exporter: bytes = EXPORTER,
    ) -> None:
        self.client = ClientHandshake(client_key, hello, coming_back)
        self.server = ServerHandshake(server_key, known)
        self.client_exporter = client_exporter
        self.needs_pake = False

    def answer(self, tamper: Tamper = same) -> bytes:
        """Up to the server's answer."""
        raw = tamper(self.client.hello)
        hello = expect(Hello, decode(raw[2:]))
        self.needs_pake = self.server.check(hello)
        return self.server.answer(hello, raw, EXPORTER, ANSWER)

    def confirm(self, raw: bytes) -> Confirm:
        """The client's turn."""
        return self.client.answered(expect(Answer, decode(raw[2:])), raw, self.client_exporter)

    def welcome(self, confirm: Confirm) -> tuple[Welcome, Secrets]:
        """The server's last word."""
        return self.server.confirmed(confirm, PIN)

    def all(self) -> Result:
        """The whole of it."""
        welcome, server = self.welcome(self.confirm(self.answer()))
        return Result(self.client.welcomed(welcome), server, welcome.association)


def refusal(call: Callable[[], object]) -> HandshakeError:
    """The refusal that this call must end with."""
    with pytest.raises(HandshakeError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("key", [KEY, b"", b"\xff\x00", None], ids=repr)
def test_the_same_key_agrees(key: bytes | None) -> None:
    """Both ends come out with the same secrets, which are fresh each time; PAKE where a key is."""
    run = Run(key, key)
    one, two = run.all(), Run(key, key).all()
    assert run.needs_pake == (key is not None)
    assert one.client == one.server
    assert len({one.client.link, one.client.rejoin, two.client.link, two.client.rejoin}) == 4
    assert one.association != two.association


def test_coming_back_keeps_secrets_and_association() -> None:
    """A client that comes back needs no PAKE and goes on with what it had."""
    run = Run(coming_back=COMING_BACK)
    result = run.all()
    assert not run.needs_pake
    assert run.server.coming_back
    assert result == Result(SECRETS, SECRETS, ASSOCIATION)


def test_coming_back_works_without_the_key() -> None:
    """The rejoin secret stands for the key, on a keyless pair as well."""
    assert Run(None, None, coming_back=COMING_BACK).all().client == SECRETS


def test_a_wrong_key_is_a_guess() -> None:
    """The client with another key is told so, and has spent a guess."""
    run = Run(b"another")
    confirm = run.confirm(run.answer())
    error = refusal(lambda: run.welcome(confirm))
    assert (error.refusal, error.guess) == (Refusal.WRONG_KEY, True)


def test_a_wrong_rejoin_secret_is_no_guess() -> None:
    """It says nothing about the key."""
    run = Run(coming_back=(ASSOCIATION, Secrets(b"l" * 32, b"x" * 32)))
    confirm = run.confirm(run.answer())
    error = refusal(lambda: run.welcome(confirm))
    assert (error.refusal, error.guess) == (Refusal.WRONG_KEY, False)


def test_a_wrong_proof_without_a_key_is_no_guess() -> None:
    """There is no key to guess at."""
    run = Run(None, None)
    run.answer()
    assert not refusal(lambda: run.welcome(Confirm(proof=b"x" * 32))).guess


def test_a_server_with_another_key_is_found_out() -> None:
    """A server that can't prove the key gets no further than its welcome."""
    run = Run()
    run.confirm(run.answer())
    error = refusal(lambda: run.client.welcomed(Welcome(proof=b"x" * 32, association=b"", pin=PIN)))
    assert "did not prove the key" in str(error)


def test_a_key_at_one_end_only_is_named() -> None:
    """Neither end accepts a keyless one when it has a key, or the other way around; no guess."""
    error = refusal(Run(None, KEY).answer)
    assert (error.refusal, error.guess) == (Refusal.KEY_NEEDED, False)
    error = refusal(Run(KEY, None).answer)
    assert (error.refusal, error.guess) == (Refusal.KEY_UNWANTED, False)


def test_the_client_insists_as_well() -> None:
    """A server that skips its own check is refused by the client."""
    with_key, without = Run(KEY, None), Run(None, None)
    raw = without.answer()
    assert "it has no key" in str(refusal(lambda: with_key.confirm(raw)))

    without, with_key = Run(None, None), Run(KEY, KEY)
    raw = with_key.answer()
    assert "it has a key" in str(refusal(lambda: without.confirm(raw)))


def test_no_version_in_common() -> None:
    """The refusal names what each end speaks."""
    error = refusal(Run(hello=attrs.evolve(HELLO, versions=b"\x07\x09")).answer)
    assert error.refusal is Refusal.VERSION
    assert "[7, 9]" in str(error) and "[1]" in str(error)


def test_the_server_chooses_a_version_that_it_speaks() -> None:
    """A newer client's versions are passed over."""
    run = Run(hello=attrs.evolve(HELLO, versions=b"\x07\x01"))
    assert expect(Answer, decode(run.answer()[2:])).version == 1


def test_the_client_refuses_a_version_of_the_servers_own() -> None:
    """An answer in a version that the client does not speak is refused."""
    run = Run()
    raw = encode(attrs.evolve(expect(Answer, decode(run.answer()[2:])), version=2))
    assert "version 2" in str(refusal(lambda: run.confirm(raw)))


def test_an_unknown_association() -> None:
    """The client is told, so that it starts anew; no guess."""
    error = refusal(Run(coming_back=(b"b" * 16, SECRETS)).answer)
    assert (error.refusal, error.guess) == (Refusal.UNKNOWN_ASSOCIATION, False)


def test_another_association_than_asked_for() -> None:
    """A client that comes back is not moved elsewhere, even by a server that knows its secret."""
    run = Run(coming_back=COMING_BACK)
    confirm = run.confirm(run.answer())
    run.server.association = b"b" * 16
    welcome, _ = run.welcome(confirm)
    assert "another association" in str(refusal(lambda: run.client.welcomed(welcome)))


def test_somebody_in_between_is_found_out() -> None:
    """Two TLS connections have two exporters: the proof is wrong, though the key is right."""
    for coming_back in (None, COMING_BACK):
        run = Run(client_exporter=b"x" * 32, coming_back=coming_back)
        confirm = run.confirm(run.answer())
        assert refusal(lambda run=run, sent=confirm: run.welcome(sent)).refusal is (
            Refusal.WRONG_KEY
        )


def _evolved(**changes: object) -> Tamper:
    def tamper(raw: bytes) -> bytes:
        message = decode(raw[2:])
        assert message is not None
        return encode(attrs.evolve(message, **changes))  # type: ignore[arg-type]

    return tamper


@pytest.mark.parametrize("changes", [
    {"level": 0}, {"minimum": 9}, {"node": b"m" * 16}, {"nonce": b"0" * 32}, {"capabilities": 1},
    {"versions": b"\x01\x02"}, {"worker": 1},
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("coming_back", [None, COMING_BACK], ids=["pake", "rejoin"])
def test_each_field_of_the_hello_is_covered(
    changes: dict[str, object], coming_back: tuple[bytes, Secrets] | None
) -> None:
    """A Hello that was changed on its way is found out by the server."""
    run = Run(coming_back=coming_back)
    confirm = run.confirm(run.answer(_evolved(**changes)))
    refusal(lambda: run.welcome(confirm))


@pytest.mark.parametrize("changes", [
    {"flow": ord("+")}, {"tls": 0}, {"maximum": 1}, {"nonce": b"0" * 32}, {"capabilities": 1},
    {"workers": 2},
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("coming_back", [None, COMING_BACK], ids=["pake", "rejoin"])
def test_each_field_of_the_answer_is_covered(
    changes: dict[str, object], coming_back: tuple[bytes, Secrets] | None
) -> None:
    """An Answer that was changed on its way is found out by the server."""
    run = Run(coming_back=coming_back)
    confirm = run.confirm(_evolved(**changes)(run.answer()))
    refusal(lambda: run.welcome(confirm))


@pytest.mark.parametrize("changes", [
    {"pin": b"q" * 32}, {"association": b"b" * 16}, {"proof": b"0" * 32}, {"proof": b""},
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("coming_back", [None, COMING_BACK], ids=["pake", "rejoin"])
def test_each_field_of_the_welcome_is_covered(
    changes: dict[str, bytes], coming_back: tuple[bytes, Secrets] | None
) -> None:
    """A Welcome that was changed on its way is found out by the client."""
    run = Run(coming_back=coming_back)
    welcome, _ = run.welcome(run.confirm(run.answer()))
    refusal(lambda: run.client.welcomed(attrs.evolve(welcome, **changes)))


def test_a_reflected_proof_is_wrong() -> None:
    """The client's own proof sent back does not prove the server."""
    run = Run()
    confirm = run.confirm(run.answer())
    echo = Welcome(proof=confirm.proof, association=b"", pin=b"")
    refusal(lambda: run.client.welcomed(echo))


def test_a_reflected_share_is_refused() -> None:
    """The client's own share sent back, with its side or the server's, gives no key."""
    for side in (b"A", b"B"):
        run = Run()
        own = expect(Hello, decode(run.client.hello[2:])).share
        raw = _evolved(share=side + own[1:])(run.answer())
        with pytest.raises(HandshakeError):
            run.welcome(run.confirm(raw))


@pytest.mark.parametrize("share", [
    b"A", b"A" * (SHARE_SIZE - 1), b"A" * (SHARE_SIZE + 1), b"A" + b"\0" * 32, b"A" + b"\xff" * 32,
    b"A\x01" + b"\0" * 31, b"B" + b"\x05" * 32, b"\0" * SHARE_SIZE,
], ids=lambda share: share[:4].hex() + f"-{len(share)}")  # fmt: skip
def test_bad_shares_are_guesses(share: bytes) -> None:
    """A share of a wrong length or side, no point, or of small order is refused and counted."""
    error = refusal(lambda: Run().answer(_evolved(share=share)))
    assert (error.refusal, error.guess) == (Refusal.WRONG_KEY, True)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64))
def test_any_share_raises_only_handshake_errors(share: bytes) -> None:
    """Whatever the PAKE's package raises comes out as a refusal, at either end."""
    server, client = Run(), Run()
    raw = client.answer()
    for attempt in (
        lambda: server.answer(_evolved(share=share)),
        lambda: client.confirm(_evolved(share=share)(raw)),
    ):
        try:
            attempt()
        except HandshakeError:
            pass


@pytest.mark.parametrize("changes", [{"node": b"n"}, {"nonce": b"x"}], ids=repr)
def test_ids_of_a_wrong_length(changes: dict[str, bytes]) -> None:
    """A node id or nonce of a wrong length is refused before any work; no guess."""
    assert not refusal(lambda: Run().answer(_evolved(**changes))).guess


def test_key_bytes() -> None:
    """A key is its UTF-8; bytes that are none stay themselves; an empty key is none."""
    assert key_bytes("schlüssel") == "schlüssel".encode()
    assert key_bytes("a\udcff") == b"a\xff"
    assert key_bytes("") is key_bytes(None) is None


def test_refuse() -> None:
    """The server's no carries the reason in words."""
    assert refuse(Refusal.BUSY, "later") == Refuse(refusal=Refusal.BUSY, reason="later")
