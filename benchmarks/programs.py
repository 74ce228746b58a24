"""The Go programs beside this file, compiled."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .processes import Failed

HERE = Path(__file__).parent


def build(name: str, directory: Path) -> str:
    """Compile one of them into a directory, and return its path.

    :raises Failed: Go is not there, or doesn't take it.
    """
    go = shutil.which("go")
    if go is None:
        raise Failed("Go is needed, for the yardstick and the load: https://go.dev")
    program = str(directory / name)
    done = subprocess.run([go, "build", "-o", program, f"./{name}"], cwd=HERE, check=False)
    if done.returncode:
        raise Failed(f"{name} can't be compiled with {go}")
    return program
