"""The protocol's page is enough to write a peer: a handshake from it, with the standard library."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

VECTORS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "native.json").read_text(encoding="utf-8")
)
PAGE = (Path(__file__).parents[2] / "doc" / "protocol.rst").read_text(encoding="utf-8")

Point = tuple[int, int]

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869."""
    extracted = mac(salt or bytes(32), secret)
    out = block = b""
    while len(out) < size:
        block = mac(extracted, block + info + bytes([len(out) // 32 + 1]))
        out += block
    return out[:size]


def add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    k = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P


def times(number: int, point: Point) -> Point:
    result = (0, 1)
    while number:
        if number & 1:
            result = add(result, point)
        point = add(point, point)
        number >>= 1
    return result


def minus(point: Point) -> Point:
    return P - point[0], point[1]


def even_x(y: int) -> int | None:
    """The even x of a y, None where the curve has no such point."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return x if x % 2 == 0 else P - x


def compress(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def first_point(y: int) -> Point:
    """The first point with this y or one above it."""
    x = even_x(y)
    return first_point((y + 1) % P) if x is None else (x, y)


def from_seed(seed: bytes) -> Point:
    return times(8, first_point(big(hkdf(seed, b"", b"SPAKE2 arbitrary element", 48)) % P))


def big(data: bytes) -> int:
    return int.from_bytes(data, "big")


B = first_point(4 * pow(5, -1, P) % P)
M, N = from_seed(b"M"), from_seed(b"N")


def test_the_points_follow_from_their_seeds() -> None:
    """M and N as the page prints them are what its rule makes of their seeds."""
    assert f"M   {compress(M).hex()}" in PAGE
    assert f"N   {compress(N).hex()}" in PAGE


def test_the_pake_as_specified_gives_the_recorded_secret() -> None:
    """Shares and result by the page's formulas are those of a recorded handshake, at both ends."""
    vector = VECTORS["handshake with a key"]
    key = vector["key"].encode()
    w = big(hkdf(key, b"", b"SPAKE2 pw", 48)) % L
    x = big(bytes.fromhex(vector["client random"][0])) % L
    y = big(bytes.fromhex(vector["server random"][0])) % L
    one, two = add(times(x, B), times(w, M)), add(times(y, B), times(w, N))
    assert (b"A" + compress(one)).hex() in vector["hello"]
    assert (b"B" + compress(two)).hex() in vector["answer"]
    shared = times(x, add(two, minus(times(w, N))))
    assert shared == times(y, add(one, minus(times(w, M))))
    names = sha256(b"nodepass2 client") + sha256(b"nodepass2 server")
    result = sha256(sha256(key) + names + b"".join(map(compress, (one, two, shared))))
    assert result.hex() == vector["secret"]


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("handshake")])
def test_the_proofs_as_specified_are_the_recorded_ones(name: str) -> None:
    """Transcript, keys and proofs by the page's formulas are those of each recorded handshake."""
    vector = VECTORS[name]
    parts = [bytes.fromhex(vector[part]) for part in ("exporter", "hello", "answer")]
    transcript = sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    assert transcript.hex() == vector["transcript"]

    def key(label: bytes) -> bytes:
        return hkdf(bytes.fromhex(vector["secret"]), transcript, b"nodepass2 " + label, 32)

    assert mac(key(b"client proof"), b"client" + transcript).hex() == vector["client proof"]
    welcome = bytes.fromhex(vector["welcome"])
    proof, association, pin = welcome[6:38], welcome[41:57], welcome[60:92]
    assert mac(key(b"server proof"), b"server" + transcript + association + pin) == proof
    if "comes back" not in name:
        assert key(b"data links").hex() == vector["link secret"]
        assert key(b"rejoin").hex() == vector["rejoin secret"]


@pytest.mark.parametrize("name", ["data link on TLS", "plain data link"])
def test_data_links_as_specified_are_the_recorded_ones(name: str) -> None:
    """Preface, proof and ready by the page's formulas are those of the recorded openings."""
    vector = {
        key: bytes.fromhex(value) if isinstance(value, str) and key != "exporter label" else value
        for key, value in VECTORS[name].items()
    }
    link = int(vector["link"]).to_bytes(4, "big")
    nonce = bytes.fromhex(VECTORS[name]["client random"][0])
    preface = b"NP2D\x01\0\0" + vector["association"] + link + nonce
    assert preface == vector["preface"]
    binding = vector.get("exporter", vector.get("challenge"))
    secret = vector["link secret"]
    assert mac(secret, b"client" + binding + preface) == vector["proof"]
    assert mac(secret, b"server" + binding + preface) == vector["ready"]
