"""Masters that are processes of their own, and ``nodepass ctl`` as a process on them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.utils import getProcessOutputAndValue

from tests.scenarios.harness import Node, node

ROOT = Path(__file__).parents[2]


@define
class Done:
    """What became of a command."""

    status: int
    out: str
    err: str


@define
class Master:
    """A master as a process."""

    node: Node
    port: int
    key: str
    tls: bool

    @property
    def api(self) -> str:
        """Its address."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    async def ctl(self, *arguments: str, status: int = 0, **environ: str) -> Done:
        """Run a command on it."""
        environ = {"NODEPASS_API": self.api, "NODEPASS_API_KEY": self.key, **environ}
        out, err, code = await getProcessOutputAndValue(
            sys.executable,
            ["-m", "nodepass", "ctl", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        )
        done = Done(code, out.decode(), err.decode())
        assert code == status, done
        return done

    async def list(self, *arguments: str) -> list[dict[str, Any]]:
        """Its instances."""
        return list(json.loads((await self.ctl("list", "--json", *arguments)).out))


async def master(state: Path, query: str = "", *, host: str = "127.0.0.1", port: int = 0) -> Master:
    """Start a master; one that was there before has its key from then."""
    state.mkdir(exist_ok=True)
    environ = {"NP_STATE": str(state / "nodepass.db"), "NP_MASTER_WORKERS": "1"}
    process = node(f"master://{host}:{port}?{query}", env=environ)
    found = await process.line(r"API on \S+:(\d+)")
    keys = state / "key"
    if not keys.exists():
        keys.write_text((await process.line("API Key created: ([0-9a-f]{32})"))[1])
    return Master(process, int(found[1]), keys.read_text(), "tls=" in query)
