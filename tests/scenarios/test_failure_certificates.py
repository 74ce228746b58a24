"""Certificates that change while a tunnel is in use."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.certs import Authority, Leaf
from tests.scenarios.attackers import DATA, Line, attack
from tests.scenarios.faults import (
    Cutter,
    Fleet,
    begin,
    checkpoint,
    echoing,
    fleet,
    lives,
    said,
    says,
    start_client,
    visit,
)
from tests.scenarios.harness import sleep, until


class Files:
    """A server's certificate files, and what to put there next."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.crt, self.key = directory / "live.crt", directory / "live.key"
        self.first = self.authority.leaf("127.0.0.1", file="first")
        self.second = self.authority.leaf("127.0.0.1", file="second")
        self.install(self.first)

    def install(self, leaf: Leaf) -> None:
        """Put a certificate in place."""
        shutil.copy(leaf.crt, self.crt)
        shutil.copy(leaf.key, self.key)

    @property
    def server(self) -> str:
        """What the server's URL says."""
        return f"tls=2&crt={self.crt}&key={self.key}"

    @property
    def client(self) -> str:
        """What a checking client's URL says."""
        return f"tls=2&ca={self.authority.ca}"


def shown(port: int) -> bytes:
    """The pin of the certificate that the server shows now."""
    line = Line(port)
    try:
        line.encrypt(DATA)
        assert line.tls is not None
        certificate = line.tls.get_peer_certificate(as_cryptography=True)
        assert isinstance(certificate, x509.Certificate)
        return certificate.fingerprint(hashes.SHA256())
    finally:
        line.close()


async def new_links(nodes: Fleet, cutter: Cutter) -> None:
    """Have all idle data links made anew, and use one.

    The pool is full before they are cut: a link cut within its handshake is a fault that the client
    rightly reports.
    """
    await checkpoint(nodes.server, r"POOL=([89]|1\d)\|")
    for number in cutter.data_links():
        cutter.cut(number)
    assert await visit(nodes.visitor) == b"1"
    await checkpoint(nodes.server, r"POOL=[1-9]")


