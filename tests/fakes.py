"""Doubles of the services that entry points run, for tests that need no tunnel."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from nodepass.errors import NodePassError


class FakeRole(Service):
    """A role that only notes what it was told; it pickles as its configuration alone."""

    def __init__(self, config: object = None) -> None:
        self.config = config
        self.told: list[str] = []
        self.failing: Deferred[NodePassError] = Deferred()
        self.stopping: Deferred[None] | None = None
        self.refuses: Exception | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"config": self.config, "parent": self.parent, "name": self.name}

    def privilegedStartService(self) -> None:
        self.told.append("privileged")
        if self.refuses is not None:
            raise self.refuses

    def startService(self) -> None:
        super().startService()
        self.told.append("start")

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self.told.append("stop")
        return self.stopping

    def reload(self) -> None:
        self.told.append("reload")

    def whenFailed(self) -> Deferred[NodePassError]:
        return self.failing


class FakeReactor:
    """Runs until stopped, which is at once: what an entry point asked of it is noted."""

    def __init__(self) -> None:
        self.triggers: list[tuple[str, str, object]] = []
        self.stopped = 0
        self.ran = False

    def addSystemEventTrigger(self, phase: str, event: str, callable: object) -> None:
        self.triggers.append((phase, event, callable))

    def getDelayedCalls(self) -> list[object]:
        return []

    def callWhenRunning(self, callable: object, *args: object) -> None:
        callable(*args)

    def callFromThread(self, callable: object, *args: object) -> None:
        callable(*args)

    def stop(self) -> None:
        self.stopped += 1

    def run(self) -> None:
        self.ran = True


@pytest.fixture
def fake_roles(monkeypatch: pytest.MonkeyPatch) -> list[FakeRole]:
    """Have ``nodepass.service.makeService`` make FakeRoles, and return them as they are made."""
    made: list[FakeRole] = []

    def make(config: object) -> FakeRole:
        made.append(FakeRole(config))
        return made[-1]

    module = ModuleType("nodepass.service")
    module.makeService = make
    monkeypatch.setitem(sys.modules, "nodepass.service", module)
    return made
