"""What nodes hold as time goes by, and whether it grows."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from attrs import asdict, frozen

from .processes import Process, tree

#: What a node may hold more of in the last quarter of the time than in the second, by the
#: medians of both: a twentieth, or so much.
SHARE = 0.05
ROOM = {"rss": 4_000_000, "others": 16, "threads": 0}
#: Descriptors beside the pool's that a node may have more of at the end than before any load, when
#: nothing is under way either time.
AT_REST = 4

_PROC = Path("/proc")


@frozen(kw_only=True)
class Held:
    """What a node holds at a time, with the processes that it has started.

    :ivar at: seconds since the epoch.
    :ivar pss, rss: bytes of memory: its share of what is resident, which changes with who else runs
        on the machine, and all of it.
    :ivar cpu: seconds that it has taken so far.
    :ivar pool, sessions, flows: what it says itself of its idle links, and of what it carries.
    """

    at: float
    pss: int
    rss: int
    descriptors: int
    threads: int
    cpu: float
    pool: int = 0
    sessions: int = 0
    flows: int = 0

    @property
    def others(self) -> int:
        """Descriptors that are not those of idle links, of sessions, or of flows' targets."""
        return self.descriptors - self.pool - 2 * self.sessions - self.flows


def held(node: Process) -> Held:
    """Look at a node."""
    pids = tree(node.child.pid)
    memory = [(_PROC / str(pid) / "smaps_rollup").read_text() for pid in pids]
    said = re.findall(r"\|POOL=(\d+)\|TCPS=(\d+)\|UDPS=(\d+)\|", _tail(node.log))
    pool, sessions, flows = map(int, said[-1]) if said else (0, 0, 0)
    return Held(
        at=time.time(),
        pss=sum(_kilobytes("Pss", text) for text in memory),
        rss=sum(_kilobytes("Rss", text) for text in memory),
        descriptors=sum(len(os.listdir(_PROC / str(pid) / "fd")) for pid in pids),
        threads=sum(len(os.listdir(_PROC / str(pid) / "task")) for pid in pids),
        cpu=node.cpu(),
        pool=pool,
        sessions=sessions,
        flows=flows,
    )


def _kilobytes(key: str, text: str) -> int:
    return 1024 * int(re.findall(rf"^{key}:\s+(\d+) kB", text, re.M)[0])


def _tail(log: Path, size: int = 4096) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace")


@frozen(kw_only=True)
class Trend:
    """How much of something a node held in the second and in the last quarter of the time."""

    what: str
    second: float
    last: float

    @property
    def flat(self) -> bool:
        """Whether it stayed what it was, by the rule above."""
        return self.last <= self.second + max(SHARE * self.second, ROOM[self.what])


def trends(samples: Sequence[Held]) -> list[Trend]:
    """The trend of all that must be flat."""
    quarter = len(samples) // 4
    return [
        Trend(
            what=what,
            second=median(getattr(one, what) for one in samples[quarter : 2 * quarter]),
            last=median(getattr(one, what) for one in samples[-quarter:]),
        )
        for what in ROOM
    ]


def record(samples: Sequence[Held]) -> list[dict[str, float]]:
    """The samples for JSON."""
    return [asdict(one) for one in samples]
