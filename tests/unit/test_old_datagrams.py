"""Datagrams of 2.0: boundaries, order and empty ones survive, however the link cuts them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodepass.wire.old.datagrams import DatagramReader, frames

BATCH = [b"one", b"", b"three", b"x" * 300, b""]
BYTES = b"\0\3one\0\0\0\5three\1\x2c" + b"x" * 300 + b"\0\0"


def test_as_go_writes_them() -> None:
    """Two bytes of length, big-endian, and the datagram; read wherever it is cut."""
    assert frames(BATCH) == BYTES
    for cut in range(len(BYTES) + 1):
        reader = DatagramReader()
        assert reader.feed(BYTES[:cut]) + reader.feed(BYTES[cut:]) == BATCH
    reader = DatagramReader()
    assert [each for byte in BYTES for each in reader.feed(bytes([byte]))] == BATCH


def test_longer_ones_are_taken() -> None:
    """A node with larger buffers than usual is understood."""
    assert DatagramReader().feed(b"\xff\xff" + b"x" * 65535) == [b"x" * 65535]


@given(st.lists(st.binary(max_size=400), max_size=20), st.integers(1, 500))
def test_any_cuts(batch: list[bytes], size: int) -> None:
    """Pieces of any size give the same datagrams."""
    data = frames(batch)
    reader = DatagramReader()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [each for piece in pieces for each in reader.feed(piece)] == batch


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage(pieces: list[bytes]) -> None:
    """Any bytes are datagrams, of the lengths that they say."""
    reader = DatagramReader()
    batch = [each for piece in pieces for each in reader.feed(piece)]
    assert b"".join(pieces).startswith(
        b"".join(len(each).to_bytes(2, "big") + each for each in batch)
    )
