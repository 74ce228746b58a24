"""The hour of mixed load notices what it is there to notice."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from attrs import evolve

from benchmarks.visits import Text, Wrong, expect_reset
from benchmarks.watch import Held, trends

Line = tuple[socket.socket, socket.socket]


@pytest.fixture
def line() -> Iterator[Line]:
    """Both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), 5)
        far, _ = listener.accept()
    far.settimeout(5)
    with near, far:
        yield near, far


def test_the_same_bytes(line: Line) -> None:
    """All that was sent came, in pieces of any size."""
    text = Text(50_000)
    for sent, taken in ((7, 3), (9000, 8000), (50_000, 50_000)):
        text.send(line[0], sent)
        text.take(line[1], taken)
    text.check()


@pytest.mark.parametrize("whole", [True, False])
def test_one_byte_changed(line: Line, whole: bool) -> None:
    """It is enough, among all that came as in what came before a reset."""
    text = Text(1000)
    text.send(line[0])
    data = bytearray(line[1].recv(1000))
    data[567] ^= 1
    line[0].sendall(data)
    text.take(line[1])
    with pytest.raises(Wrong):
        text.check(whole)


def test_bytes_missing(line: Line) -> None:
    """A FIN must not cut anything off; before a reset a part may have come."""
    text = Text(1000)
    text.send(line[0], 400)
    line[0].shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        text.take(line[1])
    with pytest.raises(Wrong):
        text.check()
    text.check(whole=False)


def test_a_reset_that_became_a_fin(line: Line) -> None:
    """It looks like a clean end, and is not what the other end did."""
    line[0].close()
    with pytest.raises(Wrong):
        expect_reset(line[1], Text(0))


def test_what_grows() -> None:
    """Memory, descriptors and threads may be what they were in the second quarter, and a little
    more; what the first quarter and single moments were does not count."""
    one = Held(at=0, pss=0, rss=100_000_000, descriptors=50, threads=2, cpu=0, pool=10)

    def flat(**last: int) -> list[str]:
        quarters = (evolve(one, rss=1), one, evolve(one, rss=1 << 40), evolve(one, **last))
        samples = [sample for quarter in quarters for sample in [quarter] * 5]
        samples[-2] = samples[7] = evolve(one, rss=1 << 40)
        return [trend.what for trend in trends(samples) if not trend.flat]

    assert (
        flat()
        == flat(rss=104_900_000)
        == flat(descriptors=66)
        == flat(descriptors=90, sessions=20)
        == []
    )
    assert flat(rss=105_100_000) == ["rss"]
    assert flat(descriptors=67) == ["others"]
    assert flat(threads=3) == ["threads"]
