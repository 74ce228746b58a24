"""Signals of the old dialects: as Go nodes write them, however they are cut, whatever comes.

The bytes were made with Go's own hash, JSON, base64 and URL packages, and the forms that this node
alone writes were read back with them.
"""

from __future__ import annotations

import base64

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nodepass.address import Endpoint
from nodepass.dialects import DIALECTS
from nodepass.wire.old.cipher import default_key, key_for, token, unfit_for_1_6, xor
from nodepass.wire.old.dialect import Dialect, Traits
from nodepass.wire.old.lines import MAX_LINE, LineError
from nodepass.wire.old.signals import (
    Flush,
    Launch,
    LineUnwritable,
    Ping,
    Pong,
    Signal,
    SignalReader,
    Verify,
    encode,
)
from nodepass.wire.old.urllines import MOST_PIECES, Mender

TCP = Launch(False, Endpoint("203.0.113.7", 40213), "a1b2c3d4")
UDP = Launch(True, Endpoint("2001:db8::1", 5), "00000001")

JSON_KEY = b"s3cret"
JSON_LINES: list[tuple[Signal, bytes]] = [
    (
        TCP,
        b"CBECEREdHF1BSEcAEENBXkcGFl4MBgBWSRFRQlZaQx1SQ1ZaRAlXQldFQBFPUAwQUQlBE1QWQVBQFlFWDg==",
    ),
    (UDP, b"CBECEREdHF1BSEcBF0NBXkcGFl4MBgBWSRE4QFVEQgkHEF1OSQI+SFBWXxEKFkdOUQNTQlVEQwNSUBg="),
    (Ping(), b"CBECEREdHF1BSEcEGl0EUBg="),
    (Pong(), b"CBECEREdHF1BSEcEHF0EUBg="),
    (Flush(), b"CBECEREdHF1BSEcSH0YQGkcJ"),
    (
        Verify("a1b2c3d4", "sha256:AA:BB"),
        b"CBECEREdHF1BSEcCFkEKFBxWXxEKFkdOUVJSEFcXQFdXUElWFUNBSEcHG1JRR1NOMnJZMCdWDg==",
    ),
]

URL_KEY = b"abcdefg"
URL_LINES: list[tuple[Signal, str]] = [
    (TCP, "0f12594b4a5457524c534a5457544f555950555456524d02550754045206574754"),
    (UDP, "0f12594b4a3d555152525e01045f5b5852395f534851525354555657504151"),
    (Ping(), "420b"),
    (Pong(), "420d"),
    (Flush(), "4252"),
]

OLD = list(Dialect)
WITH_JSON = [Dialect.V1_14, Dialect.V2_0]
WITH_URLS = [Dialect.V1_6, Dialect.V1_6_RAW]

KEYS = st.one_of(st.binary(min_size=1, max_size=40), st.integers(1, 65535).map(default_key))
ENDPOINTS = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(0, 65535))
IDS = st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}")
LAUNCHES = st.builds(Launch, st.booleans(), st.none() | ENDPOINTS, IDS)
BARE = st.sampled_from([Ping(), Pong(), Flush()])
SIGNALS = st.one_of(LAUNCHES, BARE, st.builds(Verify, IDS, st.text(max_size=80)))


def plain_url(signal: Signal) -> bytes:
    """The one form in which a Go node writes it."""
    if isinstance(signal, Launch):
        return f"np://{signal.visitor or ''}/{signal.id}#{1 + signal.udp}".encode()
    return {Ping(): b"#i", Pong(): b"#o", Flush(): b"#0"}[signal]


def lines_for(dialect: Dialect) -> tuple[bytes, list[Signal], bytes]:
    """A key, signals, and the bytes of a control link that carries them."""
    if dialect in WITH_JSON:
        return (
            JSON_KEY,
            [signal for signal, _ in JSON_LINES],
            b"".join(line + b"\n" for _, line in JSON_LINES),
        )
    return (
        URL_KEY,
        [signal for signal, _ in URL_LINES],
        b"".join(bytes.fromhex(line) + b"\n" for _, line in URL_LINES),
    )


