"""What becomes of a visitor whose target refuses, is silent, or is still being dialed."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from nodepass.address import Endpoint
from tests.scenarios.harness import PATIENT, QUICK, sleep, tunnel, until
from tests.scenarios.programs import connect, listen

flows = pytest.mark.parametrize("flow", ["-", "+"])


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The log lines of both nodes."""
    monkeypatch.setenv("SCENARIO_LOG", "debug")
    said: list[str] = []

    def observe(event: LogEvent) -> None:
        said.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield said
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def refusing() -> Iterator[Endpoint]:
    """An address where nobody listens, and nobody will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield Endpoint(*held.getsockname())


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """A target that never answers: its queue is full, so that the system drops each SYN."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as more:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        one.connect(where)
        more.setblocking(False)
        assert more.connect_ex(where) == errno.EINPROGRESS
        yield Endpoint(*where)


def dials_of(where: Endpoint) -> int:
    """Connections to an address that are waiting for an answer."""
    hexed = f"{int.from_bytes(socket.inet_aton(where.host), 'little'):08X}:{where.port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    return sum(1 for row in rows if row[2] == hexed and row[3] == "02")  # SYN_SENT


@flows
@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_a_refused_target(flow: str, tls: int, lines: list[str], refusing: Endpoint) -> None:
    """A visitor whose target refuses is reset, and both logs name the target and the cause."""
    pair = await tunnel(refusing, flow=flow, tls=tls)
    visitor = await connect(pair.visitor)
    assert await visitor.end() == "reset"
    assert visitor.received == 0
    await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, what="the end")
    naming = [line for line in lines if str(refusing) in line and "refused" in line]
    assert any(line.startswith("target ") for line in naming), "the dialing node says nothing"
    assert any(line.startswith("visitor ") for line in naming), "the visitors' node says nothing"
    await pair.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_found(flow: str, lines: list[str]) -> None:
    """A visitor whose target has no address is reset, and both logs say so."""
    pair = await tunnel("nowhere.invalid:80", flow=flow)
    visitor = await connect(pair.visitor)
    assert await visitor.end() == "reset"
    naming = [line for line in lines if "nowhere.invalid:80: " in line]
    assert any(line.startswith("target ") for line in naming)
    assert any(line.startswith("visitor ") and "unreachable" in line for line in lines)
    await pair.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_a_target_that_never_answers(flow: str, lines: list[str], silent: Endpoint) -> None:
    """A visitor is reset once its target has not answered for NP_TCP_DIAL_TIMEOUT."""
    pair = await tunnel(silent, flow=flow, tuning=evolve(QUICK, tcp_dial_timeout=1.0))
    before = dials_of(silent)
    began = reactor.seconds()
    visitor = await connect(pair.visitor)
    visitor.write(b"is anybody there?")
    await until(lambda: dials_of(silent) > before, what="the dial")
    assert await visitor.end() == "reset"
    assert reactor.seconds() - began >= 0.9
    naming = [line for line in lines if str(silent) in line and "timed out" in line]
    assert any(line.startswith("target ") for line in naming)
    assert any(line.startswith("visitor ") for line in naming)
    await until(lambda: dials_of(silent) == before, what="the end of the dial")
    await pair.stop()


@flows
@pytest.mark.parametrize("said", [0, 1000, 3_000_000])
@pytest_twisted.ensureDeferred
async def test_a_visitor_leaves_while_its_target_is_dialed(
    flow: str, said: int, silent: Endpoint
) -> None:
    """The dial ends when its visitor has reset, whatever the visitor had sent until then."""
    pair = await tunnel(silent, flow=flow, tuning=PATIENT)
    before = dials_of(silent)
    visitor = await connect(pair.visitor)
    visitor.write(bytes(said))
    await until(lambda: dials_of(silent) > before, what="the dial")
    await sleep(0.2)
    visitor.reset()
    await until(lambda: dials_of(silent) == before, what="the end of the dial")
    await until(lambda: pair.server.stats.tcps == pair.client.stats.tcps == 0, what="the end")
    await pair.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_what_is_said_while_dialing_arrives(flow: str) -> None:
    """Bytes and FIN that came before the target was reached are delivered to it."""
    target = listen(host="127.0.0.1")
    pair = await tunnel(f"localhost:{target.endpoint.port}", flow=flow)  # looked up first
    visitor = await connect(pair.visitor)
    visitor.write(b"early")
    visitor.finish()
    far = await target.accept()
    assert await far.read_all() == b"early"
    far.write(b"answer")
    far.finish()
    assert await visitor.read_all() == b"answer"
    await visitor.end()
    await pair.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_the_next_target_of_a_list(refusing: Endpoint) -> None:
    """Where one target of several refuses, each visitor is taken to another."""
    target = listen()
    pair = await tunnel(f"{refusing},{target.endpoint}")
    for _ in range(4):
        visitor = await connect(pair.visitor)
        visitor.write(b"hello")
        far = await target.accept()
        assert await far.read(5) == b"hello"
        visitor.reset()
        await far.end()
    await pair.stop()
    await target.stop()


@flows
@pytest_twisted.ensureDeferred
async def test_refusals_leave_the_pool_as_it_was(flow: str, refusing: Endpoint) -> None:
    """A link whose session was refused serves again: many refusals on one link."""
    pair = await tunnel(refusing, flow=flow, client="min=1", server="max=1")
    for _ in range(30):
        visitor = await connect(pair.visitor)
        assert await visitor.end() == "reset"
    dialer, visited = (pair.client, pair.server) if flow == "-" else (pair.server, pair.client)
    await until(lambda: dialer.stats.tcps == visited.stats.tcps == 0, what="the end")
    await until(lambda: dialer.stats.pool == visited.stats.pool == 1, what="one idle link")
    await pair.stop()
