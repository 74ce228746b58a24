"""SHA-256 and its HMAC, from the OpenSSL that TLS brings anyway.

``hashlib`` and ``hmac`` load the system's OpenSSL beside it, for the same two functions: 4 MB at
the two ends of a tunnel.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.hmac import HMAC

__all__ = ["hmac_sha256", "is_hmac_sha256", "sha256"]


def sha256(data: bytes) -> bytes:
    """The SHA-256 of some bytes, 32 bytes."""
    running = Hash(SHA256())
    running.update(data)
    return running.finalize()


def _hmac(key: bytes, data: bytes) -> HMAC:
    running = HMAC(key, SHA256())
    running.update(data)
    return running


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """The HMAC-SHA-256 of some bytes under a key, 32 bytes."""
    return _hmac(key, data).finalize()


def is_hmac_sha256(claimed: bytes, key: bytes, data: bytes) -> bool:
    """Whether that is the HMAC of these bytes; takes as long whichever of its bytes are wrong."""
    try:
        _hmac(key, data).verify(claimed)
    except InvalidSignature:
        return False
    return True
