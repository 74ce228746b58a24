"""Every pair of nodes does what two Go nodes do together, at least as well.

Each cell is tried with two Go nodes first, as that is what the others are held against; what they
fail at themselves is printed and fails nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from nodepass.wire.old.dialect import Dialect
from tests.certs import Authority
from tests.interop import loads
from tests.interop.loads import Target
from tests.interop.matrix import OURS_GO, PAIRS, Cell, Matrix, Outcome
from tests.interop.nodes import WRONG_KEY, Program, Tunnel, tunnel
from tests.interop.programs import programs
from tests.scenarios.harness import sleep

PROGRAMS = programs()
if not PROGRAMS:
    pytest.skip("NODEPASS_GO names no Go program", allow_module_level=True)

#: Sessions side by side, bytes each way, short sessions, and seconds of silence; 600 are the long
#: form of the last.
SESSIONS = int(os.environ.get("NODEPASS_INTEROP_SESSIONS", "500"))
SIZE = int(os.environ.get("NODEPASS_INTEROP_SIZE", "1000000"))
SHORT = int(os.environ.get("NODEPASS_INTEROP_SHORT", "2000"))
IDLE = float(os.environ.get("NODEPASS_INTEROP_IDLE", "12"))

#: Seconds for a tunnel to come about; two Go nodes with TLS need several tries now and then.
PATIENCE = 40.0
#: The same where a tunnel comes about in one way or never.
PATIENCE_WITH_FILES = 20.0

FLOWS = ["-", "+"]
Scenario = Callable[[Tunnel, Cell], Awaitable[Outcome]]


async def tcp(way: Tunnel, cell: Cell) -> Outcome:
    """Many sessions at once, all bytes of which arrive."""
    return await loads.side_by_side(way.visited, SESSIONS, SIZE, 90.0)


async def short(way: Tunnel, cell: Cell) -> Outcome:
    """Thousands of short sessions."""
    return await loads.short(way.visited, SHORT, 20, 45.0)


async def udp(way: Tunnel, cell: Cell) -> Outcome:
    """Datagrams come back as they were, as far as the dialect keeps them apart."""
    return await loads.datagrams(way.visited, cell.dialect == "2.0", 30.0)


async def websocket(way: Tunnel, cell: Cell) -> Outcome:
    """Sessions on links that are WebSockets, as the server says."""
    return await loads.side_by_side(way.visited, 100, SIZE // 10, 60.0)


async def restart(way: Tunnel, role: str) -> Outcome:
    """A node is killed and started again; the time until a visitor is served is measured."""
    await way.kill(role)
    way.start(role)
    took = await loads.served(way.visited, PATIENCE)
    if took is None:
        return Outcome(good=0, of=1, seconds=PATIENCE, note=way.last_words())
    return Outcome(good=1, of=1, seconds=took)


async def restart_server(way: Tunnel, cell: Cell) -> Outcome:
    """The client finds a server that was killed and is there again."""
    return await restart(way, "server")


async def restart_client(way: Tunnel, cell: Cell) -> Outcome:
    """The server takes a client that was killed and is there again."""
    return await restart(way, "client")


async def wrong_key(way: Tunnel, cell: Cell) -> Outcome:
    """A client with another key serves nobody, and keeps nobody from coming who has the right
    one."""
    await way.kill("client")
    way.start("client", WRONG_KEY)
    await sleep(4.0)
    refused = not await loads.echoed(way.visited, 3.0)
    await way.kill("client")
    way.start("client")
    took = await loads.served(way.visited, PATIENCE)
    note = "" if refused else "a visitor was served by a client with another key"
    if took is None:
        note = f"the client with the right key did not come back: {way.last_words()}"
    return Outcome(good=refused + (took is not None), of=2, seconds=took or PATIENCE, note=note)


async def idle(way: Tunnel, cell: Cell) -> Outcome:
    """A tunnel that nobody has used for a while still has its session, and takes another."""
    held = loads.Held()
    await held.open(way.visited)
    await sleep(IDLE)
    kept = await held.there()
    taken = await loads.echoed(way.visited, 5.0)
    await held.close()
    note = ", ".join(
        what for what, good in (("session lost", kept), ("visitor not served", taken)) if not good
    )
    return Outcome(good=kept + taken, of=2, seconds=IDLE, note=note)


SCENARIOS: dict[str, Scenario] = {
    "tcp": tcp,
    "udp": udp,
    "short": short,
    "restart-server": restart_server,
    "restart-client": restart_client,
    "wrong-key": wrong_key,
    "idle": idle,
    "websocket": websocket,
}
#: What is tried with `tls=2` too, which otherwise differs from `tls=1` in nothing.
WITH_FILES = ["tcp", "udp"]
#: What is tried in many tunnels at once, as there is little to do in each.
WAITING = ["wrong-key", "idle"]


def cells(go: Program, checks: Iterable[str]) -> list[Cell]:
    """What is tried with a program."""
    return [
        Cell(dialect=go.dialect, check=check, flow=flow, tls=tls)
        for check in checks
        for flow in FLOWS
        for tls in ((0, 1, 2) if check in WITH_FILES else (0, 1))
        if check != "websocket" or Dialect(go.dialect).traits.http
    ]


ALONE = [
    pytest.param(go, cell, id=f"{go.dialect}-{cell.check}-{cell.flow}-{cell.tls}")
    for go in PROGRAMS
    for cell in cells(go, [check for check in SCENARIOS if check not in WAITING])
]


async def outcome(cell: Cell, pair: str, go: Program, authority: Authority) -> Outcome:
    """Try a cell with one pair."""
    target = Target()
    way = tunnel(
        cell,
        pair,
        go,
        target.endpoint,
        authority,
        quick=cell.check != "idle",
        server_more="&type=2" if cell.check == "websocket" else "",
    )
    way.start("server")
    way.start("client")
    try:
        patience = PATIENCE_WITH_FILES if cell.tls == 2 else PATIENCE
        took = await loads.served(way.visited, patience)
        if took is None:
            note = f"no tunnel: {way.last_words()}"
            return Outcome(good=0, of=0, seconds=patience, note=note)
        return await SCENARIOS[cell.check](way, cell)
    finally:
        await way.stop()
        await target.stop()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("go", "cell"), ALONE)
@pytest_twisted.ensureDeferred
async def test_at_least_as_well(go: Program, cell: Cell, matrix: Matrix, tmp_path: Path) -> None:
    """What ours does with a Go node, it does at least as well as another Go node."""
    authority = Authority(tmp_path)
    for pair in PAIRS:
        await fill(matrix, cell, pair, go, authority)
    assert not matrix.failures(cell)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("check", WAITING)
@pytest_twisted.ensureDeferred
async def test_waiting(check: str, matrix: Matrix, tmp_path: Path) -> None:
    """The same, where nodes mostly wait: of a program all cells at once, and for long silence those
    of all programs."""
    authority = Authority(tmp_path)
    failures: list[str] = []
    for group in [PROGRAMS] if check == "idle" else [[go] for go in PROGRAMS]:
        ways = [(go, cell) for go in group for cell in cells(go, [check])]
        tries = [fill(matrix, cell, pair, go, authority) for go, cell in ways for pair in PAIRS]
        await gatherResults([Deferred.fromCoroutine(each) for each in tries])
        failures += [failure for _, cell in ways for failure in matrix.failures(cell)]
    assert not failures


async def fill(matrix: Matrix, cell: Cell, pair: str, go: Program, authority: Authority) -> None:
    """Try a cell with one pair, unless it is known what comes of it."""
    matrix.versions[go.dialect] = go.version
    if matrix.outcome(cell, pair) is not None:
        return
    if cell.check == "websocket" and pair == OURS_GO:
        return  # our servers ask for plain links
    before = matrix.outcome(evolve(cell, check=WITH_FILES[0]), pair)
    if cell.tls == 2 and before is not None and not before.of:
        # Such a pair has no tunnel whatever it is for, which takes long to find out.
        matrix.outcomes[cell, pair] = before
    else:
        matrix.outcomes[cell, pair] = await outcome(cell, pair, go, authority)
