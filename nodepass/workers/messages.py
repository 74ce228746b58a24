"""What a parent and its workers say to each other."""

from __future__ import annotations

from typing import Union

import msgspec

__all__ = [
    "Beat",
    "Begin",
    "Failed",
    "Grant",
    "Guess",
    "Line",
    "Link",
    "News",
    "Ports",
    "Ready",
    "Released",
    "Reload",
    "Stop",
    "ToParent",
    "ToWorker",
    "Trouble",
    "Visit",
    "Want",
    "Well",
    "decode_to_parent",
    "decode_to_worker",
    "encode",
]


class _Message(msgspec.Struct, tag=True, array_like=True):
    """A message; the name of its class says which."""


# From the parent.


class Begin(_Message):
    """The first words to a worker, with the descriptors of the board and of the slots.

    :ivar work: a pickled `Work`.
    """

    work: bytes


class Ports(_Message):
    """The worker's own sockets for visitors, TCP and UDP, come with it."""


class Link(_Message):
    """A connection to the tunnel port comes with it, of which nothing was read.

    :ivar waited: seconds that it has spent at the door.
    """

    waited: float


class Grant(_Message):
    """So many bytes may be moved, of those that were wanted.

    :ivar way: 0 inbound, 1 outbound.
    """

    way: int
    size: float


class Reload(_Message):
    """Read certificate files again."""


class Stop(_Message):
    """Stop gracefully, and end."""


class Beat(_Message):
    """Are you there? A worker answers with the same."""


class Guess(_Message):
    """Somebody at this address has guessed at the key, and wrongly; to all other workers too."""

    host: str


# From a worker.


class Ready(_Message):
    """It can serve."""


class Failed(_Message):
    """It never can; retrying mends nothing."""

    reason: str


class Released(_Message):
    """It accepts nobody any more."""


class Line(_Message):
    """A log line.

    :ivar key: of a line that is limited: all that share the key are limited together.
    """

    level: int
    text: str
    key: str = ""


class Trouble(_Message):
    """Something can't be done now."""

    cause: str
    level: int
    reason: str


class Well(_Message):
    """It can be done after all."""

    cause: str


class Visit(_Message):
    """Whether it wants visitors: a client learns from the server who takes them."""

    wanted: bool


class Want(_Message):
    """More bytes are wanted, to move them.

    :ivar way: as in `Grant`.
    :ivar sessions: those that wait for it.
    """

    way: int
    size: float
    sessions: int


class News(_Message):
    """What has become of a peer.

    :ivar what: "joined", "returned", "lost" or "left".
    :ivar peer: the worker's own number for it.
    :ivar node: which node it is a process of.
    :ivar worker: which of that node's worker processes.
    :ivar name: for log lines.
    :ivar words: more of them.
    """

    what: str
    peer: int
    node: str
    worker: int
    name: str
    words: str


ToWorker = Union[Begin, Ports, Link, Grant, Reload, Stop, Beat, Guess]  # noqa: UP007
ToParent = Union[  # noqa: UP007
    Ready, Failed, Released, Line, Trouble, Well, Visit, Want, News, Beat, Guess
]

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)


def encode(message: ToWorker | ToParent) -> bytes:
    """The message as it is sent."""
    return _encoder.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    """What the parent said."""
    return _to_worker.decode(data)


def decode_to_parent(data: bytes) -> ToParent:
    """What a worker said."""
    return _to_parent.decode(data)
