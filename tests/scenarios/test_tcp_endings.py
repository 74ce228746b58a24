"""How sessions end: each direction by itself, or both at once by a reset."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest
import pytest_twisted
from attrs import define
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from nodepass.relay.hangup import HangupWatch
from nodepass.relay.stream import Cause
from nodepass.relay.tcp import TcpStream
from nodepass.service import RoleService
from tests.scenarios.harness import Tunnel, either_link, no_links, tunnel, until
from tests.scenarios.programs import Conn, Target, connect, data_of, listen
from tests.streams import NotingSink

pytestmark = either_link

everywhere = pytest.mark.parametrize(("flow", "tls"), [("-", 0), ("+", 0), ("-", 1), ("+", 1)])


@define
class Session:
    """A visitor and its target, joined: each has heard one byte of the other."""

    pair: Tunnel
    listener: Target
    visitor: Conn
    target: Conn

    async def stop(self) -> None:
        """Check that nothing is left of the session, and stop."""
        nodes: list[RoleService] = [self.pair.server, self.pair.client]
        await until(lambda: not any(node.stats.tcps for node in nodes), what="the session's end")
        await self.pair.stop()
        await self.listener.stop()


async def session(flow: str, tls: int) -> Session:
    """A session through a tunnel of its own."""
    listener = listen()
    pair = await tunnel(listener.endpoint, flow=flow, tls=tls)
    visitor = await connect(pair.visitor)
    visitor.write(b"?")
    target = await listener.accept()
    assert await target.read(1) == b"?"
    target.write(b"!")
    assert await visitor.read(1) == b"!"
    return Session(pair, listener, visitor, target)


async def one_end_then_the_other(first: Conn, second: Conn) -> None:
    """The first sends FIN; the second still sends a lot, then its own FIN."""
    question, answer = data_of(1, 300_000), data_of(2, 3_000_000)
    first.write(question)
    first.finish()
    assert await second.read_all() == question
    await second.send(answer)
    second.finish()
    assert await first.read_all() == answer
    assert await first.end() == "closed"
    assert await second.end() == "closed"


@everywhere
@pytest_twisted.ensureDeferred
async def test_the_visitor_ends_first(flow: str, tls: int) -> None:
    """After the visitor's FIN the target sees the end of file, and its answer still arrives."""
    here = await session(flow, tls)
    await one_end_then_the_other(here.visitor, here.target)
    await here.stop()


@everywhere
@pytest_twisted.ensureDeferred
async def test_the_target_ends_first(flow: str, tls: int) -> None:
    """After the target's FIN the visitor sees the end of file, and may still send."""
    here = await session(flow, tls)
    await one_end_then_the_other(here.target, here.visitor)
    await here.stop()


@everywhere
@pytest_twisted.ensureDeferred
async def test_the_visitor_resets(flow: str, tls: int) -> None:
    """A visitor's reset resets the target's connection."""
    here = await session(flow, tls)
    here.visitor.reset()
    assert await here.target.end() == "reset"
    assert not here.target.ended, "the target saw an orderly end"
    await here.stop()


@everywhere
@pytest_twisted.ensureDeferred
async def test_the_target_resets(flow: str, tls: int) -> None:
    """A target's reset resets the visitor's connection."""
    here = await session(flow, tls)
    here.target.reset()
    assert await here.visitor.end() == "reset"
    assert not here.visitor.ended, "the visitor saw an orderly end"
    await here.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_reset_after_the_other_ends_fin(flow: str) -> None:
    """A visitor that has sent FIN and then resets, as a killed program does, resets the target that
    still sends; so does a target in its turn."""
    for by_visitor in (True, False):
        here = await session(flow, 0)
        first, second = (here.visitor, here.target) if by_visitor else (here.target, here.visitor)
        first.finish()
        assert await second.read_all() == b""
        second.flood()
        await until(lambda first=first: first.received > 200_000, what="the flood")
        first.reset()
        assert await second.end() == "reset"
        await here.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_reset_after_fin_while_the_other_end_is_silent(flow: str) -> None:
    """A visitor that has sent FIN and is then gone ends the session, though no byte moves that
    would meet its absence."""
    here = await session(flow, 0)
    here.visitor.finish()
    assert await here.target.read_all() == b""
    here.visitor.reset()
    nodes = (here.pair.server, here.pair.client)
    await until(lambda: not any(node.stats.tcps for node in nodes), what="the session's end")
    here.target.flood()
    assert await here.target.end() == "reset"
    await here.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_both_end_at_once(flow: str) -> None:
    """FINs that cross end the session once, with all bytes there."""
    here = await session(flow, 0)
    said = data_of(3, 100_000)
    for conn in (here.visitor, here.target):
        conn.write(said)
        conn.finish()
    assert await here.visitor.read_all() == said
    assert await here.target.read_all() == said
    assert await here.visitor.end() == await here.target.end() == "closed"
    await here.stop()


