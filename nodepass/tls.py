"""TLS between two nodes: what a server shows, what a client checks, and why one failed.

Only TLS 1.3 is spoken. A server has one :class:`Identity`, made at start (``tls=1``) or read
from files (``tls=2``), and :class:`ServerTLS` swaps it without touching connections that are
under way. A client decides in :class:`ClientTLS` how much of the server's certificate has to
be right: nothing, its chain and name (``tls=2``), or that it is exactly the certificate that an
earlier, authenticated link saw (pins).

The contexts are built on pyOpenSSL rather than on ``CertificateOptions`` because that offers no
way to go on without ALPN, to see which check of a chain failed, or to ask for a pin.
"""

from __future__ import annotations

import ipaddress
import ssl
import sys
import weakref
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import Any, cast

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.config import TLSLevel
from nodepass.errors import ConfigError, PeerError
from nodepass.logs import printable

__all__ = [
    "ClientTLS",
    "Identity",
    "ServerTLS",
    "exporter",
    "load_identity",
    "peer_pin",
    "self_signed",
    "server_context",
    "tls_reason",
]

#: Certificate and key files are a few kB; more than this is some other file.
MAX_PEM_BYTES = 1 << 20

#: An in-memory certificate lives as long as its process, which may run for years.
SELF_SIGNED_LIFETIME = timedelta(days=3650)

#: Clocks differ: a certificate made now must not be "not yet valid" on the other node.
CLOCK_SKEW = timedelta(days=1)

Pins = Callable[[], Collection[bytes]]


@frozen(kw_only=True)
class Identity:
    """A certificate chain and the private key of its leaf.

    :ivar certificates: the leaf, then the intermediates that are sent along with it.
    :ivar key: the leaf's private key.
    """

    certificates: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes = field(repr=False, eq=False)

    @property
    def pin(self) -> bytes:
        """SHA-256 of the leaf's DER, 32 bytes."""
        return self.certificates[0].fingerprint(hashes.SHA256())

    @property
    def not_after(self) -> datetime:
        """When the leaf expires, in UTC (aware)."""
        return self.certificates[0].not_valid_after_utc

    @property
    def expired(self) -> bool:
        """Whether the leaf's time is over, so that clients with ``tls=2`` refuse it."""
        return self.not_after < datetime.now(timezone.utc)


def self_signed() -> Identity:
    """Make an identity that needs no authority: ECDSA P-256, signed by itself, in memory."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nodepass")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + SELF_SIGNED_LIFETIME)
        .sign(key, hashes.SHA256())
    )
    return Identity(certificates=(certificate,), key=key)


def load_identity(crt_path: str, key_path: str) -> Identity:
    """Read an identity from PEM files.

    An expired certificate is no error here, see :attr:`Identity.expired`.

    :param crt_path: the leaf's certificate, followed by its intermediates if there are any.
    :param key_path: the leaf's private key, without a passphrase.
    :raises ConfigError: naming the file and what is wrong with it.
    """
    certificates = _certificates("crt", crt_path)
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
    identity = Identity(certificates=certificates, key=key)
    try:
        _server_ssl_context(identity, ())
    except (SSL.Error, TypeError, ValueError) as error:
        raise ConfigError(
            f"crt={crt_path}: not usable for TLS 1.3: {_openssl_text(error)}"
        ) from None
    return identity


def _read(parameter: str, path: str) -> bytes:
    """Read a PEM file, bounded."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"{parameter}={path}: can't be read ({cause}); a readable PEM file is accepted"
        ) from None
    if len(data) > MAX_PEM_BYTES:
        raise ConfigError(f"{parameter}={path}: larger than 1 MiB; a PEM file is accepted")
    return data


