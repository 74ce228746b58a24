"""Workers of a master: who gets an instance, and what becomes of it when a worker fails."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred

from nodepass.errors import FatalError
from nodepass.master import supervisor as supervisor_module
from nodepass.master import workerprocess
from nodepass.master.places import EARLY_END
from nodepass.wire.parting import PARTING_TIMEOUT
from tests.workers import MIB, Bench, FakeTenant

Make = Callable[..., Bench]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a supervisor with fake processes."""
    return lambda workers=2: Bench(monkeypatch, workers)


def test_instances_spread_over_workers(make: Make) -> None:
    """Each goes to the worker with the fewest, and its status and checkpoint come back."""
    bench = make().start()
    for name in "abcd":
        bench.supervisor.host(name, name, name)
    bench.reactor.settle(0.5)
    assert sorted(map(sorted, bench.runs())) == [["a", "c"], ["b", "d"]]
    assert sorted(bench.tenants.statuses) == [(n, i, None) for i, n in enumerate("abcd", 1)]
    assert {run: stats.tcp_rx for run, stats in bench.tenants.stats.items()} == {
        1: 1, 2: 2, 3: 3, 4: 4,
    }  # fmt: skip
    bench.stop()
    assert sorted(bench.tenants.over) == [1, 2, 3, 4]


def test_an_instance_waits_for_a_worker(make: Make) -> None:
    """What is hosted before a worker is up starts when it is; what is released first never does."""
    bench = make()
    bench.supervisor.start()
    bench.supervisor.host("a", "a", "a")
    bench.supervisor.host("b", "b", "b")
    assert bench.supervisor.release("b").called
    assert bench.tenants.over == [2]
    bench.reactor.settle(0.1)
    assert bench.tenants.statuses == [("a", 1, None)]
    bench.stop()


def test_hosting_as_soon_as_a_worker_is_up(make: Make) -> None:
    """What is hosted at that very moment is started once."""
    bench = make()
    started = bench.supervisor.start()
    started.addCallback(lambda _: bench.supervisor.host("a", "a", "a"))
    bench.reactor.settle(0.1)
    assert bench.tenants.statuses == [("a", 1, None)]
    bench.stop()


def test_trouble_is_told(make: Make) -> None:
    """The reason comes with the status."""
    bench = make().start()
    bench.supervisor.host("a", "trouble", "a")
    bench.reactor.settle()
    assert bench.tenants.statuses == [("a", 1, "no luck")]
    bench.stop()


def test_release_comes_before_the_end(make: Make) -> None:
    """The ports are free at once; the sessions' end is told when it is there, with a checkpoint."""
    bench = make().start()
    run = bench.supervisor.host("a", "drain", "a")
    bench.reactor.settle(0.5)
    released = bench.supervisor.release("a")
    again = bench.supervisor.host("a", "next", "a")
    bench.reactor.settle()
    assert released.called and again != run
    assert bench.tenants.over == []
    (tenant,) = [t for p in bench.reactor.living for t in p.tenants.values() if t.run == run]
    tenant.end()
    bench.reactor.settle()
    assert bench.tenants.over == [run]
    assert bench.supervisor.release("unknown").called
    bench.stop()


def test_a_worker_that_hangs_holds_up_no_release(make: Make) -> None:
    """Whoever ends an instance has an answer within a second, its ports closed by the end of the
    worker; the other instance goes on, and one line tells of it."""
    bench = make(1).start()
    for name in "ab":
        bench.supervisor.host(name, name, name)
    bench.reactor.settle(10)
    (victim,) = bench.reactor.living
    victim.stuck = True
    released = bench.supervisor.release("a")
    bench.reactor.settle(supervisor_module.RELEASE_PATIENCE - 0.1)
    assert victim.alive and not released.called
    bench.reactor.settle(0.15)
    assert not victim.alive and released.called
    bench.reactor.settle(1)
    assert bench.runs() == [["b"]] and bench.tenants.moves == [("b", 2, 3)]
    (line,) = bench.log.lines
    assert "it did not answer for 0." in line
    bench.stop()


