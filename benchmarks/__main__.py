"""Run the benchmarks; see the package."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from attrs import asdict

import nodepass

from .chains import Chain, Tunnel, Yardstick
from .report import LOADS, Load, Sample, header, lines, middle, sample

HERE = Path(__file__).parent

#: What the ratios are to: what most relays written in Go do.
YARDSTICK = "go copy"


def main() -> int:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), metavar="FILE")
    options = parser.parse_args()
    go = shutil.which("go")
    if go is None:
        print("benchmarks: Go is needed, for the yardstick and the load: https://go.dev")
        return 1
    rounds, seconds = (1, 0.5) if options.quick else (3, 1.2)
    with tempfile.TemporaryDirectory() as directory:
        samples, memory = measure(go, Path(directory), rounds, seconds)
    medians = {
        load.name: {chain: middle(some) for chain, some in chains.items()}
        for load, chains in samples.items()
    }
    progress("")
    print(header(list(memory)))
    for load in samples:
        print("\n".join(lines(load, medians[load.name], YARDSTICK)))
    known = [f"{chain}: {size / 1e6:.0f} MB" for chain, size in memory.items() if size is not None]
    if known:
        print("\nmemory of both hops afterwards: " + ", ".join(known))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps(
            {
                "nodepass": nodepass.__version__,
                "python": platform.python_version(),
                "system": platform.platform(),
                "cores": os.cpu_count(),
                "rounds": rounds,
                "seconds": seconds,
                "medians": {
                    load: {chain: asdict(one) for chain, one in chains.items()}
                    for load, chains in medians.items()
                },
                "samples": {
                    load.name: {
                        chain: [asdict(one) for one in some] for chain, some in all_.items()
                    }
                    for load, all_ in samples.items()
                },
                "memory": memory,
            },
            indent=1,
        )
    )
    print(f"all figures: {options.output}")
    return 0


def measure(
    go: str, directory: Path, rounds: int, seconds: float
) -> tuple[dict[Load, dict[str, list[Sample]]], dict[str, float | None]]:
    """Put each load on each chain in turn, so many times.

    Returns:
        The samples by load and chain, and the memory of each chain at the end.
    """
    yardstick, load_program = (build(go, name, directory) for name in ("yardstick", "load"))
    target = free_address()
    chains: list[Chain] = [
        Tunnel("nodepass", directory, target, tls=0),
        Tunnel("nodepass tls=1", directory, target, tls=1),
        Yardstick(YARDSTICK, directory, target, yardstick),
        Yardstick("go splice", directory, target, yardstick, "-splice"),
    ]
    samples: dict[Load, dict[str, list[Sample]]] = {
        load: {chain.name: [] for chain in chains} for load in LOADS
    }
    try:
        for chain in chains:
            chain.start()
        for number in range(rounds):
            for load in LOADS:
                for chain in chains:
                    progress(f"round {number + 1} of {rounds}: {load.name}")
                    samples[load][chain.name].append(apply(load, chain, load_program, seconds))
        return samples, {chain.name: chain.memory() for chain in chains}
    finally:
        for chain in chains:
            chain.stop()


def apply(load: Load, chain: Chain, program: Path, seconds: float) -> Sample:
    """Put a load on a chain once."""
    before = chain.cpu()
    command = [str(program), "-kind", load.kind, "-visit", chain.visit, "-target", chain.target,
               "-parallel", str(load.parallel), "-for", f"{seconds}s"]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60 + 10 * seconds)
    after = chain.cpu()
    cpu = None if before is None or after is None else after - before
    return sample(load, json.loads(done.stdout), cpu)


def build(go: str, name: str, directory: Path) -> Path:
    """Compile one of the Go programs beside this file."""
    program = directory / name
    progress(f"building {name}")
    subprocess.run([go, "build", "-o", str(program), f"./{name}"], cwd=HERE, check=True)
    return program


def free_address() -> str:
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def progress(text: str) -> None:
    """Say on a terminal what goes on."""
    if sys.stdout.isatty():
        print(f"\r{text:<60}\r", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
