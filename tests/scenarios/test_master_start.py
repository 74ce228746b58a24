"""Masters that can't start say so, and end all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from nodepass.config import MasterConfig, parse_url
from nodepass.errors import ConfigError, FatalError
from nodepass.master.service import MasterService
from nodepass.master.settings import MasterSettings
from tests.scenarios.harness import QUICK, sleep
from tests.scenarios.masters import master


async def refused(state: Path) -> tuple[Exception, MasterService]:
    """Start a master that fails, and stop it, which takes no more than two seconds."""
    config = parse_url("master://127.0.0.1:0?log=none")
    assert isinstance(config, MasterConfig)
    settings = MasterSettings(state=state, workers=1, worker_memory=1 << 30)
    service = MasterService(config, settings=settings, tuning=QUICK)
    service.startService()
    error = await service.whenFailed()
    with pytest.raises(type(error)):
        await service.whenReady()
    stopped = service.stopService()
    assert isinstance(stopped, Deferred)
    for _ in range(20):
        if stopped.called:
            break
        await sleep(0.1)
    assert stopped.called
    return error, service


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
