"""Tunnels to measure: how each is configured and started."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path

from attrs import frozen

#: What every peer takes as its key.
KEY = secrets.token_urlsafe(24)
#: Ours and the yardstick's names, which the report knows.
OURS, YARDSTICK, SPLICE, REFERENCE = "nodepass", "go copy", "go splice", "rathole"


class Form(Enum):
    """What visitors' bytes go through."""

    PLAIN = "dual-end, plain"
    ENCRYPTED = "dual-end, encrypted"
    SINGLE = "single-end"


@frozen
class Ports:
    """Ports of 127.0.0.1 for one tunnel.

    :param tunnel: where its server takes its client.
    :param visit: where visitors arrive, over TCP and UDP.
    :param target: where the target listens.
    """

    tunnel: int
    visit: int
    target: int


@frozen(kw_only=True)
class Peer:
    """One way to carry visitors to the target.

    :param commands: given a directory for files, and ports, the commands of its processes, those
        on which others depend first.
    :param udp: whether it carries datagrams.
    """

    name: str
    form: Form
    commands: Callable[[Path, Ports], list[list[str]]]
    udp: bool = True


def nodepass(form: Form, workers: int = 1) -> Peer:
    """Ours, each end in so many processes."""
    command = [sys.executable, "-m", "nodepass"]
    tls = int(form is Form.ENCRYPTED)

    def commands(directory: Path, ports: Ports) -> list[list[str]]:
        tunnel, visit = f"127.0.0.1:{ports.tunnel}", f"127.0.0.1:{ports.visit}"
        target, alike = f"127.0.0.1:{ports.target}", f"workers={workers}&log=warn"
        if form is Form.SINGLE:
            return [[*command, f"client://{visit}/{target}?mode=1&{alike}"]]
        return [
            [*command, f"server://{KEY}@{tunnel}/{visit}?tls={tls}&mode=1&{alike}"],
            [*command, f"client://{KEY}@{tunnel}/{target}?mode=2&{alike}"],
        ]

    name = OURS if workers == 1 else f"{OURS} x{workers}"
    return Peer(name=name, form=form, commands=commands)


def yardstick(form: Form, program: str, *, splice: bool = False) -> Peer:
    """Relays in Go, as many as others have ends."""

    def commands(directory: Path, ports: Ports) -> list[list[str]]:
        def relay(listen: int, to: int, side: str) -> list[str]:
            flags = ["-splice"] if splice else []
            if form is Form.ENCRYPTED:
                flags += ["-tls", side]
            return [program, "-listen", f"127.0.0.1:{listen}", "-to", f"127.0.0.1:{to}", *flags]

        if form is Form.SINGLE:
            return [relay(ports.visit, ports.target, "")]
        return [
            relay(ports.tunnel, ports.target, "listen"),
            relay(ports.visit, ports.tunnel, "dial"),
        ]

    name = SPLICE if splice else YARDSTICK
    return Peer(name=name, form=form, commands=commands, udp=form is not Form.ENCRYPTED)


def rathole(form: Form, program: str) -> Peer:
    """rathole, encrypted by Noise."""

    def transport(side: str) -> str:
        if form is Form.PLAIN:
            return ""
        return (
            f'[{side}.transport]\ntype = "noise"\n[{side}.transport.noise]\n'
            # A key of the server's is not needed: what is measured is the cipher.
            'pattern = "Noise_NN_25519_ChaChaPoly_BLAKE2s"\n'
        )

    def commands(directory: Path, ports: Ports) -> list[list[str]]:
        def services(side: str, name: str, port: int) -> str:
            return "".join(
                f'[{side}.services.{kind}]\ntype = "{kind}"\n{name} = "127.0.0.1:{port}"\n'
                for kind in ("tcp", "udp")
            )

        head = f'default_token = "{KEY}"\n'
        server = directory / "rathole-server.toml"
        server.write_text(
            f'[server]\nbind_addr = "127.0.0.1:{ports.tunnel}"\n{head}'
            f"{transport('server')}{services('server', 'bind_addr', ports.visit)}"
        )
        client = directory / "rathole-client.toml"
        client.write_text(
            f'[client]\nremote_addr = "127.0.0.1:{ports.tunnel}"\n{head}'
            f"{transport('client')}{services('client', 'local_addr', ports.target)}"
        )
        return [[program, "--server", str(server)], [program, "--client", str(client)]]

    return Peer(name=REFERENCE, form=form, commands=commands)


