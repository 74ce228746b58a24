"""Configurations: what a server, a client or a master is told, and how it is spelled as a URL.

`nodepass.config` makes them of URLs.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import quote

from attrs import field, frozen

from nodepass import dialects
from nodepass.address import Address
from nodepass.dialects import NATIVE
from nodepass.logs import Level
from nodepass.parameters import PARAMETERS, Mode, TLSLevel, show_value

__all__ = [
    "DEFAULT_PREFIX",
    "OLD_MIN",
    "UNIX",
    "ClientConfig",
    "Config",
    "MasterConfig",
    "RoleConfig",
    "ServerConfig",
]

#: Idle links kept towards a server of an old dialect, unless the URL says: as many as old clients
#: keep, since each link serves one session.
OLD_MIN = 64

#: What is shown in place of a key.
HIDDEN = "***"

#: Where a master's HTTP interface begins unless its URL has a path.
DEFAULT_PREFIX = "/api"

#: What stands in front of a path in the place of host and port.
UNIX = "unix:"


@frozen(kw_only=True)
class RoleConfig:
    """What servers and clients have in common; defaults are those of `PARAMETERS`.

    :ivar tunnel: the address in front of the first ``/``.
    :ivar targets: one address or more.
    :ivar key: the tunnel key, None for none; never printed.
    :ivar log: least level logged.
    :ivar mode: run mode asked for.
    :ivar read: seconds of silence that end a session, 0 for none.
    :ivar flow_read: the same for UDP sessions, where the URL gives a `read` above 0; None leaves
        them to NP_UDP_READ_TIMEOUT.
    :ivar rate: Mbit/s (10^6 bit) per direction, 0 for unlimited.
    :ivar slot: most sessions, 0 for unlimited.
    :ivar proxy: whether the node that dials sends a PROXY protocol header.
    :ivar wire: dialects spoken, as `PARAMETERS` writes them: separated by commas, or ``any``.
    :ivar oldkey: key towards nodes of old dialects, None for the same; never printed.
    :ivar workers: processes that share the work, or `AUTO`.
    :ivar warnings: lines to be logged at start.
    :ivar url: the URL as given, key included; never printed. Empty where there was none.
    """

    core: ClassVar[str]

    tunnel: Address
    targets: tuple[Address, ...]
    key: str | None = field(default=None, repr=False)
    log: Level = Level.INFO
    mode: Mode = Mode.AUTO
    read: float = 3600.0
    flow_read: float | None = None
    rate: int = 0
    slot: int = 65536
    proxy: bool = False
    wire: str = NATIVE
    oldkey: str | None = field(default=None, repr=False)
    workers: int | str = 1
    warnings: tuple[str, ...] = ()
    url: str = field(default="", repr=False)

    def effective_url(self) -> str:
        """Return a URL that spells out every parameter that has a value, keys as ``***``."""
        return self._spell("" if self.key is None else HIDDEN, _spell_query(self))

    def spelled_out(self, user: str) -> str:
        """Return the same URL with this in place of the key, empty for none, and `oldkey`."""
        return self._spell(user, _spell_query(self, secrets=True))

    def _spell(self, user: str, query: str) -> str:
        at = f"{user}@" if user else ""
        targets = ",".join(_quote_address(target) for target in self.targets)
        return f"{self.core}://{at}{_quote_address(self.tunnel)}/{targets}?{query}"

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects that it speaks, in the order in which a client tries them."""
        return dialects.spoken(self.wire, self.key_for_old, self.tunnel.port)

    @property
    def key_for_old(self) -> str | None:
        """The key towards nodes of old dialects, None for none."""
        return self.oldkey or self.key


@frozen(kw_only=True)
class ServerConfig(RoleConfig):
    """A server.

    :ivar tls: how data links are protected.
    :ivar crt, key_file: PEM files, with `TLSLevel.FILES` alone.
    :ivar max: most idle links per client.
    """

    core: ClassVar[str] = "server"

    tls: TLSLevel = TLSLevel.PLAIN
    crt: str | None = None
    key_file: str | None = None
    max: int = 1024


@frozen(kw_only=True)
class ClientConfig(RoleConfig):
    """A client.

    :ivar tls: the least level accepted, None for whatever the server says.
    :ivar ca: PEM file of the roots to trust, with `TLSLevel.FILES` alone.
    :ivar min: idle links that the pool keeps.
    :ivar old_min: the same towards a server of an old dialect, whose links are used once.
    """

    core: ClassVar[str] = "client"

    tls: TLSLevel | None = None
    ca: str | None = None
    min: int = 8
    old_min: int = OLD_MIN


@frozen(kw_only=True)
class MasterConfig:
    """A master.

    :ivar listen: where its HTTP interface is bound; None where `unix` is given.
    :ivar unix: path of a Unix socket to bind instead.
    :ivar prefix: path in front of ``/v1``, without a slash at its end.
    :ivar log: least level logged, and that of instances that give none.
    :ivar tls: how the HTTP interface is protected, and servers that give none.
    :ivar crt, key_file: PEM files, with `TLSLevel.FILES` alone.
    :ivar wire: dialects of instances that give none.
    :ivar given: names of the parameters that the URL itself gives a value.
    :ivar warnings: lines to be logged at start.
    :ivar url: the URL as given.
    """

    core: ClassVar[str] = "master"

    listen: Address | None = None
    unix: str | None = None
    prefix: str = DEFAULT_PREFIX
    log: Level = Level.INFO
    tls: TLSLevel = TLSLevel.PLAIN
    crt: str | None = None
    key_file: str | None = None
    wire: str = NATIVE
    given: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    url: str = field(default="", repr=False)

    def effective_url(self) -> str:
        """Return a URL that spells out every parameter that has a value."""
        where = UNIX + quote(self.unix, safe="") if self.unix else _quote_address(self._bound)
        return f"{self.core}://{where}{self.prefix}?{_spell_query(self)}"

    @property
    def _bound(self) -> Address:
        assert self.listen is not None
        return self.listen


Config = ServerConfig | ClientConfig | MasterConfig


def _spell_query(config: Config | RoleConfig, *, secrets: bool = False) -> str:
    """Return every parameter that has a value; keys are hidden unless asked for."""
    query = []
    for parameter in PARAMETERS:
        if config.core not in parameter.cores:
            continue
        value = getattr(config, parameter.field)
        if value is None:
            continue
        if parameter.field == "oldkey" and not secrets:
            text = HIDDEN
        else:
            text = quote(show_value(value), safe="/:,", errors="surrogateescape")
        query.append(f"{parameter.name}={text}")
    return "&".join(query)


def _quote_address(address: Address) -> str:
    # The "%" of an IPv6 zone and letters outside ASCII need it.
    return quote(str(address), safe="[]:")
