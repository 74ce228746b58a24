"""An old node as a peer: its control link, its pool of links, and what they carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from nodepass.errors import PeerError
from nodepass.logs import Log
from nodepass.parameters import TLSLevel
from nodepass.pool.policy import DemandPolicy
from nodepass.relay.hangup import HangupWatch
from nodepass.relay.portable import TakeOver, take_over
from nodepass.relay.stream import Cause, Channel, Stream
from nodepass.wire import UNKNOWN, Flow, Host, Opening
from nodepass.wire.parting import PARTING_TIMEOUT
from nodepass.wire.surroundings import Surroundings

from .channel import LinkChannel
from .control import OldControl
from .dialect import INTERVAL, Dialect
from .link import OldLink
from .pool import OldPool
from .signals import Flush, Launch, Ping, Pong, Signal, Verify
from .verify import Verification

__all__ = ["OldPeer", "OldSettings", "old_settings"]

#: Seconds that a peer has to answer when another client comes from its address.
PROBE_TIMEOUT = 1.0
#: Seconds from the control link until the verify has come that visitors wait for. An old node sends
#: it after one interval or two, and may take another to find a link for it.
VERIFY_TIMEOUT = 20.0
#: Share of the time after which a control link is lost, after which its peer gets no new visitors.
QUIET_SHARE = 0.8


@frozen(kw_only=True)
class OldSettings:
    """What all old peers of a role have in common.

    :ivar key: the key as old dialects take it.
    """

    key: bytes = field(repr=False)
    clock: IReactorTime
    log: Log
    watch: HangupWatch
    host: Host
    take_over: TakeOver


def old_settings(around: Surroundings, host: Host, key: bytes) -> OldSettings:
    """What the old peers of a role have in common.

    :param key: the key as old dialects take it.
    """
    return OldSettings(
        key=key,
        clock=around.reactor,
        log=around.log,
        watch=around.watch,
        host=host,
        take_over=around.relay.take_over,
    )


class OldPeer:
    """A session with an old node: from its handshake until the control link is gone.

    Rule 1: it begins when the server has granted it, is joined when there is a control link and
    where that is asked for a verify has come, and never comes back: the next one is another peer.

    Rule 2: `close` is the one exit. TCP sessions that have their links may go on after it.

    :param server: this is the server's end.
    :param address: the other end's, for log lines.
    :param minimum: at the client, idle links to keep.
    :param maximum: most idle links.
    :param make_links: at the client, makes links; None at the server's end.
    :param gone: told when it is closed.
    """

    def __init__(
        self,
        settings: OldSettings,
        dialect: Dialect,
        *,
        flow: Flow,
        tls: TLSLevel,
        server: bool,
        address: str,
        minimum: int = 1,
        maximum: int,
        make_links: Callable[[OldPeer, int], None] | None = None,
        gone: Callable[[OldPeer], None] = lambda peer: None,
    ) -> None:
        self.settings = settings
        self.dialect = dialect
        self.tls = tls
        self.flow = flow
        self.name = address
        self.targets = "its target"
        self.ping = 0.0
        self.closed = False
        self.joined = False
        #: Fires when it has joined, or with what kept it from that.
        self.ready: Deferred[None] = Deferred()
        self._server = server
        self._make_links = make_links
        self._tell_gone = gone
        self._takes = (flow is Flow.REVERSE) == server
        self._verification = Verification(dialect, tls, flow, server=server)
        self._control: OldControl | None = None
        self._heard_at = settings.clock.seconds()
        self._pinged_at = 0.0
        self._heartbeat: IDelayedCall | None = None
        self._unverified: IDelayedCall | None = None
        self._probes: dict[Deferred[bool], IDelayedCall] = {}
        self._parted: Deferred[None] = succeed(None)
        self.links = OldPool(
            self,
            dialect,
            takes=self._takes,
            maximum=maximum,
            policy=None if server else DemandPolicy(minimum, maximum),
            clock=settings.clock,
            watch=settings.watch,
            log=settings.log,
            take_over=settings.take_over,
        )

    def __str__(self) -> str:
        return self.name

    # What a role sees.

    @property
    def origin(self) -> tuple[str, int]:
        return f"{self.dialect.value} {self.name}", 0

    @property
    def words(self) -> str:
        return f"{self.dialect.value} wire, flow {self.flow.value}, tls={self.tls.value}"

    @property
    def sessions(self) -> int:
        return self.links.sessions

    @property
    def sending(self) -> bool:
        """Never: a session is over when all of it has left."""
        return False

    @property
    def idle(self) -> int:
        return self.links.idle

    def available(self, now: float) -> bool:
        quiet = now - self._heard_at
        return self.serves and quiet < QUIET_SHARE * self.dialect.traits.lost_after

    def take(self, opening: Opening) -> Stream | None:
        return self.links.take(opening)

    def open(self, opening: Opening) -> Deferred[Stream]:
        return self.links.open(opening)

    def open_flow(self, opening: Opening) -> Channel:
        return self.links.open_flow(opening)

    def drain(self) -> None:
        """Nothing: old nodes have no word for it."""

    def close(self, cause: Cause, reason: str, *, linger: bool = False) -> Deferred[None]:
        if self.closed:
            if not linger:
                self.links.cut(cause)
            return self._parted
        self.closed = True
        was_joined, self.joined = self.joined, False
        for timer in (self._heartbeat, self._unverified):
            if timer is not None and timer.active():
                timer.cancel()
        parted = succeed(None)
        control, self._control = self._control, None
        if control is not None:
            parted = control.close()
            cut = self.settings.clock.callLater(PARTING_TIMEOUT, control.abort)
            parted.addCallback(lambda _: cut.cancel() if cut.active() else None)
        closing = self.links.close(cause, reason, linger=linger)
        self._parted = gatherResults([parted, closing]).addCallback(lambda _: None)
        self._tell_gone(self)
        if was_joined:
            self.settings.host.left(self)
        elif not self.ready.called:
            self.ready.errback(PeerError(reason))
        self._answer_probes(False)  # who asked may take its place at once
        return self._parted

    # For who makes links.

    @property
    def takes_links(self) -> bool:
        """Whether links can be made for it now."""
        return not self.closed

    @property
    def link_count(self) -> int:
        """Its links, whatever they carry."""
        return len(self.links)

    @property
    def controlled(self) -> bool:
        """Whether it has its control link."""
        return self._control is not None

    def fill(self) -> None:
        """At the client: begin to make links."""
        self.links.balance()

    # The control link.

    def attach(self, transport: Any, fingerprint: str = "", rest: bytes = b"") -> None:
        """This connection is the control link.

        :param transport: the reactor's.
        :param fingerprint: of the certificate that was shown on it; empty without TLS.
        :param rest: what has come on it.
        """
        settings = self.settings
        self._verification.knows(fingerprint)
        control = OldControl(self.dialect, settings.key, self._hear, self._control_lost)
        self._control = control
        self._heard_at = settings.clock.seconds()
        take_over(transport, control, lambda: None)
        self._beat()
        if rest:
            control.dataReceived(rest)
        self._check_joined()
        if not self._verification.passed:
            settings.log.info(
                "{peer} of {dialect} is here; its verify of the certificate is awaited, which may "
                "take 10 s",
                peer=self.name,
                dialect=self.dialect.value,
            )
            self._unverified = settings.clock.callLater(
                VERIFY_TIMEOUT, self.close, Cause.LOST, "its verify did not come"
            )
        self.idle_changed()

    def probe(self) -> Deferred[bool]:
        """Ask the peer whether it is there; fires with the answer within `PROBE_TIMEOUT`."""
        result: Deferred[bool] = Deferred()
        if self._control is None:
            result.callback(False)
            return result
        self._probes[result] = self.settings.clock.callLater(
            PROBE_TIMEOUT, self._probe_failed, result
        )
        self._send(Ping())
        return result

    def _probe_failed(self, result: Deferred[bool]) -> None:
        del self._probes[result]
        result.callback(False)

    def _answer_probes(self, there: bool) -> None:
        probes, self._probes = self._probes, {}
        for result, timer in probes.items():
            timer.cancel()
            result.callback(there)

    def _check_joined(self) -> None:
        if not self.joined and not self.closed and self.controlled and self._verification.passed:
            self.joined = True
            if self._unverified is not None:
                self._unverified.cancel()
            self.ready.callback(None)
            self.settings.host.joined(self)
            self.links.serve_waiting()

    def _send(self, signal: Signal) -> None:
        if self._control is not None:
            self._control.send(signal)

    def _beat(self) -> None:
        """Each interval: is the peer there, and are the links what they should be?"""
        control, clock = self._control, self.settings.clock
        if control is None:
            return
        silent = clock.seconds() - self._heard_at
        if silent >= self.dialect.traits.lost_after:
            control.abort(f"nothing heard for {silent:.0f} s")
            return
        self._heartbeat = clock.callLater(INTERVAL, self._beat)
        if self.links.tidy():
            self.settings.log.debug("data links of {peer} are made anew", peer=self.name)
            self._send(Flush())
            self.links.flush()
        self._pinged_at = clock.seconds()
        self._send(Ping())

    def _control_lost(self, reason: str) -> None:
        self.settings.log.warn(
            "control link to {peer} lost: {reason}; {sessions} sessions go on without it",
            peer=self.name,
            reason=reason,
            sessions=self.sessions,
        )
        self._control = None
        self.close(Cause.LOST, f"its control link is lost: {reason}", linger=True)

    def _hear(self, signal: Signal) -> None:
        if self.closed:
            return  # what was on the way
        now = self.settings.clock.seconds()
        was_available = self.available(now) or not self.joined
        self._heard_at = now
        if isinstance(signal, Launch):
            if not self._takes:
                self.links.launched(signal)
        elif isinstance(signal, Ping):
            self._send(Pong())
        elif isinstance(signal, Pong):
            self.ping = max(0.0, now - self._pinged_at)
            self._answer_probes(True)
        elif isinstance(signal, Flush):
            self.links.flush()
        else:
            self._judge(signal)
        if not was_available and self.available(now):
            self.settings.host.available(self)

    def _judge(self, verify: Verify) -> None:
        """The peer has named the certificate that it knows, and a link that it gives up."""
        ours = self.links.give_up(verify.id)
        if self._verification.judge(verify.fingerprint, ours):
            self._check_joined()
            return
        self.settings.log.error(
            "{peer} knows another certificate than this node: somebody may be in between; the "
            "tunnel is dropped",
            peer=self.name,
        )
        self.close(Cause.DENIED, "the certificates differ")

    # PoolOwner

    @property
    def serves(self) -> bool:
        return self.joined and self._takes

    def launch(self, launch: Launch) -> None:
        assert self._control is not None
        self._control.send(launch)

    def launched(self, launch: Launch, link: OldLink) -> None:
        opening = Opening(visitor=launch.visitor or UNKNOWN, local=UNKNOWN)
        if launch.udp:
            channel = LinkChannel(self.dialect)
            channel.begin(link)
            self.settings.host.dial_flow(self, opening, channel)
        else:
            self.settings.host.dial(self, opening, link)

    def need_links(self, count: int) -> None:
        if self._make_links is not None and not self.closed:
            self._make_links(self, count)

    def idle_changed(self) -> None:
        """There is an idle link: the one for the verify, if that was not sent yet."""
        if not (self._verification.due and self.controlled and not self.closed):
            return
        link = self.links.sample()
        if link is None:
            return
        self._verification.due = False
        self._verification.knows(link.fingerprint)
        self._send(Verify(link.number, link.fingerprint))
        link.close()
