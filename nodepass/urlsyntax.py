"""The syntax of URLs: from text to the pieces and parameters that configurations are made of.

It is strict about what it knows, and lets pass what it does not: a bad value of a known parameter
is an error, an unknown parameter is a warning, so that URLs written for newer versions still start.
No message ever contains the key.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any
from urllib.parse import unquote, unquote_plus

from attrs import frozen

from nodepass.errors import ConfigError
from nodepass.logs import printable
from nodepass.parameters import PARAMETERS, Parameter, find_parameter

__all__ = ["CORES", "ENCODE_KEY", "MAX_URL", "URLParts", "parse_key", "parse_query", "split_url"]

#: The schemes.
CORES = ("server", "client", "master")

#: Longest URL, characters: room for a list of 255 targets with names of usual length, while a
#: master can still hand it to a worker process in one message.
MAX_URL = 16384

ENCODE_KEY = "in a key write '/', '?', '#', '@' and ':' as %2F, %3F, %23, %40 and %3A"


@frozen
class URLParts:
    """The pieces of a URL, not decoded yet.

    :ivar doubtful: whether an "@" further on suggests that `tunnel` is the first part of a key
        that has a "?" or a "#"; it must not be repeated in a message then.
    """

    core: str
    user: str
    tunnel: str
    path: str
    query: str
    doubtful: bool


def split_url(text: str) -> URLParts:
    """Take a URL apart.

    :raises ConfigError: it has no scheme that is known, or characters that no URL has.
    """
    if len(text) > MAX_URL:
        raise ConfigError(f"the URL has {len(text)} characters; accepted: {MAX_URL} at most")
    if re.search(r"[\x00-\x20\x7f]", text):
        raise ConfigError(
            "the URL has a blank or control character; accepted: a blank as %20, and '&' between "
            "parameters"
        )
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ConfigError("the URL has no scheme; accepted: server://, client:// or master://")
    core = scheme.lower()
    if core not in CORES:
        raise ConfigError(f"scheme {printable(scheme, 40)}: unknown; accepted: {', '.join(CORES)}")
    # The form is that of RFC 3986, 3; a fragment is ignored.
    match = re.fullmatch(r"([^/?#]*)([^?#]*)(\??[^#]*)(.*)", rest)
    assert match is not None
    authority, path, query, fragment = match.groups()
    user, at, tunnel = authority.rpartition("@")
    if "@" in path:
        raise ConfigError(f"the URL has an '@' behind its first '/'; {ENCODE_KEY}")
    return URLParts(
        core=core,
        user=user,
        tunnel=tunnel,
        path=path[1:],
        query=query[1:],
        doubtful=not at and "@" in query + fragment,
    )


def parse_key(user: str) -> str | None:
    """Decode the key; a password behind it is of no use here.

    :raises ConfigError: the escapes are wrong.
    """
    text = user.partition(":")[0]
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ConfigError("key: a '%' begins no escape such as %40; accepted: %25 for itself")
    try:
        return unquote(text, errors="strict") or None
    except UnicodeDecodeError:
        raise ConfigError("key: not UTF-8 once decoded; accepted: UTF-8 text") from None


def parse_query(core: str, query: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that the query sets, and warnings for what it sets in vain.

    :raises ConfigError: a parameter has a value that it does not accept.
    """
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
        values[parameter.field] = _parse_value(parameter, text)
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


#: Parameters of NodePass on Go that have no counterpart here.
_FOREIGN = frozenset(("block", "dial", "dns", "lbs", "notcp", "noudp", "sni", "type"))


def _explain_ignored(core: str, name: str) -> str:
    if name == "key":
        return f"parameter key: ignored by a {core}; the tunnel key goes before the '@'"
    if any(parameter.name == name for parameter in PARAMETERS):
        return f"parameter {name}: ignored, it does not apply to a {core}"
    if name in _FOREIGN:
        return f"parameter {name}: ignored, only NodePass on Go has it"
    if not re.fullmatch("[A-Za-z0-9_.-]+", name):
        # It may be the rest of a key with a "?" in it.
        return "a parameter whose name has odd characters: ignored"
    from difflib import get_close_matches  # not at the top: few URLs have a mistake

    names = {parameter.name for parameter in PARAMETERS if core in parameter.cores}
    close = get_close_matches(name.lower(), sorted(names), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"parameter {printable(name, 40)}: ignored, it is unknown to this version{hint}"
