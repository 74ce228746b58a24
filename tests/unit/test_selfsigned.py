"""The certificate that is written out by hand, read by those who know them all."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import crypto

from nodepass import selfsigned

SINCE = datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
# Each way to write a year: with two digits, and with four.
UNTIL = (
    datetime(2036, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
    datetime(2050, 1, 1, tzinfo=timezone.utc),
)


@pytest.mark.parametrize("until", UNTIL)
def test_what_it_says(until: datetime) -> None:
    """Names, times and key are those asked for, and it has signed itself."""
    der, _ = selfsigned.certificate("a name", SINCE, until)
    read = x509.load_der_x509_certificate(der)
    named = [(attribute.oid, attribute.value) for attribute in read.subject]
    assert named == [(x509.NameOID.COMMON_NAME, "a name")]
    assert read.version is x509.Version.v3
    assert (read.not_valid_before_utc, read.not_valid_after_utc) == (SINCE, until)
    key = read.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    # The name of its issuer, too, and the signature.
    read.verify_directly_issued_by(read)
    assert list(read.extensions) == []


def test_as_it_should_be_written() -> None:
    """Its bytes are what a library makes of the same content: there is one way to write it."""
    der, _ = selfsigned.certificate("nodepass", *(SINCE, UNTIL[0]))
    read = x509.load_der_x509_certificate(der)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nodepass")])
    again = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(read.public_key())
        .serial_number(read.serial_number)
        .not_valid_before(read.not_valid_before_utc)
        .not_valid_after(read.not_valid_after_utc)
        .sign(ec.generate_private_key(ec.SECP256R1()), read.signature_hash_algorithm)
    )
    assert again.tbs_certificate_bytes == read.tbs_certificate_bytes


def test_its_key() -> None:
    """The private key is that of the certificate, for whichever library reads it."""
    der, private = selfsigned.certificate("nodepass", SINCE, UNTIL[0])
    public = x509.load_der_x509_certificate(der).public_key()
    key = serialization.load_der_private_key(private, None)
    assert key.public_key() == public
    by_openssl = crypto.load_privatekey(crypto.FILETYPE_ASN1, private)
    assert by_openssl.to_cryptography_key().public_key() == public


def test_always_another() -> None:
    """Each has a key and a number of its own, and short numbers are written as they should be."""
    made = [selfsigned.certificate("nodepass", SINCE, UNTIL[0]) for _ in range(64)]
    assert len({private for _, private in made}) == len(made)
    numbers = {x509.load_der_x509_certificate(der).serial_number for der, _ in made}
    assert len(numbers) == len(made)
    assert 0 < min(numbers)
    assert max(numbers) < 1 << 128
