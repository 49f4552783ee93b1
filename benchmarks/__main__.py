"""Measure regmirror and its peers side by side; `scripts/bench` prepares the network and calls this."""

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
        sys.exit("benchmarks: BBR paces loopback, and all servers look alike; use scripts/bench")
    # So that servers are ended and files removed when somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = _open_results(given)
    with open_bench(_scale(given), given.directory, given.regmirror, given.servers) as bench:
        for experiment in given.only:
            results.figures |= run(experiment(), bench)
            results.write(given.output)
    if given.document:
        report.write_documents(results)
    sys.stdout.write(report.to_markdown(results))
    sys.stderr.write(f"kept in {given.output}\n")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    names = ", ".join(experiment.name for experiment in EXPERIMENTS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure regmirror and its peers side by side."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less of everything: under 3 minutes")
    add("--only", metavar="ROWS", type=_split, help=f"some of: {names}")
    add(
        "--servers",
        metavar="NAMES",
        type=_split,
        help=f"what stands beside regmirror, of: {', '.join(PEERS)}",
    )
    add(
        "--regmirror",
        metavar="[NAME=]PATH",
        action="append",
        help="a program under test; several are compared",
    )
    add("--rounds", type=int, help="how often each is measured")
    add("--size", metavar="MIB", type=int, help="of the large blob")
    add("--seconds", type=float, help="how long each warm measurement takes")
    add("--directory", type=Path, help="where stores are made; the default is that for temporary files")
    add("--output", type=Path, help="the JSON file; one that exists is added to")
    add("--document", action="store_true", help="put the results into docs/performance.md")
    given = parser.parse_args(arguments)
    _complete(given, parser)
    return given


def _complete(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Words become what they name, and what is missing its default."""
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    if given.only is None:
        given.only = [name for name in known if known[name].is_for_quick or not given.quick]
    if given.servers is None:
        given.servers = QUICK_PEERS if given.quick else PEERS
    for word in [*(set(given.only) - set(known)), *(set(given.servers) - set(PEERS))]:
        parser.error(f"nothing is called {word!r}")
    given.only = [known[name] for name in given.only]
    programs = [word.rpartition("=") for word in given.regmirror or [str(ROOT / ".venv/bin/regmirror")]]
    given.regmirror = {name or "regmirror": Path(path).absolute() for name, _, path in programs}
    if len(given.regmirror) < len(programs) or set(given.regmirror) & set(PEERS):
        parser.error("give each program a name of its own: --regmirror before=PATH --regmirror after=PATH")
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
    """Those of this run, with the figures of earlier ones in the same file.

    The command is the one that measures all of it.
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
