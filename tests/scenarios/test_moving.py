"""Moving a fleet from an old dialect to native, as the manual has it."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from nodepass.address import Endpoint
from tests.scenarios.faults import echoing, said, says, serves, start_client, start_server, visit
from tests.scenarios.harness import KEY, sleep, until

OLD = "the-key-that-all-have-heard"


async def visiting(where: Endpoint, answers: list[bytes]) -> None:
    """One visitor after the other, until an empty answer is put behind theirs; "!" is for one who
    was cut off."""
    while not answers or answers[-1]:
        try:
            answers.append(await visit(where))
        except (OSError, EOFError):
            answers.append(b"!")
        await sleep(0.01)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("dialect", ["1.14", "2.0", "1.6"])
async def test_native_client_takes_over_from_an_old_one(dialect: str) -> None:
    """A native client with a key of its own joins beside one of an old dialect, which leaves then:
    visitors are served all the time, but for one or two in the moment of leaving, for which old
    dialects have no word. Without `wire` the server knows the new key alone, and its client comes
    back by itself."""
    one, two = echoing(b"1"), echoing(b"2")
    server = start_server(one.endpoint, more=f"wire=native,{dialect}&oldkey={OLD}&tls=1")
    tunnel, visitors = await server.port("clients"), await server.port()
    where = Endpoint("127.0.0.1", visitors)
    old = start_client(one.endpoint, tunnel, key=OLD, more=f"wire={dialect}&tls=1")
    await says(server, rf"established with .*, {dialect} wire.*clients: 1$")
    await serves(where, b"1")
    answers: list[bytes] = []
    visits = Deferred.fromCoroutine(visiting(where, answers))
    new = start_client(two.endpoint, tunnel, key=KEY, more="tls=1")
    await says(server, "established with .*, native wire.*clients: 2$")
    assert b"!" not in answers
    assert await old.stop() == 0
    await says(server, "is gone; clients: 1")
    left = len(answers) + 2  # with the visitors of this moment
    await until(lambda: len(answers) > left + 5, what="five more visitors")
    assert answers.count(b"!") <= 2 and set(answers[left:]) == {b"2"}
    answers.append(b"")
    await visits
    assert not said(new, "WARN")

    assert await server.stop() == 0
    server = start_server(two.endpoint, more="tls=1", tunnel=tunnel, visitors=visitors)
    await says(server, "established with .*, native wire.*clients: 1$")
    await serves(where, b"2")
    for node in (new, server):
        assert await node.stop() == 0
    await one.stop()
    await two.stop()
