"""What an instance counts, and the checkpoint line that reports it."""

from __future__ import annotations

from attrs import define, frozen

from nodepass.config import Mode


@define(kw_only=True, eq=False)
class Meter:
    """
    The running counters of one instance.

    Relays add to the plain integers as bytes move: ``rx`` is what this node read from its visitors
    or targets, ``tx`` what it wrote to them, in bytes since start.  ``tcps`` and ``udps`` are the
    sessions under way.  Counting is independent of the log level.
    """

    tcps: int = 0
    udps: int = 0
    tcp_rx: int = 0
    tcp_tx: int = 0
    udp_rx: int = 0
    udp_tx: int = 0
    #: Datagrams given up because nothing could take them in time: no link, full queue, full socket.
    udp_dropped: int = 0
    #: Datagrams given up because they were larger than the datagram buffer.
    udp_oversized: int = 0

    def checkpoint(self, *, mode: Mode, ping_ms: int, pool: int) -> Checkpoint:
        """
        Freeze the counters as they are now.

        :param mode: the run mode that is in effect.
        :param ping_ms: the latest round trip to the peer in milliseconds, 0 without a peer.
        :param pool: idle links, 0 without a peer.
        """
        return Checkpoint(
            mode=mode,
            ping_ms=ping_ms,
            pool=pool,
            tcps=self.tcps,
            udps=self.udps,
            tcp_rx=self.tcp_rx,
            tcp_tx=self.tcp_tx,
            udp_rx=self.udp_rx,
            udp_tx=self.udp_tx,
        )


@frozen(kw_only=True)
class Checkpoint:
    """The state of an instance at one moment, as its periodic event line shows it."""

    mode: Mode
    ping_ms: int
    pool: int
    tcps: int
    udps: int
    tcp_rx: int
    tcp_tx: int
    udp_rx: int
    udp_tx: int

    def line(self) -> str:
        """The text of the event line; programs parse it, so that its form never changes."""
        return (
            f"CHECK_POINT|MODE={int(self.mode)}|PING={self.ping_ms}ms|POOL={self.pool}"
            f"|TCPS={self.tcps}|UDPS={self.udps}|TCPRX={self.tcp_rx}|TCPTX={self.tcp_tx}"
            f"|UDPRX={self.udp_rx}|UDPTX={self.udp_tx}"
        )
