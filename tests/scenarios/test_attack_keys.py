"""Nodes without the key, or with another one, and somebody in between."""

from __future__ import annotations

import pytest
import pytest_twisted

from nodepass.address import Endpoint
from nodepass.wire.native.handshake import Secrets
from nodepass.wire.native.messages import MAX_HELLO, Refusal, Refuse, Welcome
from tests.scenarios.attackers import Client, Interceptor, attack
from tests.scenarios.faults import (
    Cutter,
    begin,
    echoing,
    fleet,
    lives,
    said,
    says,
    serves,
    start_client,
    start_server,
    visit,
)
from tests.scenarios.harness import KEY, sleep

OTHER_KEY = "another-key-of-a-good-length"


@pytest_twisted.ensureDeferred
async def test_wrong_key_is_refused() -> None:
    """A client with another key is refused; both logs say once why and what helps, the client asks
    less and less often, and who is there is not disturbed."""
    target = echoing()
    nodes = await fleet(target.endpoint, env={"NP_HANDSHAKE_TIMEOUT": "1s"})
    session = await begin(nodes.visitor)
    wrong = start_client(
        target.endpoint, nodes.tunnel, key=OTHER_KEY, env={"NP_SERVICE_COOLDOWN": "100ms"}
    )
    line = await says(wrong, "can't join the server")
    assert "wrong key" in line and "same" in line, line
    line = await says(nodes.server, "access denied to 127.0.0.1")
    assert "wrong key" in line and "same" in line, line
    await sleep(2)
    assert len(said(wrong, "WARN")) == 1
    assert len(said(nodes.server, "access denied")) == 1
    assert await lives(session)
    assert await visit(nodes.visitor) == b"1"
    assert KEY not in "\n".join(nodes.server.lines) and OTHER_KEY not in "\n".join(wrong.lines)
    assert await wrong.stop() == 0
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest.mark.parametrize(
    ("server", "client", "cause"),
    [
        (KEY, "", "it has no key, but this server has one"),
        ("", KEY, "it has a key, but this server has none"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_key_on_one_end_only(server: str, client: str, cause: str) -> None:
    """A node with a key never joins one without; both logs say which has none."""
    target = echoing()
    one = start_server(target.endpoint, key=server)
    two = start_client(target.endpoint, await one.port("clients"), key=client)
    assert "set the same on both" in await says(one, f"access denied to .*: {cause}")
    assert "set the same on both" in await says(two, f"can't join the server: .*{cause}")
    await sleep(1)
    assert len(said(one, "access denied")) == len(said(two, "can't join")) == 1
    assert not said(one, "established") and not said(two, "established")
    await two.stop()
    await one.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_without_keys_the_first_client_stays() -> None:
    """Two nodes without a key work and warn; a second client is refused while the first answers,
    and serves once the first is gone."""
    one, two = echoing(b"1"), echoing(b"2")
    server = start_server(one.endpoint, key="")
    tunnel = await server.port("clients")
    first = start_client(one.endpoint, tunnel, key="")
    await says(server, "clients: 1")
    for node in (server, first):
        assert said(node, "WARN  no key: anyone who reaches the tunnel port may join")
    second = start_client(two.endpoint, tunnel, key="")
    line = await says(second, "can't join the server")
    assert "serves one client" in line and "set a key on both ends" in line
    where = Endpoint("127.0.0.1", await server.port())
    for _ in range(3):
        assert await visit(where) == b"1"
    await first.stop()
    await serves(where, b"2")
    await second.stop()
    await server.stop()
    await one.stop()
    await two.stop()


@pytest.mark.parametrize("tls", [0, 1])
@pytest_twisted.ensureDeferred
async def test_somebody_in_between_is_found_out(tls: int) -> None:
    """Who ends the client's TLS with a certificate of his own and passes everything on is refused,
    and both logs speak of him."""
    target = echoing()
    # He is slow, as he shares the test's process; a busy machine makes him slower still.
    patient = {"NP_HANDSHAKE_TIMEOUT": "60s"}
    server = start_server(target.endpoint, more=f"tls={tls}", env=patient)
    between = Interceptor(await server.port("clients"))
    client = start_client(target.endpoint, between.port, env=patient)
    await says(client, "can't join the server: .*somebody in between", timeout=60)
    await says(server, "access denied to .*somebody in between", timeout=60)
    assert not said(server, "established") and not said(client, "established")
    assert between.seen  # he did read the handshake, and was none the wiser
    await client.stop()
    await server.stop()
    await attack(between.stop)
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_somebody_in_between_data_links_is_found_out() -> None:
    """A data link whose TLS ends at somebody in between is dropped by the client for its
    certificate, though the control link was fine."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(
        target.endpoint, server="tls=1", env={"NP_HANDSHAKE_TIMEOUT": "60s"}, through=cutter
    )
    assert await visit(nodes.visitor) == b"1"
    between = Interceptor(nodes.tunnel)
    cutter.onward = between.port
    for number in cutter.data_links():
        cutter.cut(number)
    await says(nodes.clients[0], "can't make a data link to .*certificate", timeout=60)
    assert b"?hello" not in between.seen
    cutter.onward = nodes.tunnel
    await serves(nodes.visitor)
    await nodes.stop()
    await attack(between.stop)
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_guesses_are_limited() -> None:
    """After ten wrong keys an address gets no more answers to guesses, not even to a right one,
    while a client from there that is joined keeps its links and may come back."""
    target, cutter = echoing(), Cutter()
    nodes = await fleet(target.endpoint, through=cutter)
    session = await begin(nodes.visitor)

    def guess(key: str) -> Refuse | Welcome | None:
        client = Client(nodes.tunnel, key)
        try:
            return client.join()
        finally:
            client.close()

    for _ in range(10):
        refusal = await attack(guess, OTHER_KEY)
        assert isinstance(refusal, Refuse) and refusal.refusal == Refusal.WRONG_KEY
    for key in (OTHER_KEY, KEY):
        refusal = await attack(guess, key)
        assert isinstance(refusal, Refuse) and refusal.refusal == Refusal.BUSY
    await says(nodes.server, "access denied to .*too many")
    assert len(said(nodes.server, "access denied")) == 2  # a line for each cause
    cutter.cut(0)
    await says(nodes.server, "established again")
    for number in cutter.data_links()[:7]:
        cutter.cut(number)
    await serves(nodes.visitor)
    session.reset()
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_abandoned_handshake_is_a_guess() -> None:
    """A client that goes away after the server's share has spent a guess."""
    target = echoing()
    nodes = await fleet(target.endpoint)

    class Quitter(Client):
        def read(self) -> bytes:
            body = super().read()
            self.first = self.first or body
            self.close()
            return b""

        first = b""

    def guess() -> bytes:
        client = Quitter(nodes.tunnel, OTHER_KEY)
        client.join()
        return client.first

    for _ in range(10):
        assert (await attack(guess))[0] == 2  # an Answer
        await sleep(0.05)
    assert (await attack(guess))[0] == 5  # a Refuse
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_proof_of_another_association() -> None:
    """Coming back needs the association's secret: its id alone, seen in a log or on a plain link,
    is of no use, and the one who is there stays joined."""
    target = echoing()
    nodes = await fleet(target.endpoint)
    session = await begin(nodes.visitor)

    def steal() -> tuple[Refuse | Welcome | None, ...]:
        honest, thief, stranger = (Client(nodes.tunnel, KEY) for _ in range(3))
        assert isinstance(honest.join(), Welcome)
        assert honest.secrets is not None
        link = honest.link(1)
        assert link.ready
        first = thief.join((honest.association, Secrets(b"\1" * 32, b"\2" * 32)))
        second = stranger.join((b"x" * 16, honest.secrets))
        assert honest.link(2).ready
        for one in (honest, thief, stranger):
            one.close()
        return first, second

    first, second = await attack(steal)
    assert isinstance(first, Refuse) and first.refusal == Refusal.WRONG_KEY
    assert isinstance(second, Refuse) and second.refusal == Refusal.UNKNOWN_ASSOCIATION
    assert await lives(session)
    session.reset()
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_oversized_hello() -> None:
    """A first message above 1 KiB ends the connection, with a line that says so."""
    target = echoing()
    nodes = await fleet(target.endpoint)

    def shout() -> bytes:
        client = Client(nodes.tunnel, KEY)
        client.line.encrypt(b"nodepass2")
        client.line.send((MAX_HELLO + 1).to_bytes(2, "big") + b"\1" * (MAX_HELLO + 1))
        return client.line.drain()

    assert await attack(shout) == b""
    await says(nodes.server, f"access denied to .*{MAX_HELLO + 1} bytes")
    assert await visit(nodes.visitor) == b"1"
    await nodes.stop()
    await target.stop()
