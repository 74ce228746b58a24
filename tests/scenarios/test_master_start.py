"""Masters that can't start say so, and end all the same."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from nodepass.config import MasterConfig, parse_url
from nodepass.errors import ConfigError, FatalError
from nodepass.master import master as master_module
from nodepass.master import workerprocess
from nodepass.master.service import MasterService
from nodepass.master.settings import MasterSettings
from tests.scenarios.harness import QUICK, sleep, until
from tests.scenarios.masters import master


async def refused(state: Path) -> tuple[Exception, MasterService]:
    """Start a master that fails, and stop it, which takes no more than two seconds."""
    service = quick_master(state)
    service.startService()
    error = await service.whenFailed()
    with pytest.raises(type(error)):
        await service.whenReady()
    await stopped(service)
    return error, service


def quick_master(state: Path) -> MasterService:
    """A master that has not started."""
    config = parse_url("master://127.0.0.1:0?log=none")
    assert isinstance(config, MasterConfig)
    settings = MasterSettings(state=state, workers=1, worker_memory=1 << 30)
    return MasterService(config, settings=settings, tuning=QUICK)


async def stopped(service: MasterService, seconds: float = 2.0) -> None:
    """Stop a master, which takes no longer than that."""
    stopping = service.stopService()
    assert isinstance(stopping, Deferred)
    await until(lambda: stopping.called, seconds, "the end")
    await stopping


@pytest_twisted.ensureDeferred
async def test_a_second_master_of_one_state(tmp_path: Path) -> None:
    """It is told by the variable's name, and leaves the first one alone."""
    running = await master(tmp_path)
    error, second = await refused(tmp_path / "nodepass.db")
    assert isinstance(error, ConfigError)
    assert "NP_STATE" in str(error) and "another master" in str(error)
    assert second.address is None
    assert (await running.api.call("GET", "/instances")).status == 200
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_state_that_cannot_be_used(tmp_path: Path) -> None:
    """A directory in the file's place can't be mended by trying again, and is left as it is."""
    (tmp_path / "nodepass.db").mkdir()
    error, _ = await refused(tmp_path / "nodepass.db")
    assert isinstance(error, FatalError)
    assert "nodepass.db" in str(error)
    assert (tmp_path / "nodepass.db").is_dir()


@pytest.mark.parametrize("wait", [0.0, 0.5])
@pytest_twisted.ensureDeferred
async def test_stopped_while_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    """A worker that hangs at its start, or has not been started yet, does not hold up the end, and
    the master can be started again."""
    monkeypatch.setattr(workerprocess, "_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(workerprocess, "prepared", lambda: None)
    service = quick_master(tmp_path / "nodepass.db")
    service.startService()
    failed = service.whenFailed()
    ready = service.whenReady()
    await sleep(wait)
    await stopped(service)
    with pytest.raises(CancelledError):
        await ready
    assert not failed.called
    monkeypatch.undo()
    again = await master(tmp_path)
    await again.stop()


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master ends all the same, some time later."""
    monkeypatch.setattr(master_module, "CLOSE_TIMEOUT", 0.5)
    running = await master(tmp_path)
    parts = running.service._master
    assert parts is not None
    answers = threading.Event()
    hanging = parts.store.run(answers.wait)
    await stopped(running.service)
    assert not hanging.called
    answers.set()
    await hanging
