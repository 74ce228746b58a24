"""Our nodes with simulated old ones: all roles, flows and protections that two old ones manage."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import pytest_twisted

from nodepass.testing import Dialect
from nodepass.wire import Flow
from tests.certs import Authority
from tests.ports import HERE
from tests.scenarios.oldpairs import (
    Files,
    ends,
    mixed,
    patient,
    ping_pong,
    sessions,
    side_by_side,
)

LEVELS = {
    Dialect.V1_14: (0, 1, 2),
    Dialect.V2_0: (0, 1, 2),
    Dialect.V1_6: (0, 1),
    Dialect.V1_6_RAW: (0,),
}

Cell = tuple[Dialect, str, Flow, int]

#: A 1.14 server with tls=2 that has the visitors waits for ever for a verify that it could compare
#: with nothing; two old nodes manage no better.
IMPOSSIBLE: Cell = (Dialect.V1_14, "client", Flow.REVERSE, 2)


def _files(tmp_path: Path) -> Files:
    authority = Authority(tmp_path)
    leaf = authority.leaf("localhost", "127.0.0.1", HERE)
    return Files(leaf.crt, leaf.key, authority.ca)


@pytest.mark.parametrize("dialect", LEVELS, ids=lambda dialect: dialect.value)
@pytest_twisted.ensureDeferred
async def test_sessions_and_datagrams(dialect: Dialect, tmp_path: Path) -> None:
    """TCP sessions side by side, and UDP, in both roles and flows; the old node has nothing to
    complain of."""
    files = _files(tmp_path)

    async def carries(cell: Cell) -> None:
        _, role, flow, tls = cell
        shown = files if tls == 2 else None
        async with ends() as between:
            slow = patient(dialect)
            async with mixed(between, dialect, role, flow, tls, files=shown, timing=slow) as pair:
                await sessions(between.visitors)
                await ping_pong(between)
                assert pair.old.errors == [] and pair.old.tunnels == 1

    cells = list(product([dialect], ("server", "client"), Flow, LEVELS[dialect]))
    await side_by_side(
        {
            f"{role} {flow.value} tls={tls}": carries((dialect, role, flow, tls))
            for _, role, flow, tls in cells
            if (dialect, role, flow, tls) != IMPOSSIBLE
        }
    )


@pytest.mark.parametrize("dialect", [Dialect.V1_14, Dialect.V2_0], ids=lambda each: each.value)
@pytest_twisted.ensureDeferred
async def test_links_that_are_websockets(dialect: Dialect, tmp_path: Path) -> None:
    """Of an old server with type=2."""
    files = _files(tmp_path)

    async def carries(flow: Flow, tls: int) -> None:
        shown = files if tls == 2 else None
        async with ends() as between:
            async with mixed(between, dialect, "client", flow, tls, files=shown, kind=2) as pair:
                await sessions(between.visitors)
                await ping_pong(between)
                assert pair.old.errors == [] and pair.old.tunnels == 1

    cells = product(Flow, LEVELS[dialect])
    await side_by_side(
        {
            f"{flow.value} tls={tls}": carries(flow, tls)
            for flow, tls in cells
            if (dialect, "client", flow, tls) != IMPOSSIBLE
        }
    )
