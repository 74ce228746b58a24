"""Our codecs and the running Go programs understand each other, line by line."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodepass.address import Endpoint
from nodepass.parameters import TLSLevel
from nodepass.wire import Flow
from nodepass.wire.old.cipher import xor
from nodepass.wire.old.datagrams import DatagramReader, frames
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.fingerprint import fingerprint
from nodepass.wire.old.firstbytes import Knock, knock
from nodepass.wire.old.handshake import Grant
from nodepass.wire.old.signals import Flush, Launch, Ping, Pong, Verify, encode
from tests.certs import Authority, Leaf
from tests.interop.ends import client, dial, read_some, running, secured, server
from tests.interop.nodes import KEY, Program, free_port
from tests.interop.programs import programs

PROGRAMS = programs()
if not PROGRAMS:
    pytest.skip("NODEPASS_GO names no Go program", allow_module_level=True)

with_each = pytest.mark.parametrize("go", PROGRAMS, ids=[go.dialect for go in PROGRAMS])
with_http = pytest.mark.parametrize(
    "go",
    [go for go in PROGRAMS if Dialect(go.dialect).traits.http],
    ids=[go.dialect for go in PROGRAMS if Dialect(go.dialect).traits.http],
)
with_1_6 = pytest.mark.parametrize(
    "go", [go for go in PROGRAMS if go.dialect.startswith("1.6")], ids=lambda go: go.dialect
)
LEVELS = [TLSLevel.PLAIN, TLSLevel.SELF_SIGNED]
VISITOR = Endpoint("203.0.113.9", 4711)


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """A target that a Go program dials."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        port.settimeout(10)
        yield port


@pytest.fixture
def leaf(tmp_path: Path) -> Leaf:
    """A certificate for our server."""
    return Authority(tmp_path).leaf("127.0.0.1")


def accepted(target: socket.socket) -> socket.socket:
    """The next connection to it."""
    conn, _ = target.accept()
    conn.settimeout(10)
    return conn


@with_each
@pytest.mark.parametrize("tls", LEVELS)
def test_server(go: Program, tls: TLSLevel) -> None:
    """A Go server grants what its URL says, numbers our links, answers pings, and launches a
    visitor on one of our links, with its address."""
    with client(go, Flow.REVERSE, tls, "&max=77") as (end, visited):
        assert end.grant == Grant(Flow.REVERSE, 77, tls)
        links = {}
        for _ in range(8):  # each that is named by us makes a server forget another one
            link = end.connect()
            links[end.read_id(link)] = link
        end.control.say(Ping())
        end.control.hear(Pong)
        if tls and end.dialect.traits.verified:  # no visitor before that
            number, link = links.popitem()
            pin = hashlib.sha256(link.getpeercert(True)).digest()
            end.control.say(Verify(number, fingerprint(pin, end.dialect)))
            assert end.control.hear(Verify).fingerprint == fingerprint(pin, end.dialect)
        with dial(visited[1]) as visitor:
            visitor.sendall(b"question")
            launch = end.control.hear(Launch)
            assert (launch.udp, launch.visitor) == (False, Endpoint(*visitor.getsockname()))
            assert read_some(links[launch.id]) == b"question"
            links[launch.id].sendall(b"answer")
            assert read_some(visitor) == b"answer"


@with_each
@pytest.mark.parametrize("tls", LEVELS)
def test_server_dials(go: Program, tls: TLSLevel) -> None:
    """A Go server obeys our launch, at once and before any verify."""
    with client(go, Flow.FORWARD, tls) as (end, address):
        link = end.connect()
        number = end.read_id(link)
        with socket.create_server(address) as target:
            target.settimeout(10)
            end.control.say(Launch(False, VISITOR, number))
            link.sendall(b"question")
            conn = accepted(target)
            assert read_some(conn) == b"question"
            conn.sendall(b"answer")
            assert read_some(link) == b"answer"
            conn.close()


@with_each
@pytest.mark.parametrize("tls", LEVELS)
def test_client(go: Program, tls: TLSLevel, target: socket.socket, leaf: Leaf) -> None:
    """A Go client accepts our grant and obeys our launch; its first bytes are told apart."""
    grant = Grant(Flow.REVERSE, 1024, tls)
    with server(go, leaf, grant, target.getsockname()[1], "&proxy=1") as end:
        control = end.admit()
        knocked = {"1.14": Knock.HANDSHAKE, "2.0": Knock.TLS}.get(go.dialect, Knock.HELLO)
        if not (tls and end.dialect.traits.http):
            assert knock(end.first) is knocked
        link = end.link("0badcafe")
        if tls:
            assert knock(end.first) is Knock.TLS
        control.hear(Ping)
        control.say(Launch(False, VISITOR, "0badcafe"))
        link.sendall(b"question")
        conn = accepted(target)
        heard = read_some(conn)
        while not heard.endswith(b"question"):
            heard += read_some(conn)
        assert heard.startswith(b"PROXY TCP4 203.0.113.9 ") and b" 4711 " in heard
        conn.sendall(b"answer")
        assert read_some(link) == b"answer"
        conn.close()


