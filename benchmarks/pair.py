"""A server and a client of ours: visitors come to the one, and the other dials the target."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .processes import Process

#: Makes of a command the one that is run: inside a network namespace, for instance.
Wrap = Callable[[Sequence[str]], Sequence[str]]


class Node(Process):
    """A node in a process of its own.

    :param name: for its log, and for whoever reads of it.
    """

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        self.name = name
        super().__init__(command, directory / f"{name.replace(' ', '-')}.log")

    def wait_for(self, pattern: str) -> str:
        """The first group of the pattern's first match in its log, now or soon.

        :raises Failed: it does not say so.
        """
        for _ in self.attempts():
            if found := re.search(pattern, self.log.read_text(errors="replace")):
                return found[1]
        raise self.failure()


class Pair:
    """Two nodes that have joined.

    :param directory: for what they print.
    :param target: `host:port`, for the end that dials.
    :param flow: `-`: visitors come to the server; `+`: to the client.
    :param more: further parameters for both, such as `workers=2`.
    :param wraps: where to run the visitors' end and the target's.
    :param host: where the server listens for the client.
    :ivar visit: where visitors connect.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        target: str,
        *,
        flow: str,
        tls: int,
        more: str = "",
        wraps: tuple[Wrap, Wrap] = (tuple, tuple),
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self._directory = directory
        key, here = secrets.token_urlsafe(), "127.0.0.1:0"
        at_server, at_client = (here, target) if flow == "-" else (target, here)
        to_server, to_client = wraps if flow == "-" else wraps[::-1]
        mode = 1 if flow == "-" else 2
        try:
            server = self._run(
                "server",
                to_server,
                f"server://{key}@{host}:0/{at_server}?mode={mode}&tls={tls}&{more}",
            )
            tunnel = server.wait_for(r"listening for clients on (\S+:\d+)")
            client = self._run(
                "client", to_client, f"client://{key}@{tunnel}/{at_client}?mode=2&{more}"
            )
            client.wait_for("(tunnel established)")
            visited = server if flow == "-" else client
            visit = visited.wait_for(r"listening for visitors on (\S+:\d+)")
        except BaseException:
            self.stop()
            raise
        visitors, _, port = visit.rpartition(":")
        self.visit = (visitors, int(port))

    def _run(self, role: str, wrap: Wrap, url: str) -> Node:
        command = wrap([sys.executable, "-m", "nodepass", url])
        node = Node(f"{self.name} {role}", command, self._directory)
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """End both, first the one that made the links."""
        for node in reversed(self.nodes):
            node.stop()