def frp(form: Form, server_program: str, client_program: str) -> Peer:
    """frp, with or without TLS between its ends."""

    def commands(directory: Path, ports: Ports) -> list[list[str]]:
        server = directory / "frps.toml"
        server.write_text(
            f'bindAddr = "127.0.0.1"\nbindPort = {ports.tunnel}\nproxyBindAddr = "127.0.0.1"\n'
            f'auth.token = "{KEY}"\nlog.level = "warn"\n'
        )
        client = directory / "frpc.toml"
        tls = str(form is Form.ENCRYPTED).lower()
        client.write_text(
            f'serverAddr = "127.0.0.1"\nserverPort = {ports.tunnel}\nauth.token = "{KEY}"\n'
            f'transport.tls.enable = {tls}\nlog.level = "warn"\n'
            + "".join(
                f'[[proxies]]\nname = "{kind}"\ntype = "{kind}"\nlocalIP = "127.0.0.1"\n'
                f"localPort = {ports.target}\nremotePort = {ports.visit}\n"
                for kind in ("tcp", "udp")
            )
        )
        return [[server_program, "-c", str(server)], [client_program, "-c", str(client)]]

    return Peer(name="frp", form=form, commands=commands)


def chisel(form: Form, program: str) -> Peer:
    """chisel, which is always encrypted, by SSH."""

    def commands(directory: Path, ports: Ports) -> list[list[str]]:
        remote = f"R:127.0.0.1:{ports.visit}:127.0.0.1:{ports.target}"
        return [
            [program, "server", "--host", "127.0.0.1", "--port", str(ports.tunnel), "--reverse",
             "--auth", f"bench:{KEY}"],
            [program, "client", "--auth", f"bench:{KEY}", f"http://127.0.0.1:{ports.tunnel}",
             remote, f"{remote}/udp"],
        ]  # fmt: skip

    return Peer(name="chisel", form=form, commands=commands)


def go_nodepass(form: Form, program: str) -> Peer:
    """NodePass in Go; its options are those that ours have in common with it."""
    tls = int(form is Form.ENCRYPTED)

    def commands(directory: Path, ports: Ports) -> list[list[str]]:
        tunnel = f"{KEY}@127.0.0.1:{ports.tunnel}"
        return [
            [program, f"server://{tunnel}/127.0.0.1:{ports.visit}?log=error&tls={tls}&mode=1"],
            [program, f"client://{tunnel}/127.0.0.1:{ports.target}?log=error&mode=2"],
        ]

    return Peer(name="nodepass-go", form=form, commands=commands)


def find(
    form: Form, relay: str, workers: Iterable[int], environ: Mapping[str, str]
) -> tuple[list[Peer], list[str]]:
    """Everything that can carry visitors in this form here.

    :param relay: the yardstick's program.
    :param workers: numbers of processes that each end of ours is run in, beside one.
    :returns: peers, ours first, and the names of those that are not there.
    """
    peers = [nodepass(form), *(nodepass(form, number) for number in workers)]
    missing: list[str] = []
    peers.append(yardstick(form, relay))
    if form is not Form.ENCRYPTED:
        peers.append(yardstick(form, relay, splice=True))
    if form is Form.SINGLE:
        return peers, missing
    if program := shutil.which("rathole"):
        peers.append(rathole(form, program))
    else:
        missing.append(REFERENCE)
    if (server := shutil.which("frps")) and (client := shutil.which("frpc")):
        peers.append(frp(form, server, client))
    else:
        missing.append("frp")
    if form is Form.ENCRYPTED:
        if program := shutil.which("chisel"):
            peers.append(chisel(form, program))
        else:
            missing.append("chisel")
    if program := next(_go_nodepasses(environ), None):
        peers.append(go_nodepass(form, program))
    else:
        missing.append("nodepass-go")
    return peers, missing


def _go_nodepasses(environ: Mapping[str, str]) -> Iterator[str]:
    """NodePass in Go, by a variable, by a name of its own, or as a ``nodepass`` that is no script
    as ours is."""
    if given := environ.get("NODEPASS_GO"):
        yield given
    if named := shutil.which("nodepass-go"):
        yield named
    for directory in environ.get("PATH", "").split(os.pathsep):
        program = shutil.which("nodepass", path=directory)
        if program and Path(program).read_bytes()[:2] != b"#!":
            yield program
