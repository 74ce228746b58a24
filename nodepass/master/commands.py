"""What the master and its worker processes say to each other.

The master asks by AMP commands. A worker tells all that happens by one command, `Report`, whose
records keep their order: a status, checkpoints, log lines, and the end of a run. Runs go by their
number alone; which instance a run belongs to is the master's affair.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from twisted.protocols.amp import Command, Integer, String, Unicode

from nodepass.meter import Stats

__all__ = [
    "LONGEST_BATCH",
    "NO_RUN",
    "Beat",
    "Begin",
    "Count",
    "End",
    "Line",
    "Record",
    "Release",
    "Reload",
    "Report",
    "Start",
    "Status",
    "Stop",
    "decode_records",
    "encode_record",
]

#: Bytes of records in one report: AMP ends a value at 65,535.
LONGEST_BATCH = 60_000
#: The number in the records of log lines that no run has said, but its process.
NO_RUN = 0


class Begin(Command):
    """The first words to a worker: how it is to run. Answered when it can start runs.

    ``tuning`` is a `nodepass.tuning.Tuning` as JSON.
    """

    arguments = [(b"tuning", String())]


class Start(Command):
    """Start a run. Answered at once; how it went comes as a status."""

    arguments = [(b"run", Integer()), (b"url", Unicode())]


class Release(Command):
    """End a run. Answered when its ports are closed; `End` tells when it has drained."""

    arguments = [(b"run", Integer())]


class Reload(Command):
    """Let all runs read their certificate files again."""


class Stop(Command):
    """End all runs. Answered when all have drained and all was reported."""


class Beat(Command):
    """Are you there? The answer tells how many bytes of memory the process has to itself."""

    response = [(b"memory", Integer())]


class Report(Command):
    """What has happened in a worker: records, one a line. The next one waits for the answer."""

    arguments = [(b"batch", String())]


class Status(msgspec.Struct, tag="status"):
    """A run is up, or has trouble."""

    run: int
    trouble: str | None


class Count(msgspec.Struct, tag="count", omit_defaults=True):
    """A checkpoint; the counters since the run began. Its fields are those of `Stats`."""

    run: int
    mode: int = 0
    ping: float = 0.0
    pool: int = 0
    peers: int = 0
    tcps: int = 0
    udps: int = 0
    tcp_rx: int = 0
    tcp_tx: int = 0
    udp_rx: int = 0
    udp_tx: int = 0
    udp_dropped: int = 0
    udp_oversized: int = 0

    @classmethod
    def of(cls, run: int, stats: Stats) -> Count:
        """Write a checkpoint down."""
        return cls(run, **{name: getattr(stats, name) for name in cls.__struct_fields__[1:]})

    def stats(self) -> Stats:
        """Read a checkpoint."""
        return Stats(**{name: getattr(self, name) for name in self.__struct_fields__[1:]})


class Line(msgspec.Struct, tag="line"):
    """A log line; `when` is Unix time in seconds, `level` a `nodepass.logs.Level`."""

    run: int
    when: float
    level: int
    text: str


class End(msgspec.Struct, tag="end"):
    """Nothing more comes of a run."""

    run: int


Record = Status | Count | Line | End

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """Write a record, line end included."""
    return _encoder.encode(record) + b"\n"


def decode_records(batch: bytes) -> Iterable[Record]:
    """Read the records of a report."""
    return _decoder.decode_lines(batch)
