"""The address of a master's API, as people write it and as requests need it."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

from attrs import frozen

from nodepass.errors import ConfigError
from nodepass.logs import mask, printable

__all__ = ["APIAddress", "parse_address"]

#: What masters serve their API under unless their URL says otherwise.
DEFAULT_PREFIX = "/api"

_ACCEPTED = (
    "accepted: http://HOST:PORT or https://HOST:PORT, with the API's prefix if not /api, or "
    "unix:%2Frun%2Fapi.sock as in a master's URL"
)

_UNIX = "unix:"


@frozen
class APIAddress:
    """Where requests go.

    :ivar tls: whether it is ``https``.
    :ivar host: a host name or an IP literal without brackets.
    :ivar origin: the URL up to the path.
    :ivar prefix: the path that the API is under, without the version.
    :ivar unix: path of the Unix socket to connect to instead of ``host``.
    """

    tls: bool
    host: str
    origin: str
    prefix: str
    unix: str | None = None

    def __str__(self) -> str:
        if self.unix is not None:
            return _UNIX + quote(self.unix, safe="") + self.prefix
        return self.origin + self.prefix

    @property
    def try_tls(self) -> str:
        """What to try where the master may speak TLS."""
        if self.unix is not None:
            return "take tls out of the master's URL, as ctl speaks no TLS on a Unix socket"
        return f"--api https{str(self).removeprefix('http')}"

    def path(self, *parts: str) -> str:
        """Return the path of a resource; ``parts`` are quoted."""
        # Asterisks stay, as in the id of the API key: not every master decodes paths.
        return "/".join([self.prefix, "v1", *(quote(part, safe="*") for part in parts)])


def parse_address(text: str) -> APIAddress:
    """Read an address as it stands in an option, in the environment or in a file.

    Without a path, ``/api`` is meant. A trailing ``/`` or ``/v1`` makes no difference.

    :raises ConfigError: it is none.
    """
    text = text.strip()
    shown = printable(mask(text))
    if text.lower().startswith(_UNIX):
        quoted, _, path = text[len(_UNIX) :].partition("/")
        found = unquote(quoted)
        plain = _is_plain(path) and not {"?", "#"} & set(path)
        if not found.startswith("/") or "\0" in found or not plain:
            raise ConfigError(f"API address {shown}: no absolute path of a socket; {_ACCEPTED}")
        return APIAddress(
            tls=False, host="", origin="http://localhost", prefix=_prefix("/" + path), unix=found
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"API address {shown}: not a URL; {_ACCEPTED}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"API address {shown}: not an HTTP URL; {_ACCEPTED}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"API address {shown}: holds more than host, port and prefix, and the key does not "
            f"belong into it; {_ACCEPTED}"
        )
    if not _is_plain(text):
        raise ConfigError(f"API address {shown}: not plain ASCII; {_ACCEPTED}")
    bracketed = f"[{host}]" if ":" in host else host
    where = bracketed if port is None else f"{bracketed}:{port}"
    return APIAddress(
        tls=parts.scheme == "https",
        host=host,
        origin=f"{parts.scheme}://{where}",
        prefix=_prefix(parts.path),
    )


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _prefix(path: str) -> str:
    return path.rstrip("/").removesuffix("/v1").rstrip("/") or DEFAULT_PREFIX