@pytest.mark.parametrize("how", ["SIGHUP", "NP_RELOAD_INTERVAL"])
@pytest.mark.parametrize("checks", [True, False])
@pytest_twisted.ensureDeferred
async def test_reload_under_load(how: str, checks: bool, tmp_path: Path) -> None:
    """A new certificate is shown to new links, whether the client checks chains or pins alone;
    sessions live on, and no visitor is refused in between."""
    files, target, cutter = Files(tmp_path), echoing(), Cutter()
    env = {"NP_RELOAD_INTERVAL": "500ms"} if how == "NP_RELOAD_INTERVAL" else {}
    nodes = await fleet(
        target.endpoint,
        server=files.server,
        client=files.client if checks else "",
        env=env,
        through=cutter,
    )
    session = await begin(nodes.visitor)
    assert await attack(shown, nodes.tunnel) == files.first.pin
    files.install(files.second)
    if how == "SIGHUP":
        nodes.server.send_signal(signal.SIGHUP)
    for _ in range(60):
        assert await visit(nodes.visitor) == b"1"
        if said(nodes.server, "certificate reloaded"):
            break
        await sleep(0.1)
    else:
        raise AssertionError("the certificate was not reloaded")
    assert await attack(shown, nodes.tunnel) == files.second.pin
    assert await lives(session)
    session.reset()
    await new_links(nodes, cutter)
    cutter.cut(0)
    await says(nodes.server, "established again")
    await new_links(nodes, cutter)
    assert not said(nodes.clients[0], "can't make a data link|can't join|ERROR")
    assert len(said(nodes.server, "certificate reloaded")) == 1
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_broken_file_keeps_the_old_certificate(tmp_path: Path) -> None:
    """A reload that meets a broken file is one error line that names it; the old certificate stays
    in use, and a mended file is taken at the next reload."""
    files, target, cutter = Files(tmp_path), echoing(), Cutter()
    nodes = await fleet(target.endpoint, server=files.server, client=files.client, through=cutter)
    session = await begin(nodes.visitor)
    shutil.copy(files.second.crt, files.crt)  # and not its key: half of a renewal
    nodes.server.send_signal(signal.SIGHUP)
    line = await says(nodes.server, "ERROR")
    assert "the old one stays in use" in line and str(files.key) in line
    files.crt.write_bytes(b"no certificate")
    nodes.server.send_signal(signal.SIGHUP)
    await says(nodes.server, f"ERROR.*{files.crt}: no usable certificate")
    await sleep(2.5)  # longer than a good one would have waited
    assert len(said(nodes.server, "ERROR")) == 2
    assert await attack(shown, nodes.tunnel) == files.first.pin
    assert await lives(session)
    session.reset()
    await new_links(nodes, cutter)
    files.install(files.second)
    nodes.server.send_signal(signal.SIGHUP)
    await says(nodes.server, "certificate reloaded")
    assert await attack(shown, nodes.tunnel) == files.second.pin
    await new_links(nodes, cutter)
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_client_that_joins_during_a_reload(tmp_path: Path) -> None:
    """A client that joins, or comes back, after the next certificate was announced and before it is
    shown learns of it too: its links are made before and after."""
    files, target, cutter = Files(tmp_path), echoing(), Cutter()
    nodes = await fleet(target.endpoint, server=files.server, through=cutter)
    files.install(files.second)
    cutter.open = False
    cutter.cut(0)
    await says(nodes.server, "control link to .* lost")
    nodes.server.send_signal(signal.SIGHUP)
    await sleep(0.2)
    cutter.open = True
    await says(nodes.server, "established again")
    assert not said(nodes.server, "certificate reloaded"), "the test was too slow"
    await says(nodes.server, "certificate reloaded")
    await new_links(nodes, cutter)
    assert not said(nodes.clients[0], "can't make a data link")
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_certificate_for_another_name(tmp_path: Path) -> None:
    """A client that checks does not come back to a server whose new certificate is for another
    name, and says why; one that does not check, does."""
    files, target, cutter = Files(tmp_path), echoing(), Cutter()
    nodes = await fleet(target.endpoint, server=files.server, client=files.client, through=cutter)
    files.install(files.authority.leaf("example.org", file="wrong"))
    nodes.server.send_signal(signal.SIGHUP)
    await says(nodes.server, "certificate reloaded")
    cutter.cut(0)
    line = await says(nodes.clients[0], "can't join the server")
    assert "certificate is for example.org, not 127.0.0.1" in line
    files.install(files.second)
    nodes.server.send_signal(signal.SIGHUP)
    await says(nodes.clients[0], "tunnel established again|tunnel established with", 5)
    await nodes.stop()
    await cutter.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_expired_certificate_is_warned_about(tmp_path: Path) -> None:
    """A server whose certificate has expired says so at its start and at a reload, whether the file
    is still the same or a new one; a renewed one ends that."""
    files, target = Files(tmp_path), echoing()
    expired = files.authority.expired("127.0.0.1")
    files.install(expired)
    nodes = await fleet(target.endpoint, server=files.server)
    warning = f"WARN.*{files.crt} expired on {expired.certificate.not_valid_after_utc:%Y-%m-%d}"
    assert len(said(nodes.server, warning)) == 1
    nodes.server.send_signal(signal.SIGHUP)
    await until(lambda: len(said(nodes.server, warning)) == 2, what="the warning at a reload")
    for leaf, warnings in ((files.first, 0), (expired, 1)):
        files.install(leaf)
        mark = len(nodes.server.lines)
        nodes.server.send_signal(signal.SIGHUP)
        await says(nodes.server, "certificate reloaded", mark)
        await sleep(0.1)
        assert len(said(nodes.server, warning, mark)) == warnings
    await nodes.stop()
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_roots_are_read_again(tmp_path: Path) -> None:
    """A client that does not trust the server joins once the right root was put in place, without a
    signal."""
    files, target = Files(tmp_path), echoing()
    nodes = await fleet(target.endpoint, server=files.server)
    ca = tmp_path / "roots.pem"
    shutil.copy(Authority(tmp_path, "another root").ca, ca)
    client = start_client(
        target.endpoint,
        nodes.tunnel,
        more=f"tls=2&ca={ca}",
        env={"NP_RELOAD_INTERVAL": "300ms"},
    )
    nodes.clients.append(client)
    await says(client, "certificate is not trusted: .*; .* ca=")
    await says(nodes.server, "access denied to .*: TLS handshake failed: the other end")
    shutil.copy(files.authority.ca, ca)
    await says(client, "tunnel established")
    await nodes.stop()
    await target.stop()
