"""The long tests run when they are asked for, and only then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = """
import pytest

@pytest.mark.soak
def test_long(): pass

@pytest.mark.e2e
def test_real(): pass

def test_short(): pass
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"real", "short"}),
        (["-m", "not e2e"], {"short"}),  # as scripts/test has it
        (["-m", "e2e"], {"real"}),
        (["-m", "soak"], {"long"}),
    ],
)
def test_a_long_test_runs_only_when_it_is_named(tmp_path: Path, words: Any, expected: Any) -> None:
    sample = tmp_path / "test_sample.py"
    sample.write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--collect-only", "-q", *words, str(sample)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.rpartition("test_")[2] for line in done.stdout.splitlines() if "::" in line} == expected
