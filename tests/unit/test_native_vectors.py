"""Recorded handshakes and data-link openings, byte for byte.

`vectors/native.json` is for those who write a peer of their own: with the inputs that it gives,
each message and each secret must come out as it says. After a wanted change of the protocol

    python -m tests.unit.test_native_vectors

writes it anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B

from nodepass.wire.native.handshake import (
    CONTROL_EXPORTER,
    ClientHandshake,
    Secrets,
    ServerHandshake,
)
from nodepass.wire.native.messages import Answer, Hello, decode, encode, expect
from nodepass.wire.native.proof import LINK_EXPORTER, LinkAcceptor, LinkConnector

FILE = Path(__file__).parent / "vectors" / "native.json"

KEY = "correct horse battery staple"
NODE = bytes(range(16))
PIN = hashlib.sha256(b"a certificate").digest()
CONTROL_BINDING = hashlib.sha256(b"exporter of a control link").digest()
LINK_BINDING = hashlib.sha256(b"exporter of a data link").digest()


class Drawn:
    """Randomness that is the same each time, and a record of what was drawn."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.draws: list[str] = []

    def __call__(self, size: int) -> bytes:
        seed = f"{self._name} {len(self.draws)}".encode()
        drawn = hashlib.shake_256(seed).digest(size)
        self.draws.append(drawn.hex())
        return drawn


def handshake(
    key: str | None, coming_back: tuple[bytes, Secrets] | None, name: str
) -> tuple[dict[str, Any], bytes, Secrets]:
    """One handshake between this node's own two ends."""
    raw_key = None if key is None else key.encode()
    client_draws, server_draws = Drawn(f"{name} client"), Drawn(f"{name} server")
    hello = Hello(versions=b"\x01", node=NODE, level=1, minimum=8, nonce=b"")
    client = ClientHandshake(raw_key, hello, coming_back, client_draws)
    server = ServerHandshake(
        raw_key,
        lambda name: coming_back[1] if coming_back and name == coming_back[0] else None,
        server_draws,
    )
    said = expect(Hello, decode(client.hello[2:]))
    server.check(said)
    reply = Answer(version=0, flow=ord("-"), tls=1, maximum=1024, nonce=b"")
    answer = server.answer(said, client.hello, CONTROL_BINDING, reply)
    confirm = client.answered(expect(Answer, decode(answer[2:])), answer, CONTROL_BINDING)
    welcome, at_server = server.confirmed(confirm, PIN)
    at_client = client.welcomed(welcome)
    assert at_client == at_server
    record = {
        "key": key,
        "exporter label": CONTROL_EXPORTER.decode(),
        "exporter": CONTROL_BINDING.hex(),
        "client random": client_draws.draws,
        "server random": server_draws.draws,
        "hello": client.hello.hex(),
        "answer": answer.hex(),
        **derived(key, coming_back, client_draws, server_draws, client.hello, answer),
        "confirm": encode(confirm).hex(),
        "welcome": encode(welcome).hex(),
        "association": welcome.association.hex(),
        "link secret": at_client.link.hex(),
        "rejoin secret": at_client.rejoin.hex(),
    }
    return record, welcome.association, at_client


def derived(
    key: str | None,
    coming_back: tuple[bytes, Secrets] | None,
    client_draws: Drawn,
    server_draws: Drawn,
    hello: bytes,
    answer: bytes,
) -> dict[str, str]:
    """What lies between the messages, computed by the protocol's description alone."""
    if coming_back is not None:
        secret = coming_back[1].rejoin
    elif key is None:
        secret = bytes(32)
    else:
        ids = {"idA": b"nodepass2 client", "idB": b"nodepass2 server"}
        one = SPAKE2_A(key.encode(), entropy_f=_replay(client_draws), **ids)
        two = SPAKE2_B(key.encode(), entropy_f=_replay(server_draws), **ids)
        one.start()
        secret = one.finish(two.start())
    parts = (CONTROL_BINDING, hello, answer)
    transcript = hashlib.sha256(
        b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    ).digest()

    def expand(label: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=transcript, info=b"nodepass2 " + label).derive(secret)

    client_key, server_key = expand(b"client proof"), expand(b"server proof")
    return {
        "secret": secret.hex(),
        "transcript": transcript.hex(),
        "client proof key": client_key.hex(),
        "server proof key": server_key.hex(),
        "client proof": mac(client_key, b"client", transcript).hex(),
    }


