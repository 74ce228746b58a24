"""What becomes of a URL that a client of the API posts for an instance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from attrs import frozen

from nodepass.config import MasterConfig, TLSLevel, parse_role_url
from nodepass.errors import ConfigError
from nodepass.parameters import show_value

__all__ = ["InstanceURL", "accept", "same"]

_TUNNELS = ("server", "client")
_FORM = re.compile(r"([^:/?#]*)://([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)

Pairs = Sequence[tuple[str, str]]


@frozen(kw_only=True)
class InstanceURL:
    """A URL in its three forms; all hold the tunnel key.

    :ivar type: ``server`` or ``client``.
    :ivar url: what clients are shown: as it was posted, with what the master fills in.
    :ivar config: every parameter spelled out.
    :ivar hosted: what a worker is given, with all that the master's own URL says.
    """

    type: str
    url: str
    config: str
    hosted: str


def accept(text: str, master: MasterConfig, *, fill: bool = True) -> InstanceURL:
    """Check a URL, and fill in what its author left to the master.

    That is ``log``, and for servers ``tls`` with its files, where the master's own URL has them.
    Only then the query is written anew, sorted by name; otherwise the text stays as it is, since
    dashboards compare it with what they sent.

    :param fill: False for a URL that went through this before, which stays as it is.
    :raises ConfigError: it can't be used.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigError("Invalid URL format")
    scheme, rest, query, fragment = (
        match.group(1).lower(),
        *(match.group(i) or "" for i in (2, 3, 4)),
    )
    if scheme not in _TUNNELS:
        raise ConfigError("Invalid URL scheme")
    # Bytes that are not UTF-8 once decoded can be file names; they come back as they were.
    pairs = parse_qsl(query[1:], keep_blank_values=True, errors="surrogateescape")
    inherited = _inherited(scheme, pairs, master) if fill else []
    if inherited:
        pairs = [*_without(pairs, inherited), *inherited]
        query = "?" + _write(pairs)
    url = f"{scheme}://{rest}{query}{fragment}"
    hosted = url
    if "wire" in master.given and not _value(pairs, "wire"):
        more = [*_without(pairs, [("wire", "")]), ("wire", master.wire)]
        hosted = f"{scheme}://{rest}?{_write(more)}"
    config = parse_role_url(hosted)
    user, at, _ = rest.partition("/")[0].rpartition("@")
    return InstanceURL(
        type=scheme, url=url, config=config.spelled_out(user if at else ""), hosted=hosted
    )


def same(one: str, other: str) -> bool:
    """Whether two URLs differ in the order of their parameters at most."""
    return _canonical(one) == _canonical(other)


def _canonical(text: str) -> tuple[str, str, list[str], str]:
    scheme, rest, query, fragment = _split(text)
    return scheme, rest, sorted(query[1:].split("&")), fragment


def _split(text: str) -> tuple[str, str, str, str]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError("Invalid URL format")
    scheme, rest, query, fragment = (match[i] or "" for i in (1, 2, 3, 4))
    return scheme.lower(), rest, query, fragment


def _inherited(scheme: str, pairs: Pairs, master: MasterConfig) -> list[tuple[str, str]]:
    """Return the parameters that an instance takes over from its master."""
    inherited = []
    if "log" in master.given and not _value(pairs, "log"):
        inherited.append(("log", show_value(master.log)))
    if scheme == "server" and master.tls is not TLSLevel.PLAIN and not _value(pairs, "tls"):
        inherited.append(("tls", show_value(master.tls)))
        if master.tls is TLSLevel.FILES:
            inherited += [("crt", master.crt or ""), ("key", master.key_file or "")]
    return inherited


def _value(pairs: Pairs, name: str) -> str:
    """Return the value that counts, the first; empty where there is none."""
    return next((value for key, value in pairs if key == name), "")


def _without(pairs: Pairs, others: Pairs) -> list[tuple[str, str]]:
    names = {name for name, _ in others}
    return [pair for pair in pairs if pair[0] not in names]


def _write(pairs: Pairs) -> str:
    return urlencode(sorted(pairs, key=lambda pair: pair[0]), errors="surrogateescape")
