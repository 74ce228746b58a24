"""Worker processes that are real: instances in them carry traffic, and survive their worker."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from nodepass.address import Endpoint
from nodepass.master import supervisor as supervisor_module
from nodepass.master.settings import MasterSettings
from nodepass.master.supervisor import Supervisor
from nodepass.tuning import Tuning
from tests.ports import HERE, free_port
from tests.scenarios.harness import KEY, Node, sleep, until
from tests.scenarios.programs import Conn, connect, data_of, echo, listen
from tests.workers import MIB, Noted, Said

#: Seconds within which the instances of a lost worker serve again: two are promised, a machine that
#: runs other tests as well may take longer.
SOON = 2.0 * float(os.environ.get("NP_TEST_SLOWNESS", "2"))

QUICK = Tuning(report_interval=0.5, service_cooldown=0.3, shutdown_timeout=1.0)


class Master:
    """A supervisor on real workers."""

    def __init__(self, workers: int = 2, memory: int = 1 << 40) -> None:
        self.tenants = Noted()
        self.log = Said()
        self.supervisor = Supervisor(
            reactor,
            self.tenants,
            self.log,
            MasterSettings(state=None, workers=workers, worker_memory=memory),  # type: ignore[arg-type]
            QUICK,
            os.environ,
        )

    def host(self, id: str, url: str) -> int:
        """Start an instance."""
        return self.supervisor.host(id, url, id)

    def status(self, id: str) -> str | None:
        """What was heard last of its run; "silent" before that."""
        run = self.supervisor._current[id].number
        told = [trouble for _, number, trouble in self.tenants.statuses if number == run]
        return told[-1] if told else "silent"

    async def up(self, *ids: str) -> None:
        """Wait until instances are up."""
        await until(lambda: all(self.status(id) is None for id in ids), what="running")

    def pid_of(self, id: str) -> int:
        """The process that runs an instance."""
        worker = self.supervisor._current[id].worker
        assert worker is not None
        return worker.pid


async def with_master(act: Callable[[Master], Awaitable[None]], **settings: Any) -> None:
    """Run a scenario, and find no process left."""
    master = Master(**settings)
    await master.supervisor.start()
    try:
        await act(master)
    finally:
        pids = [worker.pid for worker in master.supervisor._workers()]
        await master.supervisor.stop()
    assert not any(map(alive, pids)), "workers are left"


def alive(pid: int) -> bool:
    """Whether there is such a process, other than as a record for its parent."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def forward(port: int, target: Endpoint, more: str = "") -> str:
    """The URL of a plain forwarder."""
    return f"client://{HERE}:{port}/{target}?mode=1&{more}"


async def ask(port: int, data: bytes = b"question") -> bytes:
    """Send bytes to a port of ours, and read as many."""
    visitor = await connect(Endpoint(HERE, port))
    try:
        visitor.write(data)
        return await visitor.read(len(data))
    finally:
        visitor.reset()


async def serves(port: int) -> bool:
    """Whether a port echoes."""
    try:
        return await ask(port) == b"question"
    except Exception:
        return False


async def serves_again(port: int, began: float) -> float:
    """Wait until a port echoes; the seconds since."""
    while not await serves(port):
        assert reactor.seconds() - began < 10 * SOON, "it does not serve again"
        await sleep(0.02)
    return reactor.seconds() - began


