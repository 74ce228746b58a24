"""Which worker a connection is for, and which workers join each other."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from nodepass.wire.native.proof import Preface
from nodepass.wire.native.tags import associations, partners, tag, tagged
from nodepass.workers.addressee import MOST_NEEDED, addressed


def hello(names: list[bytes], size: int = 0) -> bytes:
    """The first record of a TLS connection that offers these ALPN names."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    if names:
        connection.set_alpn_protos(names)
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)


@pytest.mark.parametrize("worker", [0, 1, 9, 10, 255, 65535])
def test_both_kinds_of_links_name_their_worker(worker: int) -> None:
    """A ClientHello and a preface say the number that they were made with, once they are whole."""
    for first in (
        hello([b"nodepass2-data", *tag(worker)]),
        Preface(worker, b"a" * 16, 7, b"n" * 16).encode()[:7],
    ):
        assert addressed(first) == worker
        assert addressed(first + b"more") == worker
        assert all(addressed(first[:size]) is None for size in range(1, len(first)))


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n",
        b"\0" * 40,
        b"NP1",
        hello([]),
        hello([b"h2", b"http/1.1"]),
        hello([b"nodepass2", b"wave"]),
        hello([b"nodepass2", b"w12345"]),
        hello([b"nodepass2", b"w"]),
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff" + b"x" * MOST_NEEDED,
    ],
)
def test_who_makes_no_sense_is_for_the_first_worker(first: bytes) -> None:
    """That one has the words to turn strangers away."""
    assert addressed(first) == 0


@given(
    st.binary(min_size=1, max_size=80).map(
        lambda data: b"\x16\x03\x01\0" + bytes([len(data)]) + data
    )
)
def test_no_record_breaks_the_reader(record: bytes) -> None:
    """Whatever a record holds, there is a number."""
    assert addressed(record) is not None


@pytest.mark.parametrize(
    ("servers", "clients"), [*itertools.product([1, 2, 3, 4, 7, 16], repeat=2)]
)
def test_each_worker_has_partners(servers: int, clients: int) -> None:
    """Nobody is left out, each has two where there are two, and their number stays small."""
    joined = {own: partners(own, clients, servers) for own in range(clients)}
    pairs = {(server, client) for client, some in joined.items() for server in some}
    for server in range(servers):
        assert len({client for some, client in pairs if some == server}) >= min(2, clients)
    for own, some in joined.items():
        assert len(some) == len(set(some)) >= min(2, servers)
        # It joins this one before it knows how many there are.
        assert some[0] == own % servers
    assert len(pairs) == associations(clients, servers) <= 2 * max(clients, servers)


def test_a_process_alone_says_nothing() -> None:
    """One worker on each side is one association, and no tag."""
    assert (tag(0), partners(0, 1, 1), associations(1, 1)) == ([], [0], 1)
    assert tagged([b"nodepass2"]) == 0
