"""What all native peers of a role have in common."""

from __future__ import annotations

import socket

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from nodepass import __version__
from nodepass.logs import Log
from nodepass.parameters import TLSLevel
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import Soon, TakeOver, take_over
from nodepass.wire import Flow, Host
from nodepass.wire.surroundings import Surroundings

from .messages import About

__all__ = ["SILENT_INTERVALS", "PeerSettings", "peer_settings"]

#: Intervals without a word after which the control link counts as lost.
SILENT_INTERVALS = 3.0


@frozen(kw_only=True)
class PeerSettings:
    """What all peers of a role have in common: their surroundings, and what they agree on.

    :ivar flow: which way visitors go.
    :ivar level: how data links are protected.
    :ivar takes: this end has the visitors, so it takes links.
    :ivar report_interval: seconds between pings.
    :ivar adoption: seconds that sessions live on without a control link.
    :ivar about: what to tell the peer of this node.
    :ivar soon: calls something when what has come by now has been passed on.
    :ivar share_within: seconds of a round trip within which sessions share a link; 0: never.
    :ivar take_over: lets a protocol go on with the transport of a data link.
    """

    clock: IReactorTime
    log: Log
    watch: HangupWatch
    host: Host
    flow: Flow
    level: TLSLevel
    takes: bool
    report_interval: float
    adoption: float
    about: About
    soon: Soon
    share_within: float = 0.0
    take_over: TakeOver = take_over


def peer_settings(
    around: Surroundings,
    host: Host,
    *,
    flow: Flow,
    level: TLSLevel,
    takes: bool,
    dials: str,
    associations: int = 1,
) -> PeerSettings:
    """What the peers of a role have in common.

    :param host: told of the peers.
    :param flow: which way visitors go.
    :param level: how data links are protected.
    :param takes: this end has the visitors.
    :param dials: the targets that this node dials for its peers, for their log lines.
    :param associations: how many a client has with its server, all its workers together.
    """
    interval = around.tuning.report_interval
    return PeerSettings(
        clock=around.reactor,
        log=around.log,
        watch=around.watch,
        host=host,
        flow=flow,
        level=level,
        takes=takes,
        report_interval=interval,
        adoption=around.tuning.service_cooldown + SILENT_INTERVALS * interval,
        about=About(
            name=socket.gethostname(),
            targets=dials,
            software=f"nodepass {__version__}",
            associations=associations,
        ),
        soon=around.relay.soon,
        share_within=around.tuning.share_within,
        take_over=around.relay.take_over,
    )
