"""One port of ours serves the Go nodes of every dialect, one after the other, and native nodes
beside them."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted

from nodepass.address import Endpoint
from tests.interop import loads
from tests.interop.loads import Target
from tests.interop.nodes import KEY, QUICK, free_port, start
from tests.interop.programs import programs

PROGRAMS = programs()
if not PROGRAMS:
    pytest.skip("NODEPASS_GO names no Go program", allow_module_level=True)

#: Seconds for a tunnel to come about.
PATIENCE = 30.0

#: All at once with the other form of 1.6, of which a server has one.
WITH_RAW = "native,2.0,1.14,1.6-raw"


@pytest.mark.parametrize("tls", [0, 1])
@pytest.mark.parametrize(("wire", "left_out"), [("any", "1.6-raw"), (WITH_RAW, "1.6")])
@pytest_twisted.ensureDeferred
async def test_all_on_one_port(wire: str, left_out: str, tls: int) -> None:
    """Each comes as it always did, and a native node keeps its tunnel meanwhile."""
    programs = [go for go in PROGRAMS if go.dialect != left_out]
    if not programs or (wire == WITH_RAW and programs[-1].dialect != "1.6-raw"):
        pytest.skip("nobody who needs it")
    target = Target()
    port = free_port()
    server = start(
        None,
        f"server://{KEY}@127.0.0.1:{port}/{target.endpoint}?mode=2&tls={tls}&wire={wire}",
        QUICK,
    )
    beside = Endpoint("127.0.0.1", free_port())
    native = start(None, f"client://{KEY}@127.0.0.1:{port}/{beside}?mode=2", QUICK)
    assert await loads.served(beside, PATIENCE) is not None
    for go in programs:
        visited = Endpoint("127.0.0.1", free_port())
        client = start(go, f"client://{KEY}@127.0.0.1:{port}/{visited}?mode=2", QUICK)
        assert await loads.served(visited, PATIENCE) is not None, go.dialect
        assert await loads.echoed(beside, 5.0)
        assert await loads.echoed(visited, 5.0)
        await client.stop(signal.SIGKILL)
    for node in (native, server):
        await node.stop(signal.SIGKILL)
    await target.stop()
