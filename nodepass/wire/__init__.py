"""What roles see of a wire: the other node, and what it asks for.

Each dialect of the protocol is a package or module in here that offers `Peer` objects to a role and
calls the role's `Host` methods. A role never asks which dialect it speaks.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from nodepass.address import Endpoint
from nodepass.relay.stream import Cause, Channel, Stream


class Flow(Enum):
    """Who listens for visitors, as the wire spells it."""

    REVERSE = "-"  # the server listens, the client dials
    FORWARD = "+"  # the client listens, the server dials


#: Stands for an address that the other node did not tell.
UNKNOWN = Endpoint("unknown", 0)


class Opening(NamedTuple):
    """What the dialing side is told of a visitor.

    :ivar target: 0 leaves the choice to the dialing side; n takes the nth target of its list.
    :ivar visitor: the visitor's address, or `UNKNOWN`.
    :ivar local: the address that the visitor had connected to, or `UNKNOWN`.
    """

    visitor: Endpoint
    local: Endpoint
    target: int = 0


class Peer(Protocol):
    """The other node, for as long as its sessions may live on."""

    @property
    def name(self) -> str:
        """Host name or address, fit for a log line."""

    @property
    def origin(self) -> tuple[str, int]:
        """The other node, and which of its worker processes: several peers may be one node."""

    @property
    def flow(self) -> Flow:
        """Which way its visitors go."""

    @property
    def words(self) -> str:
        """The wire, the flow and the TLS level, fit for a log line."""

    @property
    def closed(self) -> bool:
        """Whether it has been given up, or has left."""

    @property
    def targets(self) -> str:
        """What the peer says it dials, fit for a log line."""

    @property
    def sessions(self) -> int:
        """TCP sessions and flows that it carries now."""

    @property
    def sending(self) -> bool:
        """Whether bytes of sessions that are over are still on their way to it."""

    @property
    def idle(self) -> int:
        """Links ready for a visitor."""

    @property
    def ping(self) -> float:
        """Seconds that the latest answer over the control link took; 0 before the first."""

    def available(self, now: float) -> bool:
        """Whether a new visitor may be given to it: it was heard from lately and is not leaving."""

    def take(self, opening: Opening) -> Stream | None:
        """A stream to the peer's target on a link that is ready; None when there is none now."""

    def open(self, opening: Opening) -> Deferred[Stream]:
        """A stream to the peer's target on the next link. Cancel it to stop waiting for a link; it
        fails with PeerError when the peer goes first."""

    def open_flow(self, opening: Opening) -> Channel:
        """A channel to the peer's target for one UDP flow."""

    def drain(self) -> None:
        """Tell the peer to bring no new visitors: this node is stopping."""

    def close(self, cause: Cause, reason: str, *, linger: bool = False) -> Deferred[None]:
        """Reset what is left of its sessions and part for good; called again, cut what lingers.

        Fires when the peer has been told and its links are closed, or can't be: soon, anyway."""


class Host(Protocol):
    """The role, as a wire sees it."""

    def joined(self, peer: Peer) -> None:
        """A peer is there, for the first time."""

    def returned(self, peer: Peer) -> None:
        """A peer whose control link was lost is back, its sessions with it."""

    def lost(self, peer: Peer) -> None:
        """A peer's control link was lost. Its sessions go on for a while."""

    def left(self, peer: Peer) -> None:
        """A peer is gone, or takes leave: the last call about it. Sessions that it has ended may
        still linger; `Peer.close` cuts them."""

    def available(self, peer: Peer) -> None:
        """A peer that was not available may be so again."""

    def dial(self, peer: Peer, opening: Opening, stream: Stream) -> None:
        """A visitor of the peer's wants a target; `stream` leads to it."""

    def dial_flow(self, peer: Peer, opening: Opening, channel: Channel) -> None:
        """A visitor's UDP flow wants a target."""
