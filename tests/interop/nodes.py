"""A tunnel between two processes, each of which is a Go program or ours."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
from pathlib import Path

from attrs import define, field, frozen
from twisted.internet import reactor

from nodepass.address import Endpoint
from nodepass.wire.old.dialect import Dialect
from tests.certs import Authority
from tests.interop.matrix import GO_GO, GO_OURS, OURS_GO, Cell
from tests.scenarios.harness import Node

#: Every dialect can carry it: no byte of a line of 1.6 becomes a newline under it.
KEY = "strawy-bugs-wrap-jumps-4517"
#: Of another length, as that is all that a 1.6 server finds out about a key.
WRONG_KEY = "wrong"

#: Times for both ends, shorter than what is usual, so that what comes by intervals takes less; not
#: of 1.6, which counts a peer as lost after two intervals, and waits for nothing else by them.
QUICK = {"NP_REPORT_INTERVAL": "2s", "NP_SERVICE_COOLDOWN": "1s"}

#: Where ports are sought: below those that the system gives to whoever connects.
_PORTS = range(10000, 30000)
#: Those that were found, as many are before the first of them is taken.
_found: set[int] = set()

_ROOT = Path(__file__).parent.parent.parent


@frozen
class Program:
    """A Go program: where it is, which NodePass, and which dialect that speaks."""

    path: str
    version: str
    dialect: str


def dialect_of(version: str) -> str:
    """The dialect that a version of NodePass speaks; of `1.6-raw` it does not tell.

    :raises ValueError: none of those that ours can speak.
    """
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\..*)?", version)
    number = (int(match[1]), int(match[2])) if match else (0, 0)
    if number >= (2, 0):
        return "2.0"
    if number >= (1, 14):
        return "1.14"
    if number == (1, 6):
        return "1.6"
    raise ValueError(f"NodePass {version} speaks none of the dialects 1.6, 1.14 and 2.0")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, neither for TCP nor for UDP."""
    while True:
        port = random.choice(_PORTS)
        if port in _found:
            continue
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        _found.add(port)
        return port


def start(go: Program | None, url: str, env: dict[str, str]) -> Node:
    """Start a node: the Go program, or ours where there is none."""
    node = Node()
    command = [sys.executable, "-m", "nodepass"] if go is None else [go.path]
    env = {**os.environ, **env, "PYTHONPATH": str(_ROOT), "NO_COLOR": "1"}
    reactor.spawnProcess(node, command[0], [*command, url], env=env)
    return node


@define
class Tunnel:
    """A server and a client that can be ended and started again, with the same addresses."""

    visited: Endpoint
    _commands: dict[str, tuple[Program | None, str, dict[str, str]]]
    _nodes: dict[str, Node] = field(factory=dict)

    def start(self, role: str, key: str = KEY) -> None:
        """Start the server or the client."""
        go, url, env = self._commands[role]
        self._nodes[role] = start(go, url.replace(KEY, key), env)

    async def kill(self, role: str) -> None:
        """End it without a last word."""
        await self._nodes.pop(role).stop(signal.SIGKILL)

    async def stop(self) -> None:
        """End both. Go nodes need not be asked: what they leave behind ends with them."""
        for role in list(self._nodes):
            await self.kill(role)

    def last_words(self) -> str:
        """What the nodes last complained of."""
        words = []
        for role, node in self._nodes.items():
            lines = [line for line in node.lines if re.search("WARN|ERROR|nodepass: ", line)]
            if lines:
                words.append(f"{role}: {_plain(lines[-1])}")
        return "; ".join(words)


def _plain(line: str) -> str:
    """A log line without its time and colours, and not too long."""
    return re.sub(r"\x1b\[\d*m|^[-\d]+ [:.\d]+ +", "", line)[:160]


def tunnel(
    cell: Cell,
    pair: str,
    go: Program,
    target: Endpoint,
    authority: Authority,
    *,
    quick: bool = True,
    server_more: str = "",
) -> Tunnel:
    """A pair of nodes, not started yet.

    :param quick: with shorter times than usual.
    :param server_more: more parameters of the server, each with its ``&``.
    """
    host = "localhost" if cell.tls == 2 else "127.0.0.1"
    visited = Endpoint("127.0.0.1", free_port())
    tunnelled = free_port()
    at_server, at_client = (visited, target) if cell.flow == "-" else (target, visited)
    leaf = authority.leaf("localhost")
    mode = 1 if cell.flow == "-" else 2
    server = f"server://{KEY}@127.0.0.1:{tunnelled}/{at_server}?log=warn&mode={mode}&tls={cell.tls}"
    server += server_more
    client = f"client://{KEY}@{host}:{tunnelled}/{at_client}?log=warn&mode=2"
    if cell.tls == 2:
        server += f"&crt={leaf.crt}&key={leaf.key}"
    quick = quick and Dialect(cell.dialect).traits.http
    env = {**(QUICK if quick else {}), "SSL_CERT_FILE": authority.ca}
    wire = f"&wire={cell.dialect}"
    ours = "&wire=1.6" if cell.dialect == "1.6-raw" else wire  # a client sees which it is
    if cell.tls == 2:
        ours += f"&tls=2&ca={authority.ca}"
    commands: dict[str, tuple[Program | None, str, dict[str, str]]] = {
        GO_GO: {"server": (go, server, env), "client": (go, client, env)},
        OURS_GO: {"server": (None, server + wire, env), "client": (go, client, env)},
        GO_OURS: {"server": (go, server, env), "client": (None, client + ours, env)},
    }[pair]
    return Tunnel(visited, commands)