def _certificates(parameter: str, path: str) -> tuple[x509.Certificate, ...]:
    """Read every certificate of a PEM file, at least one."""
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
    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _base_context() -> SSL.Context:
    """What both ends have in common."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    # A resumed session skips the certificate, and with it the pins; links come back to the pool,
    # so that resumption would save little. OpenSSL still sends tickets, which nobody can redeem.
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle link gives its record buffers back, and most links are idle.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _server_ssl_context(identity: Identity, alpn: Sequence[bytes]) -> SSL.Context:
    known = frozenset(alpn)

    def select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in offered:
            if protocol in known:
                return protocol
        # The handshake goes on without ALPN: a stranger gets no answer that a plain web server
        # would not give, and the caller turns it away.
        return cast(bytes, SSL.NO_OVERLAPPING_PROTOCOLS)

    context = _base_context()
    leaf, *intermediates = identity.certificates
    context.use_certificate(cast(Any, leaf))
    context.use_privatekey(cast(Any, identity.key))
    for certificate in intermediates:
        context.add_extra_chain_cert(cast(Any, certificate))
    context.check_privatekey()
    context.set_alpn_select_callback(select)
    return context


@implementer(IOpenSSLServerConnectionCreator)
class _ServerCreator:
    """Makes the server end of connections from one context, which no longer changes."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._context, None)


def server_context(identity: Identity, alpn: Sequence[bytes]) -> IOpenSSLServerConnectionCreator:
    """Build what ``startTLS`` and ``TLSMemoryBIOFactory(isClient=False)`` want of a server.

    :param identity: what is shown to clients.
    :param alpn: protocols known here. Of a client's list the first known one is chosen; where none
        is known the handshake succeeds and ``negotiatedProtocol`` is ``None``.
    """
    return _ServerCreator(_server_ssl_context(identity, alpn))


class ServerTLS:
    """A server's identity over time.

    A reload is two steps, so that clients can be told the next pin before they meet it::

        identity = tls.prepare()
        if identity is not tls.identity:
            ...                         # announce identity.pin
            tls.commit(identity)

    Connections made before a commit keep the identity they began with.
    """

    def __init__(
        self,
        level: TLSLevel,
        alpn: Sequence[bytes],
        *,
        crt: str | None = None,
        key_file: str | None = None,
    ) -> None:
        """
        :param level: ``SELF_SIGNED`` or ``FILES``.
        :param alpn: protocols known here, see :func:`server_context`.
        :param crt: PEM path, needed at level ``FILES``.
        :param key_file: PEM path, needed at level ``FILES``.
        :raises ConfigError: where the files can't be used.
        """
        self._files: tuple[str, str] | None = None
        if level is TLSLevel.FILES:
            if crt is None or key_file is None:
                raise ConfigError("tls=2 needs both crt= and key=, the paths of PEM files")
            self._files = (crt, key_file)
        self._alpn = tuple(alpn)
        self._identity = self_signed() if self._files is None else load_identity(*self._files)
        self._creator = server_context(self._identity, self._alpn)

    @property
    def identity(self) -> Identity:
        """What new connections are shown."""
        return self._identity

    def context_factory(self) -> IOpenSSLServerConnectionCreator:
        """For one new connection: ask again for the next, the identity may have changed."""
        return self._creator

    def prepare(self) -> Identity:
        """Read the files again; the present identity itself where nothing has changed.

        :raises ConfigError: where they can't be used; the present identity stays.
        """
        if self._files is None:
            return self._identity
        fresh = load_identity(*self._files)
        return self._identity if fresh == self._identity else fresh

    def commit(self, identity: Identity) -> None:
        """Show ``identity`` to connections made from now on."""
        if identity is not self._identity:
            # OpenSSL contexts must not change after first use: the old one ends with its last
            # connection.
            self._creator = server_context(identity, self._alpn)
            self._identity = identity

    def reload(self) -> bool:
        """Read the files again and use them at once; whether anything changed.

        :raises ConfigError: where they can't be used; the present identity stays.
        """
        before = self._identity
        self.commit(self.prepare())
        return self._identity is not before


