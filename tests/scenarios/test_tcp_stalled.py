"""Who reads nothing holds up its own session alone, at little cost, and can still be reset."""

from __future__ import annotations

import hashlib

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from tests.scenarios.harness import either_link, sleep, tunnel, until
from tests.scenarios.pairs import node_pair
from tests.scenarios.programs import HELD_UP, connect, listen, memory_of, standstill

pytestmark = either_link

#: Most memory that a stalled session may take in a node, bytes.
PER_SESSION = 1 << 20
#: Seconds in which a reset must get through although everything is backed up: a paused socket is
#: looked at once a second in each of two nodes, and the machine may be slow.
PROMPT = 8.0
#: Bytes that stop moving somewhere between the two nodes: more than the reader's end takes (4 MB on
#: Linux), less than what holds up the sender (9 MB).
BETWEEN = 5_000_000


@pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("+", 1)])
@pytest_twisted.ensureDeferred
async def test_memory_of_stalled_sessions(flow: str, tls: int) -> None:
    """Twenty visitors that read nothing cost each node at most 1 MB each, however much their
    targets send; others are served meanwhile; and when they read on they get every byte."""
    target = listen()
    both, where = await node_pair(target.endpoint, flow=flow, tls=tls)
    first = await connect(where)  # what comes with the first session is not the stalled ones'
    far = await target.accept()
    far.write(b"x")
    await first.read(1)
    before = [memory_of(one.pid) for one in both]
    visitors, floods = [], []
    for _ in range(20):
        visitor = await connect(where)
        visitor.pause()
        visitors.append(visitor)
        floods.append(await target.accept())
    for flood in floods:
        flood.flood()
    await standstill(lambda: sum(flood.sent for flood in floods), 20 * HELD_UP)
    grown = [memory_of(one.pid) - was for one, was in zip(both, before, strict=True)]
    assert max(grown) <= 20 * PER_SESSION, f"nodes grew by {grown} bytes"
    far.write(b"y")
    assert await first.read(1) == b"y"
    for flood in floods:
        flood.stop_flood()
        flood.finish()
    for visitor, flood in zip(visitors, floods, strict=True):
        visitor.keep = False
        visitor.resume()
        await visitor.read_all()
        assert visitor.received == flood.sent
        visitor.finish()
        await flood.end()
    first.finish()
    far.finish()
    await first.end()
    for one in reversed(both):
        assert await one.stop() == 0
    await target.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_stalled_visitor_resumes(flow: str) -> None:
    """What was held up arrives in order and whole, in either direction."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow)
    for from_target in (True, False):
        visitor = await connect(pair.visitor)
        far = await target.accept()
        sender, reader = (far, visitor) if from_target else (visitor, far)
        reader.pause()
        said = hashlib.shake_256(b"said").digest(HELD_UP)
        sending = sender.send(said)
        sent = Deferred.fromCoroutine(sending)
        await standstill(lambda sender=sender: sender.sent)
        assert not sent.called, "nothing held the sender up"
        reader.resume()
        await sent
        sender.finish()
        assert await reader.read_all() == said
        reader.finish()
        await sender.end()
    await pair.stop()
    await target.stop()


@pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("+", 1)])
@pytest_twisted.ensureDeferred
async def test_a_target_that_drains_slowly_delays_nobody(flow: str, tls: int) -> None:
    """A target that ended early and does not read what its visitor left behind holds that visitor's
    link alone: the next visitors are served at once, and every byte arrives when it reads."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, tls=tls, client="min=1")
    visitor = await connect(pair.visitor)
    visitor.write(b"?")
    far = await target.accept()
    assert await far.read(1) == b"?"
    far.pause()
    far.finish()
    assert await visitor.read_all() == b""
    said = hashlib.shake_256(b"said").digest(BETWEEN)
    visitor.write(said)
    visitor.finish()
    assert await visitor.end() == "closed"
    taking = pair.server if flow == "-" else pair.client
    await until(lambda: not taking.stats.tcps, what="the visitor's end")
    assert pair.server.stats.tcps + pair.client.stats.tcps == 1, "nothing is left to drain"
    for number in range(3):
        following = await connect(pair.visitor)
        following.write(bytes([number]))
        other = await target.accept()
        assert await other.read(1) == bytes([number])
        other.finish()
        following.finish()
        assert await following.end() == "closed"
    far.resume()
    assert await far.read_all() == said
    assert await far.end() == "closed"
    await until(lambda: not pair.server.stats.tcps and not pair.client.stats.tcps, what="the end")
    await pair.stop()
    await target.stop()


@pytest.mark.parametrize("stalled", ["visitor", "target"])
@pytest.mark.parametrize("who", ["visitor", "target"])
@pytest.mark.parametrize(
    ("flow", "tls", "amount"),
    [("-", 0, 200_000), ("-", 0, BETWEEN), ("+", 0, 0), ("+", 1, BETWEEN), ("-", 1, 0)],
)
@pytest_twisted.ensureDeferred
async def test_a_reset_gets_through(
    flow: str, tls: int, amount: int, who: str, stalled: str
) -> None:
    """However much is held up on the way (0: until all is full), and whichever end reads nothing, a
    reset of either end soon reaches the other, and a next session is served."""
    target = listen()
    pair = await tunnel(target.endpoint, flow=flow, tls=tls)
    visitor = await connect(pair.visitor)
    far = await target.accept()
    ends = {"visitor": visitor, "target": far}
    reader = ends.pop(stalled)
    (sender,) = ends.values()
    reader.pause()
    if amount:
        sender.write(bytes(amount))
        await sleep(0.3)
    else:
        sender.flood()
        await standstill(lambda: sender.sent)
    resetting, other = (visitor, far) if who == "visitor" else (far, visitor)
    began = reactor.seconds()
    resetting.reset()
    if other is reader:
        # It would learn of it by reading on, yet what was sent before the reset may be dropped.
        await until(
            lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, PROMPT, "the end"
        )
        reader.keep = False
        reader.resume()
    assert await other.end() == "reset"
    assert reactor.seconds() - began < PROMPT
    await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, PROMPT, "the end")
    visitor = await connect(pair.visitor)
    visitor.write(b"next")
    far = await target.accept()
    assert await far.read(4) == b"next"
    visitor.reset()
    await far.end()
    await pair.stop()
    await target.stop()
