"""From a URL to a configuration.

::

    server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT[,TARGET...]?NAME=VALUE&...
    master://HOST:PORT[/PREFIX]?NAME=VALUE&...

`nodepass.urlsyntax` takes URLs apart; here is what the pieces mean, and which go together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from attrs import evolve

from nodepass import dialects
from nodepass.address import Address, parse_address
from nodepass.configrecords import (
    DEFAULT_PREFIX,
    OLD_MIN,
    UNIX,
    ClientConfig,
    Config,
    MasterConfig,
    RoleConfig,
    ServerConfig,
)
from nodepass.dialects import ANY, NATIVE
from nodepass.errors import ConfigError
from nodepass.keys import ENVIRONMENT
from nodepass.logs import printable
from nodepass.parameters import PARAMETERS, Mode, Parameter, TLSLevel
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
    "unused_by_forwarder",
]

#: Most targets in one list: their index fits a byte.
MAX_TARGETS = 255

_FORM = "server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT"


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
    if ":" in parts.user:
        warnings.append("key: what follows its ':' is ignored; in a key write ':' as %3A")
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
    more = _check_wire(config)
    if isinstance(config, ClientConfig) and config.mode is Mode.ONE:
        # A key from outside is for all URLs of a command line, and may be another one's.
        more += unused_by_forwarder(config, own_key)
    return evolve(config, warnings=config.warnings + more)


def unused_by_forwarder(config: ClientConfig, key: str | None) -> tuple[str, ...]:
    """The warning of a plain forwarder about what only a client of a server has a use for.

    :param key: the key that counts as given to it.
    """
    names = ["the key"] if key else []
    if config.tls is not None and config.tls is not TLSLevel.PLAIN:
        names.append(f"tls={config.tls.value}")
    if not names:
        return ()
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{' and '.join(names)} {verb} unused, as this client is a plain forwarder and joins no "
        "server; if it is to join one, write mode=2",
    )


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