@pytest_twisted.ensureDeferred
async def test_instances_in_two_workers_carry_traffic() -> None:
    """A server in one, a client in the other; counters and lines come back, without the key; what
    is released frees its port at once."""
    target = listen(echo)
    tunnel, visitors = free_port(), free_port()

    async def act(master: Master) -> None:
        run = master.host("s", f"server://{KEY}@{HERE}:{tunnel}/{HERE}:{visitors}?mode=1&log=debug")
        master.host("c", f"client://{KEY}@{HERE}:{tunnel}/{target.endpoint}?mode=2&log=debug")
        await master.up("s", "c")
        assert master.pid_of("s") != master.pid_of("c")
        data = data_of(1, 100_000)
        await until(lambda: master.tenants.stats.get(run) and master.tenants.stats[run].pool)
        assert await ask(visitors, data) == data
        await until(lambda: master.tenants.stats[run].tcp_rx == len(data), what="counting")
        assert master.tenants.stats[run].tcp_tx == len(data)
        lines = [line.text for _, _, line in master.tenants.lines]
        assert any("tunnel established" in text for text in lines)
        assert not any(KEY in text or "CHECK_POINT" in text for text in lines)
        for worker in master.supervisor._workers():
            with open(f"/proc/{worker.pid}/cmdline", "rb") as file:
                assert KEY.encode() not in file.read()
        began = reactor.seconds()
        await master.supervisor.release("s")
        assert reactor.seconds() - began < 1
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((HERE, visitors))
            udp.bind((HERE, visitors))
            tcp.listen()

    await with_master(act)
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_trouble_and_its_end() -> None:
    """A port in use is trouble until it is free; a peer that is not there, too, whatever log says;
    a certificate that is missing likewise."""
    port = free_port()

    async def act(master: Master) -> None:
        target = Endpoint(HERE, 9)
        with socket.socket() as taken:
            taken.bind((HERE, port))
            taken.listen()
            master.host("a", forward(port, target, "log=none"))
            master.host("b", f"client://{KEY}@{HERE}:{free_port()}/{target}?mode=2&log=none")
            master.host(
                "d",
                f"server://{HERE}:{free_port()}/{HERE}:{free_port()}"
                "?mode=1&tls=2&crt=/no/where.pem&key=/no/where.key",
            )
            await until(lambda: "in use" in str(master.status("a")))
            await until(lambda: "can't join the server" in str(master.status("b")))
            await until(lambda: "/no/where" in str(master.status("d")))
        await master.up("a")
        assert len([line for id, _, line in master.tenants.lines if id == "d"]) <= 2

    await with_master(act)


@pytest_twisted.ensureDeferred
async def test_a_successor_binds_at_once_while_sessions_drain() -> None:
    """A new run takes the same ports, in whichever worker, before the old one's session is over."""
    target = listen(echo)
    port = free_port()

    async def act(master: Master) -> None:
        old = master.host("a", forward(port, target.endpoint))
        await master.up("a")
        visitor = await connect(Endpoint(HERE, port))
        visitor.write(b"1")
        assert await visitor.read(1) == b"1"
        master.tenants.statuses.clear()
        await master.supervisor.release("a")
        master.host("a", forward(port, target.endpoint))
        await master.up("a")
        assert await ask(port) == b"question"
        visitor.write(b"2")
        assert await visitor.read(1) == b"2"
        visitor.finish()
        await until(lambda: old in master.tenants.over, what="the end of the first run")
        assert master.tenants.stats[old].tcp_rx == 2
        assert [text for text in map(str, master.tenants.statuses) if "in use" in text] == []

    await with_master(act)
    await target.stop()


async def lose_a_worker(number: int) -> None:
    """End one of two workers, and watch both its instances and the other's."""
    target = listen(echo)
    ports = [free_port() for _ in "abcd"]

    async def act(master: Master) -> None:
        for id, port in zip("abcd", ports, strict=True):
            master.host(id, forward(port, target.endpoint))
        await master.up(*"abcd")
        victim = master.pid_of("a")
        lost = [id for id in "abcd" if master.pid_of(id) == victim]
        kept = [id for id in "abcd" if id not in lost]
        assert len(lost) == len(kept) == 2
        visitors = [await connect(Endpoint(HERE, ports["abcd".index(id)])) for id in kept]
        flood = [Questions(visitor) for visitor in visitors]
        await sleep(0.2)
        os.kill(victim, number)
        began = reactor.seconds()
        for id in lost:
            assert await serves_again(ports["abcd".index(id)], began) < SOON
        assert not alive(victim)
        for visitor, one in zip(visitors, flood, strict=True):
            one.stop()
            await one.done
            visitor.reset()
        assert {id for id, _, _ in master.tenants.moves} == set(lost)
        assert len(master.log.lines) == 1 and f"worker {victim} ended" in master.log.lines[0]

    await with_master(act)
    await target.stop()


