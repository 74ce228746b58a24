"""From a URL to a configuration.

::

    server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT[,TARGET...]?NAME=VALUE&...

`parse_url` is strict about what it knows, and lets pass what it does not: a bad value of a known
parameter is an error, an unknown parameter is a warning, so that URLs written for newer versions
still start. No message ever contains the key.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, ClassVar
from urllib.parse import quote, unquote, unquote_plus

from attrs import field, frozen

from nodepass.address import Address, parse_address
from nodepass.errors import ConfigError
from nodepass.keys import ENVIRONMENT
from nodepass.logs import Level, printable
from nodepass.parameters import (
    PARAMETERS,
    Mode,
    Parameter,
    TLSLevel,
    find_parameter,
    show_value,
)

__all__ = [
    "PARAMETERS",
    "Address",
    "ClientConfig",
    "Mode",
    "Parameter",
    "RoleConfig",
    "ServerConfig",
    "TLSLevel",
    "parse_url",
]

#: Most targets in one list: their index fits a byte.
MAX_TARGETS = 255

_FORM = "server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT"
_ENCODE_KEY = "in a key write '/', '?', '#' and '@' as %2F, %3F, %23 and %40"


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
    warnings: tuple[str, ...] = ()
    url: str = field(default="", repr=False)

    def effective_url(self) -> str:
        """Return a URL that spells out every parameter that has a value, the key as ``***``."""
        user = "" if self.key is None else "***@"
        targets = ",".join(_quote_address(target) for target in self.targets)
        query = []
        for parameter in PARAMETERS:
            if self.core not in parameter.cores:
                continue
            value = getattr(self, parameter.field) if parameter.field else parameter.default_value
            if value is not None:
                text = quote(show_value(value), safe="/:", errors="surrogateescape")
                query.append(f"{parameter.name}={text}")
        return f"{self.core}://{user}{_quote_address(self.tunnel)}/{targets}?{'&'.join(query)}"


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
    """

    core: ClassVar[str] = "client"

    tls: TLSLevel | None = None
    ca: str | None = None
    min: int = 8


def _quote_address(address: Address) -> str:
    # The "%" of an IPv6 zone and letters outside ASCII need it.
    return quote(str(address), safe="[]:")


@frozen
class _Parts:
    """The pieces of a URL, not decoded yet."""

    core: str
    user: str
    tunnel: str
    path: str
    query: str
    #: Whether an "@" further on suggests that `tunnel` is the first part of a key that has a
    #: "?" or a "#".
    doubtful: bool


def parse_url(url: str, *, key: str | None = None) -> ServerConfig | ClientConfig:
    """Read a URL.

    :param url: as the user wrote it.
    :param key: the tunnel key where the URL has none; an empty one counts as none, with a warning.

    :raises ConfigError: it can't be used.
    """
    parts = _split(url.strip())
    own_key = _parse_key(parts.user)
    tunnel, targets = _parse_addresses(parts)
    values, warnings = _parse_query(parts.core, parts.query)
    values["flow_read"] = values.get("read") or None
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
    return config


def _split(text: str) -> _Parts:
    if re.search(r"[\x00-\x20\x7f]", text):
        raise ConfigError("the URL has a blank or control character; accepted: a blank as %20")
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ConfigError("the URL has no scheme; accepted: server:// or client://")
    core = scheme.lower()
    if core == "master":
        raise ConfigError("scheme master: this version has no master; accepted: server, client")
    if core not in ("server", "client"):
        raise ConfigError(f"scheme {printable(scheme, 40)}: unknown; accepted: server, client")
    # The form is that of RFC 3986, 3; a fragment is ignored.
    match = re.fullmatch(r"([^/?#]*)([^?#]*)(\??[^#]*)(.*)", rest)
    assert match is not None
    authority, path, query, fragment = match.groups()
    user, at, tunnel = authority.rpartition("@")
    if "@" in path:
        raise ConfigError(f"the URL has an '@' behind its first '/'; {_ENCODE_KEY}")
    return _Parts(
        core=core,
        user=user,
        tunnel=tunnel,
        path=path[1:],
        query=query[1:],
        doubtful=not at and "@" in query + fragment,
    )