@with_each
def test_datagrams(go: Program, leaf: Leaf) -> None:
    """Datagrams, one by one, and as the dialect has them."""
    framed = Dialect(go.dialect).traits.framed_udp
    with socket.socket(type=socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(10)
        grant = Grant(Flow.REVERSE, 1024, TLSLevel.PLAIN)
        with server(go, leaf, grant, target.getsockname()[1]) as end:
            control = end.admit()
            link = end.link("0badcafe")
            control.hear(Ping)
            control.say(Launch(True, VISITOR, "0badcafe"))
            said = [b"one", b"", b"x" * 16384, b"three"] if framed else [b"one", b"x" * 2048]
            for data in said:
                link.sendall(frames([data]) if framed else data)
                heard, address = target.recvfrom(65536)
                assert heard == data
                target.sendto(data, address)
                back: list[bytes] = []
                reader = DatagramReader()
                while not back:
                    some = read_some(link)
                    back = reader.feed(some) if framed else [some]
                assert b"".join(back) == data


@with_http
def test_refusals(go: Program) -> None:
    """A Go server looks at the method, then at the path, then at the token."""
    port, visited = free_port(), free_port()
    with running(go, f"server://{KEY}@127.0.0.1:{port}/127.0.0.1:{visited}?mode=1"):
        for request, status in ((b"POST /x", 405), (b"GET /x", 404), (b"GET /", 401)):
            conn = dial(port)
            if Dialect(go.dialect).traits.handshake_tls:
                conn = secured(conn)
            conn.sendall(request + b" HTTP/1.1\r\nHost: none\r\n\r\n")
            answer = read_some(conn)
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"Content-Type: text/plain" in answer
            conn.close()


@with_http
def test_unknown_links(go: Program) -> None:
    """A launch of a link that is not there is awaited and counted; then the pool is flushed, which
    ends idle links."""
    with client(go, Flow.FORWARD, TLSLevel.PLAIN) as (end, _):
        links = [end.connect() for _ in range(2)]
        for link in links:
            end.read_id(link)
        for number in range(3):
            end.control.say(Launch(False, VISITOR, f"dead000{number}"))
        end.control.hear(Flush)
        for link in links:
            assert link.recv(1) == b""


@with_http
def test_certificates(go: Program) -> None:
    """Links are under TLS 1.3, with no other protocol's name; only 2.0 shakes hands by TLS, then
    with another certificate."""
    with client(go, Flow.FORWARD, TLSLevel.SELF_SIGNED) as (end, _):
        link = end.connect()
        assert isinstance(link, ssl.SSLSocket)
        assert (link.version(), link.selected_alpn_protocol()) == ("TLSv1.3", None)
        knocked = end.knocked
        if end.dialect.traits.handshake_tls:
            assert isinstance(knocked, ssl.SSLSocket)
            assert knocked.getpeercert(True) != link.getpeercert(True)


@with_1_6
def test_keys_that_break_lines(go: Program, target: socket.socket, leaf: Leaf) -> None:
    """What a key turns into a line feed is written in another way, which a 1.6 node understands as
    well: with a user name before the address."""
    key = b"ta8b3"
    grant = Grant(Flow.REVERSE, 1024, TLSLevel.PLAIN)
    moved = 0
    more = "&proxy=1&min=10"
    with server(go, leaf, grant, target.getsockname()[1], more, key) as end:
        control = end.admit()
        for turn in range(10):
            visitor = Endpoint("203.0.113.28" if turn % 2 else "2001:db8::1", 20232 + 7 * turn)
            number = f"{0x2233228A + turn * 0x01010101:08x}"
            link = end.link(number)
            launch = Launch(False, visitor, number)
            moved += b"@" in xor(encode(launch, Dialect.V1_6, key)[:-1], key)
            control.say(launch)
            link.sendall(b"question")
            conn = accepted(target)
            heard = read_some(conn)
            while not heard.endswith(b"question"):
                heard += read_some(conn)
            assert f" {visitor.host} ".encode() in heard and f" {visitor.port} ".encode() in heard
            conn.close()
    assert moved
