"""Certificates and keys: made in memory, or read from files with errors a user can act on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from OpenSSL import SSL, crypto

from nodepass import selfsigned
from nodepass.digests import sha256
from nodepass.errors import ConfigError
from nodepass.tlswords import openssl_words

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Identity", "load_identity", "read_certificates", "self_signed"]

#: Certificate and key files are a few kB; more than this is some other file.
MAX_PEM_BYTES = 1 << 20

#: An in-memory certificate lives as long as its process, which may run for years.
SELF_SIGNED_LIFETIME = timedelta(days=3650)

#: Clocks differ: a certificate made now must not be "not yet valid" on the other node.
CLOCK_SKEW = timedelta(days=1)


@frozen(kw_only=True)
class Identity:
    """A certificate chain and the private key of its leaf.

    :ivar chain: in DER, the leaf, then the intermediates that are sent along with it.
    :ivar key: the leaf's private key, in DER.
    :ivar not_after: when the leaf expires, in UTC (aware).
    """

    chain: tuple[bytes, ...]
    key: bytes = field(repr=False, eq=False)
    not_after: datetime

    @property
    def pin(self) -> bytes:
        """SHA-256 of the leaf's DER, 32 bytes."""
        return sha256(self.chain[0])

    @property
    def expired(self) -> bool:
        """Whether the leaf's time is over, so that clients with ``tls=2`` refuse it."""
        return self.not_after < datetime.now(timezone.utc)

    def install(self, context: SSL.Context) -> None:
        """Make a server's context, not yet in use, show this identity.

        :raises OpenSSL.SSL.Error: where OpenSSL finds it too weak.
        :raises OpenSSL.crypto.Error: where OpenSSL does not know its kind.
        """
        asn1 = crypto.FILETYPE_ASN1
        with warnings.catch_warnings():
            # It would rather have the objects of `cryptography`, of which it makes these again.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                _put(
                    context,
                    [crypto.load_certificate(asn1, der) for der in self.chain],
                    crypto.load_privatekey(asn1, self.key),
                )
            except TypeError:  # it does not take these any more
                from cryptography import x509
                from cryptography.hazmat.primitives.serialization import load_der_private_key

                chain = [x509.load_der_x509_certificate(der) for der in self.chain]
                _put(context, chain, load_der_private_key(self.key, None))
        context.check_privatekey()


def _put(context: SSL.Context, chain: Sequence[Any], key: Any) -> None:
    leaf, *intermediates = chain
    context.use_certificate(leaf)
    context.use_privatekey(key)
    for certificate in intermediates:
        context.add_extra_chain_cert(certificate)


def self_signed() -> Identity:
    """Make an identity that needs no authority: ECDSA P-256, signed by itself, in memory."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    until = now + SELF_SIGNED_LIFETIME
    certificate, key = selfsigned.certificate("nodepass", now - CLOCK_SKEW, until)
    return Identity(chain=(certificate,), key=key, not_after=until)


def load_identity(crt_path: str, key_path: str) -> Identity:
    """Read an identity from PEM files.

    An expired certificate is no error here, see :attr:`Identity.expired`.

    :param crt_path: the leaf's certificate, followed by its intermediates if there are any.
    :param key_path: the leaf's private key, without a passphrase.
    :raises ConfigError: naming the file and what is wrong with it.
    """
    # Not at the top: without files, as with tls=1, nothing is read or written in these forms.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    certificates = read_certificates("crt", crt_path)
    pem = _read("key", key_path)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ConfigError(
            f"key={key_path}: the key is encrypted; a private key without a passphrase is accepted"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"key={key_path}: not a usable private key; a private key in PEM form is accepted"
        ) from None
    if _spki(key.public_key()) != _spki(certificates[0].public_key()):
        raise ConfigError(
            f"key={key_path}: does not belong to the first certificate of crt={crt_path}"
        )
    der = serialization.Encoding.DER
    identity = Identity(
        chain=tuple(certificate.public_bytes(der) for certificate in certificates),
        key=key.private_bytes(der, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        not_after=certificates[0].not_valid_after_utc,
    )
    try:
        identity.install(SSL.Context(SSL.TLS_METHOD))
    except (SSL.Error, crypto.Error, TypeError, ValueError) as error:
        raise ConfigError(
            f"crt={crt_path}: not usable for TLS 1.3: {openssl_words(error)}"
        ) from None
    return identity


def _open_now(path: str, flags: int) -> int:
    """Open a file; a FIFO that nobody writes to reads as empty, rather than hang the node."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(parameter: str, path: str) -> bytes:
    """Read a PEM file, bounded."""
    try:
        with open(path, "rb", opener=_open_now) as file:
            data = file.read(MAX_PEM_BYTES + 1) or b""
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"{parameter}={path}: can't be read ({cause}); a readable PEM file is accepted"
        ) from None
    if len(data) > MAX_PEM_BYTES:
        raise ConfigError(f"{parameter}={path}: larger than 1 MiB; a PEM file is accepted")
    return data


def read_certificates(parameter: str, path: str) -> tuple[x509.Certificate, ...]:
    """Read every certificate of a PEM file, at least one.

    :param parameter: the URL parameter that gave the path, for the error.
    :raises ConfigError: naming the file and what is wrong with it.
    """
    from cryptography import x509  # as in `load_identity`
    from cryptography.exceptions import UnsupportedAlgorithm

    data = _read(parameter, path)
    try:
        certificates = x509.load_pem_x509_certificates(data)
        # Parsing is lazy: a key of an unknown kind shows only when it is asked for.
        certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{parameter}={path}: no usable certificate; certificates in PEM form are accepted"
        ) from None
    return tuple(certificates)


def _spki(key: Any) -> bytes:
    """The public key's DER, which is equal exactly for equal keys."""
    from cryptography.hazmat.primitives import serialization  # as in `load_identity`

    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