def _parse_key(user: str) -> str | None:
    """Decode the key; a password behind it is of no use here."""
    text = user.partition(":")[0]
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ConfigError("key: a '%' begins no escape such as %40; accepted: %25 for itself")
    try:
        return unquote(text, errors="strict") or None
    except UnicodeDecodeError:
        raise ConfigError("key: not UTF-8 once decoded; accepted: UTF-8 text") from None


def _parse_addresses(parts: _Parts) -> tuple[Address, tuple[Address, ...]]:
    tunnel = _parse_named_address("tunnel", parts.tunnel, parts.doubtful)
    if not parts.path:
        hint = f"; {_ENCODE_KEY}" if parts.doubtful else ""
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
            raise ConfigError(f"{name} address: {error}; {_ENCODE_KEY}") from None
        raise ConfigError(f"{name} address '{printable(text, 80)}': {error}") from None


def _parse_query(core: str, query: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that the query sets, and warnings for what it sets in vain."""
    given: defaultdict[str, list[str]] = defaultdict(list)
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        # Paths may be any bytes, as Python's file names can.
        given[unquote_plus(name)].append(unquote_plus(value, errors="surrogateescape"))
    values: dict[str, Any] = {}
    warnings = []
    for name, (text, *others) in given.items():
        parameter = find_parameter(core, name)
        if parameter is not None and any(other != text for other in others):
            warnings.append(f"parameter {name}: given more than once, the first value counts")
        if not text:
            continue
        if parameter is None:
            warnings.append(_explain_ignored(core, name))
            continue
        value = _parse_value(parameter, text)
        if parameter.field is not None:
            values[parameter.field] = value
        elif name == "oldkey":
            warnings.append("parameter oldkey: ignored, this version speaks native alone")
        elif name == "workers" and value != 1:
            warnings.append("parameter workers: ignored, this version runs one process")
    return values, warnings


def _parse_value(parameter: Parameter, text: str) -> Any:
    try:
        return parameter.parse(text)
    except ValueError as error:
        # With an "@" in it, it may be the rest of a key that has a "?" and an "=".
        shown = "***" if "@" in text else printable(text, 80)
        reason = f"{error}; " if str(error) else ""
        raise ConfigError(
            f"{parameter.name}={shown}: {reason}accepted: {parameter.accepts}"
        ) from None


def _explain_ignored(core: str, name: str) -> str:
    if name == "key":
        return f"parameter key: ignored by a {core}; the tunnel key goes before the '@'"
    if any(parameter.name == name for parameter in PARAMETERS):
        return f"parameter {name}: ignored, it does not apply to a {core}"
    if not re.fullmatch("[A-Za-z0-9_.-]+", name):
        # It may be the rest of a key with a "?" in it.
        return "a parameter whose name has odd characters: ignored"
    names = {parameter.name for parameter in PARAMETERS if core in parameter.cores}
    close = get_close_matches(name.lower(), sorted(names), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"parameter {printable(name, 40)}: ignored, it is unknown to this version{hint}"


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


def _loopback(bound: Address) -> tuple[str, ...]:
    """Return the hosts that surely reach a listener at ``bound`` from the same machine."""
    if bound.host == "0.0.0.0":
        return ("127.0.0.1",)
    return ("::1",) if bound.host == "::" else bound.dial_hosts()


def _settle_files(core: str, values: dict[str, Any]) -> list[str]:
    """Require the files that ``tls=2`` needs; without it drop them, each with a warning."""
    files = {"server": {"crt": "crt", "key": "key_file"}, "client": {"ca": "ca"}}[core]
    if values.get("tls") is not TLSLevel.FILES:
        unused = [name for name, field_name in files.items() if values.pop(field_name, None)]
        return [f"parameter {name}: ignored, it is used with tls=2 alone" for name in unused]
    missing = [name for name, field_name in files.items() if field_name not in values]
    if missing and core == "server":
        raise ConfigError(
            f"tls=2: {' and '.join(missing)} missing; accepted: crt=<file> and key=<file>"
        )
    return []
