"""Peers that are not to be trusted, written from the codecs of the wire and plain sockets.

They block, so they run in threads of their own: `await attack(function, ...)`. What they do
before they turn bad is all that a stranger needs to write a peer.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from nodepass.address import Endpoint
from nodepass.identity import self_signed
from nodepass.wire import Opening
from nodepass.wire.native.frames import Frame, FrameReader
from nodepass.wire.native.handshake import (
    CONTROL_EXPORTER,
    VERSIONS,
    ClientHandshake,
    Secrets,
    ServerHandshake,
)
from nodepass.wire.native.messages import (
    MAX_MESSAGE,
    Answer,
    Confirm,
    Hello,
    Message,
    MessageReader,
    Refuse,
    Welcome,
    decode,
    encode,
)
from nodepass.wire.native.proof import LINK_EXPORTER, LinkConnector

CONTROL = b"nodepass2"
DATA = b"nodepass2-data"
#: Seconds that an attacker waits for an answer.
PATIENCE = 15.0
#: An opening that names nobody in particular.
OPENING = Opening(visitor=Endpoint("192.0.2.1", 1), local=Endpoint("192.0.2.2", 2))

R = TypeVar("R")


def attack(function: Callable[..., R], *arguments: Any) -> Deferred[R]:
    """Run blocking code in a thread."""
    result: Deferred[R] = deferToThread(function, *arguments)
    return result


class Line:
    """A blocking connection, plain or TLS."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), PATIENCE)
        # Not Python's own timeout, which makes the descriptor non-blocking: OpenSSL reads from it.
        self.socket.settimeout(None)
        limit = struct.pack("ll", int(PATIENCE), 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.tls: SSL.Connection | None = None

    def encrypt(self, alpn: bytes | None, server: bool = False) -> None:
        """Begin TLS, as a client that checks nothing, or as a server with a new certificate."""
        context = SSL.Context(SSL.TLS_METHOD)
        if server:
            self_signed().install(context)
            context.set_alpn_select_callback(lambda _, offered: offered[0])
        elif alpn is not None:
            context.set_alpn_protos([alpn])
        self.tls = SSL.Connection(context, self.socket)
        if server:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()
        self.tls.do_handshake()

    def exporter(self, label: bytes) -> bytes:
        """What only the two ends of this TLS connection know."""
        assert self.tls is not None
        return bytes(self.tls.export_keying_material(label, 32))

    def send(self, data: bytes) -> None:
        """Send all of it."""
        if self.tls is not None:
            self.tls.sendall(data)
        else:
            self.socket.sendall(data)

    def receive(self, size: int = 65536) -> bytes:
        """Some bytes; none when the other end has closed, in whatever way."""
        try:
            return self.tls.recv(size) if self.tls is not None else self.socket.recv(size)
        except (SSL.WantReadError, BlockingIOError):
            raise TimeoutError(f"nothing came within {PATIENCE} s") from None
        except (SSL.Error, OSError):
            return b""

    def drain(self) -> bytes:
        """All that comes until the other end closes."""
        got = b""
        while data := self.receive():
            got += data
        return got

    def close(self) -> None:
        """Close without ceremony."""
        self.socket.close()


class Client:
    """A client of a server, by hand.

    @ivar secrets: what it shares with the server once it has joined.
    """

    def __init__(self, port: int, key: str | None, node: bytes = b"attacker" * 2) -> None:
        self.port = port
        self.key = None if key is None else key.encode()
        self.node = node
        self.line = Line(port)
        self.messages = MessageReader()
        self.secrets: Secrets | None = None
        self.association = b""

    def read(self) -> bytes:
        """The next message's body; empty when the server has closed."""
        while True:
            body = self.messages.next()
            if body is not None:
                return body
            data = self.line.receive()
            if not data:
                return b""
            self.messages.feed(data)

    def hello(self) -> Hello:
        """What it says first."""
        return Hello(versions=VERSIONS, node=self.node, nonce=b"", minimum=1)

    def join(self, coming_back: tuple[bytes, Secrets] | None = None) -> Welcome | Refuse | None:
        """Shake hands: the server's last word, None where it just closed."""
        self.line.encrypt(CONTROL)
        binding = self.line.exporter(CONTROL_EXPORTER)
        handshake = ClientHandshake(self.key, self.hello(), coming_back)
        self.line.send(handshake.hello)
        raw = self.read()
        answer = decode(raw) if raw else None
        if not isinstance(answer, Answer):
            assert answer is None or isinstance(answer, Refuse)
            return answer
        confirm = handshake.answered(answer, len(raw).to_bytes(2, "big") + raw, binding)
        self.line.send(encode(confirm))
        raw = self.read()
        welcome = decode(raw) if raw else None
        if isinstance(welcome, Welcome):
            self.secrets = handshake.welcomed(welcome)
            self.association = welcome.association
            self.messages.limit = MAX_MESSAGE
            return welcome
        assert welcome is None or isinstance(welcome, Refuse)
        return welcome

    def say(self, *messages: Message) -> None:
        """Send messages."""
        self.line.send(b"".join(map(encode, messages)))

    def expect(self, kind: type) -> Any:
        """The next message of this kind; None when the server closes first."""
        while raw := self.read():
            message = decode(raw)
            if isinstance(message, kind):
                return message
        return None

    def link(self, number: int, encrypted: bool = False) -> DataLine:
        """A data link that belongs."""
        assert self.secrets is not None
        line = DataLine(self.port)
        line.prove(self.association, self.secrets, number, encrypted)
        return line

    def close(self) -> None:
        """Be gone."""
        self.line.close()


class DataLine(Line):
    """A data link.

    @ivar ready: whether the server said that it belongs.
    """

    ready = False

    def prove(
        self, association: bytes, secrets: Secrets, number: int, encrypted: bool = False
    ) -> None:
        """Show that the link belongs."""
        self.frames = FrameReader()
        if encrypted:
            self.encrypt(DATA)
        binding = self.exporter(LINK_EXPORTER) if encrypted else None
        proof = LinkConnector(association, secrets, number, binding)
        self.send(proof.start())
        rest = None
        while rest is None:
            data = self.receive()
            if not data:
                return
            send, rest = proof.feed(data)
            if send:
                self.send(send)
        self.ready = True
        self._first = rest

    def next_frames(self) -> list[Frame]:
        """Frames as they come; none when the server has closed."""
        while True:
            data, self._first = self._first or self.receive(), b""
            if not data:
                return []
            if frames := self.frames.feed(data):
                return frames


class Interceptor:
    """Somebody between client and server: ends the client's TLS with a certificate of his own, and
    passes what it says on to the server over another TLS connection.

    @ivar seen: bytes that went through, decrypted.
    """

    def __init__(self, onward: int) -> None:
        self.onward = onward
        self.seen = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._lines: list[Line] = []
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                thread = threading.Thread(target=self._between, args=(accepted,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _between(self, accepted: socket.socket) -> None:
        near, far = Line.__new__(Line), Line(self.onward)
        near.socket, near.tls = accepted, None
        self._lines += [near, far]
        try:
            near.encrypt(None, server=True)
            assert near.tls is not None
            far.encrypt(near.tls.get_alpn_proto_negotiated())
        except SSL.Error:
            near.close()
            far.close()
            return
        back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
        self._threads.append(back)
        back.start()
        self._pass(near, far)

    def _pass(self, one: Line, other: Line) -> None:
        # One byte way each: OpenSSL connections may be read and written by two threads as long as
        # neither does both.
        with contextlib.suppress(SSL.Error, OSError):
            while data := one.receive():
                self.seen += data
                other.send(data)
        for line in (one, other):
            with contextlib.suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End all, and wait for it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
        for line in self._lines:
            line.close()


@contextlib.contextmanager
def crowd(port: int, count: int, say: bytes = b"") -> Iterator[list[socket.socket]]:
    """Many connections at once that say this, and then nothing."""
    there: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), PATIENCE)
            there.append(one)
            if say:
                with contextlib.suppress(OSError):
                    one.sendall(say)
        yield there
    finally:
        for one in there:
            one.close()


def still_open(sockets: list[socket.socket]) -> int:
    """How many of them the server has not closed."""
    count = 0
    for one in sockets:
        one.setblocking(False)
        try:
            while one.recv(65536):  # what it said before it closed
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def client_hello() -> bytes:
    """A TLS ClientHello as a client's control link has it, whole."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_alpn_protos([CONTROL])
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)


def pause(seconds: float) -> None:
    """Let an attacker wait."""
    time.sleep(seconds)


class Server:
    """A server by hand, which knows the key and is not to be trusted all the same.

    It serves one control link with `lies`, and leaves data links without an answer.

    @ivar links: data links that a client opened.
    """

    def __init__(self, key: str, lies: Callable[[Server, Line], None]) -> None:
        self.key = key.encode()
        self.lies = lies
        self.links: list[socket.socket] = []
        self.errors: list[BaseException] = []
        self._control: Line | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        liar: threading.Thread | None = None
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                break
            if liar is None:
                liar = threading.Thread(target=self._lie, args=(accepted,), daemon=True)
                liar.start()
            else:
                self.links.append(accepted)
        if liar is not None:
            liar.join(PATIENCE)

    def _lie(self, accepted: socket.socket) -> None:
        line = self._control = Line.__new__(Line)
        line.socket, line.tls = accepted, None
        try:
            self.welcome(line)
            self.lies(self, line)
        except BaseException as error:
            self.errors.append(error)

    def welcome(self, line: Line) -> None:
        """Shake hands, in flow "-" on plain links."""
        line.encrypt(None, server=True)
        reader = MessageReader()
        raw = self._read(line, reader)
        hello = decode(raw)
        assert isinstance(hello, Hello)
        handshake = ServerHandshake(self.key, lambda _: None)
        handshake.check(hello)
        answer = Answer(version=0, flow=ord("-"), tls=0, maximum=1024, nonce=b"")
        binding = line.exporter(CONTROL_EXPORTER)
        line.send(handshake.answer(hello, len(raw).to_bytes(2, "big") + raw, binding, answer))
        confirm = decode(self._read(line, reader))
        assert isinstance(confirm, Confirm)
        line.send(encode(handshake.confirmed(confirm, bytes(32))[0]))

    def _read(self, line: Line, reader: MessageReader) -> bytes:
        while (body := reader.next()) is None:
            data = line.receive()
            assert data, "the client has closed"
            reader.feed(data)
        return body

    def stop(self) -> None:
        """End all; fails with what went wrong."""
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        for one in (self._listener, *self.links):
            one.close()
        if self.errors:
            raise self.errors[0]
