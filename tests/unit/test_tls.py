"""TLS between two ends in memory: identities, checks, pins, ALPN, key export, reload."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL, crypto
from twisted.internet.error import ConnectionLost, DNSLookupError
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from nodepass.config import TLSLevel
from nodepass.errors import ConfigError, PeerError
from nodepass.tls import (
    ClientTLS,
    Identity,
    ServerTLS,
    exporter,
    load_identity,
    peer_pin,
    self_signed,
    server_context,
    tls_reason,
)
from tests.certs import Authority, private_pem

ALPN = [b"nodepass2", b"nodepass2-data"]
CURE = "write in the URL what it is for, or give the server another"
UNKNOWN = (
    "certificate is not trusted: its issuer is unknown; name the file of its authority in ca=, or "
    "let the server's crt= hold the chain"
)


class Recorder(Protocol):
    """Keeps what it got and why it was lost."""

    def __init__(self) -> None:
        self.received = b""
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.reason = reason


class Pair:
    """A client and a server, joined in memory, with the handshake behind them."""

    def __init__(
        self,
        client: IOpenSSLClientConnectionCreator,
        server: IOpenSSLServerConnectionCreator,
    ) -> None:
        self.clock = Clock()
        self.client = Recorder()
        self.server = Recorder()
        client_tls = self._wrap(client, True, self.client)
        server_tls = self._wrap(server, False, self.server)
        self.pump: IOPump = connect(
            server_tls,
            FakeTransport(server_tls, True),
            client_tls,
            FakeTransport(client_tls, False),
            clock=self.clock,
        )

    def _wrap(self, creator: Any, is_client: bool, inner: Recorder) -> Any:
        factory = TLSMemoryBIOFactory(
            creator, is_client, Factory.forProtocol(lambda: inner), clock=self.clock
        )
        return factory.buildProtocol(None)

    def ping(self) -> bytes:
        """Send a word from client to server, and say what arrived."""
        assert self.client.transport is not None
        self.server.received = b""
        self.client.transport.write(b"ping")
        self.pump.flush()
        return self.server.received

    @property
    def works(self) -> bool:
        return self.client.reason is None and self.ping() == b"ping"

    @property
    def client_reason(self) -> str:
        assert self.client.reason is not None, "the client's end is still up"
        return tls_reason(self.client.reason)

    @property
    def server_reason(self) -> str:
        assert self.server.reason is not None, "the server's end is still up"
        return tls_reason(self.server.reason)


class TLSCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.authority = Authority(self.directory)

    def server(self, *hosts: str, **options: Any) -> IOpenSSLServerConnectionCreator:
        leaf = self.authority.leaf(*hosts, **options)
        return server_context(load_identity(leaf.crt, leaf.key), ALPN)

    def checking(self, host: str) -> IOpenSSLClientConnectionCreator:
        return ClientTLS(TLSLevel.FILES, host, self.authority.ca).creator(ALPN[:1])


class TrustTests(TLSCase):
    """What the client's level makes of a server's certificate."""

    def test_low_levels_ask_no_authority(self) -> None:
        """Below level 2 a self-signed certificate for nobody is fine."""
        for level in (None, TLSLevel.PLAIN, TLSLevel.SELF_SIGNED):
            client = ClientTLS(level, "server.example").creator(ALPN[:1])
            self.assertTrue(Pair(client, server_context(self_signed(), ALPN)).works, level)

    def test_level_two_accepts(self) -> None:
        """A certificate of the private authority for the very name is accepted."""
        self.assertTrue(Pair(self.checking("a.example"), self.server("a.example")).works)

    def test_name_is_compared_without_case_and_dot(self) -> None:
        """A name in capitals with the root's dot is the same name."""
        self.assertTrue(Pair(self.checking("A.Example."), self.server("a.example")).works)

    def test_international_name(self) -> None:
        """A name beyond ASCII is compared in its ASCII form."""
        pair = Pair(self.checking("b\u00fccher.example"), self.server("xn--bcher-kva.example"))
        self.assertTrue(pair.works)

    def test_address_literals(self) -> None:
        """An IP address is looked for among the certificate's addresses, both families."""
        server = self.server("192.0.2.7", "2001:db8::7", "fe80::7")
        for host in ("192.0.2.7", "2001:db8::7", "2001:DB8:0::7", "fe80::7%eth0"):
            pair = Pair(self.checking(host), server)
            self.assertTrue(pair.works)

    def test_address_in_a_dns_name_does_not_count(self) -> None:
        """A certificate without the address is refused although the authority is right."""
        pair = Pair(self.checking("192.0.2.7"), self.server("a.example"))
        self.assertEqual(pair.client_reason, f"certificate is for a.example, not 192.0.2.7; {CURE}")

    def test_this_host(self) -> None:
        """An empty host and the wildcards are dialed on this host and checked as localhost."""
        for host in ("", "0.0.0.0", "::"):
            self.assertTrue(Pair(self.checking(host), self.server("localhost")).works)

    def test_intermediate_is_sent(self) -> None:
        """The crt file's chain lets a client that knows only the root trust the leaf."""
        leaf = self.authority.intermediate().leaf("a.example")
        server = server_context(load_identity(leaf.crt, leaf.key), ALPN)
        self.assertTrue(Pair(self.checking("a.example"), server).works)

    def test_several_roots(self) -> None:
        """Every certificate of the ca file is trusted, not just the first."""
        other = Authority(self.directory, "other root")
        both = self.directory / "both.pem"
        both.write_bytes(Path(other.ca).read_bytes() + Path(self.authority.ca).read_bytes())
        client = ClientTLS(TLSLevel.FILES, "a.example", str(both)).creator(ALPN[:1])
        self.assertTrue(Pair(client, self.server("a.example")).works)

    def test_wrong_name(self) -> None:
        """A certificate for another name is refused with both names, as a PeerError."""
        pair = Pair(self.checking("b.example"), self.server("a.example", "192.0.2.7"))
        expected = f"certificate is for a.example, 192.0.2.7, not b.example; {CURE}"
        self.assertEqual(pair.client_reason, expected)
        assert pair.client.reason is not None
        self.assertIs(pair.client.reason.type, PeerError)
        self.assertIsNotNone(pair.server.reason)

    def test_no_name_at_all(self) -> None:
        """A certificate without subject alternative names is for no host."""
        pair = Pair(self.checking("b.example"), self.server())
        self.assertEqual(pair.client_reason, f"certificate is for no host, not b.example; {CURE}")
        self.assertEqual(pair.server_reason, "the other end refused this certificate")

    def test_self_signed_is_not_trusted(self) -> None:
        """Level 2 refuses the in-memory certificate of a server with tls=1."""
        pair = Pair(self.checking("a.example"), server_context(self_signed(), ALPN))
        self.assertEqual(
            pair.client_reason,
            "certificate is not trusted: self-signed; give the server tls=2 with crt= and key=, or "
            "name the file of its crt= in ca=",
        )

    def test_unknown_authority(self) -> None:
        """A certificate of an authority that isn't in the ca file is refused."""
        leaf = Authority(self.directory / "other", "other root").leaf("a.example")
        server = server_context(load_identity(leaf.crt, leaf.key), ALPN)
        pair = Pair(self.checking("a.example"), server)
        self.assertEqual(pair.client_reason, UNKNOWN)

    def test_forged_authority(self) -> None:
        """A certificate that only borrows the authority's name is refused."""
        leaf = Authority(self.directory / "other").leaf("a.example")
        server = server_context(load_identity(leaf.crt, leaf.key), ALPN)
        pair = Pair(self.checking("a.example"), server)
        self.assertIn("not signed by the authority that it names", pair.client_reason)
        self.assertEqual(pair.server_reason, "the other end refused this certificate")

    def test_system_roots(self) -> None:
        """Without ca the system's roots count, and a private authority is not among them."""
        client = ClientTLS(TLSLevel.FILES, "a.example").creator(ALPN[:1])
        pair = Pair(client, self.server("a.example"))
        self.assertEqual(pair.client_reason, UNKNOWN)

    def test_system_roots_from_the_environment(self) -> None:
        """SSL_CERT_FILE replaces the system's roots, as it does for other programs."""
        # OpenSSL reads the process' own environment, hence no patched copy.
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = self.authority.ca
        if before is None:
            self.addCleanup(os.environ.pop, "SSL_CERT_FILE")
        else:
            self.addCleanup(os.environ.__setitem__, "SSL_CERT_FILE", before)
        client = ClientTLS(TLSLevel.FILES, "a.example").creator(ALPN[:1])
        self.assertTrue(Pair(client, self.server("a.example")).works)

    def test_expired(self) -> None:
        """An expired certificate is refused with its date."""
        leaf = self.authority.expired("a.example")
        pair = Pair(
            self.checking("a.example"), server_context(load_identity(leaf.crt, leaf.key), ALPN)
        )
        day = leaf.certificate.not_valid_after_utc.strftime("%Y-%m-%d")
        self.assertEqual(pair.client_reason, f"certificate expired on {day}")

    def test_not_yet_valid(self) -> None:
        """A certificate from the future is refused with its date."""
        begin = datetime.now(timezone.utc) + timedelta(days=3)
        pair = Pair(self.checking("a.example"), self.server("a.example", begin=begin))
        self.assertEqual(pair.client_reason, f"certificate is not valid before {begin:%Y-%m-%d}")

    def test_rsa(self) -> None:
        """An RSA server key works as an EC one does."""
        pair = Pair(self.checking("a.example"), self.server("a.example", rsa_bits=2048))
        self.assertTrue(pair.works)

    def test_names_of_a_peer_are_escaped(self) -> None:
        """Control characters in a certificate's names don't reach the log as they are."""
        pair = Pair(self.checking("b.example"), self.server("evil\n2026 ERROR forged"))
        self.assertNotIn("\n", pair.client_reason)
        self.assertIn("evil", pair.client_reason)

    def test_ca_that_can_not_be_used(self) -> None:
        """A missing or empty ca file is an error at once that names it."""
        empty = self.directory / "empty.pem"
        empty.write_bytes(b"")
        for path in (str(empty), str(self.directory / "none.pem")):
            error = self.assertRaises(ConfigError, ClientTLS, TLSLevel.FILES, "a.example", path)
            self.assertIn(f"ca={path}", str(error))

    def test_name_that_can_not_be_used(self) -> None:
        """A host that is no name in any script is an error that shows it."""
        error = self.assertRaises(ConfigError, ClientTLS, TLSLevel.FILES, "\u00e9" * 80)
        self.assertIn("no host name", str(error))

    def test_reloaded_roots(self) -> None:
        """A new ca file counts for new connections after a reload; a broken one doesn't."""
        other = Authority(self.directory / "other")
        ca = self.directory / "ca.pem"
        ca.write_bytes(Path(other.ca).read_bytes())
        tls = ClientTLS(TLSLevel.FILES, "a.example", str(ca))
        creator, server = tls.creator(ALPN[:1]), self.server("a.example")
        self.assertFalse(Pair(creator, server).works)
        ca.write_bytes(Path(self.authority.ca).read_bytes())
        tls.reload()
        self.assertTrue(Pair(creator, server).works)
        ca.write_bytes(b"junk")
        self.assertRaises(ConfigError, tls.reload)
        self.assertTrue(Pair(creator, server).works)


