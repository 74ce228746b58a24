"""One end of a tunnel, made of our codecs and of sockets that block, to hold each codec against the
Go program at the other end."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nodepass.parameters import TLSLevel
from nodepass.wire import Flow
from nodepass.wire.old.dialect import Dialect
from nodepass.wire.old.handshake import (
    Grant,
    GrantReader,
    HandshakeError,
    HelloReader,
    HTTPClientHandshake,
    HTTPServerHandshake,
    grant_line,
    hello_line,
)
from nodepass.wire.old.linkid import LinkIdReader, encode_id
from nodepass.wire.old.signals import Ping, Pong, Signal, SignalReader, encode
from tests.certs import Leaf
from tests.interop.nodes import KEY, Program, free_port

#: Seconds for whatever the Go program is to do next. A signal that comes by intervals takes ten.
PATIENCE = 15.0

_KEY = KEY.encode()


@contextmanager
def running(go: Program, url: str) -> Iterator[None]:
    """The Go program with a URL, for as long as the block lasts."""
    env = {**os.environ, "NP_SERVICE_COOLDOWN": "100ms"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([go.path, url], stdout=quiet, stderr=quiet, env=env)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def dial(port: int) -> socket.socket:
    """A connection to a program that may be starting, or have closed its port for a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            conn = socket.create_connection(("127.0.0.1", port), PATIENCE)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            conn.settimeout(PATIENCE)
            return conn


def secured(conn: socket.socket) -> ssl.SSLSocket:
    """TLS over it, as a client that checks nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(conn)


def read_some(conn: socket.socket) -> bytes:
    """The next bytes; a test fails where there are none."""
    data = conn.recv(65536)
    assert data, "the Go program closed the connection"
    return data


class Control:
    """A control link: says signals and hears them, and answers pings."""

    def __init__(
        self, conn: socket.socket, dialect: Dialect, key: bytes, first: bytes = b""
    ) -> None:
        self._conn = conn
        self._dialect = dialect
        self._key = key
        self._reader = SignalReader(dialect, key)
        self._heard = self._reader.feed(first)

    def say(self, signal: Signal) -> None:
        """Send it."""
        self._conn.sendall(encode(signal, self._dialect, self._key))

    def hear(self, *kinds: type) -> Signal:
        """The next signal of one of these kinds."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            while self._heard:
                signal = self._heard.pop(0)
                if isinstance(signal, Ping):
                    self.say(Pong())
                if isinstance(signal, kinds):
                    return signal
            self._heard += self._reader.feed(read_some(self._conn))
            assert self._reader.skipped == 0
        raise AssertionError(f"none of {kinds} came")


