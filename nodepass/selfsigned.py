"""A certificate that signs itself, written out in DER.

It says nothing but its key: what counts is its digest, which the control link vouches for. With
``cryptography.x509`` it would be ten lines, and 2 MB of a server's memory for these 300 bytes.

Source: RFC 5280 section 4.1 (certificates), RFC 5915 section 3 (the private key), RFC 5480 section
2 (P-256), X.690 (DER).
"""

from __future__ import annotations

import os
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm

__all__ = ["certificate"]

_INTEGER, _BITS, _OCTETS, _OID, _UTF8 = 0x02, 0x03, 0x04, 0x06, 0x0C
_UTC_TIME, _GENERAL_TIME = 0x17, 0x18
_SEQUENCE, _SET, _EXPLICIT = 0x30, 0x31, 0xA0

#: Bytes of a serial number. A certificate needs one that no other of its issuer has.
SERIAL_SIZE = 16


def _der(tag: int, *parts: bytes) -> bytes:
    """One value, of those that it consists of."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        length = bytes([size])
    elif size < 0x100:
        length = bytes([0x81, size])
    else:
        length = b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def _integer(value: int) -> bytes:
    # One bit more than the number has, for its sign.
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


_P256 = _der(_OID, bytes.fromhex("2a8648ce3d030107"))
_EC_KEY = _der(_SEQUENCE, _der(_OID, bytes.fromhex("2a8648ce3d0201")), _P256)
_ECDSA_SHA256 = _der(_SEQUENCE, _der(_OID, bytes.fromhex("2a8648ce3d040302")))
_COMMON_NAME = _der(_OID, bytes.fromhex("550403"))


def _time(when: datetime) -> bytes:
    # The one form has two digits for the year, up to 2049, from when on the other is to be used.
    text = when.strftime("%Y%m%d%H%M%SZ").encode()
    return _der(_UTC_TIME, text[2:]) if when.year < 2050 else _der(_GENERAL_TIME, text)


class _Signed(ec.ECDSA):
    """ECDSA with SHA-256; what it derives from imports all ciphers to see whether it may be
    deterministic."""

    def __init__(self) -> None:
        pass

    @property
    def algorithm(self) -> HashAlgorithm:
        return SHA256()

    @property
    def deterministic_signing(self) -> bool:
        return False


def certificate(name: str, since: datetime, until: datetime) -> tuple[bytes, bytes]:
    """Make a key, ECDSA P-256, and a certificate for it that it has signed itself.

    :param since, until: when it is valid, in UTC.
    :returns: certificate and private key, in DER.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.private_numbers()
    public = numbers.public_numbers
    point = b"\x04" + public.x.to_bytes(32, "big") + public.y.to_bytes(32, "big")
    issuer = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME, _der(_UTF8, name.encode()))))
    to_sign = _der(
        _SEQUENCE,
        _der(_EXPLICIT, _integer(2)),  # version 3
        _integer(int.from_bytes(os.urandom(SERIAL_SIZE), "big")),
        _ECDSA_SHA256,
        issuer,
        _der(_SEQUENCE, _time(since), _time(until)),
        issuer,  # which is its subject too
        _der(_SEQUENCE, _EC_KEY, _der(_BITS, b"\0", point)),
    )
    signature = key.sign(to_sign, _Signed())
    private = numbers.private_value.to_bytes(32, "big")
    return (
        _der(_SEQUENCE, to_sign, _ECDSA_SHA256, _der(_BITS, b"\0", signature)),
        _der(_SEQUENCE, _integer(1), _der(_OCTETS, private), _der(_EXPLICIT, _P256)),
    )
