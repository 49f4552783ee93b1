"""Command line of the benchmarks; `scripts/bench` prepares the network and calls it."""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report
from benchmarks.experiments import EXPERIMENTS
from benchmarks.fleet import Scale, open_bench
from benchmarks.results import Results, describe_machine, find_versions
from benchmarks.rounds import run
from benchmarks.servers import PEERS

ROOT = Path(__file__).parents[1]
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")

FULL = Scale(size=200 << 20, seconds=1.0, rounds=5, is_quick=False)
QUICK = Scale(size=64 << 20, seconds=0.7, rounds=3, is_quick=True)
QUICK_PEERS = ("docker-registry", "nginx", "nginx-cache", "direct")


def main() -> int:
    given = _parse(sys.argv[1:])
    if CONGESTION.read_text(encoding="ascii").strip() == "bbr":
        sys.exit("benchmarks: BBR paces loopback and hides differences between servers; run scripts/bench")
    # SIGTERM raises SystemExit, so that context managers stop the servers and remove the files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = _open_results(given)
    with open_bench(_scale(given), given.directory, given.regmirror, given.servers) as bench:
        for experiment in given.only:
            results.figures |= run(experiment(), bench)
            results.write(given.output)
    if given.document:
        report.write_documents(results)
    sys.stdout.write(report.to_markdown(results))
    sys.stderr.write(f"results written to {given.output}\n")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Compare regmirror with other servers."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer and shorter measurements: under 3 minutes")
    add("--only", metavar="ROWS", type=_split, help=f"experiments to run, of: {names}")
    add(
        "--servers",
        metavar="NAMES",
        type=_split,
        help=f"servers to compare with, of: {', '.join(PEERS)}",
    )
    add(
        "--regmirror",
        metavar="[NAME=]PATH",
        action="append",
        help="a program under test; repeat the option to compare several",
    )
    add("--rounds", type=int, help="number of rounds")
    add("--size", metavar="MIB", type=int, help="size of the large blob")
    add("--seconds", type=float, help="duration of each warm measurement")
    add(
        "--directory",
        type=Path,
        help="parent directory of the stores; default: the directory for temporary files",
    )
    add("--output", type=Path, help="JSON file of the results; an existing file is extended")
    add("--document", action="store_true", help="write the results into docs/performance.md")
    given = parser.parse_args(arguments)
    _complete(given, parser)
    return given


def _complete(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Replace names by the objects they name, and set defaults."""
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    if given.only is None:
        given.only = [name for name in known if known[name].is_for_quick or not given.quick]
    if given.servers is None:
        given.servers = QUICK_PEERS if given.quick else PEERS
    for word in [*(set(given.only) - set(known)), *(set(given.servers) - set(PEERS))]:
        parser.error(f"unknown experiment or server {word!r}")
    given.only = [known[name] for name in given.only]
    programs = [word.rpartition("=") for word in given.regmirror or [str(ROOT / ".venv/bin/regmirror")]]
    given.regmirror = {name or "regmirror": Path(path).absolute() for name, _, path in programs}
    if len(given.regmirror) < len(programs) or set(given.regmirror) & set(PEERS):
        parser.error("each program needs a unique name: --regmirror before=PATH --regmirror after=PATH")
    if given.output is None:
        given.output = ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"


def _split(words: str) -> list[str]:
    return words.split(",") if words else []


def _scale(given: argparse.Namespace) -> Scale:
    default = QUICK if given.quick else FULL
    return Scale(
        size=given.size << 20 if given.size else default.size,
        seconds=given.seconds or default.seconds,
        rounds=given.rounds or default.rounds,
        is_quick=given.quick,
    )


def _open_results(given: argparse.Namespace) -> Results:
    """Results of this run, extended by the figures of earlier runs in the same file.

    ``command`` omits ``--only``: it is the command that repeats all of the file's measurements.
    """
    words = ["scripts/bench", *(["--quick"] if given.quick else [])]
    for option in ("rounds", "size", "seconds"):
        if value := getattr(given, option):
            words += [f"--{option}", str(value)]
    results = Results(
        taken=f"{datetime.now(UTC):%Y-%m-%d}",
        command=" ".join(words),
        machine=describe_machine(),
        versions=find_versions(),
        subjects=list(given.regmirror),
    )
    if given.output.exists():
        results.figures = Results.load(given.output).figures
    return results


if __name__ == "__main__":
    sys.exit(main())
