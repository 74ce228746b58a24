"""The end with the visitors: its ports, and what becomes of who arrives there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Protocol as Interface

from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError, DNSLookupError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.python.failure import Failure

from nodepass.address import Address, Endpoint
from nodepass.config import ClientConfig, Mode, ServerConfig
from nodepass.errors import FatalError
from nodepass.logs import Level, Log
from nodepass.relay.binding import literal
from nodepass.relay.flow import FlowSet
from nodepass.relay.stream import Cause, Channel, FlowSink, Stream
from nodepass.relay.udp import DatagramPort
from nodepass.wire import Opening

from .instance import Instance

#: What no retry mends: the port needs privileges, the address is no one of this host's.
_FATAL = {errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


#: Ports tried where any free one will do: one that is free for TCP may be taken for UDP.
FREE_PORT_TRIES = 16


class Destination(Interface):
    """Where visitors are taken to."""

    def carry(self, stream: Stream, opening: Opening) -> None:
        """Take a TCP visitor over. Its slot is taken; give it back when the visitor is gone."""

    def open_flow(self, opening: Opening) -> Channel | None:
        """A channel for a new UDP flow; None when there is no way now."""


def fatal(error: CannotListenError, what: str, hint: str = "") -> FatalError | None:
    """The error for a port that can never be bound, or None where retrying may help.

    :param hint: another cure, in place of which the usual one may be wrong.
    """
    number = getattr(error.socketError, "errno", None)
    if number not in _FATAL:
        return None
    cure = (
        "use a port above 1023, or give the program the right to bind it"
        if number in (errno.EACCES, errno.EPERM)
        else "give an address of this host, or none for every interface"
    )
    reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
    return FatalError(f"{what}: {reason}; {cure}{hint}")


def in_use(error: CannotListenError) -> bool:
    """Whether something else has the port."""
    return getattr(error.socketError, "errno", None) == errno.EADDRINUSE


def why(error: CannotListenError) -> str:
    """The reason why a port can't be bound now, in words."""
    if in_use(error):
        return "in use by another program, which ss -tunap names; stop it, or give another port"
    if isinstance(error.socketError, DNSLookupError):
        return f"{str(error.socketError).rstrip('.')}; give an address of this host"
    return getattr(error.socketError, "strerror", None) or str(error.socketError)