def test_a_busy_worker_may_take_longer_to_release(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers heartbeats, or has no CPU, ends no sessions of others for it."""
    bench = make(1).start()
    bench.supervisor.host("a", "a", "a")
    bench.reactor.settle(10)
    closed: Deferred[None] = Deferred()
    monkeypatch.setattr(FakeTenant, "release", lambda tenant: closed)
    released = bench.supervisor.release("a")
    bench.reactor.settle(3)
    assert len(bench.reactor.processes) == 1 and not released.called
    closed.callback(None)
    bench.reactor.settle(0.1)
    assert released.called
    monkeypatch.undo()
    bench = make(1).start()
    bench.supervisor.host("a", "a", "a")
    bench.reactor.settle(10)
    monkeypatch.setattr(workerprocess, "starvation", lambda pid: bench.reactor.seconds())
    (victim,) = bench.reactor.living
    victim.stuck = True
    released = bench.supervisor.release("a")
    bench.reactor.settle(3)
    assert victim.alive and not released.called
    victim.stuck = False
    bench.reactor.settle(0.1)
    assert released.called and victim.alive
    bench.stop()


def test_a_worker_that_dies_is_replaced(make: Make) -> None:
    """At once; its instances run again there, the other worker's notice nothing."""
    bench = make().start()
    for name in "abc":
        bench.supervisor.host(name, name, name)
    bench.reactor.settle(10)
    victim = next(p for p in bench.reactor.living if len(p.tenants) == 2)
    victim.die(9)
    assert sorted(bench.tenants.moves) == [("a", 1, 4), ("c", 3, 5)]
    assert sorted(bench.tenants.over) == [1, 3]
    bench.reactor.settle(0.1)
    assert sorted(map(sorted, bench.runs())) == [["a", "c"], ["b"]]
    (line,) = bench.log.lines
    assert "ERROR worker" in line and "(signal 9): its instances, 2, start again in 0 s" in line
    bench.stop()


def test_what_drains_in_a_worker_that_dies_is_over(make: Make) -> None:
    """It is not started again, and whoever waits for its ports hears of it."""
    bench = make(1).start()
    bench.supervisor.host("a", "drain", "a")
    bench.reactor.settle()
    process = bench.reactor.living[0]
    process.stuck = True
    released = bench.supervisor.release("a")
    bench.reactor.settle()
    assert not released.called
    process.die(9)
    assert released.called and bench.tenants.over == [1] and bench.tenants.moves == []
    bench.reactor.settle()
    bench.stop()


def test_a_worker_that_hangs_is_replaced(make: Make) -> None:
    """Soon enough for its instances to serve again within two seconds."""
    bench = make().start()
    bench.supervisor.host("a", "a", "a")
    bench.reactor.settle(10)
    victim = next(p for p in bench.reactor.living if p.tenants)
    victim.stuck = True
    bench.reactor.settle(1.6)
    assert not victim.alive
    assert bench.tenants.moves == [("a", 1, 2)] and ("a", 2, None) in bench.tenants.statuses
    assert "it did not answer for" in bench.log.lines[0]
    bench.stop()


def test_a_master_that_was_held_up_blames_no_worker(make: Make) -> None:
    """After a pause of its own, such as a sleep of the machine, answers may still be unread."""
    bench = make().start()
    bench.reactor.settle(10)
    bench.reactor.advance(60)
    bench.reactor.settle(5)
    assert len(bench.reactor.processes) == 2 and bench.log.lines == []
    bench.stop()


def test_a_worker_without_a_cpu_gets_more_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it waits for a CPU does not count as silence, within bounds."""
    bench = make(1).start()
    monkeypatch.setattr(workerprocess, "starvation", lambda pid: bench.reactor.seconds())
    bench.reactor.settle(1)
    (victim,) = bench.reactor.living
    victim.stuck = True
    bench.reactor.settle(workerprocess.STARVED_TIMEOUT - 1)
    assert victim.alive
    bench.reactor.settle(2)
    assert not victim.alive
    bench.stop()


def test_a_worker_that_ends_again_and_again(make: Make) -> None:
    """It is replaced after growing pauses, its instances have trouble meanwhile, others have not;
    one that has lasted is replaced at once again."""
    bench = make().start()
    bench.supervisor.host("a", "a", "a")
    bench.supervisor.host("b", "b", "b")
    bench.reactor.settle()
    pauses = []
    for _ in range(5):
        victim = next(p for p in bench.reactor.living if "a" in [t.url for t in p.tenants.values()])
        victim.die(11)
        ended = bench.reactor.seconds()
        while len(bench.reactor.living) < 2:
            bench.reactor.settle(0.05)
        pauses.append(round(bench.reactor.seconds() - ended, 1))
        bench.reactor.settle(0.05)
    assert pauses == sorted(pauses) and pauses[0] <= 0.1 and pauses[-1] >= 4
    troubles = [text for id, _, text in bench.tenants.statuses if id == "a" and text is not None]
    assert len(troubles) == 4 and "signal 11" in troubles[0]
    assert [entry for entry in bench.tenants.statuses if entry[0] == "b"] == [("b", 2, None)]
    bench.reactor.settle(EARLY_END + 1)
    victim = next(p for p in bench.reactor.living if "a" in [t.url for t in p.tenants.values()])
    victim.die(11)
    bench.reactor.settle(0.1)
    assert len(bench.reactor.living) == 2
    bench.stop()


@pytest.mark.parametrize("how", ["can't be spawned", "dies"])
def test_no_worker_can_be_started(make: Make, how: str) -> None:
    """Where none is ever up the master is told that none will be, and why."""
    bench = make(1)
    bench.reactor.stillborn = True
    if how != "dies":
        bench.reactor.refuses = OSError(errno.ENOMEM, "Cannot allocate memory")
    failed: list[object] = []
    bench.supervisor.start().addErrback(lambda failure: failed.append(failure.value))
    for _ in range(10):
        for process in bench.reactor.living:
            process.die(6)
        bench.reactor.settle(1)
    assert len(failed) == 1 and isinstance(failed[0], FatalError)
    assert ("signal 6" if how == "dies" else "Cannot allocate memory") in str(failed[0])
    bench.stop()


def test_a_worker_that_does_not_start(make: Make) -> None:
    """It is given up in the end."""
    bench = make(2)
    bench.supervisor.start()
    bench.reactor.processes[0].stuck = True
    bench.reactor.settle(workerprocess.START_TIMEOUT + 1)
    assert not bench.reactor.processes[0].alive and len(bench.reactor.living) == 2
    bench.stop()


def test_a_worker_that_grew_is_drained(make: Make) -> None:
    """Its instances move one after another, then it ends; one worker at a time; one line."""
    bench = make(1).start()
    for name in "abc":
        bench.supervisor.host(name, name + " drain", name)
    bench.reactor.settle(supervisor_module.DRAINING_AGE)
    (old,) = bench.reactor.living
    bench.memory = 200 * MIB
    bench.reactor.settle(supervisor_module.MEMORY_INTERVAL + 1)
    bench.memory = 10 * MIB
    bench.reactor.settle(1)
    assert len(bench.reactor.living) == 2
    assert bench.tenants.moves == [("a", 1, 4), ("b", 2, 5), ("c", 3, 6)]
    assert bench.tenants.over == []
    for tenant in list(old.tenants.values()):
        tenant.end()
    bench.reactor.settle(1)
    assert not old.alive and sorted(bench.tenants.over) == [1, 2, 3]
    assert bench.runs() == [["a drain", "b drain", "c drain"]]
    (line,) = bench.log.lines
    assert "takes 200 MiB, above NP_WORKER_MEMORY=100" in line
    bench.stop()


def test_a_worker_dies_while_it_is_drained(make: Make) -> None:
    """Its instances go on where they were to go; what drained is over; nothing runs twice."""
    bench = make(1).start()
    for name in "ab":
        bench.supervisor.host(name, name + " drain", name)
    bench.reactor.settle(supervisor_module.DRAINING_AGE)
    (old,) = bench.reactor.living
    bench.memory = 200 * MIB
    while len(bench.reactor.processes) == 1:
        bench.reactor.settle(0.05)
    bench.memory = 10 * MIB
    old.die(9)
    bench.reactor.settle(1)
    assert bench.runs() == [["a drain", "b drain"]]
    assert sorted(bench.tenants.over) == [1, 2]
    assert len(bench.reactor.processes) == 2
    bench.stop()


def test_what_is_released_while_its_worker_is_drained(make: Make) -> None:
    """It does not come back elsewhere."""
    bench = make(1).start()
    bench.supervisor.host("a", "drain", "a")
    bench.reactor.settle(supervisor_module.DRAINING_AGE)
    bench.memory = 200 * MIB
    while len(bench.reactor.processes) == 1:
        bench.reactor.settle(0.05)
    bench.memory = 10 * MIB
    bench.supervisor.release("a")
    for process in bench.reactor.living:
        for tenant in list(process.tenants.values()):
            tenant.end()
    bench.reactor.settle(1)
    assert bench.runs() == [[]] and bench.tenants.over[0] == 1
    bench.stop()


def test_stopping_gives_sessions_their_time(make: Make) -> None:
    """Workers end when all have drained; one that does not end in time, with that of taking leave
    on top, is killed, and that is said."""
    bench = make().start()
    bench.supervisor.host("a", "drain", "a")
    bench.supervisor.host("b", "drain", "b")
    bench.reactor.settle()
    draining, stuck = bench.reactor.living
    stopped: Deferred[None] = bench.supervisor.stop()
    bench.reactor.settle(2)
    assert len(bench.reactor.living) == 2
    for tenant in list(draining.tenants.values()):
        tenant.end()
    bench.reactor.settle(0.1)
    assert bench.reactor.living == [stuck] and not stopped.called
    bench.reactor.settle(5 + PARTING_TIMEOUT - 2.1)
    assert bench.reactor.living == [stuck] and bench.log.lines == []
    bench.reactor.settle(2)
    (line,) = bench.log.lines
    assert f"worker {stuck.pid} did not stop within 8 s, and is killed" in line
    assert stopped.called and len(bench.tenants.over) == 2
    assert not bench.reactor.getDelayedCalls()
    assert bench.supervisor.stop().called


def test_stopping_while_workers_start_or_are_awaited(make: Make) -> None:
    """Nothing is started any more, and what waited is over."""
    bench = make()
    started = bench.supervisor.start()
    started.addErrback(lambda failure: None)
    bench.supervisor.host("a", "a", "a")
    bench.stop()
    assert bench.tenants.over == [1] and len(bench.reactor.processes) == 2
    late = make(1).start()
    late.supervisor.host("a", "a", "a")
    late.reactor.settle()
    late.reactor.living[0].die(9)
    late.stop()
    assert len(late.reactor.processes) == 1


def test_stray_output_is_logged(make: Make) -> None:
    """What a worker prints, such as the traceback of a crash, reaches the master's log."""
    bench = make(1).start()
    worker = bench.supervisor._workers()[0]
    worker.errReceived(b"Fatal Python error: \x1bno")
    worker.errReceived(b"thing\nrest" + b"x" * 5000)
    for _ in range(workerprocess.MOST_STRAY + 10):
        worker.errReceived(b"\nmore\n")
    assert bench.log.lines[0].endswith("wrote: Fatal Python error: \\x1bnothing")
    assert len(bench.log.lines) <= workerprocess.MOST_STRAY
    bench.stop()


def test_reload_reaches_all(make: Make) -> None:
    """Every instance of every worker reads its files again."""
    bench = make().start()
    for name in "ab":
        bench.supervisor.host(name, name, name)
    bench.reactor.settle()
    bench.supervisor.reload()
    bench.reactor.settle()
    assert [t.reloads for p in bench.reactor.living for t in p.tenants.values()] == [1, 1]
    bench.stop()
