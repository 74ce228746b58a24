"""SHA-256 and HMAC from the library that TLS has."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from nodepass.digests import hmac_sha256, is_hmac_sha256, sha256


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5])
@pytest.mark.parametrize("key", [b"", b"k", b"k" * 200])
def test_the_same_as_the_standard_library(key: bytes, data: bytes) -> None:
    """Digests and proofs are what everybody else makes of the same bytes."""
    assert sha256(data) == hashlib.sha256(data).digest()
    assert hmac_sha256(key, data) == hmac.new(key, data, hashlib.sha256).digest()


def test_a_proof() -> None:
    """The proof of exactly these bytes under exactly this key is right, and nothing else is."""
    proof = hmac_sha256(b"key", b"data")
    assert is_hmac_sha256(proof, b"key", b"data")
    assert not is_hmac_sha256(proof, b"kez", b"data")
    assert not is_hmac_sha256(proof, b"key", b"date")
    for wrong in (b"", proof[:-1], proof + b"\0", bytes([proof[0] ^ 1]) + proof[1:]):
        assert not is_hmac_sha256(wrong, b"key", b"data")
