"""What an instance counts, and the record and the line that report it."""

from __future__ import annotations

from attrs import define, evolve, frozen


@define(kw_only=True, eq=False)
class Meter:
    """The running counters of one instance.

    Relays add to the plain integers as bytes move: ``rx`` is what this node read from its visitors
    or targets, ``tx`` what it wrote to them, in bytes since start. Counting is independent of the
    log level.
    """

    tcp_rx: int = 0
    tcp_tx: int = 0
    udp_rx: int = 0
    udp_tx: int = 0
    #: Datagrams given up because nothing could take them in time: no link, full queue, full socket.
    udp_dropped: int = 0
    #: Datagrams given up because they were larger than the datagram buffer.
    udp_oversized: int = 0


#: Those fields of `Stats` that only grow, and go on from what earlier runs had counted.
COUNTERS = ("tcp_rx", "tcp_tx", "udp_rx", "udp_tx", "udp_dropped", "udp_oversized")


@frozen(kw_only=True)
class Stats:
    """How a tunnel is at one moment.

    :ivar mode: the run mode in effect; 0 before it is decided.
    :ivar ping: seconds that the slowest peer's latest answer took, or for a plain forwarder its
        target's; 0 without one.
    :ivar pool: idle links.
    :ivar peers: nodes that it is joined with now.
    :ivar tcps: TCP sessions under way.
    :ivar udps: UDP sessions under way.
    :ivar tcp_rx, tcp_tx, udp_rx, udp_tx: bytes read from and written to visitors or targets since
        the start.
    :ivar udp_dropped: datagrams given up since the start because nothing could take them in time:
        no link, a full queue, a full socket.
    :ivar udp_oversized: datagrams given up since the start because they were larger than
        `NP_UDP_DATA_BUF_SIZE`.
    """

    mode: int = 0
    ping: float = 0.0
    pool: int = 0
    peers: int = 0
    tcps: int = 0
    udps: int = 0
    tcp_rx: int = 0
    tcp_tx: int = 0
    udp_rx: int = 0
    udp_tx: int = 0
    udp_dropped: int = 0
    udp_oversized: int = 0

    @property
    def ping_milliseconds(self) -> int:
        """`ping` in whole milliseconds; the fastest answer counts one, as 0 says that none came."""
        return 0 if self.ping <= 0 else max(1, round(self.ping * 1000))

    def after(self, earlier: Stats) -> Stats:
        """The same with the counters of an earlier run added."""
        return evolve(self, **{name: getattr(self, name) + getattr(earlier, name)
                               for name in COUNTERS})  # fmt: skip

    def line(self) -> str:
        """The checkpoint line; programs parse it, so that its form never changes."""
        return (
            f"CHECK_POINT|MODE={self.mode}|PING={self.ping_milliseconds}ms|POOL={self.pool}"
            f"|TCPS={self.tcps}|UDPS={self.udps}|TCPRX={self.tcp_rx}|TCPTX={self.tcp_tx}"
            f"|UDPRX={self.udp_rx}|UDPTX={self.udp_tx}"
        )
