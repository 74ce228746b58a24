"""What two old nodes say to each other over the control link. No I/O.

1.14 and 2.0 write JSON, XORed and in base64; 1.6 writes URLs, XORed. The signals are the same, but
for Verify, which 1.6 does not have. What makes no sense is skipped, as old nodes do.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import msgspec
from attrs import frozen

from nodepass.address import Endpoint, endpoint_of, is_literal

from .cipher import xor
from .dialect import Dialect
from .lines import LineSplitter
from .urllines import MAX_PADDING, LineUnwritable, Mender, write

__all__ = [
    "CONTROL_ID",
    "Flush",
    "Launch",
    "LineUnwritable",
    "Ping",
    "Pong",
    "Signal",
    "SignalReader",
    "Verify",
    "encode",
]

#: The number of the pool's first link in 1.14 and 2.0, which is the control link.
CONTROL_ID = "00000000"

# Zeros may stand before it: see `_encode_url`.
_PORT = re.compile("0*[0-9]{1,5}")
_ID = re.compile("[0-9a-f]{8}")


@frozen
class Launch:
    """Take the link of this number for a visitor: dial the target.

    :ivar udp: whether it is for datagrams.
    :ivar visitor: the visitor's address; None where the peer's text is none.
    :ivar id: the link's number, 8 lowercase hex digits.
    """

    udp: bool
    visitor: Endpoint | None
    id: str


@frozen
class Ping:
    """Answer with a Pong."""


@frozen
class Pong:
    """The answer to a Ping."""


@frozen
class Flush:
    """Too many links of the pool are dead: drop all idle ones, as the sender does."""


@frozen
class Verify:
    """The certificate as the sender knows it, and a link on which to compare it.

    :ivar fingerprint: as `nodepass.wire.old.fingerprint` writes it; empty where it has none.
    """

    id: str
    fingerprint: str


Signal = Launch | Ping | Pong | Flush | Verify


class _Record(msgspec.Struct, omit_defaults=True):
    action: str
    remote: str = ""
    id: str = ""
    fp: str = ""


_PLAIN: dict[str, Signal] = {"ping": Ping(), "pong": Pong(), "flush": Flush()}
_PLAIN_NAMES = {signal: name for name, signal in _PLAIN.items()}
_FRAGMENTS: dict[str, Signal] = {"i": Ping(), "o": Pong(), "0": Flush()}
_FRAGMENT_NAMES = {signal: name for name, signal in _FRAGMENTS.items()}

_URL_LAUNCH = re.compile(r"np://(?:[a-z]*@)?([^/?#@]*)/([0-9a-f]{8})#([12])")
_URL_OTHER = re.compile("[a-z]*#([io0])")

_decode_record = msgspec.json.Decoder(_Record).decode
_encode_record = msgspec.json.Encoder().encode


def encode(signal: Signal, dialect: Dialect, key: bytes) -> bytes:
    """A whole line.

    :raises LineUnwritable: 1.6 can't write it with this key; another link's number may do.
    """
    if not dialect.traits.json:
        return _encode_url(signal, key)
    if isinstance(signal, Launch):
        action = "udp" if signal.udp else "tcp"
        record = _Record(action, remote=str(signal.visitor or ""), id=signal.id)
    elif isinstance(signal, Verify):
        record = _Record("verify", id=signal.id, fp=signal.fingerprint)
    else:
        record = _Record(_PLAIN_NAMES[signal])
    return base64.b64encode(xor(_encode_record(record), key)) + b"\n"


def _encode_url(signal: Signal, key: bytes) -> bytes:
    if isinstance(signal, Launch):
        tail = f"/{signal.id}#{2 if signal.udp else 1}"
        host, colon, port = str(signal.visitor or "").rpartition(":")
        # Zeros before the port move what is behind them along the key.
        most = min(len(key), MAX_PADDING) if port else 1
        forms = (f"{host}{colon}{zeros * '0'}{port}{tail}" for zeros in range(most))
        return write("np://", forms, key)
    if isinstance(signal, Verify):
        raise ValueError("1.6 has no verify")
    return write("", [f"#{_FRAGMENT_NAMES[signal]}"], key)


class SignalReader:
    """Takes bytes of a control link as they come and gives signals."""

    def __init__(self, dialect: Dialect, key: bytes) -> None:
        self._splitter = LineSplitter()
        self._json = dialect.traits.json
        self._key = key
        self._mender: Mender[Signal] = Mender(key, _decode_url)
        self._skipped = 0

    @property
    def skipped(self) -> int:
        """Lines that made no sense."""
        return self._skipped + self._mender.skipped

    def feed(self, data: bytes) -> list[Signal]:
        """The signals that these bytes complete.

        :raises LineError: the bytes are no lines; the link can't go on.
        """
        decode: Callable[[bytes], Signal | None]
        decode = self._decode_json if self._json else self._mender.take
        signals = []
        for line in self._splitter.feed(data):
            signal = decode(line)
            if signal is not None:
                signals.append(signal)
        return signals

    def _decode_json(self, line: bytes) -> Signal | None:
        try:
            text = xor(base64.b64decode(line, validate=True), self._key)
            signal = _signal_of(_decode_record(text))
        except (ValueError, msgspec.DecodeError, RecursionError):
            signal = None
        if signal is None:
            self._skipped += 1
        return signal


def _signal_of(record: _Record) -> Signal | None:
    if record.action in _PLAIN:
        return _PLAIN[record.action]
    if record.action not in ("tcp", "udp", "verify") or not _ID.fullmatch(record.id):
        return None
    if record.action == "verify":
        return Verify(record.id, record.fp)
    return Launch(record.action == "udp", _endpoint(record.remote), record.id)


def _decode_url(text: str) -> Signal | None:
    match = _URL_LAUNCH.fullmatch(text)
    if match is not None:
        remote, number, kind = match.groups()
        return Launch(kind == "2", _endpoint(remote), number)
    match = _URL_OTHER.fullmatch(text)
    return None if match is None else _FRAGMENTS[match.group(1)]


def _endpoint(text: str) -> Endpoint | None:
    """The address in a launch. It comes from a stranger, and may be nonsense."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not is_literal(host) or not _PORT.fullmatch(port) or int(port) > 65535:
        return None
    return endpoint_of(Endpoint(host, int(port)))
