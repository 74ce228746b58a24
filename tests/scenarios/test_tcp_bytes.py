"""Many sessions at once: nothing is lost, and nothing of one gets into another."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.certs import Authority
from tests.scenarios.harness import PATIENT, QUICK, tunnel, until
from tests.scenarios.programs import Conn, connect, data_of, listen

#: Tells a target whose answer a visitor wants.
NAME = 8
#: The portable relay takes twice the time: what it does otherwise shows with fewer sessions.
FEWER = 4 if QUICK.portable_relay else 1
#: Sets the numbers of answers apart from those of visitors.
ANSWERS = 1 << 32


async def answer(conn: Conn) -> None:
    """Reads a visitor's number, then sends it what belongs to that number, while it reads on; at
    the end what it has read is told by its digest."""
    number = int.from_bytes(await conn.read(NAME), "big")
    size = int.from_bytes(await conn.read(NAME), "big")
    await conn.send(data_of(number + ANSWERS, size))
    heard = await conn.read_all()
    conn.write(hashlib.sha256(heard).digest())
    conn.finish()


async def visit(where: Any, number: int, size: int) -> None:
    """One visitor: sends and receives what belongs to its number."""
    conn = await connect(where)
    said = data_of(number, size)
    conn.write(number.to_bytes(NAME, "big") + size.to_bytes(NAME, "big"))
    await conn.send(said)
    conn.finish()
    heard = await conn.read_all()
    assert heard[:size] == data_of(number + ANSWERS, size), f"visitor {number} got something else"
    assert heard[size:] == hashlib.sha256(said).digest(), f"the target of {number} did"
    assert await conn.end() == "closed"


@pytest.mark.parametrize(
    ("flow", "tls", "sessions", "size"),
    [
        ("-", 0, 500, 1_000_000),
        ("+", 0, 200, 1_000_000),
        ("-", 1, 200, 300_000),
        ("+", 1, 200, 300_000),
        ("+", 2, 50, 300_000),
    ],
)
@pytest_twisted.ensureDeferred
async def test_sessions_side_by_side(
    flow: str, tls: int, sessions: int, size: int, tmp_path: object
) -> None:
    """Each of many visitors that send and receive at once gets its own bytes, all of them."""
    authority = Authority(str(tmp_path), "roots")
    leaf = authority.leaf("127.0.0.1")
    sessions //= FEWER
    target = listen(answer)
    pair = await tunnel(
        target.endpoint,
        flow=flow,
        tls=tls,
        files=(leaf.crt, leaf.key, authority.ca),
        tuning=PATIENT,
    )
    await gatherResults(
        [
            Deferred.fromCoroutine(visit(pair.visitor, number + 1, size))
            for number in range(sessions)
        ],
        consumeErrors=True,
    )
    await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, what="the end")
    total = sessions * (size + 2 * NAME), sessions * (size + 32)
    visiting, dialing = (pair.server, pair.client) if flow == "-" else (pair.client, pair.server)
    assert (visiting.stats.tcp_rx, visiting.stats.tcp_tx) == total
    assert (dialing.stats.tcp_tx, dialing.stats.tcp_rx) == total
    await pair.stop()
    await target.stop()
