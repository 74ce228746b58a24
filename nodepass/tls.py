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
import sys
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from nodepass.config import TLSLevel
from nodepass.digests import sha256
from nodepass.errors import ConfigError, PeerError
from nodepass.identity import Identity, load_identity, read_certificates, self_signed
from nodepass.tlswords import chain_cure, chain_words, subjects, tls_reason

if TYPE_CHECKING:
    from cryptography import x509

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

Pins = Callable[[], Collection[bytes]]


def _base_context() -> SSL.Context:
    """What both ends have in common."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    # A resumed session skips the certificate, and with it the pins; links come back to the pool,
    # so that resumption would save little. OpenSSL still sends tickets, which nobody can redeem.
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle link gives its record buffers back, and most links are idle: both ends of one take
    # some 65 kB rather than 105 kB (measured in one process with OpenSSL 4.0). 15 kB of it are the
    # keys of the hybrid key exchange (X25519MLKEM768), which OpenSSL keeps: its worth is greater.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


@cache
def _unverified_context() -> SSL.Context:
    """The context of all clients that ask no authority: nothing in it is theirs alone, and one
    takes 15 kB."""
    return _base_context()


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
    known = frozenset(alpn)

    def select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in offered:
            if protocol in known:
                return protocol
        # A stranger gets no answer that a plain web server would not give; the caller turns it
        # away after the handshake.
        return cast(bytes, SSL.NO_OVERLAPPING_PROTOCOLS)

    context = _base_context()
    identity.install(context)
    context.set_alpn_select_callback(select)
    return _ServerCreator(context)


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
        if not self._verify:
            return _unverified_context()
        context = _base_context()
        if self._ca is not None:
            store = cast(crypto.X509Store, context.get_cert_store())
            for certificate in read_certificates("ca", self._ca):
                store.add_cert(crypto.X509.from_cryptography(certificate))
        else:
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
                    # Not failVerification, which hangs up before the server has the alert, and so
                    # a reason for its log.
                    live._reason = Failure()
                return False
            return True

        connection.set_verify(SSL.VERIFY_PEER, verify)
        return connection

    def _check(
        self, certificate: crypto.X509, code: int, depth: int, ok: bool, pins: Pins | None
    ) -> None:
        """Judge one certificate of a chain; raise PeerError to refuse it."""
        if self._verify and not ok:
            words = chain_words(certificate.to_cryptography(), code)
            cure = self._cure(code)
            raise PeerError(f"{words}; {cure}" if cure else words)
        if depth != 0:
            return
        if self._verify:
            self._check_name(certificate.to_cryptography())
        if pins is not None and _pin(certificate) not in pins():
            raise PeerError(
                "certificate is not the one that the control link vouched for: either the server "
                "changed it or somebody is in between"
            )

    def _cure(self, code: int) -> str:
        """What may mend a chain that OpenSSL refuses; empty where nothing here would."""
        return chain_cure(code)

    def _check_name(self, leaf: x509.Certificate) -> None:
        # Not at the top: only tls=2 asks for names.
        from service_identity import CertificateError, VerificationError
        from service_identity.cryptography import (
            verify_certificate_hostname,
            verify_certificate_ip_address,
        )

        try:
            if self._address is not None:
                verify_certificate_ip_address(leaf, self._address)
            else:
                verify_certificate_hostname(leaf, self._name)
        except (VerificationError, CertificateError, ValueError):
            wanted = self._address or self._name
            raise PeerError(
                f"certificate is for {subjects(leaf)}, not {wanted}; write in the URL what it is "
                "for, or give the server another"
            ) from None


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
        import ssl  # not at the top: elsewhere they are of no use

        from cryptography import x509

        store = cast(crypto.X509Store, context.get_cert_store())
        for der in ssl.create_default_context().get_ca_certs(binary_form=True):
            store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)))


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
    return _pin(certificate)


def _pin(certificate: crypto.X509) -> bytes:
    return sha256(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
