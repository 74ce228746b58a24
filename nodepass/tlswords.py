"""Why a connection between nodes failed or ended, in one line that a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from OpenSSL import SSL
from twisted.internet.error import ConnectionClosed, ConnectionDone
from twisted.python.failure import Failure

from nodepass.logs import printable

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["chain_cure", "chain_words", "lost_reason", "openssl_words", "subjects", "tls_reason"]

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


def chain_words(certificate: x509.Certificate, code: int) -> str:
    """Say why OpenSSL refused a certificate of a chain.

    :param code: its ``X509_V_ERR_*``.
    """
    if code == 10:
        return f"certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if code == 9:
        return f"certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    cause = _CHAIN_ERRORS.get(code, f"OpenSSL verification error {code}")
    return f"certificate is not trusted: {cause}"


_NAME_ITS_ROOT = "name the file of its authority in ca=, or let the server's crt= hold the chain"

#: What a tunnel's client, which asks for a chain by ``tls=2``, can do about some of them.
_CHAIN_CURES = {
    2: _NAME_ITS_ROOT,
    18: "give the server tls=2 with crt= and key=, or name the file of its crt= in ca=",
    19: "name the file of its authority in ca=",
    20: _NAME_ITS_ROOT,
    21: _NAME_ITS_ROOT,
}


def chain_cure(code: int) -> str:
    """What the user of a tunnel can do about a chain that OpenSSL refused; empty for nothing.

    :param code: its ``X509_V_ERR_*``.
    """
    return _CHAIN_CURES.get(code, "")


def subjects(leaf: x509.Certificate) -> str:
    """The names a certificate is for, as a peer gave them: bounded and escaped."""
    from cryptography import x509  # not at the top: this is all that needs more of it than names

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
        return openssl_words(error)
    if isinstance(error, ConnectionClosed):
        return "the other end closed the connection during the handshake"
    # Twisted ends its messages with a full stop; here more may follow.
    return str(error).removesuffix(".") or type(error).__name__


def lost_reason(failure: Failure) -> str:
    """Say in a few words how a connection ended that had worked.

    :param failure: what ``connectionLost`` got.
    """
    if failure.check(ConnectionDone) is not None:
        return "closed by the peer"
    if failure.check(ConnectionClosed) is not None:
        return "the connection was reset or cut off"
    return tls_reason(failure)


#: Part of OpenSSL's text -> what it means to a user. The first that fits counts.
_OPENSSL_WORDS = (
    ("alert protocol version", "the other end does not speak TLS 1.3"),
    ("unsupported protocol", "the other end does not speak TLS 1.3"),
    ("version too low", "the other end does not speak TLS 1.3"),
    ("wrong version number", "the other end does not speak TLS"),
    ("packet length too long", "the other end does not speak TLS"),
    ("http request", "the other end does not speak TLS"),
    ("record layer failure", "the other end does not speak TLS"),
    ("alert no application protocol", "the other end speaks another protocol inside TLS"),
    ("alert unknown ca", "the other end does not trust this certificate"),
    ("alert bad certificate", "the other end refused this certificate"),
    ("alert certificate unknown", "the other end refused this certificate"),
    ("alert decrypt error", "the other end refused this certificate"),
    # OpenSSL's word for what a check beyond its own found, such as another name.
    ("alert internal error", "the other end refused this certificate"),
    ("alert certificate expired", "the other end refused this certificate: expired"),
)


def openssl_words(error: Exception) -> str:
    """The last entry of OpenSSL's error queue, in words."""
    queue = error.args[0] if error.args else ()
    if not isinstance(queue, (list, tuple)) or not queue:
        return str(error) or type(error).__name__
    text = str(queue[-1][-1])
    for part, meaning in _OPENSSL_WORDS:
        if part in text:
            return meaning
    return f"TLS error: {text}"
