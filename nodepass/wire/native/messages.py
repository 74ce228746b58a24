"""The messages of a control link.

    u16 length of the rest, u8 type, fields
    field: u8 tag, u16 length, value

Numbers are in network order, without leading zero bytes (zero itself has none). Fields that a peer
does not know are skipped, and so are messages of a type that it does not know, so that newer
nodes may say more.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum
from typing import Any, ClassVar, TypeVar

import attrs
from attrs import frozen

from nodepass.errors import PeerError

#: Longest message: room for growth in PIN and ABOUT, far above what version 1 sends.
MAX_MESSAGE = 16384
#: Longest message before the key was proved: an unproven peer is given little room.
MAX_HELLO = 1024


class MessageError(PeerError):
    """The peer sent what is no message."""


class Kind(Enum):
    """How a field's value is written."""

    NUMBER = "number"  # at most 8 bytes
    BYTES = "bytes"
    TEXT = "text"  # UTF-8


def _field(tag: int, kind: Kind, limit: int = 8, **options: Any) -> Any:
    """A field of a message; `limit` is the longest value in bytes."""
    return attrs.field(metadata={"tag": tag, "kind": kind, "limit": limit}, **options)


def number(tag: int, **options: Any) -> Any:
    """A field that holds a number."""
    return _field(tag, Kind.NUMBER, **options)


def binary(tag: int, limit: int, **options: Any) -> Any:
    """A field that holds bytes."""
    return _field(tag, Kind.BYTES, limit, **options)


def text(tag: int, limit: int, **options: Any) -> Any:
    """A field that holds text; a longer one is cut when it is sent."""
    return _field(tag, Kind.TEXT, limit, **options)


class Refusal(IntEnum):
    """Why a server refuses a client."""

    VERSION = 1  # no version in common
    KEY_NEEDED = 2  # the server has a key, the client none
    KEY_UNWANTED = 3  # the client has a key, the server none
    WRONG_KEY = 4  # the client's proof was wrong
    UNKNOWN_ASSOCIATION = 5  # nothing is known of what the client wants to come back to
    TAKEN = 6  # a server without a key serves one client, and has it
    BUSY = 7  # too many handshakes, or too many failed ones from this address
    STOPPING = 8  # the server is stopping
    TLS = 9  # the server's TLS level is below what the client asks


@frozen(kw_only=True)
class Hello:
    """The client's first message."""

    TYPE: ClassVar[int] = 1
    versions: bytes = binary(1, 16)  # one byte each, best first
    capabilities: int = number(2, default=0)  # a bit each; version 1 defines none
    node: bytes = binary(3, 16)  # the same for each process that runs this URL on this machine
    level: int = number(4, default=0)  # least TLS level that the client accepts
    minimum: int = number(5, default=1)  # idle links that the client wants the pool to keep
    share: bytes = binary(6, 64, default=b"")  # PAKE; empty without a key, or when coming back
    association: bytes = binary(7, 16, default=b"")  # when coming back
    worker: int = number(8, default=0)  # which of the node's worker processes
    nonce: bytes = binary(9, 32)


@frozen(kw_only=True)
class Answer:
    """The server's first message."""

    TYPE: ClassVar[int] = 2
    version: int = number(1)
    capabilities: int = number(2, default=0)
    flow: int = number(3)  # ASCII "-" or "+"
    tls: int = number(4)
    maximum: int = number(5)  # most idle links per client
    workers: int = number(6, default=1)  # that the server has
    share: bytes = binary(7, 64, default=b"")
    nonce: bytes = binary(8, 32)


@frozen(kw_only=True)
class Confirm:
    """The client's proof."""

    TYPE: ClassVar[int] = 3
    proof: bytes = binary(1, 32)


@frozen(kw_only=True)
class Welcome:
    """The server's proof, which covers the other fields."""

    TYPE: ClassVar[int] = 4
    proof: bytes = binary(1, 32)
    association: bytes = binary(2, 16)
    pin: bytes = binary(3, 32)  # SHA-256 of the certificate that data links will show


@frozen(kw_only=True)
class Refuse:
    """The server's no."""

    TYPE: ClassVar[int] = 5
    refusal: int = number(1)
    reason: str = text(2, 256, default="")


@frozen(kw_only=True)
class About:
    """What each end tells of itself once both have proved the key; texts for log lines only."""

    TYPE: ClassVar[int] = 16
    name: str = text(1, 64, default="")  # host name
    targets: str = text(2, 512, default="")  # what it dials
    software: str = text(3, 64, default="")
    associations: int = number(
        4, default=1
    )  # of this client with this server, which share min, max


@frozen(kw_only=True)
class Ping:
    """Asks for a Pong with the same time."""

    TYPE: ClassVar[int] = 17
    time: int = number(1)  # the sender's own clock, microseconds


@frozen(kw_only=True)
class Pong:
    """Answers a Ping."""

    TYPE: ClassVar[int] = 18
    time: int = number(1)


@frozen(kw_only=True)
class Want:
    """From the end that takes links: make so many more."""

    TYPE: ClassVar[int] = 19
    count: int = number(1)


