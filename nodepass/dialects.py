"""Which dialects a node speaks, and with which key: what the parameters `wire` and `oldkey` say.

Native alone is the default, as no old dialect keeps its key. What admitting one gives away is said
at each start.
"""

from __future__ import annotations

from nodepass.errors import ConfigError

__all__ = ["ANY", "DIALECTS", "NATIVE", "check", "parse", "spoken"]

#: The dialect of this version's own protocol.
NATIVE = "native"
#: The value of `wire` that asks for every dialect.
ANY = "any"
#: All dialects, in the order in which a client with `ANY` tries them.
DIALECTS = (NATIVE, "2.0", "1.14", "1.6", "1.6-raw")

_WITH_LINES = {"1.6", "1.6-raw"}


def parse(text: str) -> str:
    """Read a value of `wire`.

    :returns: `ANY`, or dialects in the order in which they are given, with commas.
    :raises ValueError: it names what is none.
    """
    named = tuple(dict.fromkeys(text.split(",")))
    if not {ANY, *DIALECTS}.issuperset(named):
        raise ValueError
    if ANY in named:
        return ANY
    if _WITH_LINES.issubset(named):
        raise ValueError("1.6-raw is 1.6 with link numbers in another form: a node has one of them")
    return ",".join(named)


def spoken(wire: str, key: str | None, port: int) -> tuple[str, ...]:
    """The dialects that a value of `wire` stands for, in the order in which a client tries them.

    `ANY` leaves out 1.6 where the key does not allow it, and always 1.6-raw, its other form.

    :param key: the key towards nodes of old dialects; None for none.
    :param port: of the tunnel, as the URL has it.
    """
    if wire != ANY:
        return tuple(wire.split(","))
    left_out = {"1.6-raw"} if _unfit(key, port) is None else _WITH_LINES
    return tuple(dialect for dialect in DIALECTS if dialect not in left_out)


def check(
    wire: str, key: str | None, oldkey: str | None, port: int, *, serves: bool
) -> tuple[str, ...]:
    """See whether the keys go with the dialects.

    :param serves: whether clients join this node.
    :returns: warnings of what the old dialects give away.
    :raises ConfigError: 1.6 is asked for by name and can't be spoken with this key.
    """
    old_key = oldkey or key
    dialects = spoken(wire, old_key, port)
    if dialects == (NATIVE,):
        return () if oldkey is None else ("parameter oldkey: ignored, wire admits no old dialect",)
    warnings = []
    unfit = _unfit(old_key, port)
    whose = "this key" if old_key else "the key that the port gives"
    if oldkey:
        whose = "this oldkey"
    with_lines = not _WITH_LINES.isdisjoint(dialects)
    if with_lines and unfit is not None:
        raise ConfigError(
            f"wire={wire}: 1.6 can't be spoken with {whose}: {unfit}; "
            "accepted: another key on both ends, or wire without 1.6"
        )
    if wire == ANY and unfit is not None:
        warnings.append(f"wire=any: 1.6 is left out, as it can't be spoken with {whose}: {unfit}")
    if with_lines and serves:
        warnings.append(
            f"wire={wire}: a client of 1.6 proves the length of its key alone, so anyone who "
            "reaches the tunnel port may join; let a firewall admit your clients only"
        )
    if NATIVE in dialects and key is not None and old_key == key:
        warnings.append(
            f"wire={wire}: old dialects give the key away to who listens, and it opens the native "
            "wire too; give old nodes another key, and name it in oldkey="
        )
    return tuple(warnings)


def _unfit(key: str | None, port: int) -> str | None:
    """Why 1.6 can't be spoken with a key; None where it can."""
    # Not at the top, as Twisted comes with it: few nodes speak an old dialect.
    from nodepass.wire.old.cipher import key_for, unfit_for_1_6

    return unfit_for_1_6(key_for(key, port))