class Questions:
    """Questions over a connection, one after another; each must be answered."""

    def __init__(self, visitor: Conn) -> None:
        self._going = True
        self._visitor = visitor
        self.answers = 0
        self.done = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        while self._going or not self.answers:
            data = data_of(self.answers, 20_000)
            await self._visitor.send(data)
            assert await self._visitor.read(len(data)) == data
            self.answers += 1

    def stop(self) -> None:
        """Ask no more."""
        self._going = False


@pytest_twisted.ensureDeferred
async def test_a_worker_is_killed_under_traffic() -> None:
    """kill -9: its instances serve again soon, the other's sessions lose nothing."""
    await lose_a_worker(signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_a_worker_is_stopped_under_traffic() -> None:
    """SIGSTOP: likewise."""
    await lose_a_worker(signal.SIGSTOP)


@pytest_twisted.ensureDeferred
async def test_signals_of_the_terminal_leave_workers_alone() -> None:
    """Ctrl-C, hang-up and SIGTERM are the master's affair."""
    target = listen(echo)
    port = free_port()

    async def act(master: Master) -> None:
        master.host("a", forward(port, target.endpoint))
        await master.up("a")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(master.pid_of("a"), number)
        await sleep(0.2)
        assert await ask(port) == b"question" and master.log.lines == []

    await with_master(act, workers=1)
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_worker_that_grew_is_drained() -> None:
    """Its instances move, their ports go on to serve, and it ends once its sessions have."""
    before = supervisor_module.MEMORY_INTERVAL, supervisor_module.DRAINING_AGE
    supervisor_module.MEMORY_INTERVAL, supervisor_module.DRAINING_AGE = 0.1, 1.0
    target = listen(echo)
    ports = [free_port() for _ in "abc"]

    async def act(master: Master) -> None:
        for id, port in zip("abc", ports, strict=True):
            master.host(id, forward(port, target.endpoint))
        await master.up(*"abc")
        old = master.pid_of("a")
        visitor = await connect(Endpoint(HERE, ports[0]))
        visitor.write(b"1")
        assert await visitor.read(1) == b"1"
        await until(lambda: len(master.tenants.moves) == 3, what="the move")
        supervisor_module.DRAINING_AGE = 1000.0
        visitor.write(b"2")
        assert await visitor.read(1) == b"2"
        visitor.finish()
        await until(lambda: not alive(old), what="the end of the old worker")
        await master.up(*"abc")
        assert [await ask(port) for port in ports] == [b"question"] * 3
        assert len(master.log.lines) == 1 and "NP_WORKER_MEMORY=1:" in master.log.lines[0]

    try:
        await with_master(act, workers=1, memory=MIB)
    finally:
        supervisor_module.MEMORY_INTERVAL, supervisor_module.DRAINING_AGE = before
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_fifty_instances_start_quickly() -> None:
    """Side by side in two workers, which go on answering heartbeats meanwhile."""

    async def act(master: Master) -> None:
        began = reactor.seconds()
        ids = [f"i{number}" for number in range(50)]
        for id in ids:
            master.host(id, f"server://{HERE}:0/{HERE}:0?mode=1&log=none")
        await master.up(*ids)
        assert reactor.seconds() - began < 5 * SOON / 4
        assert not master.tenants.moves

    await with_master(act)


_PARENT = """
import os, sys
if sys.argv[1] == "forks":
    from nodepass.master.forker import prepare
    prepare()
    assert "twisted.internet.reactor" not in sys.modules
from twisted.internet import reactor
from nodepass.logs import Level, Log
from nodepass.master.settings import MasterSettings
from nodepass.master.supervisor import Supervisor
from nodepass.tuning import Tuning

class Tenants:
    def status(self, id, run, trouble):
        print("up", run, *(worker.pid for worker in supervisor._workers()), flush=True)
    def counted(self, reports): pass
    def ended(self, id, run): pass
    def logged(self, id, run, line): pass
    def moved(self, id, run, new): pass

class Said(Log):
    def _emit(self, level, format, fields):
        print("said", format.format(**fields), flush=True)

settings = MasterSettings(state=None, workers=2, worker_memory=1 << 40)
supervisor = Supervisor(reactor, Tenants(), Said(Level.NONE), settings, Tuning(), os.environ)
supervisor.start().addCallback(lambda _: supervisor.host("a", sys.argv[2], "a"))
reactor.addSystemEventTrigger("before", "shutdown", supervisor.stop)
reactor.run()
"""


class Parent(Node):
    """A program with a supervisor, which hosts one instance."""

    async def up(self, run: int = 1) -> list[int]:
        """Wait until the instance is up for the nth time; its workers."""
        return [int(text) for text in (await self.line(f"^up {run} (.*)"))[1].split()]


def parent(how: str, url: str) -> Parent:
    """Start one that "forks" or "spawns" its workers."""
    protocol = Parent()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    reactor.spawnProcess(
        protocol,
        sys.executable,
        [sys.executable, "-c", _PARENT, how, url],
        env={**os.environ, "PYTHONPATH": root},
    )
    return protocol


def children(pid: int) -> list[int]:
    """The processes that a process has made."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(text) for text in file.read().split()]


@pytest.mark.parametrize("how", ["forks", "spawns"])
@pytest_twisted.ensureDeferred
async def test_a_killed_master_leaves_nothing(how: str) -> None:
    """kill -9 of the master: all that it has started ends at once, listeners with it."""
    target = listen(echo)
    port = free_port()
    master = parent(how, forward(port, target.endpoint))
    pids = await master.up()
    offspring = {*pids, *children(master.pid)}
    assert len(offspring) == (3 if how == "forks" else 2) and await ask(port) == b"question"
    assert await master.stop(signal.SIGKILL) == -1
    await until(lambda: not any(map(alive, offspring)), timeout=2, what="the workers' end")
    assert not await serves(port)
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_workers_that_are_forked() -> None:
    """One that is killed or stopped is replaced soon; its end is told as it was; they end with
    their master."""
    target = listen(echo)
    port = free_port()
    master = parent("forks", forward(port, target.endpoint))
    for run, number in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
        pids = await master.up(run)
        (forker,) = children(master.pid)
        assert sorted(children(forker)) == sorted(pids)
        os.kill(pids[0], number)
        took = await serves_again(port, reactor.seconds())
        assert took < SOON
        await master.up(run + 1)
        assert not os.path.exists(f"/proc/{pids[0]}")
    ends = [line for line in master.lines if line.startswith("said worker")]
    assert "(signal 9)" in ends[0] and "(it did not answer" in ends[1] and len(ends) == 2
    pids = [forker, *children(forker)]
    assert await master.stop() == 0
    await until(lambda: not any(map(alive, pids)), timeout=2, what="the workers' end")
    await target.stop()


@pytest_twisted.ensureDeferred
async def test_a_forker_that_is_killed_is_no_zombie() -> None:
    """Its end is noticed at once, and not when a worker is wanted."""
    target = listen(echo)
    port = free_port()
    master = parent("forks", forward(port, target.endpoint))
    await master.up()
    (forker,) = children(master.pid)
    os.kill(forker, signal.SIGKILL)
    await until(lambda: not os.path.exists(f"/proc/{forker}"), timeout=5, what="its burial")
    assert await ask(port) == b"question"
    assert await master.stop() == 0
    await target.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest_twisted.ensureDeferred
async def test_a_forker_that_is_lost(number: int) -> None:
    """Its workers go on, and others are started without it."""
    target = listen(echo)
    port = free_port()
    master = parent("forks", forward(port, target.endpoint))
    pids = await master.up()
    (forker,) = children(master.pid)
    os.kill(forker, number)
    assert await ask(port) == b"question"
    os.kill(pids[0], signal.SIGKILL)
    assert await serves_again(port, reactor.seconds()) < 2 * SOON
    fresh = await master.up(2)
    assert await master.stop() == 0
    pids = [forker, *pids, *fresh]
    await until(lambda: not any(map(alive, pids)), timeout=2, what="the workers' end")
    await target.stop()
