"""A master behind nginx, whose configuration is the manual's own."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define

from tests.ports import HERE, free_port
from tests.scenarios.harness import Node, node, until
from tests.scenarios.programs import program

ROOT = Path(__file__).parents[2]

#: Who signs in where nginx adds the API key.
USER, PASSWORD = "anna", "open-sesame"


@define
class Proxied:
    """A master that keeps its port and state, and nginx before it.

    :ivar web: where nginx listens.
    :ivar pages: a directory that nginx serves at ``/pages/``.
    :ivar seen: a file in which nginx notes what was asked for below ``/seen/``, one path a line.
    """

    master: Node
    key: str
    port: int
    web: int
    pages: Path
    seen: Path
    _state: Path

    async def start_again(self) -> None:
        """Start the master again after its end."""
        self.master = _master(self.port, self._state)
        await self.master.line("API on ")


@asynccontextmanager
async def proxied(directory: Path) -> AsyncIterator[Proxied]:
    """Have both running; their files are in a directory."""
    port, web = free_port(), free_port()
    master = _master(port, directory)
    key = (await master.line("API Key created: ([0-9a-f]{32})"))[1]
    await master.line("API on ")
    pages, seen = directory / "pages", directory / "seen"
    pages.mkdir()
    (directory / "htpasswd").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    log = directory / "error.log"
    nginx = subprocess.Popen(
        [program("nginx"), "-c", str(_nginx_conf(directory, port, web, key)), "-p", str(directory),
         "-e", str(log)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    there = Proxied(master, key, port, web, pages, seen, directory)
    try:
        await until(lambda: _listens(web), what="nginx")
        yield there
        await there.master.stop()
    finally:
        nginx.terminate()
        nginx.wait(10)


def _master(port: int, directory: Path) -> Node:
    state = str(directory / "nodepass.db")
    url = f"master://{HERE}:{port}?log=info"
    return node(url, env={"NP_STATE": state, "NP_MASTER_WORKERS": "1"})


def _nginx_conf(directory: Path, port: int, web: int, key: str) -> Path:
    """Write the manual's configuration with the addresses, key and files of this test."""
    server = (ROOT / "doc/examples/nginx-master.conf").read_text()
    for pattern, text in (
        (r"listen 443 ssl;", f"listen {HERE}:{web};"),
        (r"\n *ssl_certificate[^\n]*", ""),
        (r"127\.0\.0\.1:10101", f"{HERE}:{port}"),
        (r"/etc/nginx/tunnels\.htpasswd", f"{directory}/htpasswd"),
        (r"0123456789abcdef0123456789abcdef", key),
        (r"\}\s*$", f"""
            location /pages/ {{ root {directory}; default_type text/html; }}
            location /seen/ {{ access_log {directory}/seen path; return 204; }}
        }}"""),
    ):  # fmt: skip
        server, count = re.subn(pattern, text, server)
        assert count, pattern
    path = directory / "nginx.conf"
    path.write_text(
        f"""daemon off; master_process off; pid {directory}/nginx.pid;
        error_log {directory}/error.log;
        events {{ worker_connections 64; }}
        http {{
            log_format path $uri;
            access_log off;
            client_body_temp_path {directory}; proxy_temp_path {directory};
            fastcgi_temp_path {directory}; uwsgi_temp_path {directory};
            scgi_temp_path {directory};
            {server}
        }}
        """
    )
    return path


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HERE, port)) == 0