class PinTests(TLSCase):
    """The client asks for a certificate it has seen before."""

    def test_right_pin(self) -> None:
        """One of several pins is enough, and needs no authority."""
        identity = self_signed()
        client = ClientTLS(None, "a.example").creator(ALPN, lambda: {b"x" * 32, identity.pin})
        self.assertTrue(Pair(client, server_context(identity, ALPN)).works)

    def test_wrong_pin(self) -> None:
        """Another self-signed certificate ends the handshake with a PeerError on the client."""
        client = ClientTLS(TLSLevel.SELF_SIGNED, "h").creator(ALPN, lambda: {self_signed().pin})
        pair = Pair(client, server_context(self_signed(), ALPN))
        self.assertIn("not the one that the control link vouched for", pair.client_reason)
        assert pair.client.reason is not None
        self.assertIs(pair.client.reason.type, PeerError)

    def test_no_pin_admits_nobody(self) -> None:
        """An empty set of pins is not the same as no pins."""
        client = ClientTLS(None, "h").creator(ALPN, frozenset)
        self.assertFalse(Pair(client, server_context(self_signed(), ALPN)).works)

    def test_nothing_reaches_the_wrong_server(self) -> None:
        """What the client wrote before the handshake never gets to a server with a wrong pin."""
        client = ClientTLS(None, "h").creator(ALPN, frozenset)
        pair = Pair(client, server_context(self_signed(), ALPN))
        self.assertEqual(pair.ping(), b"")

    def test_level_two_checks_the_chain_too(self) -> None:
        """With tls=2 a right pin doesn't replace chain and name."""
        leaf = self.authority.leaf("a.example")
        server = server_context(load_identity(leaf.crt, leaf.key), ALPN)
        tls = ClientTLS(TLSLevel.FILES, "b.example", self.authority.ca)
        pair = Pair(tls.creator(ALPN, lambda: [leaf.pin]), server)
        self.assertIn("not b.example", pair.client_reason)

    def test_pins_are_asked_at_each_handshake(self) -> None:
        """A pin added after the creator was made counts."""
        identity, pins = self_signed(), set[bytes]()
        client = ClientTLS(None, "h").creator(ALPN, lambda: pins)
        self.assertFalse(Pair(client, server_context(identity, ALPN)).works)
        pins.add(identity.pin)
        self.assertTrue(Pair(client, server_context(identity, ALPN)).works)

    def test_a_failing_pin_source_refuses(self) -> None:
        """An exception while asking for pins ends the connection with that exception."""

        def broken() -> list[bytes]:
            raise RuntimeError("no pins today")

        pair = Pair(ClientTLS(None, "h").creator(ALPN, broken), server_context(self_signed(), ALPN))
        self.assertEqual(pair.client_reason, "no pins today")

    def test_peer_pin(self) -> None:
        """The client reads off the connection the pin that the server's identity has."""
        identity = self_signed()
        pair = Pair(ClientTLS(None, "h").creator(ALPN), server_context(identity, ALPN))
        self.assertEqual(peer_pin(pair.client.transport), identity.pin)
        self.assertRaises(PeerError, peer_pin, pair.server.transport)


