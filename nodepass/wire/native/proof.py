"""How a data link shows, both ways, that it belongs to an association.

    connector (client)                              acceptor (server)
    "NP2D", u8 version, u16 worker,
    association (16), u32 link, nonce (16)   -->
                                             <--    challenge (32), on plain links only
    proof (32)                               -->
                                             <--    ready (32)

Both proofs are HMACs under the association's secret. On TLS they cover this connection's exporter,
so the connector sends its proof at once; on plain links they cover the acceptor's challenge, which
keeps a recorded opening from being of use, and the connector's nonce does the same the other way.

No I/O: bytes in, bytes out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from attrs import frozen

from nodepass.digests import hmac_sha256, is_hmac_sha256
from nodepass.errors import PeerError

from .handshake import Entropy, Secrets

MAGIC = b"NP2D"
LINK_VERSION = 1
#: TLS exporter label of data links.
LINK_EXPORTER = b"EXPORTER-nodepass2-link"
CHALLENGE_SIZE = 32
PROOF_SIZE = 32

_PREFACE = struct.Struct(">4sBH16sI16s")
PREFACE_SIZE = _PREFACE.size


class ProofError(PeerError):
    """The other end of a data link did not show that it belongs."""


@frozen
class Preface:
    """What the connector says first."""

    worker: int
    association: bytes
    link: int
    nonce: bytes

    def encode(self) -> bytes:
        """As it goes on the wire."""
        return _PREFACE.pack(
            MAGIC, LINK_VERSION, self.worker, self.association, self.link, self.nonce
        )


def decode_preface(raw: bytes) -> Preface:
    """The preface from its `PREFACE_SIZE` bytes.

    :raises ProofError: it is none.
    """
    magic, version, worker, association, link, nonce = _PREFACE.unpack(raw)
    if magic != MAGIC:
        raise ProofError("no data link of the native wire")
    if version != LINK_VERSION:
        raise ProofError(f"a data link of version {version}, this node speaks {LINK_VERSION}")
    return Preface(worker, association, link, nonce)


class LinkConnector:
    """The client's side of a new data link.

    :param exporter: the TLS exporter's value; None on a plain link.
    :param worker: the server's worker that the association is with.
    """

    def __init__(
        self,
        association: bytes,
        secrets: Secrets,
        link: int,
        exporter: bytes | None,
        entropy: Entropy = os.urandom,
        *,
        worker: int = 0,
    ) -> None:
        self._secret = secrets.link
        self._preface = Preface(worker, association, link, entropy(16)).encode()
        self._binding = exporter
        self._held = b""

    def start(self) -> bytes:
        """What to send first."""
        if self._binding is None:
            return self._preface
        return self._preface + self._prove(b"client")

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Bytes came: what to send, and, once the link is ready, what came after `ready`.

        :raises ProofError: the acceptor did not prove itself.
        """
        self._held += data
        send = b""
        if self._binding is None:
            if len(self._held) < CHALLENGE_SIZE:
                return b"", None
            self._binding = self._held[:CHALLENGE_SIZE]
            self._held = self._held[CHALLENGE_SIZE:]
            send = self._prove(b"client")
        if len(self._held) < PROOF_SIZE:
            return send, None
        due = b"server" + self._binding + self._preface
        if not is_hmac_sha256(self._held[:PROOF_SIZE], self._secret, due):
            raise ProofError("the server's end of a data link did not prove that it belongs")
        return send, self._held[PROOF_SIZE:]

    def _prove(self, end: bytes) -> bytes:
        assert self._binding is not None
        return hmac_sha256(self._secret, end + self._binding + self._preface)


class LinkAcceptor:
    """The server's side of a new data link.

    :param known: the secrets of an association, or None.
    :param exporter: the TLS exporter's value; None on a plain link.
    """

    def __init__(
        self,
        known: Callable[[bytes], Secrets | None],
        exporter: bytes | None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._known = known
        self._binding = exporter
        self._entropy = entropy
        self._held = b""
        self._raw = b""
        self.preface: Preface | None = None

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Bytes came: what to send, and, once the link is proved, what came after the proof.

        The caller sends the last of it, `ready`, when it has taken the link.

        :raises ProofError: the connector did not prove itself.
        """
        self._held += data
        send = b""
        if self.preface is None:
            if len(self._held) < PREFACE_SIZE:
                if not MAGIC.startswith(self._held[:4]) and not self._held.startswith(MAGIC):
                    raise ProofError("no data link of the native wire")
                return b"", None
            self._raw, self._held = self._held[:PREFACE_SIZE], self._held[PREFACE_SIZE:]
            self.preface = decode_preface(self._raw)
            if self._binding is None:
                self._binding = send = self._entropy(CHALLENGE_SIZE)
        if len(self._held) < PROOF_SIZE:
            return send, None
        assert self._binding is not None
        secrets = self._known(self.preface.association)
        # An unknown association fails like a wrong proof: nothing is told about which exist.
        secret = self._entropy(32) if secrets is None else secrets.link
        due = b"client" + self._binding + self._raw
        if not is_hmac_sha256(self._held[:PROOF_SIZE], secret, due):
            raise ProofError("a data link did not prove that it belongs to a client of this server")
        rest = self._held[PROOF_SIZE:]
        return send + hmac_sha256(secret, b"server" + self._binding + self._raw), rest
