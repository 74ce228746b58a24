"""From a URL to a configuration.

::

    server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT[,TARGET...]?NAME=VALUE&...
    master://HOST:PORT[/PREFIX]?NAME=VALUE&...

`nodepass.urlsyntax` takes URLs apart; here is what the pieces mean, and which go together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from attrs import evolve, field, frozen

from nodepass import dialects
from nodepass.address import Address, parse_address
from nodepass.dialects import ANY, NATIVE
from nodepass.errors import ConfigError
from nodepass.keys import ENVIRONMENT
from nodepass.logs import Level, printable
from nodepass.parameters import PARAMETERS, Mode, Parameter, TLSLevel, show_value
from nodepass.urlsyntax import ENCODE_KEY, URLParts, parse_key, parse_query, split_url

__all__ = [
    "PARAMETERS",
    "Address",
    "ClientConfig",
    "Config",
    "MasterConfig",
    "Mode",
    "Parameter",
    "RoleConfig",
    "ServerConfig",
    "TLSLevel",
    "parse_role_url",
    "parse_url",
]

#: Most targets in one list: their index fits a byte.
MAX_TARGETS = 255

#: Idle links kept towards a server of an old dialect, unless the URL says: as many as old clients
#: keep, since each link serves one session.
OLD_MIN = 64

#: What is shown in place of a key.
HIDDEN = "***"

#: Where a master's HTTP interface begins unless its URL has a path.
DEFAULT_PREFIX = "/api"

#: What stands in front of a path in the place of host and port.
UNIX = "unix:"

_FORM = "server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT"


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


def parse_url(url: str, *, key: str | None = None) -> Config:
    """Read a URL.

    :param url: as the user wrote it.
    :param key: the tunnel key where the URL has none; an empty one counts as none, with a warning.
        A master has no tunnel key.

    :raises ConfigError: it can't be used.
    """
    parts = split_url(url.strip())
    return _parse_master(url, parts) if parts.core == "master" else _parse_role(url, parts, key)


def parse_role_url(url: str, *, key: str | None = None) -> ServerConfig | ClientConfig:
    """Read the URL of a server or client, as `parse_url` does.

    :raises ConfigError: it can't be used, or is a master's.
    """
    parts = split_url(url.strip())
    if parts.core == "master":
        raise ConfigError("scheme master: not for a tunnel; accepted: server, client")
    return _parse_role(url, parts, key)


def _parse_role(url: str, parts: URLParts, key: str | None) -> ServerConfig | ClientConfig:
    own_key = parse_key(parts.user)
    tunnel, targets = _parse_addresses(parts)
    values, warnings = parse_query(parts.core, parts.query)
    values["flow_read"] = values.get("read") or None
    if parts.core == "client":
        _settle_min(values)
    warnings += _settle_files(parts.core, values)
    if own_key is None and key == "":
        warnings.append(f"the key from {ENVIRONMENT} is empty: it counts as none")
    role: Callable[..., ServerConfig | ClientConfig]
    role = ServerConfig if parts.core == "server" else ClientConfig
    config = role(
        key=own_key or key or None,
        tunnel=tunnel,
        targets=targets,
        warnings=tuple(warnings),
        url=url,
        **values,
    )
    _check_dialed_ports(config)
    _check_circles(config)
    return evolve(config, warnings=config.warnings + _check_wire(config))


def _parse_master(url: str, parts: URLParts) -> MasterConfig:
    values, warnings = parse_query("master", parts.query)
    given = frozenset(values)
    warnings += _settle_files("master", values)
    if parts.user:
        warnings.append(
            "user name: ignored, a master makes its API key itself; see: nodepass key --master"
        )
    listen = unix = None
    if parts.tunnel.lower().startswith(UNIX):
        unix = unquote(parts.tunnel[len(UNIX) :])
        if not unix.startswith("/"):
            raise ConfigError(
                f"{UNIX}{printable(unix, 80)}: no absolute path; accepted: {UNIX}%2Frun%2Fapi.sock"
            )
    else:
        listen = _parse_named_address("master", parts.tunnel, parts.doubtful)
    prefix = "/" + re.sub("/+", "/", parts.path).strip("/")
    if not re.fullmatch("[A-Za-z0-9._~/-]*", prefix):
        raise ConfigError(
            f"prefix {printable(prefix, 80)}: odd characters; accepted: letters, digits and ._~-/"
        )
    return MasterConfig(
        listen=listen,
        unix=unix,
        prefix=DEFAULT_PREFIX if prefix == "/" else prefix,
        given=given,
        warnings=tuple(warnings),
        url=url,
        **values,
    )


def _parse_addresses(parts: URLParts) -> tuple[Address, tuple[Address, ...]]:
    tunnel = _parse_named_address("tunnel", parts.tunnel, parts.doubtful)
    if not parts.path:
        hint = f"; {ENCODE_KEY}" if parts.doubtful else ""
        raise ConfigError(f"the URL has no target; accepted: {_FORM}{hint}")
    texts = parts.path.split(",")
    if len(texts) > MAX_TARGETS:
        raise ConfigError(f"{len(texts)} targets; accepted: {MAX_TARGETS} at most")
    return tunnel, tuple(_parse_named_address("target", text, parts.doubtful) for text in texts)


def _parse_named_address(name: str, text: str, doubtful: bool) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        if doubtful:
            # What stands here may be a part of the key, so it isn't quoted.
            raise ConfigError(f"{name} address: {error}; {ENCODE_KEY}") from None
        raise ConfigError(f"{name} address '{printable(text, 80)}': {error}") from None


def _check_dialed_ports(config: ServerConfig | ClientConfig) -> None:
    """Refuse port 0 where the URL alone says that the address will be dialed.

    In auto mode, and for the target of a dual-end client, that depends on what can be bound and
    on the server. There 0 passes: it may mean "any free port".
    """
    if isinstance(config, ServerConfig):
        dialed = config.targets if config.mode is Mode.TWO else ()
    elif config.mode is Mode.TWO:
        dialed = (config.tunnel,)
    elif config.mode is Mode.ONE or config.tunnel.port == 0:
        # A free port can always be bound, so auto mode is single-end too.
        dialed = config.targets
    else:
        dialed = ()
    for address in dialed:
        if address.port == 0:
            name = "tunnel" if address is config.tunnel else "target"
            raise ConfigError(
                f"{name} address '{address}': port 0 can't be dialed; accepted: 1 to 65535"
            )


def _check_circles(config: ServerConfig | ClientConfig) -> None:
    """Refuse a tunnel that meets itself, where the mode says what is bound and what is dialed."""
    tunnel = config.tunnel
    if config.mode is not Mode.ONE or tunnel.port == 0:
        return
    if isinstance(config, ServerConfig):
        target = config.targets[0]  # the one that is bound
        same = tunnel.host == target.host or (tunnel.wildcard and target.wildcard)
        if same and tunnel.port == target.port:
            raise ConfigError(
                f"tunnel address '{tunnel}' and target address '{target}' are one, and with "
                "mode=1 clients connect to the first, visitors to the second; accepted: two ports"
            )
        return
    for target in config.targets:
        same = tunnel.host == target.host or target.dial_hosts()[0] in _loopback(tunnel)
        if same and tunnel.port == target.port:
            raise ConfigError(
                f"target address '{target}': with mode=1 that is where this client itself "
                "listens, so it would forward to itself for ever; accepted: another port or host"
            )


def _settle_min(values: dict[str, Any]) -> None:
    """Without a `min` there is one for each kind of server that the client may meet."""
    wire = values.get("wire", NATIVE)
    if "min" in values:
        values["old_min"] = values["min"]
    elif wire != ANY and NATIVE not in wire.split(","):
        values["min"] = OLD_MIN


def _check_wire(config: ServerConfig | ClientConfig) -> tuple[str, ...]:
    if isinstance(config, ClientConfig) and config.mode is Mode.ONE:
        return ()  # a plain forwarder
    return dialects.check(
        config.wire,
        config.key,
        config.oldkey,
        config.tunnel.port,
        serves=isinstance(config, ServerConfig),
    )


def _loopback(bound: Address) -> tuple[str, ...]:
    """Return the hosts that surely reach a listener at ``bound`` from the same machine."""
    if bound.host == "0.0.0.0":
        return ("127.0.0.1",)
    return ("::1",) if bound.host == "::" else bound.dial_hosts()


def _settle_files(core: str, values: dict[str, Any]) -> list[str]:
    """Require the files that ``tls=2`` needs; without it drop them, each with a warning."""
    pair = {"crt": "crt", "key": "key_file"}
    files = {"server": pair, "client": {"ca": "ca"}, "master": pair}[core]
    if values.get("tls") is not TLSLevel.FILES:
        unused = [name for name, field_name in files.items() if values.pop(field_name, None)]
        return [f"parameter {name}: ignored, it is used with tls=2 alone" for name in unused]
    missing = [name for name, field_name in files.items() if field_name not in values]
    if missing and core != "client":
        raise ConfigError(
            f"tls=2: {' and '.join(missing)} missing; accepted: crt=<file> and key=<file>"
        )
    return []