@pytest.mark.parametrize(
    ("port", "key"),
    [(1, b"340ca71c"), (443, b"2339c1b2"), (10101, b"e68be2b4"), (65535, b"181ab38f")],
)
def test_tunnel_without_a_key(port: int, key: bytes) -> None:
    """Its key is the hash of its port; an empty one is none, and text is UTF-8."""
    assert default_key(port) == key_for(None, port) == key_for("", port) == key
    assert key_for("ключ", port) == "ключ".encode()


def test_token() -> None:
    """The token is the HMAC of nothing."""
    assert token(JSON_KEY) == b"91dfac70c5348b04e1babb8b421ac92cec08b565b49ca16130dccb72503647b7"
    assert token(default_key(10101)).startswith(b"8940572756af0964")


@given(st.binary(max_size=100), st.binary(min_size=1, max_size=40))
def test_xor(data: bytes, key: bytes) -> None:
    """Each byte meets the key's of its place, and twice is not at all."""
    assert xor(data, key) == bytes(byte ^ key[i % len(key)] for i, byte in enumerate(data))
    assert xor(xor(data, key), key) == data


def test_what_the_dialects_differ_in() -> None:
    """The table is what the nodes of each dialect do."""
    assert [dialect.value for dialect in OLD] == [*DIALECTS[1:]]
    assert Dialect.V1_14.traits == Traits(
        http=True,
        handshake_tls=False,
        json=True,
        raw_id=True,
        lost_after=15.0,
        framed_udp=False,
        udp_read=16384,
        verified=frozenset((1, 2)),
        colons=True,
    )
    assert Dialect.V2_0.traits == attrs.evolve(
        Dialect.V1_14.traits,
        handshake_tls=True,
        framed_udp=True,
        verified=frozenset((1,)),
        colons=False,
    )
    assert Dialect.V1_6.traits == Traits(
        http=False,
        json=False,
        raw_id=False,
        lost_after=10.0,
        udp_read=2048,
    )
    assert Dialect.V1_6_RAW.traits == attrs.evolve(Dialect.V1_6.traits, raw_id=True)


@pytest.mark.parametrize("dialect", OLD)
def test_as_go_writes_them(dialect: Dialect) -> None:
    """Signals are written byte for byte as a Go node does, and read wherever the bytes are cut."""
    key, signals, data = lines_for(dialect)
    assert b"".join(encode(signal, dialect, key) for signal in signals) == data
    for cut in range(len(data) + 1):
        reader = SignalReader(dialect, key)
        assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == signals
    reader = SignalReader(dialect, key)
    assert [each for byte in data for each in reader.feed(bytes([byte]))] == signals
    assert reader.skipped == 0


@given(st.sampled_from(WITH_JSON), st.lists(SIGNALS, max_size=5), KEYS)
def test_every_signal_survives(dialect: Dialect, signals: list[Signal], key: bytes) -> None:
    """In 1.14 and 2.0 any key carries any signal."""
    data = b"".join(encode(signal, dialect, key) for signal in signals)
    assert SignalReader(dialect, key).feed(data) == signals


@given(st.lists(LAUNCHES | BARE, max_size=5), KEYS)
def test_1_6_is_written_without_broken_lines(signals: list[Signal], key: bytes) -> None:
    """A signal of 1.6 is one line whatever the key, and says the same; or it can't be written."""
    written, data = [], b""
    for signal in signals:
        try:
            line = encode(signal, Dialect.V1_6, key)
        except LineUnwritable:
            continue
        assert line.index(b"\n") == len(line) - 1
        written.append(signal)
        data += line
    assert SignalReader(Dialect.V1_6, key).feed(data) == written


@given(st.lists(LAUNCHES | BARE, max_size=5), KEYS)
def test_1_6_is_read_with_broken_lines(signals: list[Signal], key: bytes) -> None:
    """What a Go node wrote is made out although the key broke its lines."""
    data = b"".join(xor(plain_url(signal), key) + b"\n" for signal in signals)
    reader = SignalReader(Dialect.V1_6, key)
    assert reader.feed(data) == signals