@pytest.mark.parametrize("flow", ["-", "+"])
@pytest_twisted.ensureDeferred
async def test_a_visitor_that_says_nothing(flow: str) -> None:
    """A target that speaks first is heard, and a visitor that leaves without a word is noticed."""
    listener = listen()
    pair = await tunnel(listener.endpoint, flow=flow)
    visitor = await connect(pair.visitor)
    target = await listener.accept()
    target.write(b"220 ready")
    assert await visitor.read(9) == b"220 ready"
    visitor.finish()
    assert await target.read_all() == b""
    target.finish()
    assert await visitor.end() == "closed"
    await Session(pair, listener, visitor, target).stop()


@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_link_serves_again_after_every_ending(tls: int) -> None:
    """With a pool of one link, sessions that ended in each way leave nothing to the next one."""
    listener = listen()
    pair = await tunnel(listener.endpoint, tls=tls, server="max=1", client="min=1")
    for number, ending in enumerate(["fin", "reset", "target resets", "target ends"] * 3):
        visitor = await connect(pair.visitor)
        visitor.write(data_of(number, 1000))
        target = await listener.accept()
        assert await target.read(1000) == data_of(number, 1000)
        target.write(data_of(number + 100, 1000))
        assert await visitor.read(1000) == data_of(number + 100, 1000)
        if ending == "reset":
            visitor.reset()
            assert await target.end() == "reset"
        elif ending == "target resets":
            target.reset()
            assert await visitor.end() == "reset"
        else:
            first, second = (visitor, target) if ending == "fin" else (target, visitor)
            first.finish()
            assert await second.read_all() == b""
            second.finish()
            assert await first.end() == "closed"
        assert visitor.received == 1000
        assert target.received == 1000
    await Session(pair, listener, visitor, target).stop()


class Bell:
    """A reader of the reactor's that does something when a byte comes."""

    def __init__(self, handle: socket.socket, rung: Callable[[], None]) -> None:
        handle.setblocking(False)
        self.handle = handle
        self.rung = rung

    def fileno(self) -> int:
        return self.handle.fileno()

    def doRead(self) -> None:
        self.handle.recv(1)
        self.rung()

    def connectionLost(self, reason: object) -> None:
        pass

    def logPrefix(self) -> str:
        return "bell"


@no_links
@pytest_twisted.ensureDeferred
async def test_a_reset_in_the_round_of_a_resume() -> None:
    """A reset that the reactor hears of while a stream is paused, and acts on after the stream was
    resumed in the same round, is no orderly end."""
    watch = HangupWatch(reactor)
    rope, handle = socket.socketpair()
    with socket.socket() as listener, rope, handle:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        where = TCP4ClientEndpoint(reactor, *listener.getsockname())
        stream = await connectProtocol(where, TcpStream(watch))
        far, _ = listener.accept()
        heard = NotingSink()
        stream.attach(heard)
        bell = Bell(handle, stream.resume)
        reactor.addReader(bell)
        # No turn of the reactor passes until the end of this block. The bell rings before the
        # reset, so it comes first among the events of the next one.
        rope.send(b"!")
        stream.write(b"?")  # the reactor waits until this can leave, and not for what may come
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await until(lambda: stream.gone, what="the end")
        assert heard.heard == [("closed", Cause.RESET)]
        reactor.removeReader(bell)
    watch.stop()
