"""Several clients of one server, and clients that can't do their work."""

from __future__ import annotations

import signal

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError

from tests.scenarios.faults import (
    begin,
    checkpoint,
    echoing,
    fleet,
    lives,
    named,
    said,
    says,
    serves,
    start_client,
    visit,
)
from tests.scenarios.harness import sleep, until
from tests.scenarios.programs import listen


@pytest_twisted.ensureDeferred
async def test_visitors_go_where_the_fewest_are() -> None:
    """Visitors are spread by the number of sessions that each client has at the time, not by
    turns."""
    targets = [echoing(name) for name in (b"1", b"2", b"3")]
    nodes = await fleet(*[target.endpoint for target in targets])
    sessions = [await begin(nodes.visitor) for _ in range(9)]
    assert [len(target.conns) for target in targets] == [3, 3, 3]
    # All sessions of the first client end: the next three go there.
    for conn in targets[0].conns:
        conn.reset()
    await until(lambda: all(conn.gone for conn in targets[0].conns), what="the end of three")
    await checkpoint(nodes.server, "TCPS=6")
    fresh = [await begin(nodes.visitor, b"1") for _ in range(3)]
    for session in [*sessions, *fresh]:
        if not session.gone:
            session.reset()
    await nodes.stop()
    for target in targets:
        await target.stop()


@pytest_twisted.ensureDeferred
async def test_client_whose_dials_fail_is_passed_over() -> None:
    """A visitor whose client can't reach its target is served by another one, unaware; the log
    names target and cause once; when the target is back its client gets visitors again."""
    one, two = echoing(b"1"), echoing(b"2")
    nodes = await fleet(one.endpoint, two.endpoint, client="log=debug")
    there = one.endpoint
    await one.stop()
    for _ in range(10):
        assert await visit(nodes.visitor) == b"2"
    assert len(said(nodes.clients[0], "session .*: started")) < 5
    (line,) = said(nodes.server, "WARN.*target")
    assert f"target {there} of" in line and "refused" in line
    one = listen(named(b"1"), there.host, there.port)
    await serves(nodes.visitor, b"1", timeout=20)
    await nodes.stop()
    await one.stop()
    await two.stop()


@pytest_twisted.ensureDeferred
async def test_refused_target_resets_the_visitor() -> None:
    """Where no client reaches its target the visitor is reset, as by a direct connection, and both
    logs name the target and the cause."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    await target.stop()
    for _ in range(5):
        try:
            await visit(nodes.visitor)
        except (OSError, ConnectError):
            continue
        raise AssertionError("a visitor was served by nobody")
    for node in (nodes.server, nodes.clients[0]):
        (line,) = said(node, "WARN.*target")
        assert str(target.endpoint) in line and "refused" in line
    await checkpoint(nodes.server, "TCPS=0")
    await nodes.stop()


@pytest_twisted.ensureDeferred
async def test_client_that_leaves() -> None:
    """When one of two clients leaves, its visitors' successors are served by the other."""
    one, two = echoing(b"1"), echoing(b"2")
    nodes = await fleet(one.endpoint, two.endpoint)
    assert await nodes.clients[0].stop() == 0
    await says(nodes.server, "is gone; clients: 1")
    for _ in range(4):
        assert await visit(nodes.visitor) == b"2"
    assert not said(nodes.server, "WARN")
    await nodes.stop()
    await one.stop()
    await two.stop()


@pytest_twisted.ensureDeferred
async def test_clone_and_original_both_stay() -> None:
    """Two processes with one URL on one machine are both served: the older answers when it is asked
    whether it is there."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    session = await begin(nodes.visitor)
    nodes.clients.append(start_client(target.endpoint, nodes.tunnel))
    await says(nodes.server, "clients: 2")
    await sleep(1.5)  # longer than the older has to answer
    assert not said(nodes.server, "gone|lost")
    assert await lives(session)
    await checkpoint(nodes.server, r"POOL=1[67]\|")
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_new_process_takes_the_place_of_a_silent_one() -> None:
    """A client that is started again while its old process hangs is served at once, and the old
    one, which does not answer, is dropped after a second rather than three intervals."""
    target = echoing()
    slow = {"NP_REPORT_INTERVAL": "5s"}
    nodes = await fleet(target.endpoint, env=slow)
    nodes.clients[0].send_signal(signal.SIGSTOP)
    nodes.clients.append(start_client(target.endpoint, nodes.tunnel, env=slow))
    await says(nodes.server, "clients: 2")
    await says(nodes.server, "is gone; clients: 1", timeout=5)
    assert await visit(nodes.visitor) == b"1"
    nodes.clients[0].send_signal(signal.SIGCONT)
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_visitor_who_waits_for_a_client() -> None:
    """A visitor who comes while there is no client waits and is then served; one whom nobody takes
    in time is reset."""
    target = echoing()
    nodes = await fleet(target.endpoint, env={"NP_POOL_GET_TIMEOUT": "5s"})
    await nodes.clients[0].stop()
    await says(nodes.server, "clients: 0")
    waiting = Deferred.fromCoroutine(visit(nodes.visitor, timeout=10))
    nodes.clients[0] = start_client(target.endpoint, nodes.tunnel)
    assert await waiting == b"1"
    mark = len(nodes.server.lines)
    await nodes.clients[0].stop()
    await says(nodes.server, "clients: 0", mark)
    try:
        await visit(nodes.visitor, timeout=10)
    except ConnectionResetError:
        pass
    else:
        raise AssertionError("a visitor was served by nobody")
    await says(nodes.server, "no other node has joined within 5 s")
    await nodes.stop()
    await target.stop()
