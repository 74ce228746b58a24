"""The other node: its control link, its data links and what they carry."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.errors import PeerError
from nodepass.logs import Log, printable
from nodepass.pool.policy import DemandPolicy
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.wire import Host, Opening

from .control import ControlLink
from .datagrams import DatagramLink, FlowCarrier, FlowChannel
from .datalink import DataLink
from .handshake import Secrets
from .messages import (
    Abort,
    About,
    Drain,
    Leave,
    Message,
    Pin,
    Ping,
    Pong,
    Retire,
    Want,
)  # fmt: skip

#: Intervals without a word after which the control link counts as lost.
SILENT_INTERVALS = 3.0
#: Intervals without a word after which a peer gets no new visitors.
QUIET_INTERVALS = 1.5
#: Seconds that a peer has to answer when another node says that it takes its place.
PROBE_TIMEOUT = 1.0
#: Seconds after which an idle link is replaced: firewalls forget even what keep-alive keeps warm.
LINK_MAX_AGE = 3600.0
#: Seconds that a datagram link without flows is kept: a resolver's next query comes soon.
DATAGRAM_LINK_REST = 10.0
#: Links without a session above the maximum that are let in: in a burst the sessions of many links
#: are still on their way.  It bounds what a peer that lies can make this node hold.
SPARE_LINKS = 1024
#: Most links asked for at once: the client makes at most so many side by side anyway.
MAX_WANT = 65535


@frozen(kw_only=True)
class PeerSettings:
    """What all peers of a role have in common.

    @ivar takes: this end has the visitors, so it takes links.
    @ivar report_interval: seconds between pings.
    @ivar adoption: seconds that sessions live on without a control link.
    @ivar about: what to tell the peer of this node.
    """

    clock: IReactorTime
    log: Log
    watch: HangupWatch
    host: Host
    takes: bool
    report_interval: float
    adoption: float
    about: About


class NativePeer:
    """One association with another node, from its first handshake until nothing is left of it.

    Rule 1: a peer that lost its control link keeps its data links and their sessions for `adoption`
    seconds; `attach` within that time goes on where it was.

    Rule 2: `close` is the one exit.  It resets every session, refuses every waiting visitor and
    tells the host, once.

    @ivar association: the association's id.
    @ivar node: the peer's node id; empty at the client's end.
    @ivar make_links: at the client's end, makes data links; None at the server's.
    @ivar pinned: at the client's end, hears of the server's next certificate.
    """

    def __init__(
        self,
        settings: PeerSettings,
        *,
        association: bytes,
        secrets: Secrets,
        address: str,
        node: bytes = b"",
        minimum: int = 1,
        maximum: int = 1,
        make_links: Callable[[NativePeer, int], None] | None = None,
        pinned: Callable[[bytes], None] | None = None,
    ) -> None:
        self.settings = settings
        self.association = association
        self.secrets = secrets
        self.address = address
        self.node = node
        self.make_links = make_links
        self.pinned = pinned
        self.name = address
        self.targets = ""
        self.ping = 0.0
        self.closed = False
        self.draining = False
        self._introduced = False
        self.heard_at = settings.clock.seconds()
        self.control: ControlLink | None = None
        self._links: dict[int, DataLink] = {}
        self._idle: dict[DataLink, None] = {}  # of the taking end; the newest is taken first
        self._busy: set[DataLink] = set()  # carrying a TCP session
        self._coming = 0  # links asked for and not there yet
        self._policy = DemandPolicy(minimum, maximum)
        self._waiting: deque[tuple[Opening, Deferred[Stream]]] = deque()
        self._lanes: deque[int] = deque()  # of the flow carrier, waiting for a link
        self._carrier = FlowCarrier(self._lane_needs_link)
        self._flow_links: dict[DatagramLink, DataLink] = {}
        self._heartbeat: IDelayedCall | None = None
        self._given_up: IDelayedCall | None = None
        self._probes: dict[Deferred[bool], IDelayedCall] = {}

    def __str__(self) -> str:
        return self.name

    # What a role sees.

    @property
    def sessions(self) -> int:
        """TCP sessions and flows under way."""
        return len(self._busy) + len(self._waiting) + self.flows

    @property
    def flows(self) -> int:
        """UDP flows under way."""
        return sum(len(flows.flows) for flows in self._flow_links) + self._carrier.waiting

    @property
    def idle(self) -> int:
        """Links ready for a visitor."""
        if self.settings.takes:
            return len(self._idle)
        return sum(1 for link in self._links.values() if link.idle)

    @property
    def joined(self) -> bool:
        """Whether there is a control link."""
        return self.control is not None

    def available(self, now: float) -> bool:
        quiet = now - self.heard_at
        return (
            self.control is not None
            and not self.draining
            and quiet < QUIET_INTERVALS * self.settings.report_interval
        )

    def open(self, opening: Opening) -> Deferred[Stream]:
        result: Deferred[Stream] = Deferred(self._stop_waiting)
        link = self._next_idle()
        if link is not None:
            result.callback(self._take(link, opening))
        else:
            self._waiting.append((opening, result))
        self._balance()
        return result

    def open_flow(self, opening: Opening) -> Channel:
        return self._carrier.open(opening)

    def drain(self) -> None:
        self._send(Drain())

    def close(self, cause: Cause, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        for timer in (self._heartbeat, self._given_up):
            if timer is not None and timer.active():
                timer.cancel()
        if self.control is not None:
            control, self.control = self.control, None
            control.send(Leave(reason=reason))
            control.close()
        self._refuse_waiting(cause, reason)
        for link in list(self._links.values()):
            link.abort(reason, cause)
        self._answer_probes(False)
        self.settings.host.left(self)

    # The control link.

    def attach(self, control: ControlLink) -> None:
        """Go on with this control link; one that is there already is superseded."""
        old, self.control = self.control, control
        if old is not None:
            old.abort("superseded")
        self._coming = 0
        self.draining = False
        if self._given_up is not None:
            self._given_up.cancel()
            self._given_up = None
        self.heard_at = self.settings.clock.seconds()
        control.listen(
            lambda message: self._hear(control, message),
            lambda reason: self._control_lost(control, reason),
        )
        if self.control is control:
            self._send(self.settings.about)
            self._beat()
            self._balance()

    def probe(self) -> Deferred[bool]:
        """Ask the peer whether it is there; fires with the answer within `PROBE_TIMEOUT`."""
        result: Deferred[bool] = Deferred()
        if self.control is None:
            result.callback(False)
            return result
        self._probes[result] = self.settings.clock.callLater(
            PROBE_TIMEOUT, self._probe_failed, result
        )
        self._send_ping()
        return result

    def announce_pin(self, pin: bytes) -> None:
        """Tell a client of the certificate that data links will show next."""
        self._send(Pin(pin=pin))

    def _probe_failed(self, result: Deferred[bool]) -> None:
        del self._probes[result]
        result.callback(False)

    def _answer_probes(self, there: bool) -> None:
        probes, self._probes = self._probes, {}
        for result, timer in probes.items():
            timer.cancel()
            result.callback(there)

    def _send(self, message: Message) -> None:
        if self.control is not None:
            self.control.send(message)

    def _send_ping(self) -> None:
        self._send(Ping(time=int(self.settings.clock.seconds() * 1e6)))

    def _beat(self) -> None:
        """Each interval: is the peer there, and are the links what they should be?"""
        if self._heartbeat is not None and self._heartbeat.active():
            self._heartbeat.cancel()
        interval = self.settings.report_interval
        if self.control is not None:
            silent = self.settings.clock.seconds() - self.heard_at
            if silent >= SILENT_INTERVALS * interval:
                self.control.abort(f"nothing heard for {silent:.0f} s")
                return
        self._heartbeat = self.settings.clock.callLater(interval, self._beat)
        self._send_ping()
        self._tidy()

    def _control_lost(self, control: ControlLink, reason: str) -> None:
        if control is not self.control or self.closed:
            return
        self.control = None
        self.ping = 0.0
        if self._heartbeat is not None and self._heartbeat.active():
            self._heartbeat.cancel()
        self._given_up = self.settings.clock.callLater(
            self.settings.adoption, self._give_up, reason
        )
        self.settings.log.warn(
            "control link to {peer} lost: {reason}; {sessions} sessions wait for its return",
            peer=self.name,
            reason=reason,
            sessions=self.sessions,
        )
        self._answer_probes(False)
        # Who waits for a link may find another client, or waits for this one at the role.
        self._refuse_waiting(Cause.LOST, reason)
        self.settings.host.lost(self)

    def _give_up(self, reason: str) -> None:
        self._given_up = None
        self.close(Cause.LOST, f"it did not come back: {reason}")

    def _hear(self, control: ControlLink, message: Message) -> None:
        if control is not self.control:
            return
        now = self.settings.clock.seconds()
        was_available = self.available(now)
        self.heard_at = now
        if isinstance(message, Ping):
            self._send(Pong(time=message.time))
        elif isinstance(message, Pong):
            self.ping = max(0.0, now - message.time / 1e6)
            self._answer_probes(True)
        elif isinstance(message, Want):
            if self.make_links is not None:
                self.make_links(self, min(message.count, MAX_WANT))
        elif isinstance(message, Abort):
            link = self._links.get(message.link)
            if link is not None:
                link.abort_session(message.session, _cause(message.cause))
        elif isinstance(message, Retire):
            link = self._links.get(message.link)
            if link is not None and link in self._idle:
                del self._idle[link]
                link.close()
        elif isinstance(message, Pin):
            if self.pinned is not None and len(message.pin) == 32:
                self.pinned(message.pin)
        elif isinstance(message, About):
            if message.name:
                self.name = f"{printable(message.name)} ({self.address})"
            self.targets = printable(message.targets)
            if not self._introduced:
                self._introduced = True
                self.settings.host.joined(self)
        elif isinstance(message, Drain):
            self.draining = True
        elif isinstance(message, Leave):
            reason = f"it left: {printable(message.reason)}" if message.reason else "it left"
            self.close(Cause.STOPPED, reason)
            return
        if not was_available and self.available(now):
            self.settings.host.available(self)

    # The links.

    def has_link(self, number: int) -> bool:
        """Whether there is a link of this id."""
        return number in self._links

    def add_link(self, number: int) -> DataLink:
        """A link that has proved that it belongs; the caller connects its transport, then calls
        `link_ready`.

        @raise PeerError: the peer has too many links already.
        """
        settings = self.settings
        if len(self._links) - len(self._busy) >= self._policy.maximum + SPARE_LINKS:
            raise PeerError("it makes more data links than it was asked for")
        link = DataLink(number, settings.takes, self, settings.clock, settings.watch)
        self._links[number] = link
        return link

    def link_ready(self, link: DataLink) -> None:
        """The link may carry sessions."""
        self._coming = max(0, self._coming - 1)
        if self.settings.takes:
            self._put(link)

    def link_opened(self, link: DataLink, opening: Opening, stream: Stream) -> None:
        self._busy.add(link)
        self.settings.host.dial(self, opening, stream)

    def link_free(self, link: DataLink) -> None:
        self._busy.discard(link)
        if self.settings.takes:
            self._put(link)

    def link_backed_up(self, link: DataLink, session: int, cause: Cause) -> bool:
        self._send(Abort(link=link.number, session=session, cause=cause))
        return self.control is not None

    def link_lost(self, link: DataLink, reason: str) -> None:
        if self._links.get(link.number) is link:
            del self._links[link.number]
        self._idle.pop(link, None)
        self._busy.discard(link)
        if link.flows is not None:
            self._carrier.lost(link.flows)
            self._flow_links.pop(link.flows, None)
        self.settings.log.debug(
            "data link {number} of {peer}: {reason}",
            number=link.number,
            peer=self.name,
            reason=reason,
        )
        self._balance()

    def flows_opened(self, link: DataLink, flows: DatagramLink) -> None:
        self._flow_links[flows] = link
        flows.flow_opened = self._flow_opened

    def _flow_opened(self, channel: FlowChannel) -> None:
        self.settings.host.dial_flow(self, channel.opening, channel)

    def _next_idle(self) -> DataLink | None:
        while self._idle:
            link, _ = self._idle.popitem()
            if link.idle:
                return link
        return None

    def _put(self, link: DataLink) -> None:
        """An idle link: for who waits, or for the pool."""
        if not link.idle or self.closed:
            return
        if self._waiting:
            opening, result = self._waiting.popleft()
            result.callback(self._take(link, opening))
        elif self._lanes:
            self._give_lane(self._lanes.popleft(), link)
        elif len(self._idle) < self._policy.maximum:
            self._idle[link] = None
        else:
            link.close()

    def _take(self, link: DataLink, opening: Opening) -> Stream:
        self._busy.add(link)
        return link.open(opening)

    def _refuse_waiting(self, cause: Cause, reason: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for _, result in waiting:
            result.errback(PeerError(reason))
        while self._lanes:
            self._carrier.refuse(self._lanes.popleft(), cause)

    def _stop_waiting(self, result: Deferred[Stream]) -> None:
        for entry in self._waiting:
            if entry[1] is result:
                self._waiting.remove(entry)
                return

    def _lane_needs_link(self, lane: int) -> None:
        link = self._next_idle()
        if link is None:
            self._lanes.append(lane)
        else:
            # Not at once: the flow that asked is only being opened.
            self._lanes.append(lane)
            self.settings.clock.callLater(0, self._put, link)
        self._balance()

    def _give_lane(self, lane: int, link: DataLink) -> None:
        flows = link.carry_flows()
        self._flow_links[flows] = link
        self._carrier.give(lane, flows)

    def _in_use(self) -> int:
        return len(self._links) - len(self._idle)

    def _balance(self) -> None:
        """At the taking end: ask for the links that are missing."""
        if not self.settings.takes or self.closed or self.control is None:
            return
        now = self.settings.clock.seconds()
        waiting = len(self._waiting) + len(self._lanes)
        in_use = self._in_use() + waiting
        self._policy.used(now, in_use)
        missing = waiting + self._policy.idle(now, in_use) - len(self._idle) - self._coming
        if missing <= 0:
            return
        self._coming += missing
        if self.make_links is not None:
            self.make_links(self, missing)
        else:
            self._send(Want(count=missing))

    def _tidy(self) -> None:
        """At the taking end: close links that are too many, too old, or without a flow."""
        if not self.settings.takes:
            return
        now = self.settings.clock.seconds()
        for flows in self._carrier.unused():
            link = self._flow_links.get(flows)
            if link is not None and now - link.free_since > DATAGRAM_LINK_REST:
                self._carrier.lost(flows)
                link.close()
        surplus = len(self._idle) - self._policy.idle(now, self._in_use())
        for link in list(self._idle):
            if surplus > 0 or now - link.made_at > LINK_MAX_AGE:
                surplus -= 1
                del self._idle[link]
                link.close()
        self._balance()


def about(targets: str, version: str) -> About:
    """What a node tells of itself."""
    return About(name=platform.node(), targets=targets, software=f"nodepass {version}")


def _cause(number: int) -> Cause:
    try:
        return Cause(number)
    except ValueError:
        return Cause.RESET
