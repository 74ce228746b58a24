"""The limit of open files."""

from __future__ import annotations

import resource

import pytest

from nodepass import openfiles


class FakeResource:
    """The limits of a system whose hard limit may be a lie."""

    RLIMIT_NOFILE = 7
    RLIM_INFINITY = -1

    def __init__(self, soft: int, hard: int, most: int) -> None:
        self.limits = (soft, hard)
        self.most = most

    def getrlimit(self, _which: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, _which: int, limits: tuple[int, int]) -> None:
        if limits[0] > self.most or limits[0] == self.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "most", "result"),
    [
        (1024, 4096, 4096, 4096),
        (4096, 4096, 4096, 4096),
        (256, -1, 10240, 10240),
        (20000, -1, 10240, 20000),
        (1024, 4096, 512, 1024),
    ],
    ids=["raised", "at the hard limit", "macOS", "above OPEN_MAX", "refused"],
)
def test_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int, result: int
) -> None:
    """The soft limit of open files becomes the most that the system grants, and never less."""
    fake = FakeResource(soft, hard, most)
    monkeypatch.setattr(openfiles, "resource", fake)
    openfiles.raise_open_files()
    assert fake.limits == (result, hard)


def test_open_files_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without limits of this kind is left alone."""
    monkeypatch.setattr(openfiles, "resource", None)
    openfiles.raise_open_files()
    assert openfiles.open_files() is None


def test_the_files_of_this_process() -> None:
    """The bound is the one that the system enforces."""
    assert openfiles.open_files() in (None, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
