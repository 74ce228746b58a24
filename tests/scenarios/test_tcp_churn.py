"""Thousands of short sessions leave nothing behind: no descriptor, no timer, no memory."""

from __future__ import annotations

import gc
import os

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from nodepass.address import Endpoint
from tests.scenarios.harness import Node, sleep, tunnel, until
from tests.scenarios.pairs import node_pair
from tests.scenarios.programs import Conn, connect, descriptors_of, listen, memory_of

#: Short sessions of one run; `make soak` asks for more.
SESSIONS = int(os.environ.get("NP_TEST_SESSIONS", "2000"))
#: Sessions side by side, where they are not in sequence.
SIDE_BY_SIDE = 200
#: Bytes by which a node may have grown after all of them.
GROWTH = 4 << 20


async def answer(conn: Conn) -> None:
    """Answers a question in the manner of the day."""
    kind = await conn.read(1)
    if kind == b"r":
        conn.reset()
        return
    conn.write(b"answer")
    if kind == b"t":
        conn.finish()
    await conn.read_all()
    if kind == b"v":
        conn.finish()


async def visit(where: Endpoint, number: int) -> None:
    """One short session, each fourth ended by another side or in another way."""
    kind = b"vvtr"[number % 4 :][:1]
    visitor = await connect(where)
    visitor.write(kind)
    if kind == b"r":
        assert await visitor.end() == "reset"
        return
    assert await visitor.read(6) == b"answer"
    if kind == b"t":
        assert await visitor.read_all() == b""
    visitor.finish()
    assert await visitor.end() == "closed"


async def visits(where: Endpoint, count: int, side_by_side: int) -> None:
    """So many sessions, so many at a time."""
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            await visit(where, number)

    await gatherResults(
        [Deferred.fromCoroutine(one_after_the_other()) for _ in range(side_by_side)],
        consumeErrors=True,
    )


def at_rest(node: Node) -> tuple[bool, int]:
    """Whether the node says that no session is under way, and its descriptors beside the pool's."""
    last = [line for line in node.lines if "CHECK_POINT" in line][-1]
    pool = int(last.partition("|POOL=")[2].partition("|")[0])
    return "|TCPS=0|" in last, descriptors_of(node.pid) - pool


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("flow", "tls", "side_by_side"), [("-", 0, 1), ("-", 0, SIDE_BY_SIDE), ("+", 1, SIDE_BY_SIDE)]
)
@pytest_twisted.ensureDeferred
async def test_memory_and_descriptors(flow: str, tls: int, side_by_side: int) -> None:
    """After thousands of sessions, in sequence and many at a time, each node has the descriptors
    that it had beside its pool, and at most 4 MB more memory."""
    target = listen(answer)
    nodes, where = await node_pair(target.endpoint, flow=flow, tls=tls)
    # The pool grows to what these need, and allocators to what that takes, before it counts.
    await visits(where, max(SESSIONS // 4, 500, 20 * side_by_side), side_by_side)
    await sleep(1.2)
    for node in nodes:
        await until(lambda node=node: at_rest(node)[0], what="the end of all sessions")
    before = [(at_rest(node)[1], memory_of(node.pid)) for node in nodes]
    await visits(where, SESSIONS, side_by_side)
    for node, (files, memory) in zip(nodes, before, strict=True):
        await until(
            lambda node=node, files=files: at_rest(node)[0] and at_rest(node)[1] <= files,
            what=f"{files} descriptors again, no session",
        )
        more = memory_of(node.pid) - memory
        print(
            f"flow {flow} tls={tls} {SESSIONS} sessions, {side_by_side} at a time: "
            f"descriptors {files} -> {at_rest(node)[1]}, memory {more / 1024:+.0f} kB"
        )
        assert more <= GROWTH
    for node in reversed(nodes):
        assert await node.stop() == 0
    await target.stop()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_timers(flow: str) -> None:
    """The sessions of a tunnel take their timers and sockets with them."""
    target = listen(answer)
    pair = await tunnel(target.endpoint, flow=flow, client="min=4", server="max=4")
    await until(lambda: pair.server.stats.pool == pair.client.stats.pool == 4, what="the pool")

    def there() -> tuple[int, int]:
        gc.collect()
        timers = [call for call in reactor.getDelayedCalls() if call.active()]
        return len(timers), len(reactor.getReaders())

    await visit(pair.visitor, 0)
    await until(lambda: pair.server.stats.pool == pair.client.stats.pool == 4, what="the pool")
    await sleep(1.2)  # the last look at paused sockets
    before = there()
    await visits(pair.visitor, SESSIONS // 4, 20)
    await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, what="the end")
    await until(lambda: there() <= before, what=f"{before} timers and sockets again")
    await pair.stop()
    await target.stop()
