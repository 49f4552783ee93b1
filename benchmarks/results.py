"""Results of a run, and their JSON file."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.processes import CORES
from benchmarks.rounds import Measured
from benchmarks.servers import PARTS


@dataclass
class Results:
    """Figures and the conditions of their measurement. ``subjects`` are the programs under test."""

    taken: str
    command: str
    machine: str
    versions: dict[str, str]
    subjects: list[str]
    figures: Measured = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def describe_machine() -> str:
    """Processor, memory and kernel in one line."""
    processor = _find(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = int(_find(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8")))
    kernel = ".".join(re.split(r"[.-]", platform.release())[:2])
    return f"{CORES} cores ({processor}), {memory / 2**20:.0f} GiB, Linux {kernel}"


def find_versions() -> dict[str, str]:
    """Version of every program involved; ``unknown`` if it cannot be parsed."""
    commands = {
        "Python": ["python3", "--version"],
        "docker-registry": ["docker-registry", "--version"],
        "drayage": [str(PARTS / "drayage" / "bin" / "drayage"), "--version"],
        "nginx": ["nginx", "-v"],
        "wrk": ["wrk", "--version"],
        "OpenSSL": ["openssl", "version"],
    }
    return {name: _version(command) for name, command in commands.items()}


def _version(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return _find(r"([0-9]+(?:\.[0-9]+)+[-+~.0-9a-z]*)", run.stdout + run.stderr)


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"
