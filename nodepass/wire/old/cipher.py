"""The XOR that old nodes put over their lines, and the key that it takes. No I/O.

It hides nothing: the text is known, so whoever hears a line has the key. It is here because the
other end expects it.
"""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["default_key", "key_for", "token", "unfit_for_1_6", "xor"]

_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193

_NEWLINE = 0x0A

#: What begins every launch of 1.6, and with "#" every other signal.
_LAUNCH = b"np://"
_OTHERS = b"#"


def default_key(port: int) -> bytes:
    """The key of a tunnel that was given none: FNV-1a of the digits of its port, 8 hex digits."""
    value = _FNV_OFFSET
    for byte in b"%d" % port:
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFF
    return b"%08x" % value


def key_for(key: str | None, port: int) -> bytes:
    """The key as bytes.

    :param key: the tunnel key; None or empty for none.
    :param port: the tunnel port, as the URL has it.
    """
    return key.encode("utf-8", "surrogateescape") if key else default_key(port)


def xor(data: bytes, key: bytes) -> bytes:
    """Put the key over some bytes, or take it off."""
    size = len(data)
    mask = (key * (size // len(key) + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


def token(key: bytes) -> bytes:
    """What a client of 1.14 or 2.0 shows: an HMAC over nothing, so always the same."""
    return hmac.new(key, b"", hashlib.sha256).hexdigest().encode()


def unfit_for_1_6(key: bytes) -> str | None:
    """Why no tunnel of 1.6 can work with a key; None when one can.

    A signal is a line. Where a byte of its text and the key's make a line feed the line falls
    apart, and a 1.6 node that reads the halves ends the session. Text that is in every launch
    must not meet such a byte. (Text that is in some, such as the visitor's address, may: what
    can be done then `nodepass.wire.old.urllines` does.)

    :returns: a reason that names the place in the key and not the key.
    """
    for text in (_LAUNCH, _OTHERS):
        for place, byte in enumerate(text):
            if byte ^ key[place % len(key)] == _NEWLINE:
                return (
                    f"character {place % len(key) + 1} of the key turns the '{chr(byte)}' of "
                    f"'{text.decode()}' into a line feed, which breaks the line"
                )
    return None
