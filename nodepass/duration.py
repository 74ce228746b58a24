"""Durations as people write them: ``300ms``, ``30s``, ``5m``, ``1h30m``."""

from __future__ import annotations

import re

__all__ = ["DURATION_EXAMPLES", "LONGEST", "format_duration", "parse_duration"]

DURATION_EXAMPLES = "300ms, 30s, 5m or 1h30m"

#: The longest duration accepted, a year in seconds. More is a slip of the pen, and keeps sums
#: with clocks far from where floating point loses milliseconds.
LONGEST = 365 * 24 * 3600.0

#: Largest unit first, the order in which they are written, in milliseconds.
_UNITS = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))

_DURATION = re.compile(
    "".join(rf"(?:(?P<{unit}>[0-9]{{1,12}}(?:\.[0-9]{{1,9}})?){unit})?" for unit, _ in _UNITS)
)


def parse_duration(text: str) -> float:
    """Read a duration.

    Each unit (``h``, ``m``, ``s``, ``ms``) stands at most once, the largest first, with a
    decimal fraction if wanted. ``0`` needs no unit.

    :returns: Seconds, from 0 to `LONGEST`, rounded to the millisecond.

    :raises ValueError: it is no duration, longer than `LONGEST`, or above 0 and under half a
        millisecond: rounded it would be 0, which tends to mean something else.
    """
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError("not a duration")
    exact = sum(float(match[unit] or 0) * factor for unit, factor in _UNITS)
    seconds = round(exact) / 1000
    if seconds > LONGEST:
        raise ValueError("longer than a year")
    if exact and not seconds:
        raise ValueError("shorter than a millisecond")
    return seconds


def format_duration(seconds: float) -> str:
    """Write ``seconds`` (0 or more) so that `parse_duration` reads it, to the millisecond."""
    left = round(seconds * 1000)
    parts = []
    for unit, factor in _UNITS:
        count, left = divmod(left, factor)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0"