class VisitorPorts:
    """Listens for visitors, TCP and UDP, on one address.

    A port that is in use is tried again for ever; `failed` hears of one that never can be bound.

    :param opened: called once when both ports are bound.
    """

    def __init__(
        self,
        instance: Instance,
        address: Address,
        destination: Destination,
        *,
        opened: Callable[[], None],
        failed: Callable[[FatalError], None],
    ) -> None:
        self._instance = instance
        self._address = address
        self._destination = destination
        self._opened = opened
        self._failed = failed
        self._tcp: IListeningPort | None = None
        self._udp: DatagramPort | None = None
        self._retry: IDelayedCall | None = None
        # Found once: a name with several addresses goes on to mean the same one of them, and a
        # port that is tried again keeps nobody waiting for a name server.
        self._numeric: Address | None = None
        self._looking: Deferred[tuple[str, ...]] | None = None
        self.flows = FlowSet(instance.context, instance.flow_limits, near_answers=False)
        self._channels: dict[tuple[Endpoint, Endpoint | None], VisitorChannel] = {}

    @property
    def bound(self) -> Endpoint | None:
        """The address that visitors connect to; None before it is bound."""
        if self._tcp is None:
            return None
        host = self._tcp.getHost()
        return Endpoint(host.host, host.port)  # type: ignore[attr-defined]

    def bind(self) -> None:
        """Bind both ports, or neither. It blocks while a name is looked up for the first time.

        :raises CannotListenError: one of them can't be bound, or the name has no address.
        """
        if self._numeric is None:
            self._numeric = literal(self._address)
        address = self._numeric
        tries = 1 if address.port else FREE_PORT_TRIES
        while True:
            tries -= 1
            try:
                self._bind_both(address)
                return
            except CannotListenError:
                if not tries:
                    raise

    def _bind_both(self, address: Address) -> None:
        relay = self._instance.relay
        tcp = relay.listen_tcp(address, self._accepted)
        port = tcp.getHost().port  # type: ignore[attr-defined]
        try:
            self._udp = relay.listen_udp(
                Address(address.host, port), self, self._instance.tuning.udp_buffer
            )
        except BaseException:
            maybeDeferred(tcp.stopListening)
            raise
        self._tcp = tcp

    def start(self) -> None:
        """Bind if that was not done yet, and go on trying while the address is in use, or its
        name is not found."""
        self._retry = None
        host = self._address.host
        if self._tcp is None and self._numeric is None and host:
            self._looking = self._instance.resolver.lookup(host)
            self._looking.addCallbacks(self._found, self._not_found)
        else:
            self._open()

    def _found(self, addresses: tuple[str, ...]) -> None:
        self._looking = None
        self._numeric = Address(addresses[0], self._address.port)
        self._open()

    def _not_found(self, failure: Failure) -> None:
        self._looking = None
        if not failure.check(CancelledError):
            host, port = self._address.host, self._address.port
            self._try_later(CannotListenError(host, port, failure.value))

    def _open(self) -> None:
        if self._tcp is None:
            try:
                self.bind()
            except CannotListenError as error:
                hopeless = fatal(error, f"visitors' address {self._address}", self._hint())
                if hopeless is not None:
                    self._instance.health.trouble(
                        "visitors' port", "{error}", level=Level.ERROR, error=hopeless
                    )
                    self._failed(hopeless)
                else:
                    self._try_later(error)
                return
        self._instance.health.well("visitors' port")
        self._instance.log.info(
            "listening for visitors on {address}, TCP and UDP", address=self.bound
        )
        self._opened()

    def _try_later(self, error: CannotListenError) -> None:
        reason = why(error)
        if in_use(error):
            reason += self._hint()
        self._instance.health.trouble(
            "visitors' port",
            "can't listen for visitors on {address}: {reason}; trying on",
            address=self._address,
            reason=reason,
        )
        cooldown = self._instance.tuning.service_cooldown
        self._retry = self._instance.reactor.callLater(cooldown, self.start)

    def _hint(self) -> str:
        """What a client may have been meant to do with the address instead of listening there."""
        config = self._instance.config
        if not isinstance(config, ClientConfig):
            return ""
        if config.mode is Mode.ONE:
            return "; if that is the server, write mode=2"
        # Visitors come here as the server has flow "+", perhaps for want of a free port there.
        return "; if that is the target, write mode=1 at the server"

    def stop(self) -> Deferred[object]:
        """End all flows and close the ports; fires when others can bind them.

        Flows can't outlive their port, as all of them share its socket.
        """
        if self._looking is not None:
            self._looking.cancel()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.flows.close(Cause.STOPPED)
        ports = [port for port in (self._tcp, self._udp) if port is not None]
        self._tcp = self._udp = None
        closing = [maybeDeferred(port.stopListening) for port in ports]
        return DeferredList(closing, consumeErrors=True)  # type: ignore[return-value]

    # TCP

    def _accepted(self, stream: Stream, visitor: Endpoint, local: Endpoint) -> None:
        instance = self._instance
        if not instance.slots.acquire_tcp():
            instance.log.limited(
                "tcp slot", "{why}: visitor {visitor} was refused",
                why=instance.slots.why, visitor=visitor,
            )  # fmt: skip
            stream.abort(Cause.NO_SLOT)
            return
        self._destination.carry(stream, Opening(visitor, local))

    # DatagramReceiver

    def datagrams(self, batch: list[bytes], visitor: Endpoint, local: Endpoint | None) -> None:
        channel = self._channels.get((visitor, local))
        if channel is None:
            channel = self._new_flow(visitor, local, len(batch))
            if channel is None:
                return
        channel.received(batch)

    def oversized(self, visitor: Endpoint | None) -> None:
        self.flows.oversized()

    def _new_flow(
        self, visitor: Endpoint, local: Endpoint | None, waiting: int
    ) -> VisitorChannel | None:
        """Begin a flow for so many datagrams; None, and they are lost, when that can't be."""
        if self._udp is None:
            return None  # stopping
        if not self.flows.room():
            self._instance.meter.udp_dropped += waiting
            return None
        here = local if local is not None else self.bound
        assert here is not None
        opening = Opening(visitor=visitor, local=here)
        far = self._destination.open_flow(opening)
        if far is None:
            self._instance.slots.release_udp()
            self.flows.dropped("no peer", waiting)
            return None
        channel = VisitorChannel(self, self._udp, visitor, local)
        self._channels[visitor, local] = channel
        self.flows.start((visitor, local), channel, far, lambda: f"udp {visitor}")
        return channel

    def channel_closed(self, channel: VisitorChannel) -> None:
        """A flow is over."""
        self._channels.pop((channel.visitor, channel.local), None)


def server_mode(config: ServerConfig, visitors: VisitorPorts, log: Log) -> Mode:
    """The mode in effect at a server.

    Where visitors arrive here their ports are bound by then; with ``mode=1`` unless they can't be,
    which is tried again by `VisitorPorts.start`.
    """
    if config.mode is Mode.TWO:
        return config.mode
    obstacle = _bind(visitors)
    if config.mode is Mode.ONE:
        return config.mode
    target = config.targets[0]
    if obstacle is None:
        log.info("mode=0: {target} can be bound here, so this server is mode=1", target=target)
        return Mode.ONE
    if in_use(obstacle):
        log.info(
            "mode=0: {target} can't be bound here (in use by another program), so this server is "
            "mode=2 and dials it; if visitors were to arrive here, free the port and write mode=1, "
            "else mode=2",
            target=target,
        )
    else:
        log.info("mode=0: {target} can't be bound here, so this server is mode=2", target=target)
    return Mode.TWO


def _bind(visitors: VisitorPorts) -> CannotListenError | None:
    """Bind the ports for visitors; what is in the way, if they can't be."""
    try:
        visitors.bind()
    except CannotListenError as error:
        return error
    return None


class VisitorChannel:
    """One visitor's datagrams as a channel."""

    __slots__ = ("_port", "_ports", "_sink", "local", "visitor")

    def __init__(
        self, ports: VisitorPorts, port: DatagramPort, visitor: Endpoint, local: Endpoint | None
    ) -> None:
        self.visitor = visitor
        self.local = local
        self._ports = ports
        self._port = port
        self._sink: FlowSink | None = None

    def attach(self, sink: FlowSink) -> None:
        self._sink = sink

    def send(self, batch: list[bytes]) -> Sequence[bytes]:
        return self._port.send(batch, self.visitor, self.local)

    def close(self, cause: Cause | None = None) -> None:
        self._sink = None
        self._ports.channel_closed(self)

    def received(self, batch: list[bytes]) -> None:
        """The visitor sent datagrams."""
        if self._sink is not None:
            self._sink.datagrams(batch)
