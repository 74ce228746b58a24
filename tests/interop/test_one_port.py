"""One port of ours serves the Go nodes of every dialect, one after the other, and native nodes
beside them."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted

from nodepass.address import Endpoint
from tests.interop import loads
from tests.interop.loads import Target
from tests.interop.nodes import KEY, QUICK, free_port, programs, start

PROGRAMS = programs()
if not PROGRAMS:
    pytest.skip("NODEPASS_GO names no Go program", allow_module_level=True)

#: Seconds for a tunnel to come about.
PATIENCE = 30.0


@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_all_on_one_port(tls: int) -> None:
    """With `wire=any` each comes as it always did, and a native node keeps its tunnel meanwhile."""
    target = Target()
    port = free_port()
    server = start(
        None,
        f"server://{KEY}@127.0.0.1:{port}/{target.endpoint}?mode=2&tls={tls}&wire=any",
        QUICK,
    )
    beside = Endpoint("127.0.0.1", free_port())
    native = start(None, f"client://{KEY}@127.0.0.1:{port}/{beside}?mode=2", QUICK)
    assert await loads.served(beside, PATIENCE) is not None
    for go in PROGRAMS:
        visited = Endpoint("127.0.0.1", free_port())
        client = start(go, f"client://{KEY}@127.0.0.1:{port}/{visited}?mode=2", QUICK)
        assert await loads.served(visited, PATIENCE) is not None, go.dialect
        assert await loads.echoed(beside, 5.0)
        assert await loads.echoed(visited, 5.0)
        await client.stop(signal.SIGKILL)
    for node in (native, server):
        await node.stop(signal.SIGKILL)
    await target.stop()
