"""The client's side of the native wire: joins a server, and comes back to it."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from nodepass.address import Address
from nodepass.config import TLSLevel
from nodepass.digests import sha256
from nodepass.errors import PeerError
from nodepass.health import Health
from nodepass.logs import printable
from nodepass.parameters import MOST_WORKERS
from nodepass.relay.stream import Cause
from nodepass.tls import ClientTLS, exporter
from nodepass.wire import Flow
from nodepass.wire.linkmaker import MAX_IDLE, LinkTerms, most_links
from nodepass.wire.search import Pauses, Search

from . import ALPN_CONTROL, ALPN_DATA
from .control import ControlLink
from .handshake import (
    CONTROL_EXPORTER,
    VERSIONS,
    ClientHandshake,
    HandshakeError,
    Secrets,
)  # fmt: skip
from .linkmaker import NativeLinkMaker
from .messages import (
    Answer,
    Hello,
    M,
    Message,
    Refusal,
    Refuse,
    Welcome,
    decode,
    expect,
    framed,
)
from .peer import NativePeer
from .settings import PeerSettings
from .tags import tag

#: Certificates that may be shown at once: the present one and two that were announced in a row.
MAX_PINS = 3
#: Seconds for which the certificate that the server shows now holds after it announced the next.
PIN_OVERLAP = 60.0
#: Seconds before the first of the tries to come back to one worker of a server whose others are
#: there; each further pause is twice as long, up to the usual one.
QUICK_RETURN = 0.1


class Refused(PeerError):
    """The server said no."""

    def __init__(self, refusal: int, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal


@frozen(kw_only=True)
class ClientTerms:
    """What the client brings along.

    :ivar level: least TLS level that it accepts.
    :ivar server: the server as the URL names it.
    :ivar dial: connects to the first of these hosts that answers; fires with what was built.
    :ivar settings: for the peer, once the server has said which way visitors flow, how links are
        protected, and how many workers it has.
    :ivar worker: which of this client's workers this one is.
    :ivar server_worker: which of the server's it joins.
    :ivar leads: it is the one that says what is wrong with the server.
    :ivar elsewhere: whether this process is joined with other workers of the server.
    """

    key: bytes | None = field(repr=False)
    node: bytes
    level: TLSLevel | None
    minimum: int
    tls: ClientTLS
    reactor: Any
    server: Address
    dial: Callable[[Sequence[str], int, IProtocolFactory], Deferred[IProtocol]]
    settings: Callable[[Flow, TLSLevel, int], PeerSettings]
    handshake_timeout: float
    cooldown: float
    pool_interval: tuple[float, float]
    worker: int = 0
    server_worker: int = 0
    leads: bool = True
    elsewhere: Callable[[], bool] = lambda: False


def node_id(*parts: str) -> bytes:
    """The same 16 bytes for each process that runs the same URL on this machine."""
    machine = socket.gethostname()
    try:
        with open("/etc/machine-id", encoding="ascii", errors="replace") as file:
            machine += file.read(64)
    except OSError:
        pass  # other systems tell machines apart by their host name
    return sha256("\0".join((machine, *parts)).encode())[:16]


class NativeConnector:
    """A client's way to a server by the native wire.

    :cvar dialect: its name in `wire=`.
    :cvar trusted: both ends prove the key.
    :ivar peer: the server; None before the first join.
    :ivar flow: which way visitors go, as the server said last.
    :ivar workers: how many workers the server has, as it said last.
    """

    dialect = "native"
    trusted = True

    def __init__(self, terms: ClientTerms, health: Health) -> None:
        self.terms = terms
        self.health = health
        self.log = health.log
        self.peer: NativePeer | None = None
        self.flow: Flow | None = None
        self.workers = 1
        self.link_level = TLSLevel.PLAIN
        self._pins: dict[bytes, float] = {}  # with the time until which each holds
        self._maker: NativeLinkMaker | None = None
        self._search: Search | None = None
        self._pauses = Pauses(terms.cooldown)
        self._quick = 0
        number = terms.server_worker
        self._cause, self._link_cause = (
            ("server", "link") if terms.leads else (f"server, worker {number}", f"link {number}")
        )

    def start(self) -> None:
        """Begin to look for the server, alone."""
        self._search = Search(
            [self], self.terms.reactor, self.health, cause=self._cause, tells=self._tells
        )
        self._search.start()

    def stop(self) -> None:
        """Stop looking. The peer that is there is left to its owner."""
        if self._search is not None:
            search, self._search = self._search, None
            search.stop()
        if self._maker is not None:
            self._maker.stop()

    def control_lost(self) -> None:
        """The peer has lost its control link, or is gone."""
        if self._search is not None:
            self._search.lost()

    def _tells(self) -> bool:
        return self.terms.leads or self.terms.elsewhere()

    # Way

    @property
    def joined(self) -> bool:
        """Whether the server is there."""
        return self.peer is not None and self.peer.joined

    async def join(self) -> None:
        """Try once to join the server."""
        try:
            await self._join()
        except Exception as error:
            if not self._unknown(error):
                raise
            # At once, without coming back to what the server has forgotten.
            await self._join()
        self._pauses.worked()
        self._quick = 0

    def failed(self, error: Exception) -> float:
        """A try has failed: seconds until the next one."""
        hopeless = isinstance(error, HandshakeError) or (
            isinstance(error, Refused)
            and error.refusal in (Refusal.WRONG_KEY, Refusal.BUSY, Refusal.KEY_NEEDED)
        )
        pause = self._pauses.after(hopeless)
        return pause if hopeless else self._quicker(pause)

    def lost(self) -> float:
        """The server is not there any more: seconds until the next try."""
        return self._quicker(self.terms.cooldown)

    def _quicker(self, pause: float) -> float:
        if not self.terms.elsewhere():
            return pause
        # The server is there: one worker of it is being replaced.
        quick = QUICK_RETURN * 2.0 ** min(self._quick, 16)
        self._quick += 1
        return min(pause, quick)

    def _unknown(self, error: Exception) -> bool:
        if not isinstance(error, Refused) or error.refusal != Refusal.UNKNOWN_ASSOCIATION:
            return False
        if self.peer is None or self.peer.closed:
            return False
        self.peer.close(Cause.LOST, "the server has started anew")
        return True

    # One try.

    async def _join(self) -> None:
        creator = self.terms.tls.creator([ALPN_CONTROL, *tag(self.terms.server_worker)])
        inner = Factory.forProtocol(ControlLink)
        inner.noisy = False
        factory = TLSMemoryBIOFactory(creator, True, inner, self.terms.reactor)
        wrapped: Any = await self.terms.dial(
            self.terms.server.dial_hosts(), self.terms.server.port, factory
        )
        control: ControlLink = wrapped.wrappedProtocol
        timer = self.terms.reactor.callLater(
            self.terms.handshake_timeout, control.abort, "handshake timed out"
        )
        try:
            await self._handshake(control)
        except BaseException:
            control.abort()
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def _handshake(self, control: ControlLink) -> None:
        terms = self.terms
        coming_back: tuple[bytes, Secrets] | None = None
        if self.peer is not None and not self.peer.closed:
            coming_back = (self.peer.association, self.peer.secrets)
        await _tell_timeout(control, control.encrypted)
        binding = exporter(control.transport, CONTROL_EXPORTER)
        hello = Hello(
            versions=VERSIONS,
            node=terms.node,
            level=0 if terms.level is None else terms.level.value,
            minimum=terms.minimum,
            worker=terms.worker,
            nonce=b"",
        )
        handshake = ClientHandshake(terms.key, hello, coming_back)
        control.send_raw(handshake.hello)
        raw = await _tell_timeout(control, control.read())
        answer = _accepted(Answer, decode(raw))
        flow, level = _agreed(answer, terms.level)
        control.send(handshake.answered(answer, framed(raw), binding))
        welcome = _accepted(Welcome, decode(await _tell_timeout(control, control.read())))
        secrets = handshake.welcomed(welcome)
        self.flow, self.link_level = flow, level
        self.workers = min(max(1, answer.workers), MOST_WORKERS)
        self._pinned(welcome.pin)
        if coming_back is not None and self.peer is not None and not self.peer.closed:
            if self._maker is not None:
                address = control.transport.getPeer()
                self._maker.start_over(address.host, address.port)
            self.peer.attach(control)
            self.peer.settings.host.returned(self.peer)
            return
        self._new_peer(control, flow, answer, welcome, secrets)

    def _new_peer(
        self, control: ControlLink, flow: Flow, answer: Answer, welcome: Welcome, secrets: Secrets
    ) -> None:
        self._pins = {welcome.pin: math.inf}
        if answer.maximum < self.terms.minimum:
            self.log.warn(
                "min={minimum} is above the server's max={maximum}; {maximum} counts",
                minimum=self.terms.minimum,
                maximum=answer.maximum,
            )
        address = control.transport.getPeer()
        maker = self._maker = NativeLinkMaker(self._link_terms(), address.host, address.port)
        settings = self.terms.settings(flow, self.link_level, self.workers)
        self.peer = NativePeer(
            settings,
            association=welcome.association,
            secrets=secrets,
            address=str(Address(address.host, address.port)),
            worker=self.terms.server_worker,
            minimum=self.terms.minimum,
            maximum=min(max(1, answer.maximum), MAX_IDLE),
            make_links=maker.make,
            pinned=self._pinned,
            gone=lambda peer: maker.close(),
        )
        self.peer.attach(control)

    def _link_terms(self) -> LinkTerms:
        terms = self.terms
        plain = self.link_level is TLSLevel.PLAIN
        data = [ALPN_DATA, *tag(terms.server_worker)]
        return LinkTerms(
            reactor=terms.reactor,
            health=self.health,
            most=most_links(),
            creator=None if plain else lambda: terms.tls.creator(data, self.pins),
            dial=lambda host, port, factory: terms.dial((host,), port, factory),
            handshake_timeout=terms.handshake_timeout,
            interval=terms.pool_interval,
            worker=terms.server_worker,
            cause=self._link_cause,
        )

    def pins(self) -> list[bytes]:
        """The certificates that data links may show now, as SHA-256 digests."""
        now = self.terms.reactor.seconds()
        return [pin for pin, until in self._pins.items() if now < until]

    def _pinned(self, pin: bytes) -> None:
        """The server will soon show this certificate; what it shows now holds for a while."""
        if self._pins.get(pin) == math.inf:
            return  # known already: what it shows now is not this one's predecessor
        until = self.terms.reactor.seconds() + PIN_OVERLAP
        recent = self.pins()[1 - MAX_PINS :]
        self._pins = {old: min(until, self._pins[old]) for old in recent}
        self._pins[pin] = math.inf


async def _tell_timeout(control: ControlLink, waiting: Awaitable[Any]) -> Any:
    """What was waited for; where the link was given up in the meantime, why."""
    try:
        return await waiting
    except CancelledError:
        raise
    except Exception as error:
        if control.given_up:
            raise PeerError(control.given_up) from error
        raise


def _accepted(cls: type[M], message: Message | None) -> M:
    """The message, unless the server refused or said something else."""
    if isinstance(message, Refuse):
        raise Refused(message.refusal, f"the server refuses: {printable(message.reason)}")
    return expect(cls, message)


def _agreed(answer: Answer, least: TLSLevel | None) -> tuple[Flow, TLSLevel]:
    try:
        flow, level = Flow(chr(answer.flow)), TLSLevel(answer.tls)
    except (ValueError, OverflowError):
        raise HandshakeError("it answered with a flow or TLS level that is none") from None
    if least is not None and level < least:
        raise HandshakeError(
            f"it offers tls={level.value}, below the tls={least.value} of this node's URL; "
            f"set tls={least.value} at the server, or take tls out of this URL"
        )
    return flow, level