def mac(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256."""
    return hmac.digest(key, b"".join(parts), "sha256")


def _replay(drawn: Drawn) -> Callable[[int], bytes]:
    draws = iter(drawn.draws)
    return lambda _: bytes.fromhex(next(draws))


def opening(association: bytes, secrets: Secrets, exporter: bytes | None) -> dict[str, Any]:
    """One data link's opening between this node's own two ends."""
    name = "plain" if exporter is None else "tls"
    client_draws, server_draws = Drawn(f"{name} link client"), Drawn(f"{name} link server")
    connector = LinkConnector(association, secrets, 7, exporter, client_draws)
    acceptor = LinkAcceptor(lambda _: secrets, exporter, server_draws)
    first = connector.start()
    record: dict[str, Any] = {
        "association": association.hex(),
        "link secret": secrets.link.hex(),
        "link": 7,
        "client random": client_draws.draws,
        "server random": server_draws.draws,
    }
    if exporter is not None:
        record["exporter label"] = LINK_EXPORTER.decode()
        record["exporter"] = exporter.hex()
    record["preface"] = first[:43].hex()
    if exporter is None:
        challenge, _ = acceptor.feed(first)
        proof, _ = connector.feed(challenge)
        record["challenge"] = challenge.hex()
        ready, rest = acceptor.feed(proof)
    else:
        proof = first[43:]
        ready, rest = acceptor.feed(first)
    record["proof"] = proof.hex()
    record["ready"] = ready.hex()
    assert rest == b""
    assert connector.feed(ready) == (b"", b"")
    return record


def everything() -> dict[str, Any]:
    """All that the file holds."""
    with_key, association, secrets = handshake(KEY, None, "with a key")
    again, _, after = handshake(KEY, (association, secrets), "coming back")
    assert after == secrets
    without, _, _ = handshake(None, None, "without a key")
    return {
        "handshake with a key": with_key,
        "handshake of a client that comes back": again,
        "handshake without a key": without,
        "data link on TLS": opening(association, secrets, LINK_BINDING),
        "plain data link": opening(association, secrets, None),
    }


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The file."""
    loaded: dict[str, Any] = json.loads(FILE.read_text("ascii"))
    return loaded


@pytest.mark.parametrize("case", everything())
def test_nothing_has_changed(recorded: dict[str, Any], case: str) -> None:
    """This node sends and derives what is on record: nodes of other versions depend on it."""
    assert everything()[case] == recorded[case]


def test_the_record_is_whole(recorded: dict[str, Any]) -> None:
    """The file has these cases and no others, in this order."""
    assert list(recorded) == list(everything())


def test_the_proofs_follow_from_the_record_alone(recorded: dict[str, Any]) -> None:
    """Somebody who has only the file can compute each proof in it."""
    for case, record in recorded.items():
        if "handshake" not in case:
            continue
        transcript = bytes.fromhex(record["transcript"])
        client = mac(bytes.fromhex(record["client proof key"]), b"client", transcript)
        association = bytes.fromhex(record["association"])
        server = mac(
            bytes.fromhex(record["server proof key"]), b"server", transcript, association, PIN
        )
        assert record["confirm"].endswith(client.hex())
        assert server.hex() in record["welcome"]

    for case in ("data link on TLS", "plain data link"):
        record = recorded[case]
        secret, preface = bytes.fromhex(record["link secret"]), bytes.fromhex(record["preface"])
        binding = bytes.fromhex(record.get("exporter") or record["challenge"])
        assert mac(secret, b"client", binding, preface).hex() == record["proof"]
        assert mac(secret, b"server", binding, preface).hex() == record["ready"]


def test_the_secrets_differ(recorded: dict[str, Any]) -> None:
    """No secret serves two purposes, and no two handshakes share one."""
    names = ("client proof key", "server proof key", "link secret", "rejoin secret")
    first, _, keyless = (r for case, r in recorded.items() if "handshake" in case)
    values = [record[name] for record in (first, keyless) for name in names]
    assert len(set(values)) == len(values)


if __name__ == "__main__":
    FILE.write_text(json.dumps(everything(), indent=2) + "\n", "ascii")