@frozen(kw_only=True)
class Retire:
    """From the end that serves links: this one should be closed when it is idle."""

    TYPE: ClassVar[int] = 20
    link: int = number(1)


@frozen(kw_only=True)
class Abort:
    """A RESET that goes around a data link which is backed up."""

    TYPE: ClassVar[int] = 21
    link: int = number(1)
    session: int = number(2)
    cause: int = number(3, default=0)


@frozen(kw_only=True)
class Pin:
    """From the server: data links may soon show this certificate as well."""

    TYPE: ClassVar[int] = 22
    pin: bytes = binary(1, 32)


@frozen(kw_only=True)
class Drain:
    """The sender is stopping: bring it no new visitors."""

    TYPE: ClassVar[int] = 23


@frozen(kw_only=True)
class Leave:
    """The sender goes for good; nothing of this association will come back."""

    TYPE: ClassVar[int] = 24
    reason: str = text(1, 256, default="")


Message = (
    Hello | Answer | Confirm | Welcome | Refuse
    | About | Ping | Pong | Want | Retire | Abort | Pin | Drain | Leave
)  # fmt: skip

_TYPES: dict[int, type[Message]] = {
    cls.TYPE: cls
    for cls in (
        Hello, Answer, Confirm, Welcome, Refuse,
        About, Ping, Pong, Want, Retire, Abort, Pin, Drain, Leave,
    )
}  # fmt: skip

_LENGTH = struct.Struct(">H")
_FIELD = struct.Struct(">BH")

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """A whole message, its length first."""
    parts = [bytes((message.TYPE,))]
    for attribute in attrs.fields(type(message)):
        value = getattr(message, attribute.name)
        raw = _encode_value(value, attribute.metadata["kind"], attribute.metadata["limit"])
        if value != attribute.default:
            parts.append(_FIELD.pack(attribute.metadata["tag"], len(raw)) + raw)
    body = b"".join(parts)
    return _LENGTH.pack(len(body)) + body


def _encode_value(value: Any, kind: Kind, limit: int) -> bytes:
    if kind is Kind.NUMBER:
        return int(value).to_bytes((int(value).bit_length() + 7) // 8, "big")
    if kind is Kind.TEXT:
        # Cut between characters, not within one.
        return str(value).encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode()
    return bytes(value)


def decode(body: bytes) -> Message | None:
    """A message from what follows its length; None when its type is not known.

    :raises MessageError: the bytes are no message.
    """
    if not body:
        raise MessageError("an empty message")
    cls = _TYPES.get(body[0])
    if cls is None:
        return None
    found: dict[int, bytes] = {}
    at = 1
    while at < len(body):
        if len(body) - at < _FIELD.size:
            raise MessageError(f"a {cls.__name__} message that ends within a field")
        tag, length = _FIELD.unpack_from(body, at)
        at += _FIELD.size
        if len(body) - at < length:
            raise MessageError(f"a {cls.__name__} message that ends within a field")
        found.setdefault(tag, body[at : at + length])
        at += length
    values: dict[str, Any] = {}
    for attribute in attrs.fields(cls):
        raw = found.get(attribute.metadata["tag"])
        if raw is not None:
            values[attribute.name] = _decode_value(cls, attribute, raw)
        elif attribute.default is attrs.NOTHING:
            raise MessageError(f"a {cls.__name__} message without {attribute.name}")
    return cls(**values)


def _decode_value(cls: type, attribute: Any, raw: bytes) -> Any:
    kind, limit = attribute.metadata["kind"], attribute.metadata["limit"]
    if len(raw) > limit:
        raise MessageError(f"a {cls.__name__} message with {len(raw)} bytes of {attribute.name}")
    if kind is Kind.NUMBER:
        return int.from_bytes(raw, "big")
    if kind is Kind.TEXT:
        return raw.decode("utf-8", "replace")
    return raw


def framed(body: bytes) -> bytes:
    """A message as it is on the wire, from its body."""
    return _LENGTH.pack(len(body)) + body


def expect(cls: type[M], message: Message | None) -> M:
    """The message, if it is of this type.

    :raises MessageError: it is another one.
    """
    if not isinstance(message, cls):
        name = "an unknown message" if message is None else type(message).__name__
        raise MessageError(f"{name} where {cls.__name__} was due")
    return message


class MessageReader:
    """Takes bytes as they come and gives the bodies of messages, for `decode`.

    :ivar limit: the longest message that is accepted now, in bytes.
    """

    def __init__(self, limit: int = MAX_HELLO) -> None:
        self.limit = limit
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take more bytes. Ask `next` for what they complete."""
        self._held += data

    def __len__(self) -> int:
        """Bytes that are held."""
        return len(self._held)

    def next(self) -> bytes | None:
        """The next message's body, or None when it is not whole yet.

        :raises MessageError: the message is longer than the limit.
        """
        if len(self._held) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._held)
        if length > self.limit:
            raise MessageError(f"a message of {length} bytes, where {self.limit} is the most")
        end = _LENGTH.size + length
        if len(self._held) < end:
            return None
        body = self._held[_LENGTH.size : end]
        self._held = self._held[end:]
        return body
