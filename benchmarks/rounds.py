"""Rounds: measure every server once, in alternating order; repeat a round that other load disturbed."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks.experiments import Experiment, Figures
from benchmarks.fleet import Bench, Fleet
from benchmarks.processes import ForeignLoad

DISTURBED = 0.1  # share of all cores, used by other processes
REPETITIONS = 1

#: Figure, server, and a value for each round.
Measured = dict[str, dict[str, list[float]]]


@dataclass
class Round:
    """Figures by server, and the highest share of the cores that other processes used."""

    figures: dict[str, Figures] = field(default_factory=dict)
    foreign: float = 0.0


def run(experiment: Experiment, bench: Bench) -> Measured:
    """Run all rounds of one experiment."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    began = time.monotonic()
    with experiment.open(bench) as fleet:
        rounds = bench.scale.rounds * (1 if bench.scale.is_quick else experiment.rounds_factor)
        for number in range(rounds):
            best = _measure_undisturbed(experiment, fleet, is_reversed=number % 2 == 1)
            for server, figures in best.figures.items():
                for figure, value in figures.items():
                    measured[figure][server].append(value)
            report_progress(
                f"{experiment.name}: round {number + 1} of {rounds}, after {time.monotonic() - began:.0f} s"
            )
    return {figure: dict(servers) for figure, servers in measured.items()}


def _measure_undisturbed(experiment: Experiment, fleet: Fleet, *, is_reversed: bool) -> Round:
    """Measure once, or twice if disturbed; return the less disturbed round."""
    best: Round | None = None
    for _ in range(1 + REPETITIONS):
        tried = _measure(experiment, fleet, is_reversed=is_reversed)
        if best is None or tried.foreign < best.foreign:
            best = tried
        if best.foreign < DISTURBED:
            return best
        report_progress(f"{experiment.name}: other processes used {tried.foreign:.0%} of the cores")
    assert best is not None
    return best


def _measure(experiment: Experiment, fleet: Fleet, *, is_reversed: bool) -> Round:
    measured = Round()
    experiment.begin_round(fleet)
    for name in reversed(fleet.servers) if is_reversed else fleet.servers:
        load = ForeignLoad()
        try:
            measured.figures[name] = experiment.measure(fleet, fleet.servers[name])
        except Exception as error:
            error.add_note(f"last output of {name}: {fleet.servers[name].output_end()}")
            raise
        measured.foreign = max(measured.foreign, load.share())
    return measured


def report_progress(text: str) -> None:
    """Write to standard error, because standard output carries the table."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
