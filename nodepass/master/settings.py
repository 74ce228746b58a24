"""The environment variables of the master alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from nodepass.errors import ConfigError

__all__ = ["VARIABLES", "MasterSettings", "state_path"]

#: Worker processes unless NP_MASTER_WORKERS says otherwise: one a CPU up to this many. More would
#: cost memory on large machines before the instances need them.
MOST_WORKERS_BY_DEFAULT = 4
#: Above this many processes the master does little but look after them.
MOST_WORKERS = 64
#: Memory of a worker process in MiB, above which it is drained and replaced: what thousands of busy
#: sessions take, several times over.
WORKER_MEMORY = 1024

#: Name, default in words, and meaning of each variable.
VARIABLES = (
    (
        "NP_STATE",
        "nodepass.db in $STATE_DIRECTORY, or in nodepass in $XDG_STATE_HOME",
        "master: the file that holds its state",
    ),
    (
        "NP_MASTER_WORKERS",
        f"the CPUs, {MOST_WORKERS_BY_DEFAULT} at most",
        "master: processes that run the instances",
    ),
    (
        "NP_WORKER_MEMORY",
        str(WORKER_MEMORY),
        "master: MiB of memory above which such a process is drained and replaced",
    ),
)


@frozen(kw_only=True)
class MasterSettings:
    """What the environment says to a master.

    :ivar state: the state file.
    :ivar workers: worker processes.
    :ivar worker_memory: bytes of memory that one may take.
    """

    state: Path
    workers: int
    worker_memory: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> tuple[MasterSettings, tuple[str, ...]]:
        """Read the variables that ``environ`` sets; an empty value counts as absent.

        :returns: The settings, and a line for each value that could not be used.
        """
        warnings: list[str] = []

        def count(name: str, default: int, least: int, most: int) -> int:
            text = environ.get(name, "").strip()
            if not text:
                return default
            if re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most:
                return int(text)
            warnings.append(
                f"{name}={text[:40]}: using {default}; accepted: an integer from {least} to {most}"
            )
            return default

        cpus = min(os.cpu_count() or 1, MOST_WORKERS_BY_DEFAULT)
        settings = cls(
            state=state_path(environ),
            workers=count("NP_MASTER_WORKERS", cpus, 1, MOST_WORKERS),
            worker_memory=count("NP_WORKER_MEMORY", WORKER_MEMORY, 64, 1 << 20) << 20,
        )
        return settings, tuple(warnings)


def state_path(environ: Mapping[str, str]) -> Path:
    """Return where the state file is.

    ``NP_STATE``; else ``nodepass.db`` in systemd's ``$STATE_DIRECTORY``, else in ``nodepass`` in
    ``$XDG_STATE_HOME``, which is ``~/.local/state`` unless set (XDG base directories).

    :raises ConfigError: there is no home directory to put it in.
    """
    if environ.get("NP_STATE"):
        return Path(environ["NP_STATE"])
    if environ.get("STATE_DIRECTORY"):
        # systemd gives several, separated by colons, where a unit asks for several.
        return Path(environ["STATE_DIRECTORY"].partition(":")[0]) / "nodepass.db"
    home = environ.get("XDG_STATE_HOME")
    if home:
        return Path(home) / "nodepass" / "nodepass.db"
    try:
        return Path.home() / ".local" / "state" / "nodepass" / "nodepass.db"
    except RuntimeError:
        raise ConfigError(
            "NP_STATE: not set, and there is no home directory; accepted: the path of a file"
        ) from None
