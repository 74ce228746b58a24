"""The client against masters that are processes of their own: TLS, and lost connections."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from nodepass.client import (
    Cut,
    MasterClient,
    MasterError,
    Silent,
    TLSMismatch,
    Trust,
    Unreachable,
    Untrusted,
    WrongKey,
    http,
    parse_fingerprint,
)
from nodepass.client import master as client_master
from nodepass.client.models import Instance
from tests.certs import Authority
from tests.scenarios.ctl import master
from tests.scenarios.harness import until


@pytest_twisted.ensureDeferred
async def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate is right by its authority or its fingerprint; each mismatch is told apart."""
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 2.0)
    authority = Authority(tmp_path / "ca")
    leaf = authority.leaf("127.0.0.1")
    secure = await master(tmp_path / "1", f"tls=2&crt={leaf.crt}&key={leaf.key}")
    plain = await master(tmp_path / "2")

    async def ask(
        api: str, key: str = secure.key, **trust: Any
    ) -> list[Instance] | type[MasterError]:
        client = MasterClient(api, key, trust=Trust(**trust) if trust else None)
        try:
            return list(await client.list())
        except MasterError as error:
            assert "\n" not in str(error)
            return type(error)
        finally:
            await client.close()

    assert await ask(secure.api, ca=authority.ca) == []
    assert await ask(secure.api, fingerprint=leaf.pin) == []
    assert await ask(secure.api, insecure=True) == []
    assert await ask(secure.api, key="wrong", insecure=True) is WrongKey
    assert await ask(secure.api) is Untrusted
    assert await ask(secure.api, fingerprint=bytes(32)) is Untrusted
    assert await ask(secure.api.replace("127.0.0.1", "localhost"), ca=authority.ca) is Untrusted
    # The master's answer, if any, depends on how soon its HTTP server gives up.
    without_tls = await ask(plain.api.replace("http", "https"), insecure=True)
    assert without_tls in (TLSMismatch, Cut, Silent)

    told = await secure.ctl("list", status=1)
    assert "is not trusted" in told.err
    pin = told.err.partition("--fingerprint ")[2].split()[0]
    assert parse_fingerprint(pin) == leaf.pin
    assert (await secure.ctl("list", "--fingerprint", pin)).status == 0
    told = await secure.ctl("list", status=1, NODEPASS_API=secure.api.replace("https", "http"))
    assert f"--api {secure.api}" in told.err

    await secure.node.stop()
    assert await ask(secure.api, insecure=True) is Unreachable
    await plain.node.stop()


@pytest_twisted.ensureDeferred
async def test_connection_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that is killed in mid-stream is missed, and found again with what happened since."""
    monkeypatch.setattr(client_master, "RECONNECT_AT_MOST", 0.3)
    there = await master(tmp_path, host="[::1]")
    client = MasterClient(f"http://[::1]:{there.port}", there.key)
    made = await client.create("client://127.0.0.1:0/127.0.0.1:9?mode=1")
    losses: list[MasterError] = []
    events = client.events(on_loss=lambda error, _: losses.append(error))
    async with aclosing(events):
        async for event in events:
            if event.instance and event.instance.id == made.id:
                break
        there.node.send_signal(9)
        await there.node.ended
        again = await master(tmp_path, host="[::1]", port=there.port)
        async for event in events:
            if event.type == "initial" and event.instance and event.instance.id == made.id:
                break
    assert losses
    await client.close()
    await until(lambda: not reactor.getDelayedCalls(), what="no timers")
    await again.node.stop()