class Client:
    """Our codecs as the client of a Go server."""

    def __init__(self, go: Program, port: int, key: bytes = _KEY) -> None:
        self.dialect = Dialect(go.dialect)
        self.port = port
        self._key = key
        self._links: list[socket.socket] = []
        self.knocked = dial(port)
        if not self.dialect.traits.http:
            self.knocked.sendall(hello_line(key))
            reader = GrantReader(key)
            grant = None
            while grant is None:
                grant = reader.feed(read_some(self.knocked))
            self.control = Control(self.knocked, self.dialect, key, reader.rest)
            self.grant = grant
            return
        self.grant = self._ask()
        time.sleep(0.1)  # its port is closed and opened again; what connects meanwhile is reset
        control = self.connect()
        assert self.read_id(control) == "00000000"
        self.control = Control(control, self.dialect, key)

    def _ask(self) -> Grant:
        """Shake hands. Now and then a Go server closes before its answer has left; whoever asks
        again has its first link and, by closing that, makes it start anew."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._asked()
            except (HandshakeError, OSError):
                if time.monotonic() > deadline:
                    raise
            self.knocked.close()
            time.sleep(0.3)
            self.knocked = dial(self.port)

    def _asked(self) -> Grant:
        if self.dialect.traits.handshake_tls:
            self.knocked = secured(self.knocked)
        handshake = HTTPClientHandshake(self._key, None)
        self.knocked.sendall(handshake.request())
        while True:
            grant = handshake.feed(self.knocked.recv(65536))
            if grant is not None:
                return grant

    def connect(self) -> socket.socket:
        """A link of the pool that has no number yet."""
        conn = dial(self.port)
        self._links.append(conn)
        return secured(conn) if self.grant.tls else conn

    def read_id(self, conn: socket.socket) -> str:
        """Its number."""
        reader = LinkIdReader(self.dialect)
        while True:
            number = reader.feed(read_some(conn))
            if number is not None:
                return number

    def close(self) -> None:
        """Close all."""
        for conn in (self.knocked, *self._links):
            conn.close()


class Server:
    """Our codecs as the server of a Go client."""

    def __init__(self, go: Program, leaf: Leaf, grant: Grant, key: bytes = _KEY) -> None:
        self.dialect = Dialect(go.dialect)
        self.first = b""
        self._key = key
        self._grant = grant
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(leaf.crt, leaf.key)
        self._port = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._port.settimeout(PATIENCE)
        self.port = self._port.getsockname()[1]
        self._open: list[socket.socket] = []

    def admit(self) -> Control:
        """Let the client in; `first` are the bytes that it began with."""
        conn = self._accept()
        self.first = conn.recv(65536, socket.MSG_PEEK)
        if not self.dialect.traits.http:
            hello = HelloReader(self._key)
            judged = None
            while judged is None:
                judged = hello.feed(read_some(conn))
            assert judged
            conn.sendall(grant_line(self._grant, self._key))
            return Control(conn, self.dialect, self._key, hello.rest)
        if self.dialect.traits.handshake_tls:
            conn = self._secured(conn)
        handshake = HTTPServerHandshake(self._key, self._grant)
        verdict = None
        while verdict is None:
            verdict = handshake.feed(read_some(conn))
        assert verdict.granted
        conn.sendall(verdict.answer)
        conn.close()
        return Control(self.link("00000000"), self.dialect, self._key)

    def link(self, number: str) -> socket.socket:
        """The next link of the client, given this number."""
        conn = self._accept()
        if self._grant.tls:
            self.first = conn.recv(65536, socket.MSG_PEEK)
            conn = self._secured(conn)
        conn.sendall(encode_id(number, self.dialect))
        if not self.dialect.traits.http:
            time.sleep(0.1)  # a client of 1.6 does not wait for the link that a launch names
        return conn

    def _accept(self) -> socket.socket:
        conn, _ = self._port.accept()
        conn.settimeout(PATIENCE)
        self._open.append(conn)
        return conn

    def _secured(self, conn: socket.socket) -> ssl.SSLSocket:
        return self._context.wrap_socket(conn, server_side=True)

    def close(self) -> None:
        """Close all."""
        for conn in (self._port, *self._open):
            conn.close()


@contextmanager
def client(
    go: Program, flow: Flow, tls: TLSLevel, more: str = "", key: bytes = _KEY
) -> Iterator[tuple[Client, tuple[str, int]]]:
    """Our client of a Go server, and where the server's URL has its visitors or its target."""
    port, other = free_port(), free_port()
    mode = 1 if flow is Flow.REVERSE else 2
    url = f"server://{key.decode()}@127.0.0.1:{port}/127.0.0.1:{other}?mode={mode}&tls={int(tls)}"
    with running(go, url + more):
        end = Client(go, port, key)
        try:
            yield end, ("127.0.0.1", other)
        finally:
            end.close()


@contextmanager
def server(
    go: Program, leaf: Leaf, grant: Grant, target: int, more: str = "", key: bytes = _KEY
) -> Iterator[Server]:
    """Our server, and a Go client that comes to it."""
    end = Server(go, leaf, grant, key)
    url = f"client://{key.decode()}@127.0.0.1:{end.port}/127.0.0.1:{target}?mode=2&min=3"
    try:
        with running(go, url + more):
            yield end
    finally:
        end.close()
