"""The reader of event streams, by the rules of the HTML standard and however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.client import sse
from nodepass.client.sse import ServerSentEvent, SSEError, SSEParser

STREAM = (
    b"\xef\xbb\xbfretry: 3000\n\n: hello\r\nevent: instance\r\nid: 7\r\n"
    b'data: {"a":\r\ndata:1}\r\n\r\n'
    b"data: caf\xc3\xa9 \xff\rdata\rid: 8\r\r:\n\nevent: left out\n\n"
    b"data:  two blanks\n\nid\ndata: x\n\n"
    b"data: never complete\n"
)
EVENTS = [
    ServerSentEvent("instance", '{"a":\n1}', "7"),
    ServerSentEvent("message", "caf\xe9 \ufffd\n", "8"),
    ServerSentEvent("message", " two blanks", "8"),
    ServerSentEvent("message", "x", ""),
]


def read(parts: list[bytes]) -> tuple[list[ServerSentEvent], SSEParser]:
    """Feed a parser part by part."""
    parser = SSEParser()
    return [event for part in parts for event in parser.feed(part)], parser


def test_whole() -> None:
    """Fields, comments, all three line ends, a BOM, bytes that are no UTF-8, and what goes."""
    events, parser = read([STREAM])
    assert events == EVENTS
    assert (parser.retry, parser.comments, parser.last_id) == (3000, 2, "")


def test_byte_by_byte() -> None:
    """The same comes out when each byte comes alone, and empty reads change nothing."""
    parts = [part for byte in STREAM for part in (bytes([byte]), b"")]
    events, parser = read(parts)
    assert events == EVENTS
    assert parser.comments == 2


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cut(places: list[int]) -> None:
    """The same comes out wherever the stream is cut."""
    edges = [0, *sorted(places), len(STREAM)]
    parts = [STREAM[start:end] for start, end in pairwise(edges)]
    assert read(parts)[0] == EVENTS


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_anything_can_be_read(parts: list[bytes]) -> None:
    """No bytes make it fail, and cuts never matter."""
    assert read(parts)[0] == read([b"".join(parts)])[0]


@pytest.mark.parametrize(
    ("line", "retry"),
    [(b"retry: 5", 5), (b"retry:", None), (b"retry: -5", None), (b"retry: 5s", None)],
)
def test_retry(line: bytes, retry: int | None) -> None:
    """Only digits are a time to reconnect."""
    assert read([line + b"\n\n"])[1].retry == retry


def test_ids() -> None:
    """An id counts once its event is complete, one with a NUL never; a resumed stream has one."""
    parser = SSEParser("41")
    assert parser.feed(b"data: a\n\n") == [ServerSentEvent("message", "a", "41")]
    parser.feed(b"id: 42\ndata: b\n")
    assert parser.last_id == "41"
    parser.feed(b"\nid: 4\x003\n\n")
    assert parser.last_id == "42"


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000, b"data: x\n" * 100, b":" + b"x" * 2000])
def test_bound(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that never ends is an error rather than memory, in one line or in many."""
    monkeypatch.setattr(sse, "MOST_EVENT", 500)
    for size in (1, 7, len(line)):
        parser = SSEParser()
        with pytest.raises(SSEError):
            for start in range(0, len(line), size):
                parser.feed(line[start : start + size])
