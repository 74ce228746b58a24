"""The matrix that a run prints at its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.interop.matrix import Matrix
from tests.scenarios.conftest import clean_reactor

__all__ = ["clean_reactor"]

_MATRIX = pytest.StashKey[Matrix]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a matrix: empty, or with what two Go nodes achieved in another run."""
    matrix = config.stash[_MATRIX] = Matrix()
    reference = os.environ.get("NODEPASS_INTEROP_REFERENCE")
    if reference:
        matrix.read_reference(Path(reference))


@pytest.fixture
def matrix(pytestconfig: pytest.Config) -> Matrix:
    """What this run has found out so far."""
    return pytestconfig.stash[_MATRIX]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the matrix, and write it as JSON."""
    matrix = config.stash[_MATRIX]
    if not matrix.outcomes:
        return
    terminalreporter.section("ours together with Go nodes")
    for line in matrix.lines():
        terminalreporter.line(line)
    path = Path(os.environ.get("NODEPASS_INTEROP_JSON", "build/interop.json"))
    matrix.write(path)
    terminalreporter.line(f"written to {path}")
