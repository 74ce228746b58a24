"""What can go wrong between a client and a master; each message says the cause and the cure."""

from __future__ import annotations

from nodepass.errors import NodePassError

__all__ = [
    "BadAnswer",
    "Cut",
    "MasterError",
    "MissingFeature",
    "NotAMaster",
    "NotFound",
    "Refused",
    "ServerTrouble",
    "Silent",
    "TLSMismatch",
    "Unreachable",
    "Untrusted",
    "WrongKey",
]


class MasterError(NodePassError):
    """Base of all that a `nodepass.client.MasterClient` raises but bad configuration."""


class Unreachable(MasterError):
    """No connection could be made."""


class Silent(MasterError):
    """There is a connection, but no answer in time."""


class Cut(MasterError):
    """The connection ended before the answer did. Whether the request was done is not known."""


class TLSMismatch(MasterError):
    """One end speaks TLS and the other does not, or they have no version in common."""


class Untrusted(MasterError):
    """The certificate is not one that was asked for."""


class NotAMaster(MasterError):
    """Something answers there, but not as a master does."""


class BadAnswer(MasterError):
    """A master's answer that can't be read, or is too large."""


class MissingFeature(MasterError):
    """The master is too old for this request, or another implementation."""


class ServerTrouble(MasterError):
    """The master, or a proxy before it, failed: status 500 and above."""


class Refused(MasterError):
    """The master understood the request and does not do it.

    :ivar status: of HTTP, 400 to 499.
    :ivar reason: the server's own words, escaped.
    """

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class NotFound(Refused):
    """The master has no instance of that id."""


class WrongKey(MasterError):
    """The API key is missing or not the master's."""
