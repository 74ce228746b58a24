"""The ``NP_*`` environment variables: limits and timeouts that rarely need a change.

`VARIABLES` is the one table of them; `Tuning` takes its defaults from it, and so can help
texts. A bad value never stops the program: it is reported by name and the default is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import evolve, frozen

from nodepass.duration import DURATION_EXAMPLES, LONGEST, format_duration, parse_duration
from nodepass.logs import printable

__all__ = ["VARIABLES", "Tuning", "Variable"]

#: The shortest timeout or period. Below it a node would do little but keep time.
_SHORTEST = 0.01

#: The largest payload of a UDP datagram over IPv4: 65,535 less the IP and UDP headers.
_LARGEST_DATAGRAM = 65_507

#: The variable that chooses a relay, and its one value.
RELAY, PORTABLE = "NP_RELAY", "portable"

#: How alike two names are, from 0 to 1, of which one is taken for the other misspelt: but for a
#: letter or two.
_CLOSE = 0.85

_INTEGER = re.compile("[0-9]{1,9}")


@frozen(kw_only=True)
class Variable:
    """An environment variable that sets one field of `Tuning`.

    :ivar name: as in the environment.
    :ivar field: the field of `Tuning`.
    :ivar default: as it would be written in the environment.
    :ivar summary: its meaning in one line.
    :ivar least, most: the bounds of the value, in seconds for durations.
    :ivar duration: whether it is a duration; an integer otherwise.
    """

    name: str
    field: str
    default: str
    summary: str
    least: float
    most: float
    duration: bool

    @property
    def accepts(self) -> str:
        """What is accepted, in words."""
        if not self.duration:
            return f"an integer from {self.least:.0f} to {self.most:.0f}"
        least, most = format_duration(self.least), format_duration(self.most)
        return f"a duration from {least} to {most}, such as {DURATION_EXAMPLES}"

    def parse(self, text: str) -> float | int:
        """Read a value.

        :raises ValueError: it is not what `accepts` says.
        """
        value: float | int
        if self.duration:
            value = parse_duration(text)
        elif _INTEGER.fullmatch(text):
            value = int(text)
        else:
            raise ValueError("not an integer")
        if not self.least <= value <= self.most:
            raise ValueError("out of bounds")
        return value


def _seconds(
    name: str, field: str, default: str, summary: str, least: float = _SHORTEST
) -> Variable:
    return Variable(
        name=name,
        field=field,
        default=default,
        summary=summary,
        least=least,
        most=LONGEST,
        duration=True,
    )


def _count(name: str, field: str, default: str, summary: str, most: int) -> Variable:
    return Variable(
        name=name,
        field=field,
        default=default,
        summary=summary,
        least=1,
        most=most,
        duration=False,
    )


VARIABLES: tuple[Variable, ...] = (
    _count(
        "NP_SEMAPHORE_LIMIT",
        "semaphore_limit",
        "65536",
        "most visitors that may wait for a peer or a link",
        1_000_000,
    ),
    _count(
        "NP_UDP_DATA_BUF_SIZE",
        "udp_buffer",
        str(_LARGEST_DATAGRAM),
        "largest datagram relayed, in bytes",
        _LARGEST_DATAGRAM,
    ),
    # RFC 4787, REQ-5: a mapping must not expire in less than two minutes.
    _seconds(
        "NP_UDP_READ_TIMEOUT",
        "udp_read_timeout",
        "2m",
        "a UDP session ends after this much silence",
    ),
    _seconds(
        "NP_HANDSHAKE_TIMEOUT",
        "handshake_timeout",
        "10s",
        "time for the handshake of the control link",
    ),
    _seconds(
        "NP_TCP_DIAL_TIMEOUT",
        "tcp_dial_timeout",
        "30s",
        "time to connect to a TCP target or to the server",
    ),
    _seconds(
        "NP_UDP_DIAL_TIMEOUT",
        "udp_dial_timeout",
        "10s",
        "time to open a UDP session to a target",
    ),
    _seconds(
        "NP_POOL_GET_TIMEOUT",
        "pool_get_timeout",
        "30s",
        "how long a visitor waits for a pooled link",
    ),
    _seconds(
        "NP_MIN_POOL_INTERVAL",
        "min_pool_interval",
        "100ms",
        "shortest pause before a data link that failed is tried again",
    ),
    _seconds(
        "NP_MAX_POOL_INTERVAL",
        "max_pool_interval",
        "1s",
        "longest pause before a data link that failed is tried again",
    ),
    _seconds(
        "NP_REPORT_INTERVAL",
        "report_interval",
        "5s",
        "period of health checks and checkpoint lines",
    ),
    _seconds(
        "NP_SERVICE_COOLDOWN",
        "service_cooldown",
        "3s",
        "pause before a failed service restarts",
    ),
    _seconds(
        "NP_SHUTDOWN_TIMEOUT",
        "shutdown_timeout",
        "5s",
        "how long live sessions may go on at a stop; 0 closes them at once",
        least=0.0,
    ),
    _seconds(
        "NP_SHARE_WITHIN",
        "share_within",
        "5ms",
        "sessions share a link where the round trip is at most this; 0 never",
        least=0.0,
    ),
    _seconds(
        "NP_RELOAD_INTERVAL",
        "reload_interval",
        "1h",
        "period of certificate reloads",
    ),
)

_DEFAULTS = {variable.field: variable.parse(variable.default) for variable in VARIABLES}


def _whole(field: str) -> int:
    return int(_DEFAULTS[field])


@frozen(kw_only=True)
class Tuning:
    """Limits and timeouts; times are seconds, the meaning of each is in `VARIABLES`."""

    semaphore_limit: int = _whole("semaphore_limit")
    #: bytes
    udp_buffer: int = _whole("udp_buffer")
    udp_read_timeout: float = _DEFAULTS["udp_read_timeout"]
    handshake_timeout: float = _DEFAULTS["handshake_timeout"]
    tcp_dial_timeout: float = _DEFAULTS["tcp_dial_timeout"]
    udp_dial_timeout: float = _DEFAULTS["udp_dial_timeout"]
    pool_get_timeout: float = _DEFAULTS["pool_get_timeout"]
    min_pool_interval: float = _DEFAULTS["min_pool_interval"]
    max_pool_interval: float = _DEFAULTS["max_pool_interval"]
    report_interval: float = _DEFAULTS["report_interval"]
    service_cooldown: float = _DEFAULTS["service_cooldown"]
    shutdown_timeout: float = _DEFAULTS["shutdown_timeout"]
    share_within: float = _DEFAULTS["share_within"]
    reload_interval: float = _DEFAULTS["reload_interval"]
    #: NP_RELAY
    portable_relay: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> tuple[Tuning, tuple[str, ...]]:
        """Read the variables that ``environ`` (such as ``os.environ``) sets.

        An empty value counts as absent.

        :returns: The tuning, and a line for each value that could not be used.
        """
        values: dict[str, float | int] = {}
        warnings = []
        for variable in VARIABLES:
            text = environ.get(variable.name, "").strip()
            if not text:
                continue
            try:
                values[variable.field] = variable.parse(text)
            except ValueError:
                warnings.append(
                    f"{variable.name}={printable(text, 40)}: using {variable.default}; "
                    f"accepted: {variable.accepts}"
                )
        warnings += map(_misspelt, environ)
        relay = environ.get(RELAY, "").strip()
        if relay not in ("", PORTABLE):
            warnings.append(f"{RELAY}={printable(relay, 40)}: ignored; accepted: {PORTABLE}")
        # The values have the types of their fields by construction, which can't be told to mypy.
        tuning = cls(portable_relay=relay == PORTABLE, **values)  # type: ignore[arg-type]
        if tuning.min_pool_interval > tuning.max_pool_interval:
            default = cls()
            least = format_duration(tuning.min_pool_interval)
            most = format_duration(tuning.max_pool_interval)
            warnings.append(
                f"NP_MIN_POOL_INTERVAL={least} is above NP_MAX_POOL_INTERVAL={most}: using "
                f"{format_duration(default.min_pool_interval)} and "
                f"{format_duration(default.max_pool_interval)}"
            )
            tuning = evolve(
                tuning,
                min_pool_interval=default.min_pool_interval,
                max_pool_interval=default.max_pool_interval,
            )
        return tuning, tuple(filter(None, warnings))


def _misspelt(name: str) -> str:
    """A line for the name of a variable that is nearly one of ours; else nothing, as others may
    have variables of such names too."""
    names = {RELAY, *(variable.name for variable in VARIABLES)}
    if not name.startswith("NP_") or name in names:
        return ""
    from difflib import get_close_matches  # not at the top: few have a mistake

    close = get_close_matches(name, sorted(names), n=1, cutoff=_CLOSE)
    return (
        f"{printable(name, 40)}: ignored, it is unknown; did you mean {close[0]}?" if close else ""
    )
