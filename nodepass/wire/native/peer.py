"""The other node: its control link, its data links and what they carry."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall

from nodepass.logs import printable
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.wire import Flow, Opening
from nodepass.wire.parting import PARTING_TIMEOUT

from .control import ControlLink
from .datagrams import FlowChannel
from .frames import cause_of
from .handshake import Secrets
from .linkpool import LinkPool
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
from .settings import SILENT_INTERVALS, PeerSettings

#: Intervals without a word after which a peer gets no new visitors.
QUIET_INTERVALS = 1.5
#: Seconds that a peer has to answer when another node says that it takes its place.
PROBE_TIMEOUT = 1.0


class NativePeer:
    """One association with another node, from its first handshake until nothing is left of it.

    Rule 1: a peer that lost its control link keeps its data links and their sessions for `adoption`
    seconds; `attach` within that time goes on where it was.

    Rule 2: `close` is the one exit; called again it cuts what lingers. It resets every session,
    refuses every waiting visitor and tells the host, once.

    :ivar association: the association's id.
    :ivar node: the peer's node id; empty at the client's end.
    :ivar worker: which of the node's worker processes it is.
    :ivar links: its data links.
    :ivar make_links: at the client's end, makes data links; None at the server's.
    :ivar gone: hears that the association is over.
    :ivar pinned: at the client's end, hears of the server's next certificate.
    """

    def __init__(
        self,
        settings: PeerSettings,
        *,
        association: bytes,
        secrets: Secrets,
        address: str,
        node: bytes = b"",
        worker: int = 0,
        minimum: int = 1,
        maximum: int = 1,
        make_links: Callable[[NativePeer, int], None] | None = None,
        pinned: Callable[[bytes], None] | None = None,
        gone: Callable[[NativePeer], None] = lambda peer: None,
    ) -> None:
        self.settings = settings
        self.association = association
        self.secrets = secrets
        self.address = address
        self.node = node
        self.worker = worker
        self.make_links = make_links
        self.pinned = pinned
        self.gone = gone
        self.name = address
        self.targets = ""
        self.ping = 0.0
        self.closed = False
        self.draining = False
        self._introduced = False
        self._gone: Deferred[None] = succeed(None)
        self.heard_at = settings.clock.seconds()
        self.control: ControlLink | None = None
        self._bounds = minimum, maximum
        self.links = LinkPool(
            self,
            takes=settings.takes,
            minimum=_part(minimum, settings.about.associations),
            maximum=_part(maximum, settings.about.associations),
            clock=settings.clock,
            watch=settings.watch,
            log=settings.log,
            take_over=settings.take_over,
            soon=settings.soon,
            share_within=settings.share_within,
        )
        self._heartbeat: IDelayedCall | None = None
        self._given_up: IDelayedCall | None = None
        self._probes: dict[Deferred[bool], IDelayedCall] = {}

    def __str__(self) -> str:
        return self.name

    # What a role sees.

    @property
    def origin(self) -> tuple[str, int]:
        """The node, and which of its worker processes."""
        return self.node.hex(), self.worker

    @property
    def flow(self) -> Flow:
        """Which way visitors go."""
        return self.settings.flow

    @property
    def words(self) -> str:
        """How the tunnel is, for log lines."""
        return f"native wire, flow {self.flow.value}, tls={self.settings.level.value}"

    @property
    def sessions(self) -> int:
        """TCP sessions and flows under way."""
        return self.links.sessions

    @property
    def sending(self) -> bool:
        """Whether bytes of sessions, perhaps over by now, are on their way to the peer."""
        return self.links.sending

    @property
    def idle(self) -> int:
        """Links ready for a visitor."""
        return self.links.idle

    @property
    def joined(self) -> bool:
        """Whether there is a control link, and at the server whether the client has said how many
        associations share its links."""
        return self.control is not None and (self._introduced or self._at_client)

    @property
    def _at_client(self) -> bool:
        """Whether this is the client's end."""
        return self.make_links is not None

    @property
    def takes_links(self) -> bool:
        """Whether a client can make links for it now."""
        return self.joined and not self.draining

    @property
    def link_count(self) -> int:
        """Its data links, whatever they carry."""
        return len(self.links)

    def available(self, now: float) -> bool:
        quiet = now - self.heard_at
        return (
            self.control is not None
            and not self.draining
            and quiet < QUIET_INTERVALS * self.settings.report_interval
        )

    def take(self, opening: Opening) -> Stream | None:
        return self.links.take(opening)

    def open(self, opening: Opening) -> Deferred[Stream]:
        return self.links.open(opening)

    def open_flow(self, opening: Opening) -> Channel:
        return self.links.open_flow(opening)

    def drain(self) -> None:
        self._send(Drain())

    def close(self, cause: Cause, reason: str, *, linger: bool = False) -> Deferred[None]:
        if self.closed:
            if not linger:
                self.links.cut(cause, reason)
            return self._gone
        self.closed = True
        parted = succeed(None)
        for timer in (self._heartbeat, self._given_up):
            if timer is not None and timer.active():
                timer.cancel()
        if self.control is not None:
            control, self.control = self.control, None
            control.send(Leave(reason=reason))
            parted = control.close()
            timer = self.settings.clock.callLater(PARTING_TIMEOUT, control.abort)
            parted.addCallback(lambda _: timer.cancel() if timer.active() else None)
        closing = self.links.close(cause, reason, linger=linger)
        self._answer_probes(False)
        self._gone = gatherResults([parted, closing]).addCallback(lambda _: None)
        self.gone(self)
        self.settings.host.left(self)
        return self._gone

    # The control link.

    def attach(self, control: ControlLink) -> None:
        """Go on with this control link; one that is there already is superseded."""
        old, self.control = self.control, control
        if old is not None:
            old.abort("superseded")
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
            self.links.start_over()
            self._beat()  # after it, as it asks for links that are missing as well

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
        self.links.tidy()

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
        self.links.refuse_waiting(Cause.LOST, reason)
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
                self.make_links(self, message.count)
        elif isinstance(message, Abort):
            link = self.links.get(message.link)
            if link is not None:
                link.abort_session(message.session, cause_of(message.cause))
        elif isinstance(message, Retire):
            self.links.retire(message.link)
        elif isinstance(message, Pin):
            if self.pinned is not None and len(message.pin) == 32:
                self.pinned(message.pin)
        elif isinstance(message, About):
            if message.name:
                self.name = f"{printable(message.name)} ({self.address})"
            self.targets = printable(message.targets)
            if not self._at_client:  # a client says how many there are of it
                minimum, maximum = self._bounds
                parts = message.associations
                self.links.bound(_part(minimum, parts), _part(maximum, parts))
            if not self._introduced:
                self._introduced = True
                if not self._at_client:
                    self.links.start_over()
                self.settings.host.joined(self)
        elif isinstance(message, Drain):
            self.draining = True
            # It makes no more links: who waits for one may find another client.
            self.links.refuse_waiting(Cause.STOPPED, "it is stopping")
        elif isinstance(message, Leave):
            reason = f"it left: {printable(message.reason)}" if message.reason else "it left"
            self.close(Cause.STOPPED, reason, linger=True)
            return
        if not was_available and self.available(now):
            self.settings.host.available(self)

    # PoolOwner

    def need_links(self, count: int) -> None:
        if self.make_links is not None:
            self.make_links(self, count)
        else:
            self._send(Want(count=count))

    def ask_to_retire(self, link: int) -> None:
        self._send(Retire(link=link))

    def opened(self, opening: Opening, stream: Stream) -> None:
        self.settings.host.dial(self, opening, stream)

    def flow_opened(self, channel: FlowChannel) -> None:
        self.settings.host.dial_flow(self, channel.opening, channel)

    def reset_around(self, link: int, session: int, cause: Cause) -> bool:
        self._send(Abort(link=link, session=session, cause=cause))
        return self.control is not None


def _part(whole: int, parts: int) -> int:
    """What each of so many gets of a whole: one at least."""
    return max(1, -(-whole // max(1, parts)))