class ClientTLS:
    """What a client asks of the server's certificate. One context serves all connections."""

    def __init__(self, level: TLSLevel | None, host: str, ca: str | None = None) -> None:
        """
        :param level: ``FILES`` checks chain and name; below that, and with ``None``, no authority
            is asked.
        :param host: the server as the URL names it, a host name or an IP literal. Empty or a
            wildcard, which dial this host, stand for ``localhost``.
        :param ca: PEM path of roots to trust instead of the system's, at level ``FILES``.
        :raises ConfigError: where the name or ``ca`` can't be used.
        """
        self._verify = level is TLSLevel.FILES
        self._address, self._name = _server_name(host)
        self._ca = ca if self._verify else None
        self._context = self._build()

    def _build(self) -> SSL.Context:
        context = _base_context()
        if self._ca is not None:
            store = context.get_cert_store()
            for certificate in _certificates("ca", self._ca):
                store.add_cert(crypto.X509.from_cryptography(certificate))
        elif self._verify:
            _trust_system(context)
        return context

    def reload(self) -> None:
        """Read ``ca`` again for connections made from now on.

        :raises ConfigError: where it can't be used; what was trusted before stays trusted.
        """
        if self._ca is not None:
            self._context = self._build()

    def creator(
        self, alpn: Sequence[bytes], pins: Pins | None = None
    ) -> IOpenSSLClientConnectionCreator:
        """Build what ``startTLS`` and ``TLSMemoryBIOFactory(isClient=True)`` want of a client.

        A refused certificate ends the connection with a :exc:`PeerError` that says why.

        :param alpn: protocols offered, the preferred one first.
        :param pins: asked at every handshake for the SHA-256 digests of the certificates that are
            right; ``None`` admits every certificate that passes the level's checks.
        """
        return _ClientCreator(self, tuple(alpn), pins)

    def connection(
        self, protocol: TLSMemoryBIOProtocol, alpn: tuple[bytes, ...], pins: Pins | None
    ) -> SSL.Connection:
        """Make the client end of one connection."""
        connection = SSL.Connection(self._context, None)
        if alpn:
            connection.set_alpn_protos(list(alpn))
        if self._address is None:
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        weak = weakref.ref(protocol)

        def verify(_: SSL.Connection, cert: crypto.X509, code: int, depth: int, ok: int) -> bool:
            # OpenSSL calls this for each certificate of the chain, for each error, and in the end
            # for the leaf (depth 0), whatever became of the others. An exception would be lost in
            # a callback from C, hence the wide net; it ends the handshake.
            try:
                self._check(cert, code, depth, bool(ok), pins)
            except Exception:
                live = weak()
                if live is not None:
                    live.failVerification(Failure())
                return False
            return True

        connection.set_verify(SSL.VERIFY_PEER, verify)
        return connection

    def _check(
        self, certificate: crypto.X509, code: int, depth: int, ok: bool, pins: Pins | None
    ) -> None:
        """Judge one certificate of a chain; raise PeerError to refuse it."""
        if self._verify and not ok:
            raise PeerError(_chain_reason(certificate.to_cryptography(), code))
        if depth != 0:
            return
        leaf = certificate.to_cryptography()
        if self._verify:
            self._check_name(leaf)
        if pins is not None and leaf.fingerprint(hashes.SHA256()) not in pins():
            raise PeerError(
                "certificate is not the one that the control link vouched for: either the server "
                "changed it or somebody is in between"
            )

    def _check_name(self, leaf: x509.Certificate) -> None:
        try:
            if self._address is not None:
                verify_certificate_ip_address(leaf, self._address)
            else:
                verify_certificate_hostname(leaf, self._name)
        except (VerificationError, CertificateError, ValueError):
            wanted = self._address or self._name
            raise PeerError(f"certificate is for {_subjects(leaf)}, not {wanted}") from None


@implementer(IOpenSSLClientConnectionCreator)
class _ClientCreator:
    """One :class:`ClientTLS` with the ALPN list and the pins of one kind of link."""

    def __init__(self, tls: ClientTLS, alpn: tuple[bytes, ...], pins: Pins | None) -> None:
        self._tls = tls
        self._alpn = alpn
        self._pins = pins

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return self._tls.connection(tlsProtocol, self._alpn, self._pins)


def _server_name(host: str) -> tuple[str | None, str]:
    """Split a host into (IP literal or None, DNS name in ASCII)."""
    try:
        # A scope ("fe80::1%eth0") is this host's affair and never part of a certificate.
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return (None, "localhost") if address.is_unspecified else (str(address), "")
    name = host.rstrip(".") or "localhost"
    if not name.isascii():
        try:
            # As Python's getaddrinfo does, so that the name asked for is the one dialed.
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise ConfigError(
                f"tunnel host {host!r} is no host name; a name or an IP address is accepted"
            ) from None
    return None, name.lower()