def test_other_forms_for_1_6() -> None:
    """Where the key breaks the plain form a user name or a path goes before it."""
    # "8" and "2" make a line feed, as do "i" and "c".
    launch = Launch(False, Endpoint("192.0.2.1", 80), "00000000")
    text = xor(encode(launch, Dialect.V1_6, b"-------8")[:-1], b"-------8").decode()
    assert text.startswith("np://") and text.endswith("@192.0.2.1:80/00000000#1")
    assert xor(encode(Ping(), Dialect.V1_6, b"-c-")[:-1], b"-c-") == b"a#i"
    # Where that is not enough, zeros before the port move what is behind it.
    launch = Launch(False, Endpoint("192.0.2.1", 93), "a6ea2981")
    text = xor(encode(launch, Dialect.V1_6, b"303b")[:-1], b"303b")
    assert text == b"np://aaaa@192.0.2.1:093/a6ea2981#1"


def test_1_6_with_a_key_that_carries_nothing() -> None:
    """A character that breaks the line wherever it stands is an error, not a broken line."""
    with pytest.raises(LineUnwritable):
        encode(Launch(False, Endpoint("192.0.2.1", 80), "00000003"), Dialect.V1_6, b"9")
    assert encode(Launch(False, Endpoint("192.0.2.1", 80), "00000004"), Dialect.V1_6, b"9")


@pytest.mark.parametrize(
    ("key", "character"),
    [
        (b"dull", "1"),
        (b"az", "2"),
        (b"ab0d", "3"),
        (b"abc%", "4"),
        (b"abcd%", "5"),
        (b")", "1"),
        (b"z", "1"),
        (b"0a", "1"),
    ],
)
def test_keys_unfit_for_1_6(key: bytes, character: str) -> None:
    """A key with which no launch arrives is refused, and the reason shows a place and no key."""
    reason = unfit_for_1_6(key)
    assert reason is not None and reason.startswith(f"character {character} of the key")
    assert key.decode() not in reason


@given(KEYS)
def test_keys_fit_for_1_6(key: bytes) -> None:
    """Only keys that break the beginning of a line are refused."""
    broken = b"\n" in xor(b"np://", key) + xor(b"#", key)
    assert (unfit_for_1_6(key) is not None) is broken


@pytest.mark.parametrize("dialect", WITH_JSON)
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"tcp"',
        b'{"action":7}',
        b'{"action":"dance"}',
        b'{"id":"a1b2c3d4"}',
        b'{"action":"tcp","remote":"192.0.2.1:1"}',
        b'{"action":"tcp","remote":"192.0.2.1:1","id":"A1B2C3D4"}',
        b'{"action":"tcp","remote":"192.0.2.1:1","id":"a1b2c3d4e"}',
        b'{"action":"verify","id":"","fp":"x"}',
        b'{"action":"ping"',
        b'{"action":"\xff"}',
        b'{"x":' + b"[" * 2000,
    ],
)
def test_nonsense_in_json(dialect: Dialect, text: bytes) -> None:
    """What makes no sense is skipped and counted, and what follows is read."""
    reader = SignalReader(dialect, JSON_KEY)
    data = base64.b64encode(xor(text, JSON_KEY)) + b"\n" + encode(Ping(), dialect, JSON_KEY)
    assert reader.feed(data) == [Ping()]
    assert reader.skipped == 1


def test_unknown_fields_are_ignored() -> None:
    """A field that a later node adds does no harm."""
    text = b'{"new":[1,{}],"action":"udp","id":"00000001","remote":"[2001:db8::1]:5"}'
    reader = SignalReader(Dialect.V1_14, JSON_KEY)
    assert reader.feed(base64.b64encode(xor(text, JSON_KEY)) + b"\n") == [UDP]


@pytest.mark.parametrize(
    "line",
    [b"!", b"CBE", b"CBEC!EREdHF1BSEcEGl0EUBg=", b"CBECEREdHF1BSEcEGl0EUBg", b"\0\xff", b" "],
)
def test_no_base64(line: bytes) -> None:
    """A line that is no base64, or lacks its padding, is skipped."""
    reader = SignalReader(Dialect.V1_14, JSON_KEY)
    assert reader.feed(line + b"\n") == [] and reader.skipped == 1


