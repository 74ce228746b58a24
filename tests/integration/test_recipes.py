"""The README's recipes and the examples, as a reader would run them: with real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEY = "the-key-of-the-recipes"

#: Seconds; far more than two nodes take to join on a slow machine.
PATIENCE = 40.0

PROGRAMS = {
    "python": [sys.executable, "-u"],
    "nodepass": [sys.executable, "-m", "nodepass"],
    "twistd": [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"],
}

URL = re.compile(r"(server|client)://(?:\w+@)?(\S*?):(\d+)/(\S*?):(\d+)(?:\?([^\s\"]*))?")


def recipe(title: str) -> list[str]:
    """The commands of a recipe, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split("^##", text.partition(f"### {title}\n")[2], flags=re.MULTILINE)[0]
    blocks = re.findall(r"^```sh\n(.*?)```$", section, re.MULTILINE | re.DOTALL)
    commands = "".join(blocks).splitlines()
    assert commands, title
    return commands


def free_port() -> int:
    """A port that was free for TCP and UDP a moment ago."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(b"tcp " + data)
        except ConnectionResetError:
            pass  # a visitor that the tunnel turned away


class UdpEcho(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(b"udp " + data, self.client_address)


@pytest.fixture
def target() -> Iterator[int]:
    """The port of an echo of TCP and UDP."""
    port = free_port()
    tcp = socketserver.ThreadingTCPServer(("127.0.0.1", port), Echo)
    udp = socketserver.ThreadingUDPServer(("127.0.0.1", port), UdpEcho)
    tcp.daemon_threads = True
    for server in (tcp, udp):
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    yield port
    for server in (tcp, udp):
        server.shutdown()
        server.server_close()


class Place:
    """Where a recipe is tried: its addresses become this machine's, its ports free ones."""

    def __init__(self, directory: Path, target: int) -> None:
        self.directory = directory
        self.target = target
        self.tunnel = free_port()
        self.visitor = free_port()
        self.children: list[subprocess.Popen[bytes]] = []
        self.output = (directory / "output").open("wb")

    def localize(self, commands: list[str]) -> list[str]:
        """The commands for this place; who listens for visitors follows from the modes."""
        forward = any("server://" in command and "mode=2" in command for command in commands)

        def address(core: str, query: str, first: bool) -> str:
            if core == "client" and "mode=1" in query:
                return f"127.0.0.1:{self.visitor if first else self.target}"
            if first:
                return f"127.0.0.1:{self.tunnel}" if core == "client" else f":{self.tunnel}"
            visits = forward == (core == "client")
            return f"127.0.0.1:{self.visitor if visits else self.target}"

        def url(match: re.Match[str]) -> str:
            core, query = match[1], match[6] or ""
            user = f"{KEY}@" if "KEY@" in match[0] else ""
            near, far = address(core, query, True), address(core, query, False)
            return f"{core}://{user}{near}/{far}{'?' if query else ''}{query}"

        return [URL.sub(url, command) for command in commands]

    def run(self, command: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a command in the place's directory; variables may stand in front of it."""
        words = shlex.split(command)
        while re.match(r"\w+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            environ.setdefault(name, value)
        program, *arguments = words
        child = subprocess.Popen(
            [*PROGRAMS[program], *arguments],
            cwd=self.directory,
            env={**os.environ, "NP_SHUTDOWN_TIMEOUT": "0", **environ},
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        self.children.append(child)
        return child

    def close(self) -> None:
        """End what was started."""
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait(PATIENCE)
        self.output.close()

    def eventually(self, attempt: Callable[[], bool], what: str) -> None:
        """Try until it works."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if attempt():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        output = (self.directory / "output").read_text()
        raise AssertionError(f"{what}: no answer within {PATIENCE} s\n{output}")

    def run_server(self, command: str, **environ: str) -> None:
        """Start a server and wait until it listens, so that its client joins at the first try."""
        self.run(command, **environ)
        output = self.directory / "output"
        self.eventually(lambda: "listening for clients" in output.read_text(), "server")

    def visit(self) -> None:
        """Reach the target as a visitor, over TCP and over UDP."""

        def tcp() -> bool:
            with socket.create_connection(("127.0.0.1", self.visitor), PATIENCE) as visitor:
                visitor.settimeout(PATIENCE)
                visitor.sendall(b"hello")
                return visitor.recv(100) == b"tcp hello"

        def udp() -> bool:
            with socket.socket(type=socket.SOCK_DGRAM) as visitor:
                visitor.settimeout(0.5)
                visitor.sendto(b"hello", ("127.0.0.1", self.visitor))
                return visitor.recv(100) == b"udp hello"

        self.eventually(tcp, "TCP")
        self.eventually(udp, "UDP")


@pytest.fixture
def place(tmp_path: Path, target: int) -> Iterator[Place]:
    """A place with an echo as the target."""
    place = Place(tmp_path, target)
    yield place
    place.close()


@pytest.mark.parametrize("title", ["Expose a web server behind NAT", "Reach a remote service"])
def test_two_nodes(place: Place, title: str) -> None:
    """The server's command and the client's carry TCP and UDP visitors to the target."""
    server, client = place.localize(recipe(title))
    place.run_server(server)
    place.run(client)
    place.visit()


def test_client_first(place: Place) -> None:
    """On one machine the client waits for its server, and does not take itself for a forwarder."""
    server, client = place.localize(recipe("Expose a web server behind NAT"))
    place.run(client)
    output = place.directory / "output"
    place.eventually(lambda: "can't join the server" in output.read_text(), "client")
    place.run_server(server)
    place.visit()


def test_forwarder(place: Place) -> None:
    """The one command carries TCP and UDP visitors to the target."""
    (command,) = place.localize(recipe("Forward a port, without a server"))
    place.run(command)
    place.visit()


def test_udp(place: Place) -> None:
    """Both UDP recipes work: the pair of nodes, and the forwarder alone."""
    server, client, resolver = recipe("UDP: WireGuard, DNS")
    server, client = place.localize([server, client])
    place.run_server(server)
    place.run(client)
    place.visit()
    place.visitor = free_port()
    place.run(*place.localize([resolver]))
    place.visit()


def test_python(place: Place) -> None:
    """The Python program runs as printed, and forwards."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)```$", text, re.MULTILINE | re.DOTALL)
    file = place.directory / "program.py"
    file.write_text(*place.localize([program]))
    place.run(f"python {file}")
    place.visit()
    assert "ready: Stats(" in (place.directory / "output").read_text()


def exposing_client(place: Place) -> str:
    """The client that belongs to the servers of the twistd recipe."""
    return place.localize([recipe("Expose a web server behind NAT")[1]])[0]


def test_twistd(place: Place) -> None:
    """A URL given to twistd serves."""
    command, *_ = place.localize(recipe("Under twistd"))
    place.run_server(command)
    place.run(exposing_client(place))
    place.visit()


def test_saved_application(place: Place) -> None:
    """What ``nodepass tap`` saves serves under twistd."""
    _, save, start, _ = place.localize(recipe("Under twistd"))
    assert place.run(save).wait(PATIENCE) == 0
    place.run_server(start)
    place.run(exposing_client(place))
    place.visit()


def test_application_file(place: Place) -> None:
    """The example tunnel.tac serves, with its key from the environment."""
    command = recipe("Under twistd")[3].replace("examples/", f"{ROOT}/examples/")
    url = f"server://:{place.tunnel}/127.0.0.1:{place.visitor}?tls=1"
    place.run_server(command, NODEPASS_URL=url, NODEPASS_KEY=KEY)
    place.run(exposing_client(place))
    place.visit()


def test_site_with_tunnel(place: Place) -> None:
    """The example site.tac: its pages come through the tunnel that lives beside them."""
    server, _ = place.localize(recipe("Expose a web server behind NAT"))
    place.run_server(server)
    place.run(
        f"twistd --nodaemon --python {ROOT}/examples/site.tac",
        SITE=f"tcp:{place.target}:interface=127.0.0.2",
        NODEPASS_URL=f"client://127.0.0.1:{place.tunnel}/127.0.0.2:{place.target}?mode=2&tls=1",
        NODEPASS_KEY=KEY,
    )

    def get(path: str) -> str:
        url = f"http://127.0.0.1:{place.visitor}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    place.eventually(lambda: get("/") == "Hello from behind the tunnel.\n", "the site")
    assert json.loads(get("/tunnel"))["peers"] == 1


def test_key_outside_the_url(place: Place) -> None:
    """A key from the environment and the same one from a file let two nodes join."""
    (place.directory / "key").write_text(f"{KEY}\n")
    server, client = place.localize(recipe("Expose a web server behind NAT"))
    place.run_server(server.replace(f"{KEY}@", ""), NODEPASS_KEY=KEY)
    place.run(client.replace(f"{KEY}@", "").replace("nodepass ", "nodepass --key-file key "))
    place.visit()
