"""Which certificate of a master is the right one."""

from __future__ import annotations

import re

from attrs import frozen
from cryptography.hazmat.primitives import hashes
from OpenSSL import crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator

from nodepass.config import TLSLevel
from nodepass.errors import ConfigError, PeerError
from nodepass.logs import printable
from nodepass.tls import ClientTLS

from .address import APIAddress
from .errors import Untrusted

__all__ = ["Trust", "parse_fingerprint"]


@frozen(kw_only=True)
class Trust:
    """What is asked of a master's certificate: chain and name, unless said otherwise.

    :ivar ca: PEM path of roots to trust instead of the system's.
    :ivar fingerprint: SHA-256 of the one certificate that is right, 32 bytes, whatever its chain.
    :ivar insecure: any certificate will do.
    """

    ca: str | None = None
    fingerprint: bytes | None = None
    insecure: bool = False

    def check(self, address: APIAddress) -> None:
        """Make sure that there is a certificate to ask something of.

        :raises ConfigError: connections to ``address`` know no TLS.
        """
        if not address.tls and self != Trust():
            raise ConfigError(
                f"API address {address}: --ca, --fingerprint and --insecure are about TLS, "
                "which http and Unix sockets have not; write https, or leave them out"
            )

    def creator(self, host: str) -> IOpenSSLClientConnectionCreator:
        """Build what connections to ``host`` check.

        A refused certificate ends the connection with `Untrusted`.

        :raises ConfigError: ``host`` or ``ca`` can't be used.
        """
        return _MasterTLS(self, host).creator([b"http/1.1"])


class _MasterTLS(ClientTLS):
    """Checks as a tunnel's client does, in the words of a master's."""

    def __init__(self, trust: Trust, host: str) -> None:
        checked = trust.fingerprint is None and not trust.insecure
        super().__init__(TLSLevel.FILES if checked else None, host, trust.ca)
        self._host = host
        self._pin = trust.fingerprint

    def _check(
        self, certificate: crypto.X509, code: int, depth: int, ok: bool, pins: object
    ) -> None:
        seen = certificate.to_cryptography().fingerprint(hashes.SHA256())
        if self._pin is not None and depth == 0 and seen != self._pin:
            raise Untrusted(
                f"{self._host}: the certificate's SHA-256 is {seen.hex()}, not the one of "
                "--fingerprint: either the master made a new one at its start (tls=1 does), or "
                "somebody is in between"
            )
        try:
            super()._check(certificate, code, depth, ok, None)
        except PeerError as error:
            cure = f"--fingerprint {seen.hex()} trusts" if depth == 0 else "--fingerprint trusts"
            raise Untrusted(
                f"{self._host}: {error}; --ca FILE names the authority, {cure} this very "
                "certificate, --insecure trusts any"
            ) from None

    def _cure(self, code: int) -> str:
        return ""  # it has options of its own


def parse_fingerprint(text: str) -> bytes:
    """Read a SHA-256 as tools print it: 64 hex digits, colons and ``sha256:`` before it allowed.

    :raises ConfigError: it is none.
    """
    digits = re.sub(r"\Asha-?256[:=]|:", "", text.strip().lower())
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ConfigError(
            f"fingerprint {printable(text)}: accepted: the 64 hex digits of a SHA-256, as of "
            "openssl x509 -fingerprint -sha256"
        )
    return bytes.fromhex(digits)