def _trust_system(context: SSL.Context) -> None:
    """Trust the operating system's roots, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    context.set_default_verify_paths()
    if sys.platform in ("win32", "darwin"):
        # OpenSSL as shipped with `cryptography` has no default paths there; Python's has.
        store = context.get_cert_store()
        for der in ssl.create_default_context().get_ca_certs(binary_form=True):
            store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)))


#: OpenSSL's X509_V_ERR_* codes that users meet; X509_verify_cert_error_string(3).
_CHAIN_ERRORS = {
    2: "its issuer is unknown",
    7: "not signed by the authority that it names",
    18: "self-signed",
    19: "a root that is not among the trusted ones",
    20: "its issuer is unknown",
    21: "its issuer is unknown",
    23: "revoked",
    24: "its issuer is no authority",
    26: "not made for servers",
    66: "its key is too weak",
    67: "its issuer's key is too weak",
    68: "its signature is too weak",
}


def _chain_reason(certificate: x509.Certificate, code: int) -> str:
    if code == 10:
        return f"certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if code == 9:
        return f"certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    cause = _CHAIN_ERRORS.get(code, f"OpenSSL verification error {code}")
    return f"certificate is not trusted: {cause}"


def _subjects(leaf: x509.Certificate) -> str:
    """The names a certificate is for, as a peer gave them: bounded and escaped."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [
            *names.get_values_for_type(x509.DNSName),
            *map(str, names.get_values_for_type(x509.IPAddress)),
        ]
    except (x509.ExtensionNotFound, ValueError):
        found = []
    return printable(", ".join(found)) if found else "no host"


def tls_reason(failure: Failure) -> str:
    """Say in one line why a TLS connection failed.

    :param failure: what ``connectionLost`` or a connect Deferred got.
    """
    error = failure.value
    if isinstance(error, SSL.Error):
        return _openssl_text(error)
    if isinstance(error, ConnectionClosed):
        return "the other end closed the connection during the handshake"
    return str(error) or type(error).__name__


#: Part of OpenSSL's text -> what it means to a user. The first that fits counts.
_OPENSSL_TEXTS = (
    ("alert protocol version", "the other end does not speak TLS 1.3"),
    ("unsupported protocol", "the other end does not speak TLS 1.3"),
    ("version too low", "the other end does not speak TLS 1.3"),
    ("wrong version number", "the other end does not speak TLS"),
    ("packet length too long", "the other end does not speak TLS"),
    ("http request", "the other end does not speak TLS"),
    ("record layer failure", "the other end does not speak TLS"),
    ("alert unknown ca", "the other end does not trust this certificate"),
    ("alert bad certificate", "the other end refused this certificate"),
    ("alert certificate unknown", "the other end refused this certificate"),
    ("alert certificate expired", "the other end refused this certificate: expired"),
)


def _openssl_text(error: Exception) -> str:
    """The last entry of OpenSSL's error queue, in words."""
    queue = error.args[0] if error.args else ()
    if not isinstance(queue, (list, tuple)) or not queue:
        return str(error) or type(error).__name__
    text = str(queue[-1][-1])
    for part, meaning in _OPENSSL_TEXTS:
        if part in text:
            return meaning
    return f"TLS error: {text}"


def exporter(transport: Any, label: bytes, length: int = 32) -> bytes:
    """Keying material that only the two ends of this very connection have.

    :param transport: the Twisted TLS transport, after its handshake.
    :param label: says what the material is for; both ends give the same.
    :param length: bytes wanted.
    :raises OpenSSL.SSL.Error: before the handshake is over.

    Source: RFC 8446 section 7.5 (RFC 5705), without a context.
    """
    return bytes(transport.getHandle().export_keying_material(label, length))


def peer_pin(transport: Any) -> bytes:
    """SHA-256 of the DER of the certificate that the peer showed, 32 bytes.

    :param transport: the Twisted TLS transport of a client, after its handshake.
    :raises PeerError: where the peer showed none.
    """
    certificate = transport.getHandle().get_peer_certificate()
    if certificate is None:
        raise PeerError("the other end showed no certificate")
    der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    return sha256(der).digest()
