"""``kill -9`` at any moment: every write that was acknowledged is there afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from nodepass.master.ledger import Ledger

#: How often a process is killed.
KILLS = int(os.environ.get("NP_TEST_KILLS", "20"))

#: Opens the state file, and then writes for ever, in groups, with backups in between. Each line
#: goes out once what it says is acknowledged: an id that is there, or one that is gone.
WRITER = """
import os, sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from nodepass.logs import Level, Log
from nodepass.master.store import Record, Store, Totals

def say(text):
    os.write(1, text.encode() + b"\\n")

class Said(Log):
    # What is not what was saved last is told in a line.
    def _emit(self, level, format, fields):
        say("logged " + format.format(**fields))

async def main():
    store = Store(Path(sys.argv[1]), reactor, Said(Level.DEBUG))
    contents = await store.open()
    say("opened")
    number = int(sys.argv[2])
    ids = [record.id for record in contents.records]
    while True:
        group = [f"{number + index:08x}" for index in range(number % 5 + 1)]
        number += len(group)
        writes = []
        for id in group:
            write = store.put(Record(id=id, url=f"server://{id}", alias="a" * (number % 900)))
            writes.append(write.addCallback(lambda _, id=id: say(f"put {id}")))
        ids += group
        if len(ids) > 40:
            id = ids.pop(0)
            say(f"removing {id}")
            writes.append(store.remove(id).addCallback(lambda _, id=id: say(f"removed {id}")))
        writes.append(store.put_totals({id: Totals(tcprx=number) for id in ids}))
        if number % 7 == 0:
            writes.append(store.backup())
        await gatherResults(writes)

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addErrback(
    lambda failure: (say("failed " + repr(failure.value)), os._exit(1))))
reactor.run(installSignalHandlers=False)
"""


def test_kill_at_random_moments(tmp_path: Path) -> None:
    """No acknowledged write is lost, none is undone, and no damage is seen where there is none."""
    path = tmp_path / "state" / "nodepass.db"
    chance = random.Random(9)
    there: set[str] = set()
    unsure: set[str] = set()
    for kill in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str((kill + 1) << 16)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "opened\n"
        time.sleep(chance.uniform(0, 0.15))
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().splitlines()
        writer.wait()
        writer.stdout.close()
        for line in lines:
            what, id = line.split()
            assert what in ("put", "removing", "removed"), line
            if what == "put":
                there.add(id)
            else:
                # Between the two lines it may have been removed, or not yet.
                there.discard(id)
                (unsure.add if what == "removing" else unsure.discard)(id)
        ledger = Ledger(path)
        contents = ledger.contents()
        ledger.close()
        found = {record.id for record in contents.records}
        assert there <= found
        assert len(found) == len(contents.records)
        # What was written but not acknowledged any more counts from now on, either way.
        assert all(int(id, 16) >> 16 == kill + 1 for id in found - there - unsure)
        there, unsure = found, set()
    assert len(there) > 20