class HandshakeTests(TLSCase):
    """What both ends agree on."""

    def negotiated(self, offered: Sequence[bytes]) -> bytes | None:
        pair = Pair(ClientTLS(None, "h").creator(offered), server_context(self_signed(), ALPN))
        self.assertTrue(pair.works)
        client: Any = pair.client.transport
        server: Any = pair.server.transport
        self.assertEqual(client.negotiatedProtocol, server.negotiatedProtocol)
        chosen: bytes | None = server.negotiatedProtocol
        return chosen

    def test_first_known_protocol_is_chosen(self) -> None:
        """The client's order counts, and entries that aren't protocols are passed over."""
        self.assertEqual(self.negotiated([b"nodepass2"]), b"nodepass2")
        self.assertEqual(self.negotiated([b"nodepass2-data", b"w1f"]), b"nodepass2-data")
        self.assertEqual(self.negotiated([b"w1f", b"nodepass2"]), b"nodepass2")
        self.assertEqual(self.negotiated(ALPN[::-1]), b"nodepass2-data")

    def test_no_known_protocol(self) -> None:
        """Without a known protocol the handshake succeeds and nothing is negotiated."""
        self.assertIsNone(self.negotiated([b"h2", b"http/1.1"]))
        self.assertIsNone(self.negotiated([]))

    def test_server_name(self) -> None:
        """A name is sent as SNI; an address is not (RFC 6066)."""
        for host, sent in (("A.example", b"a.example"), ("192.0.2.7", None), ("::1", None)):
            pair = Pair(ClientTLS(None, host).creator(ALPN), server_context(self_signed(), ALPN))
            server: Any = pair.server.transport
            self.assertEqual(server.getHandle().get_servername(), sent)

    def test_exporter(self) -> None:
        """Both ends export the same bytes; another label, length or connection gives others."""
        creators = ClientTLS(None, "h").creator(ALPN), server_context(self_signed(), ALPN)
        pair, other = Pair(*creators), Pair(*creators)
        secret = exporter(pair.client.transport, b"EXPORTER-test")
        self.assertEqual(secret, exporter(pair.server.transport, b"EXPORTER-test"))
        self.assertEqual(len(secret), 32)
        self.assertEqual(len(exporter(pair.client.transport, b"EXPORTER-test", 48)), 48)
        self.assertNotEqual(secret, exporter(pair.client.transport, b"EXPORTER-else"))
        self.assertNotEqual(secret, exporter(other.client.transport, b"EXPORTER-test"))

    def test_old_client(self) -> None:
        """A TLS 1.2 client is refused, and both ends can say why."""
        old = CertificateOptions(lowerMaximumSecurityTo=TLSVersion.TLSv1_2)
        pair = Pair(old, server_context(self_signed(), ALPN))
        self.assertEqual(pair.server_reason, "the other end does not speak TLS 1.3")
        self.assertEqual(pair.client_reason, "the other end does not speak TLS 1.3")

    def test_old_server(self) -> None:
        """A TLS 1.2 server is refused."""
        pair = Pair(ClientTLS(None, "h").creator(ALPN), old_server())
        self.assertEqual(pair.client_reason, "the other end does not speak TLS 1.3")

    def test_no_resumption(self) -> None:
        """A client that offers an earlier session gets a full handshake, so that pins are asked."""
        identity, asked = self_signed(), []

        def pins() -> list[bytes]:
            asked.append(True)
            return [identity.pin]

        client, server = ClientTLS(None, "h").creator(ALPN, pins), server_context(identity, ALPN)
        first = Pair(client, server)
        self.assertTrue(first.works)
        first_transport: Any = first.client.transport
        session = first_transport.getHandle().get_session()

        @implementer(IOpenSSLClientConnectionCreator)
        class Returning:
            def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
                connection: SSL.Connection = client.clientConnectionForTLS(tlsProtocol)
                connection.set_session(session)
                return connection

        del asked[:]
        second = Pair(Returning(), server)
        self.assertTrue(second.works)
        self.assertTrue(asked)

    def test_not_tls(self) -> None:
        """A server that gets something else than TLS says so."""
        factory = TLSMemoryBIOFactory(
            server_context(self_signed(), ALPN), False, Factory.forProtocol(Recorder), clock=Clock()
        )
        server = factory.buildProtocol(None)
        assert server is not None
        server.makeConnection(FakeTransport(server, True))
        server.dataReceived(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        failure = server._reason
        self.assertEqual(tls_reason(failure), "the other end does not speak TLS")

    def test_no_full_stop(self) -> None:
        """A reason that is a sentence loses its full stop, so that more can follow it."""
        failure = Failure(DNSLookupError("h: name not known"))
        self.assertTrue(tls_reason(failure).endswith("h: name not known"))

    def test_closed_during_handshake(self) -> None:
        """A connection that just ends has a reason in words too."""
        failure = Failure(ConnectionLost())
        self.assertEqual(
            tls_reason(failure), "the other end closed the connection during the handshake"
        )

    def test_the_server_hears_of_a_refusal(self) -> None:
        """A certificate that the client refuses is a reason at both ends."""
        client = ClientTLS(None, "h").creator(ALPN, frozenset)
        pair = Pair(client, server_context(self_signed(), ALPN))
        self.assertEqual(pair.server_reason, "the other end does not trust this certificate")


def old_server() -> IOpenSSLServerConnectionCreator:
    """A server that speaks TLS 1.2 at most."""
    identity = self_signed()
    options: Any = CertificateOptions(
        privateKey=load_der_private_key(identity.key, None),
        certificate=x509.load_der_x509_certificate(identity.chain[0]),
        lowerMaximumSecurityTo=TLSVersion.TLSv1_2,
    )
    creator: IOpenSSLServerConnectionCreator = options
    return creator


class IdentityTests(TLSCase):
    """Certificate files, good and bad."""

    def refused(self, crt: str, key: str) -> str:
        return str(self.assertRaises(ConfigError, load_identity, crt, key))

    def test_self_signed(self) -> None:
        """The in-memory certificate is fresh each time, valid now and for years, P-256."""
        identity, other = self_signed(), self_signed()
        self.assertNotEqual(identity.pin, other.pin)
        self.assertEqual(len(identity.pin), 32)
        self.assertFalse(identity.expired)
        self.assertGreater(identity.not_after, datetime.now(timezone.utc) + timedelta(days=3000))
        certificate = x509.load_der_x509_certificate(identity.chain[0])
        self.assertEqual(certificate.not_valid_after_utc, identity.not_after)
        self.assertLess(certificate.not_valid_before_utc, datetime.now(timezone.utc))
        key = load_der_private_key(identity.key, None).public_key()
        self.assertEqual(key, certificate.public_key())

    def test_pyopenssl_without_objects_of_its_own(self) -> None:
        """An identity is installed as well where pyOpenSSL takes cryptography's objects alone."""
        identity = load_identity(*self._files())
        taken: list[type] = []

        class Later:
            """A context of such a version."""

            def take(self, thing: object) -> None:
                if isinstance(thing, (crypto.X509, crypto.PKey)):
                    raise TypeError(thing)
                taken.append(type(thing))

            use_certificate = use_privatekey = add_extra_chain_cert = take

            def check_privatekey(self) -> None: ...

        identity.install(cast(SSL.Context, Later()))
        self.assertTrue(issubclass(taken[0], x509.Certificate))
        self.assertEqual(len(taken), 3)

    def _files(self) -> tuple[str, str]:
        leaf = self.authority.intermediate().leaf("b.example")
        return leaf.crt, leaf.key

    def test_key_is_not_shown(self) -> None:
        """The representation of an identity says nothing of its key."""
        self.assertNotIn("key", repr(self_signed()).lower())

    def test_files(self) -> None:
        """The leaf and its chain come out in the file's order, with the leaf's pin."""
        leaf = self.authority.intermediate().leaf("a.example")
        identity = load_identity(leaf.crt, leaf.key)
        self.assertEqual(len(identity.chain), 2)
        self.assertEqual(identity.pin, leaf.pin)

    def test_one_file_for_both(self) -> None:
        """Certificate and key may share a file."""
        leaf = self.authority.leaf("a.example")
        both = self.directory / "both.pem"
        both.write_bytes(Path(leaf.crt).read_bytes() + Path(leaf.key).read_bytes())
        self.assertEqual(load_identity(str(both), str(both)).pin, leaf.pin)

    def test_expired_loads(self) -> None:
        """An expired certificate loads, and says that it is expired."""
        leaf = self.authority.expired("a.example")
        identity = load_identity(leaf.crt, leaf.key)
        self.assertTrue(identity.expired)
        self.assertEqual(identity.not_after, leaf.certificate.not_valid_after_utc)

    def test_missing_file(self) -> None:
        """A file that isn't there is named, with its parameter."""
        leaf = self.authority.leaf("a.example")
        none = str(self.directory / "none")
        self.assertIn(f"crt={none}: can't be read (No such file", self.refused(none, leaf.key))
        self.assertIn(f"key={none}: can't be read (No such file", self.refused(leaf.crt, none))

    def test_directory(self) -> None:
        """A directory in place of a file is named."""
        leaf = self.authority.leaf("a.example")
        where = str(self.directory)
        self.assertIn(f"crt={where}: can't be read (", self.refused(where, leaf.key))

    def test_path_with_a_null_byte(self) -> None:
        """A path that no system can open is an error of the parameter, not of the program."""
        self.assertIn("crt=", self.refused("a\0b", "c"))

    def test_not_pem(self) -> None:
        """Junk, and files the wrong way round, are named."""
        leaf = self.authority.leaf("a.example")
        junk = self.directory / "junk"
        junk.write_bytes(os.urandom(100))
        self.assertIn(f"crt={junk}: no usable certificate", self.refused(str(junk), leaf.key))
        self.assertIn(f"key={junk}: not a usable private key", self.refused(leaf.crt, str(junk)))
        self.assertIn("no usable certificate", self.refused(leaf.key, leaf.crt))

    def test_huge_file(self) -> None:
        """A file far larger than any certificate is refused."""
        huge = self.directory / "huge"
        huge.write_bytes(b"\n" * (1 << 21))
        self.assertIn("larger than 1 MiB", self.refused(str(huge), str(huge)))

    def test_mismatch(self) -> None:
        """A key of another certificate is refused, with both files named."""
        one, two = (self.authority.leaf("a.example", file=name) for name in ("one", "two"))
        message = self.refused(one.crt, two.key)
        self.assertIn(one.crt, message)
        self.assertIn(two.key, message)

    def test_weak_key(self) -> None:
        """A key that OpenSSL finds too weak is refused at load, not at the first handshake."""
        leaf = self.authority.leaf("a.example", rsa_bits=1024)
        message = self.refused(leaf.crt, leaf.key)
        self.assertIn(f"crt={leaf.crt}: not usable for TLS 1.3: ", message)
        self.assertIn("key too small", message)

    def test_encrypted_key(self) -> None:
        """A key with a passphrase is refused, in words that say so."""
        leaf = self.authority.leaf("a.example")
        Path(leaf.key).write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
        self.assertIn("is encrypted", self.refused(leaf.crt, leaf.key))


class ReloadTests(TLSCase):
    """A server changes its certificate while connections are up."""

    def setUp(self) -> None:
        super().setUp()
        self.leaf = self.authority.leaf("a.example")
        self.tls = ServerTLS(TLSLevel.FILES, ALPN, crt=self.leaf.crt, key_file=self.leaf.key)

    def pair(self) -> Pair:
        return Pair(self.checking("a.example"), self.tls.context_factory())

    def test_old_connections_live_on(self) -> None:
        """After a reload new connections see the new certificate, old ones keep working."""
        before = self.pair()
        renewed = self.authority.leaf("a.example")
        self.assertTrue(self.tls.reload())
        after = self.pair()
        self.assertTrue(before.works)
        self.assertTrue(after.works)
        self.assertEqual(peer_pin(before.client.transport), self.leaf.pin)
        self.assertEqual(peer_pin(after.client.transport), renewed.pin)

    def test_prepare_changes_nothing_yet(self) -> None:
        """Between prepare and commit the next pin is known and the old certificate is shown."""
        renewed = self.authority.leaf("a.example")
        identity = self.tls.prepare()
        self.assertEqual(identity.pin, renewed.pin)
        self.assertEqual(peer_pin(self.pair().client.transport), self.leaf.pin)
        self.tls.commit(identity)
        self.assertEqual(peer_pin(self.pair().client.transport), renewed.pin)

    def test_unchanged_files(self) -> None:
        """Files that are as before give the very identity that is in use, and no new context."""
        factory = self.tls.context_factory()
        self.assertIs(self.tls.prepare(), self.tls.identity)
        self.assertFalse(self.tls.reload())
        self.assertIs(self.tls.context_factory(), factory)

    def test_broken_file(self) -> None:
        """A broken new file raises and the old certificate stays in use."""
        Path(self.leaf.crt).write_bytes(b"half a file")
        self.assertRaises(ConfigError, self.tls.reload)
        self.assertRaises(ConfigError, self.tls.prepare)
        self.assertEqual(peer_pin(self.pair().client.transport), self.leaf.pin)

    def test_self_signed_stays(self) -> None:
        """A reload doesn't touch the in-memory certificate."""
        tls = ServerTLS(TLSLevel.SELF_SIGNED, ALPN)
        identity: Identity = tls.identity
        self.assertFalse(tls.reload())
        self.assertIs(tls.identity, identity)

    def test_files_are_needed(self) -> None:
        """Level 2 without both paths is refused, never served by something weaker."""
        for files in ({}, {"crt": self.leaf.crt}, {"key_file": self.leaf.key}):
            self.assertRaises(ConfigError, ServerTLS, TLSLevel.FILES, ALPN, **files)


def test_a_fifo_is_no_certificate(tmp_path: Path) -> None:
    """A FIFO that nobody writes to is refused at once, rather than waited for."""
    fifo = tmp_path / "fifo.pem"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match=r"fifo\.pem: no usable certificate"):
        load_identity(str(fifo), str(fifo))
