"""Credential helpers as processes (B62)."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from regmirror.upstream.auth.credential_helpers import HelperFailed, run_helper


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a shell script as docker-credential-test."""

    def install(script: Any) -> None:
        path = tmp_path / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


async def test_a_helper_gets_the_server_on_its_input(helper: Any) -> None:
    helper("""test "$1" = get && echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$(cat)\\"}" """)
    assert await run_helper("test", "quay.io") == ("u", "quay.io")


async def test_a_helper_may_know_nothing(helper: Any) -> None:
    """Exit status 1 and a sentence on standard output."""
    helper("echo credentials not found in native keychain; exit 1")
    assert await run_helper("test", "quay.io") is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo s3cret; exit 3", "ended with status 3"),
        ("echo s3cret", "did not print Username and Secret"),
        ("""echo '{"Username":"s3cret"}'""", "did not print Username and Secret"),
        ("""echo '{"Username":"u","Secret":7}'""", "did not print Username and Secret"),
        ("echo '[1]'", "did not print Username and Secret"),
        ("exit 0", "did not print Username and Secret"),
    ],
)
async def test_a_helper_that_misbehaves_fails_without_its_output(
    helper: Any, script: str, reason: str
) -> None:
    """B62."""
    helper(script)
    with pytest.raises(HelperFailed, match=reason) as caught:
        await run_helper("test", "quay.io")
    assert "s3cret" not in str(caught.value)


async def test_a_helper_that_hangs_is_ended_with_what_it_started(helper: Any) -> None:
    helper("sleep 1000 & sleep 1000")
    with pytest.raises(HelperFailed, match="timed out after"):
        await run_helper("test", "quay.io", timeout=0.05)


async def test_a_missing_helper_fails() -> None:
    with pytest.raises(HelperFailed, match="cannot be started: no such file"):
        await run_helper("surely-not-installed", "quay.io")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b", "a;b"])
async def test_a_helper_is_named_and_not_a_path(name: str) -> None:
    with pytest.raises(HelperFailed, match="not the name of a program"):
        await run_helper(name, "quay.io")
