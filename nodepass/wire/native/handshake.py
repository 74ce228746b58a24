"""How two nodes prove to each other that they have the same key.

    client                                   server
    Hello  (versions, PAKE share)     -->
                                      <--    Answer (version, flow, tls, PAKE share)
    Confirm (proof)                   -->
                                      <--    Welcome (proof, association, pin)

All of it runs inside TLS 1.3. Both proofs are HMACs under keys that come from the PAKE's result
(SPAKE2 on the key) and the transcript: the TLS exporter's value, the Hello and the Answer as they
were on the wire. So one guess at the key costs an attacker one handshake, and whoever sits between
two TLS connections has two different exporters and is found out.

A client that comes back names its association instead of a share, and the association's rejoin
secret takes the place of the PAKE's result. Without a key on both ends an empty secret does: then
the proofs show only that nobody sat in between two honest nodes' TLS by passing it on.

No I/O: bytes and messages in, messages out.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
from attrs import define, field, frozen
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B

from nodepass.digests import hmac_sha256, is_hmac_sha256, sha256
from nodepass.errors import PeerError

from .messages import Answer, Confirm, Hello, Refusal, Refuse, Welcome, encode

#: The protocol versions that this node speaks, best first.
VERSIONS = b"\x01"
#: Bytes of a PAKE share: the side, and a compressed Ed25519 point.
SHARE_SIZE = 33
#: TLS exporter label of control links.
CONTROL_EXPORTER = b"EXPORTER-nodepass2-control"

_ID_CLIENT = b"nodepass2 client"
_ID_SERVER = b"nodepass2 server"

Entropy = Callable[[int], bytes]


class HandshakeError(PeerError):
    """The handshake can't go on.

    :ivar refusal: what to tell the client, on the server's side.
    :ivar guess: whether the peer has spent a guess at the key.
    """

    def __init__(self, message: str, refusal: Refusal | None = None, guess: bool = False) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.guess = guess


@frozen
class Secrets:
    """What both ends share once they have proved the key.

    :ivar link: proves that a data link belongs to the association.
    :ivar rejoin: takes the PAKE's place when the client comes back.
    """

    link: bytes = field(repr=False)
    rejoin: bytes = field(repr=False)


@define
class _Keys:
    client: bytes = field(repr=False)
    server: bytes = field(repr=False)
    secrets: Secrets


def _derive(secret: bytes, exporter: bytes, hello: bytes, answer: bytes) -> tuple[bytes, _Keys]:
    transcript = sha256(
        b"".join(len(part).to_bytes(4, "big") + part for part in (exporter, hello, answer))
    )

    def expand(label: bytes) -> bytes:
        return HKDF(SHA256(), 32, transcript, b"nodepass2 " + label).derive(secret or b"\0" * 32)

    keys = _Keys(
        expand(b"client proof"),
        expand(b"server proof"),
        Secrets(expand(b"data links"), expand(b"rejoin")),
    )
    return transcript, keys


def _pake_finish(pake: SPAKE2_A | SPAKE2_B, share: bytes) -> bytes:
    """The PAKE's result; the peer has spent a guess from here on.

    :raises HandshakeError: the share is none.
    """
    if len(share) != SHARE_SIZE:
        raise HandshakeError("its PAKE share has a wrong length", Refusal.WRONG_KEY, guess=True)
    try:
        result: bytes = pake.finish(share)
    except Exception as error:  # the package raises AssertionError, ValueError and types of its own
        raise HandshakeError("its PAKE share is no share", Refusal.WRONG_KEY, guess=True) from error
    return result


def key_bytes(key: str | None) -> bytes | None:
    """A key as the PAKE takes it; None without one."""
    return None if not key else key.encode("utf-8", "surrogateescape")


class ClientHandshake:
    """The client's side.

    :param key: the tunnel key; None without one.
    :param hello: what to say; `share`, `association` and `nonce` are filled in here.
    :param coming_back: the association and its secrets to come back to; None for a new one.
    """

    def __init__(
        self,
        key: bytes | None,
        hello: Hello,
        coming_back: tuple[bytes, Secrets] | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._pake: SPAKE2_A | None = None
        self._coming_back = coming_back
        share = association = b""
        if coming_back is not None:
            association = coming_back[0]
        elif key is not None:
            self._pake = SPAKE2_A(key, idA=_ID_CLIENT, idB=_ID_SERVER, entropy_f=entropy)
            share = self._pake.start()
        self.hello = encode(
            attrs.evolve(hello, share=share, association=association, nonce=entropy(32))
        )
        self._keys: _Keys | None = None
        self._transcript = b""

    def answered(self, answer: Answer, raw: bytes, exporter: bytes) -> Confirm:
        """The server answered; what to say next.

        :param raw: the Answer as it was on the wire, its length included.
        :raises HandshakeError: the server's answer can't be accepted.
        """
        if answer.version not in VERSIONS:
            raise HandshakeError(
                f"it speaks version {answer.version} of the native wire, this node {list(VERSIONS)}"
            )
        secret = b""
        if self._coming_back is not None:
            secret = self._coming_back[1].rejoin
        elif self._pake is not None:
            if not answer.share:
                raise HandshakeError("it has no key, but this node has one; set the same on both")
            secret = _pake_finish(self._pake, answer.share)
        elif answer.share:
            raise HandshakeError("it has a key, but this node has none; set the same on both")
        self._transcript, self._keys = _derive(secret, exporter, self.hello, raw)
        return Confirm(proof=hmac_sha256(self._keys.client, b"client" + self._transcript))

    def welcomed(self, welcome: Welcome) -> Secrets:
        """The server's proof came; what both ends share from now on.

        :raises HandshakeError: the proof is wrong.
        """
        keys = self._keys
        assert keys is not None, "answered() comes first"
        due = b"server" + self._transcript + welcome.association + welcome.pin
        if not is_hmac_sha256(welcome.proof, keys.server, due):
            raise HandshakeError("it did not prove the key: wrong key, or somebody in between")
        if self._coming_back is not None:
            association, secrets = self._coming_back
            if welcome.association != association:
                raise HandshakeError("it welcomed another association than the one asked for")
            return secrets
        return keys.secrets


class ServerHandshake:
    """The server's side; it serves one client.

    :param known: the secrets of an association that may be come back to, or None.
    """

    def __init__(
        self,
        key: bytes | None,
        known: Callable[[bytes], Secrets | None],
        entropy: Entropy = os.urandom,
    ) -> None:
        self._key = key
        self._known = known
        self._entropy = entropy
        self._keys: _Keys | None = None
        self._transcript = b""
        self._secrets: Secrets | None = None
        self.association = b""
        #: Whether the client comes back to an association of its own.
        self.coming_back = False

    def check(self, hello: Hello) -> bool:
        """Whether the handshake needs PAKE work; done before any.

        :raises HandshakeError: the client must be refused.
        """
        if not set(hello.versions) & set(VERSIONS):
            raise HandshakeError(
                f"it speaks versions {list(hello.versions)} of the native wire, "
                f"this node {list(VERSIONS)}",
                Refusal.VERSION,
            )
        if len(hello.node) != 16 or len(hello.nonce) != 32:
            raise HandshakeError("its hello has a node id or nonce of a wrong length")
        if hello.association:
            self._secrets = self._known(hello.association)
            if self._secrets is None:
                raise HandshakeError("unknown association", Refusal.UNKNOWN_ASSOCIATION)
            self.association = hello.association
            self.coming_back = True
            return False
        if self._key is None:
            if hello.share:
                raise HandshakeError(
                    "it has a key, but this server has none; set the same on both",
                    Refusal.KEY_UNWANTED,
                )
            return False
        if not hello.share:
            raise HandshakeError(
                "it has no key, but this server has one; set the same on both", Refusal.KEY_NEEDED
            )
        return True

    def answer(self, hello: Hello, raw: bytes, exporter: bytes, answer: Answer) -> bytes:
        """The Answer as it goes on the wire; call `check` first.

        :param raw: the Hello as it was on the wire, its length included.
        :param answer: what to say; `version`, `share` and `nonce` are filled in here.
        :raises HandshakeError: the client must be refused.
        """
        secret = share = b""
        if self._secrets is not None:
            secret = self._secrets.rejoin
        elif self._key is not None:
            pake = SPAKE2_B(self._key, idA=_ID_CLIENT, idB=_ID_SERVER, entropy_f=self._entropy)
            share = pake.start()
            secret = _pake_finish(pake, hello.share)
        version = next(v for v in VERSIONS if v in hello.versions)
        encoded = encode(
            attrs.evolve(answer, version=version, share=share, nonce=self._entropy(32))
        )
        self._transcript, self._keys = _derive(secret, exporter, raw, encoded)
        if not self.association:
            self.association = self._entropy(16)
        return encoded

    def confirmed(self, confirm: Confirm, pin: bytes) -> tuple[Welcome, Secrets]:
        """The client's proof came; the last word of the handshake, and what both ends share.

        :raises HandshakeError: the proof is wrong.
        """
        keys = self._keys
        assert keys is not None, "answer() comes first"
        if not is_hmac_sha256(confirm.proof, keys.client, b"client" + self._transcript):
            # Without a PAKE nothing was tried at the key.
            guess = self._key is not None and self._secrets is None
            cause = "wrong key (set the same on both)" if guess else "wrong proof"
            raise HandshakeError(f"{cause}, or somebody in between", Refusal.WRONG_KEY, guess=guess)
        proof = hmac_sha256(keys.server, b"server" + self._transcript + self.association + pin)
        welcome = Welcome(proof=proof, association=self.association, pin=pin)
        return welcome, self._secrets or keys.secrets


def refuse(refusal: Refusal, reason: str) -> Refuse:
    """The server's no, in words that the client's log can show."""
    return Refuse(refusal=refusal, reason=reason)
