"""What can go wrong, sorted by what can be done about it.

Whatever a role meets falls into one of three kinds, and each has its own answer: a
configuration that can't be used ends the program before it starts, what retrying can't mend
ends it with a reason, and what a peer did wrong costs that peer its connection. Everything
else, such as a network that is down, is not an error here: it is retried.
"""

from __future__ import annotations

__all__ = ["ConfigError", "FatalError", "NodePassError", "PeerError"]


class NodePassError(Exception):
    """Base of the errors that nodepass raises on purpose.

    ``str()`` of one is a single line for a person to read. It never contains a key.
    """


class ConfigError(NodePassError):
    """A URL, an environment variable or a file that can't be used.

    The message names the parameter, the value given and what is accepted. A program that
    gets one exits with status 2.
    """


class FatalError(NodePassError):
    """What retrying can't mend, such as no permission to bind or an address of another host.

    A program that gets one exits with status 1.
    """


class PeerError(NodePassError):
    """The other node said or did something that the protocol does not allow."""
