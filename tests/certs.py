"""A private certificate authority for tests, in files of a temporary directory."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

__all__ = ["Authority", "Leaf"]


class Leaf:
    """A certificate with its key, as the two PEM files that a server is given."""

    def __init__(self, crt: Path, key: Path, certificate: x509.Certificate) -> None:
        self.crt = str(crt)
        self.key = str(key)
        self.certificate = certificate

    @property
    def pin(self) -> bytes:
        """SHA-256 of the certificate's DER."""
        return self.certificate.fingerprint(hashes.SHA256())


class Authority:
    """A root, and what it signs. ``ca`` is the PEM path of the root."""

    def __init__(self, directory: str | Path, name: str = "test root") -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._key: CertificateIssuerPrivateKeyTypes = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._chain: list[x509.Certificate] = []
        now = datetime.now(timezone.utc)
        self.certificate = (
            _builder(self._name, self._name, self._key, now - timedelta(days=1), 3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        path = self._directory / f"{name.replace(' ', '-')}.pem"
        path.write_bytes(_pem(self.certificate))
        self.ca = str(path)

    def intermediate(self, name: str = "test intermediate") -> Authority:
        """An authority signed by this one; its leaves' files carry the chain up to the root."""
        lower = Authority(self._directory, name)
        now = datetime.now(timezone.utc)
        lower.certificate = (
            _builder(lower._name, self._name, lower._key, now - timedelta(days=1), 3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        lower._chain = [lower.certificate, *self._chain]
        return lower

    def leaf(
        self,
        *hosts: str,
        file: str = "server",
        days: int = 30,
        begin: datetime | None = None,
        rsa_bits: int = 0,
    ) -> Leaf:
        """Sign a server certificate and write ``<file>.crt`` and ``<file>.key``.

        :param hosts: DNS names and IP addresses it is for.
        :param days: lifetime; together with ``begin`` it makes expired and future ones.
        :param begin: from when it is valid; the default is an hour ago.
        """
        key: CertificateIssuerPrivateKeyTypes
        if rsa_bits:
            key = rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        begin = begin or datetime.now(timezone.utc) - timedelta(hours=1)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, file)])
        builder = _builder(subject, self._name, key, begin, days)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        crt = self._directory / f"{file}.crt"
        crt.write_bytes(b"".join(map(_pem, [certificate, *self._chain])))
        key_path = self._directory / f"{file}.key"
        key_path.write_bytes(private_pem(key))
        return Leaf(crt, key_path, certificate)

    def expired(self, *hosts: str, file: str = "expired") -> Leaf:
        """A certificate whose time ended yesterday."""
        begin = datetime.now(timezone.utc) - timedelta(days=31)
        return self.leaf(*hosts, file=file, days=30, begin=begin)


def private_pem(key: CertificateIssuerPrivateKeyTypes, password: bytes | None = None) -> bytes:
    """A private key as PEM, encrypted where a password is given."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificateIssuerPrivateKeyTypes,
    begin: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
