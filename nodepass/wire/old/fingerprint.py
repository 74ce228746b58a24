"""How 1.14 and 2.0 write the SHA-256 of a certificate in a verify. No I/O."""

from __future__ import annotations

from .dialect import Dialect

__all__ = ["fingerprint"]

_PREFIX = "sha256:"


def fingerprint(digest: bytes, dialect: Dialect) -> str:
    """A digest as nodes of that dialect write it: they compare text.

    :param digest: SHA-256 of the certificate's DER.
    """
    if dialect.traits.colons:
        return _PREFIX + digest.hex(":").upper()
    return _PREFIX + digest.hex()
