"""A tunnel whose nodes are processes of their own."""

from __future__ import annotations

from nodepass.address import Endpoint
from tests.scenarios.harness import KEY, Node, node


async def node_pair(
    target: Endpoint | str, *, flow: str = "-", tls: int = 0, server: str = "", client: str = ""
) -> tuple[list[Node], Endpoint]:
    """A server and a client, joined, and where visitors connect.

    `server` and `client` are more parameters, such as "slot=3".
    """
    here = "127.0.0.1:0"
    at_server, at_client = (here, str(target)) if flow == "-" else (str(target), here)
    mode = 1 if flow == "-" else 2
    one = node(f"server://{KEY}@{here}/{at_server}?mode={mode}&tls={tls}&{server}")
    port = await one.port("clients")
    two = node(f"client://{KEY}@127.0.0.1:{port}/{at_client}?mode=2&{client}")
    await two.line("tunnel established")
    await one.line("tunnel established")
    visited = one if flow == "-" else two
    return [one, two], Endpoint("127.0.0.1", await visited.port())
