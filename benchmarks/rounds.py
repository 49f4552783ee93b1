"""Rounds: every server once in each, in alternating order, and again when the machine was not ours."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks.experiments import Experiment, Figures
from benchmarks.fleet import Bench, Fleet
from benchmarks.processes import ForeignLoad

DISTURBED = 0.1  # of all cores' time, by processes that are not ours
REPETITIONS = 1

#: Figure, server, and a value for each round.
Measured = dict[str, dict[str, list[float]]]


@dataclass
class Round:
    """What each server did, and the greatest share of the machine that somebody else had meanwhile."""

    figures: dict[str, Figures] = field(default_factory=dict)
    foreign: float = 0.0


def run(experiment: Experiment, bench: Bench) -> Measured:
    """All rounds of one experiment."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    began = time.monotonic()
    with experiment.open(bench) as fleet:
        rounds = bench.scale.rounds * (1 if bench.scale.is_quick else experiment.rounds_factor)
        for number in range(rounds):
            best = _measure_undisturbed(experiment, fleet, is_reversed=number % 2 == 1)
            for server, figures in best.figures.items():
                for figure, value in figures.items():
                    measured[figure][server].append(value)
            say(f"{experiment.name}: round {number + 1} of {rounds}, after {time.monotonic() - began:.0f} s")
    return {figure: dict(servers) for figure, servers in measured.items()}


def _measure_undisturbed(experiment: Experiment, fleet: Fleet, *, is_reversed: bool) -> Round:
    """The less disturbed of two tries; one is enough when nobody disturbed it."""
    best: Round | None = None
    for _ in range(1 + REPETITIONS):
        tried = _measure(experiment, fleet, is_reversed=is_reversed)
        if best is None or tried.foreign < best.foreign:
            best = tried
        if best.foreign < DISTURBED:
            return best
        say(f"{experiment.name}: others used {tried.foreign:.0%} of the machine")
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
            error.add_note(f"{name} printed last: {fleet.servers[name].last_words()}")
            raise
        measured.foreign = max(measured.foreign, load.share())
    return measured


def say(text: str) -> None:
    """Progress goes to standard error; the table is all that standard output gets."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
