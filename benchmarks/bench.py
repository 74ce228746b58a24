"""The course of a run: every tunnel in turn, a slice at a time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import define, field

from . import report
from .chains import Chain
from .loads import Driver, Generator, Load, driver_for
from .peers import Form, Peer
from .processes import Failed, Process, free_ports

#: Idle sessions that memory is measured with: so many that what one adds stands out of the noise.
SESSIONS = 1000
#: A peer that fails so many slices of one load is left out of it.
FAILURES = 2
#: Times that a peer is started in a round: its ends may miss each other.
STARTS = 2
#: Seconds that one slice takes beside what is measured.
OVERHEAD = 0.35
#: Seconds that it takes to start one peer, as each round does.
START = 1.0
#: Seconds that it takes to measure the memory of one peer.
MEMORY = 7.0

#: By figure's key and peer, a value for each round.
Samples = dict[str, dict[str, "list[float | None]"]]


@define
class Bench:
    """Puts loads on tunnels, and keeps what comes of it.

    :param directory: for files of all programs.
    :param drivers: what makes loads.
    :param generator: the one of them that makes idle sessions, and whose target is an echo.
    :param seconds: how long a slice measures.
    :param samples: by form; what came of it.
    :param notes: what was left out, and why.
    """

    directory: Path
    drivers: Sequence[Driver]
    generator: Generator
    seconds: float
    samples: dict[Form, Samples] = field(factory=dict)
    notes: list[str] = field(factory=list)

    def note(self, text: str) -> None:
        """Say what is left out, once."""
        if text not in self.notes:
            self.notes.append(text)
            progress("")
            print(f"note: {text}", flush=True)

    def memory(self, form: Form, peers: Sequence[Peer]) -> None:
        """Measure what memory each peer takes, alone: pages that it shared with others would
        count in part."""
        for peer in peers:
            progress(f"{form.value}: memory of {peer.name}")
            (port,) = free_ports(1)
            try:
                with (
                    self._target(self.generator, port),
                    self._running(form, [peer], port) as chains,
                ):
                    for chain in chains:
                        start, idle = chain.idle_memory(self.generator, SESSIONS)
                        self._keep(form, chain, {"start.memory": start, "idle.memory": idle})
            except Failed as failure:
                self.note(f"{peer.name}, {form.value}, memory: {failure}")

    def load(self, form: Form, peers: Sequence[Peer], loads: Sequence[Load], rounds: int) -> None:
        """Put the loads on all peers, slice by slice in turn.

        Each round starts them anew: on which processor the system wakes a program up depends on
        where it has been before, and goes on like that; at light load this is a third of the time.
        """
        failures = Counter[tuple[str, str]]()
        for number in range(rounds):
            (port,) = free_ports(1)
            with ExitStack() as stack:
                with self._target(self.generator, port):
                    chains = stack.enter_context(self._running(form, peers, port))
                # Another one begins each time: who comes first might have it easier.
                turn = number % max(1, len(chains))
                chains = [*chains[turn:], *chains[:turn]]
                for load in loads:
                    driver = driver_for(load, self.drivers)
                    able = [chain for chain in chains if chain.peer.udp or not load.udp]
                    with self._target(driver, port):
                        for chain in able:
                            if failures[load.key, chain.name] < FAILURES:
                                where = f"{form.value}: round {number + 1} of {rounds}: {load.name}"
                                progress(f"{where}: {chain.name}")
                                done = self._slice(form, chain, load, driver, number)
                                failures[load.key, chain.name] += not done

    def _slice(self, form: Form, chain: Chain, load: Load, driver: Driver, number: int) -> bool:
        """Put one load on one of them for a moment; whether it could take it."""
        try:
            before = chain.cpu()
            counted = driver.run(load, chain.visit, self.seconds)
            figures = report.metrics(load, counted, chain.cpu() - before)
        except Failed as failure:
            self.note(f"{chain.name}, {form.value}: {failure}")
            return False
        self._keep(form, chain, figures, number)
        return True

    def _keep(self, form: Form, chain: Chain, figures: dict[str, float], number: int = 0) -> None:
        for key, value in figures.items():
            series = self.samples.setdefault(form, {}).setdefault(key, {})
            mine = series.setdefault(chain.name, [])
            mine += [None] * (number - len(mine))  # rounds that failed
            mine.append(value)

    @contextmanager
    def _running(self, form: Form, peers: Sequence[Peer], port: int) -> Iterator[list[Chain]]:
        """Those that come up.

        :param port: where their target is, for now one that echoes.
        """
        chains: list[Chain] = []
        try:
            for peer in peers:
                for tries in reversed(range(STARTS)):
                    chain = Chain(peer, self.directory / f"{form.name}-{peer.name}", port)
                    try:
                        chain.start()
                    except (Failed, OSError) as failure:
                        chain.stop()
                        if not tries:
                            self.note(f"{peer.name}, {form.value}: a round without it: {failure}")
                    else:
                        chains.append(chain)
                        break
            yield chains
        finally:
            for chain in chains:
                chain.stop()

    @contextmanager
    def _target(self, driver: Driver, port: int) -> Iterator[None]:
        process = Process(driver.target(self.directory, port), self.directory / "target.log")
        try:
            process.wait_for_port(port)
            yield
        finally:
            process.stop()


def progress(text: str) -> None:
    """Say on a terminal what goes on."""
    if sys.stdout.isatty():
        print(f"\r{text:<90}\r", end="", flush=True)