@pytest.mark.parametrize(
    ("remote", "visitor"),
    [
        ("192.0.2.1:65535", Endpoint("192.0.2.1", 65535)),
        ("192.0.2.1:00080", Endpoint("192.0.2.1", 80)),
        ("[::ffff:192.0.2.1]:80", Endpoint("192.0.2.1", 80)),
        ("[fe80::1%eth0]:80", Endpoint("fe80::1", 80)),
        ("", None),
        ("192.0.2.1", None),
        ("192.0.2.1:65536", None),
        ("192.0.2.1:٣", None),
        ("example.org:80", None),
        ("x" * 1000, None),
    ],
)
def test_visitors_of_launches(remote: str, visitor: Endpoint | None) -> None:
    """A launch counts whatever it says of the visitor; an address is one, or none."""
    text = f'{{"action":"tcp","remote":"{remote}","id":"a1b2c3d4"}}'.encode()
    reader = SignalReader(Dialect.V1_14, JSON_KEY)
    line = base64.b64encode(xor(text, JSON_KEY)) + b"\n"
    assert reader.feed(line) == [Launch(False, visitor, "a1b2c3d4")]


def test_zone_in_1_6() -> None:
    """The zone of a visitor's address, escaped in a URL, is left out."""
    reader = SignalReader(Dialect.V1_6, URL_KEY)
    line = "0f12594b4a3d01045a535e5f5742535706100d563a5b574c54555657515253554654"
    launch = Launch(True, Endpoint("fe80::1", 5), "00000001")
    assert reader.feed(bytes.fromhex(line) + b"\n") == [launch]


def test_nonsense_in_1_6() -> None:
    """Unknown lines are forgotten and counted, also when there are many, and hide no others."""
    reader = SignalReader(Dialect.V1_6, URL_KEY)
    nonsense = xor(b"#9", URL_KEY) + b"\n" + b"\n" + xor(b"np://x", URL_KEY) + b"\n"
    ping = xor(b"#i", URL_KEY) + b"\n"
    assert reader.feed(nonsense + ping) == [Ping()] and reader.skipped == 3
    assert reader.feed(nonsense * 500 + ping) == [Ping()] and reader.skipped == 1503


def test_1_6_writes_no_verify() -> None:
    """1.6 has no verify."""
    with pytest.raises(ValueError, match="no verify"):
        encode(Verify("00000001", ""), Dialect.V1_6, URL_KEY)


@pytest.mark.parametrize("dialect", OLD)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_lines(dialect: Dialect, end: bytes) -> None:
    """The longest line passes; one byte more, whole or not, ends the link."""
    reader = SignalReader(dialect, URL_KEY)
    assert reader.feed(b"A" * MAX_LINE + end) == []
    with pytest.raises(LineError):
        SignalReader(dialect, URL_KEY).feed(b"A" * (MAX_LINE + 1) + end)


@given(st.sampled_from(OLD), KEYS, st.lists(st.binary(max_size=200), max_size=20))
def test_garbage(dialect: Dialect, key: bytes, pieces: list[bytes]) -> None:
    """Garbage raises nothing but that a line is too long, and is held in bounds."""
    assume(sum(map(len, pieces)) < MAX_LINE)
    reader = SignalReader(dialect, key)
    for piece in pieces:
        for signal in reader.feed(piece):
            assert isinstance(signal, Signal)


@pytest.mark.parametrize("line", [b"", b"a", b"ab"])
def test_many_short_lines_of_1_6(line: bytes) -> None:
    """They take little work, though each might belong to those before it."""
    tried: list[str] = []

    def parse(text: str) -> None:
        tried.append(text)

    mender = Mender(b"sesame-7", parse)
    for _ in range(1000):
        assert mender.take(line) is None
    assert not tried
    assert mender.skipped == 1000 - MOST_PIECES


def test_a_signal_of_1_6_in_many_pieces() -> None:
    """A key of one character, which is in the text as often as can be."""
    visitor = Endpoint("8888:8888:8888:8888:8888:8888:8888:8888", 8888)
    launch = Launch(False, visitor, "88888888")
    broken = xor(plain_url(launch), b"2") + b"\n"
    assert broken.count(b"\n") > 40
    reader = SignalReader(Dialect.V1_6, b"2")
    assert reader.feed(b"\n" * 100 + broken) == [launch]
