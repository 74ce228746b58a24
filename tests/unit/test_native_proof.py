"""How a data link shows that it belongs: both ends, all cuts, and who is refused."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.wire.native.handshake import Secrets
from nodepass.wire.native.proof import (
    CHALLENGE_SIZE,
    PREFACE_SIZE,
    PROOF_SIZE,
    LinkAcceptor,
    LinkConnector,
    ProofError,
    decode_preface,
)

ASSOCIATION = b"a" * 16
SECRETS = Secrets(b"l" * 32, b"r" * 32)
EXPORTER = b"e" * 32


def known(association: bytes) -> Secrets | None:
    """The acceptor's table."""
    return SECRETS if association == ASSOCIATION else None


def pair(exporter: bytes | None) -> tuple[LinkConnector, LinkAcceptor]:
    """Two honest ends."""
    return LinkConnector(ASSOCIATION, SECRETS, 7, exporter), LinkAcceptor(known, exporter)


@pytest.mark.parametrize("exporter", [None, EXPORTER], ids=["plain", "tls"])
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_opening_survives_any_cut(exporter: bytes | None, sizes: list[int]) -> None:
    """Both ends come to agree wherever the streams are cut; what follows is handed on."""
    takes = cycle(sizes)
    connector, acceptor = pair(exporter)
    to_acceptor, to_connector = connector.start(), b""
    done_acceptor = done_connector = False
    while not (done_acceptor and done_connector):
        take = next(takes)
        if to_acceptor and not done_acceptor:
            chunk, to_acceptor = to_acceptor[:take], to_acceptor[take:]
            send, rest = acceptor.feed(chunk)
            to_connector += send
            done_acceptor = rest is not None
            if rest is not None:
                assert rest == b""
                to_connector += b"first frames"
        take = next(takes)
        if to_connector and not done_connector:
            chunk, to_connector = to_connector[:take], to_connector[take:]
            send, rest = connector.feed(chunk)
            to_acceptor += send
            if rest is not None:
                done_connector = True
                assert rest + to_connector == b"first frames"
    assert acceptor.preface is not None
    assert (acceptor.preface.association, acceptor.preface.link) == (ASSOCIATION, 7)


def test_what_comes_with_the_proof_is_handed_on() -> None:
    """Bytes right behind the proof are the link's first frames."""
    connector, acceptor = pair(EXPORTER)
    _, rest = acceptor.feed(connector.start() + b"more")
    assert rest == b"more"


@pytest.mark.parametrize("exporter", [None, EXPORTER], ids=["plain", "tls"])
@given(chunks=st.lists(st.binary(max_size=120), max_size=5), magic=st.booleans())
def test_garbage_raises_only_proof_errors(
    exporter: bytes | None, chunks: list[bytes], magic: bool
) -> None:
    """Whatever a stranger sends, the acceptor holds little, never admits and raises ProofError."""
    acceptor = LinkAcceptor(known, exporter)
    try:
        if magic:
            acceptor.feed(b"NP2D\x01\x00\x00" + ASSOCIATION)
        for chunk in chunks:
            _, rest = acceptor.feed(chunk)
            assert rest is None
            assert len(acceptor._held) < max(PREFACE_SIZE, PROOF_SIZE)
    except ProofError:
        pass


@pytest.mark.parametrize("exporter", [None, EXPORTER], ids=["plain", "tls"])
@given(chunks=st.lists(st.binary(max_size=90), max_size=4))
def test_a_false_server_raises_only_proof_errors(
    exporter: bytes | None, chunks: list[bytes]
) -> None:
    """The connector never takes a link from a server without the secret."""
    connector = LinkConnector(ASSOCIATION, SECRETS, 7, exporter)
    connector.start()
    try:
        for chunk in chunks:
            _, rest = connector.feed(chunk)
            assert rest is None
            assert len(connector._held) < PROOF_SIZE
    except ProofError:
        pass


def test_other_exporters_are_found_out() -> None:
    """Somebody between two TLS connections has two exporters and can't pass the proof on."""
    connector = LinkConnector(ASSOCIATION, SECRETS, 7, EXPORTER)
    with pytest.raises(ProofError, match="did not prove"):
        LinkAcceptor(known, b"x" * 32).feed(connector.start())


def test_a_recorded_opening_is_of_no_use() -> None:
    """On plain links the challenge is fresh, so that a replayed proof is wrong; so is a replayed
    answer, as the preface has a nonce."""
    connector, acceptor = pair(None)
    preface = connector.start()
    challenge, _ = acceptor.feed(preface)
    proof, _ = connector.feed(challenge)
    ready, _ = acceptor.feed(proof)

    again = LinkAcceptor(known, None)
    assert again.feed(preface)[0] != challenge
    with pytest.raises(ProofError):
        again.feed(proof)
    victim = LinkConnector(ASSOCIATION, SECRETS, 7, None)
    victim.start()
    with pytest.raises(ProofError):
        victim.feed(challenge + ready)


def test_a_reflected_proof_is_wrong() -> None:
    """A server that sends the client's own proof back has not proved itself."""
    connector = LinkConnector(ASSOCIATION, SECRETS, 7, EXPORTER)
    own = connector.start()[PREFACE_SIZE:]
    with pytest.raises(ProofError, match="server's end"):
        connector.feed(own)


def test_each_field_of_the_preface_is_covered() -> None:
    """A preface that was changed on its way does not pass, whichever byte it was."""
    connector = LinkConnector(ASSOCIATION, SECRETS, 7, EXPORTER)
    opening = connector.start()
    for at in range(PREFACE_SIZE):
        changed = bytearray(opening)
        changed[at] ^= 1
        with pytest.raises(ProofError):
            LinkAcceptor(known, EXPORTER).feed(bytes(changed))


def test_unknown_associations_fail_like_wrong_proofs() -> None:
    """Nothing tells a stranger which associations exist."""
    stranger = LinkConnector(b"b" * 16, SECRETS, 7, EXPORTER)
    wrong = LinkConnector(ASSOCIATION, Secrets(b"x" * 32, b"r" * 32), 7, EXPORTER)
    messages = set()
    for connector in (stranger, wrong):
        with pytest.raises(ProofError) as caught:
            LinkAcceptor(known, EXPORTER).feed(connector.start())
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_failed_proof_stays_failed() -> None:
    """More bytes do not mend it."""
    acceptor = LinkAcceptor(known, EXPORTER)
    good = LinkConnector(ASSOCIATION, SECRETS, 7, EXPORTER).start()
    with pytest.raises(ProofError):
        acceptor.feed(good[:PREFACE_SIZE] + b"\0" * PROOF_SIZE)
    with pytest.raises(ProofError):
        acceptor.feed(good[PREFACE_SIZE:])


def test_other_versions_are_named() -> None:
    """A preface of a later version is refused by both numbers."""
    raw = bytearray(LinkConnector(ASSOCIATION, SECRETS, 7, EXPORTER).start()[:PREFACE_SIZE])
    raw[4] = 9
    with pytest.raises(ProofError, match="version 9, this node speaks 1"):
        decode_preface(bytes(raw))


def test_sizes() -> None:
    """The sizes that the protocol's description gives."""
    assert (PREFACE_SIZE, CHALLENGE_SIZE, PROOF_SIZE) == (43, 32, 32)
