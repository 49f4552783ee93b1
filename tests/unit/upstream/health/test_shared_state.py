"""The file by which processes share the health of an upstream."""

import fcntl
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from regmirror.config.schema import Upstream
from regmirror.upstream.health.circuit import Circuit, after_failure, after_limit
from regmirror.upstream.health.shared_state import SharedState, fingerprint

NAME = "registry.test:5000"
CONFIG = Upstream(url="https://registry.test:5000", username="ann")


@pytest.fixture
def directory(tmp_path: Path) -> Any:
    return tmp_path / "upstreams"


@pytest.fixture
def record(directory: Path) -> Any:
    records = []

    def make(config: Upstream = CONFIG, where: Any = directory) -> Any:
        records.append(SharedState.of(where, NAME, config))
        return records[-1]

    yield make
    for made in records:
        made.close()


def limited(known: Any) -> Any:
    return after_limit(known, "manifests", 60, 1000.0)


def file_of(directory: Path) -> Any:
    (path,) = directory.iterdir()
    return path


def test_what_one_process_writes_another_reads(record: Callable[..., SharedState]) -> None:
    """B30: and one that starts later, too."""
    first, second = record(), record()
    assert second.read() == Circuit()
    first.change(limited)
    assert second.read() == record().read() == limited(Circuit())


def test_nothing_is_written_while_nothing_changes(
    record: Callable[..., SharedState], directory: Path
) -> None:
    assert record().change(lambda known: known) == (Circuit(), Circuit())
    assert file_of(directory).read_bytes() == b""


def test_the_name_of_the_upstream_is_a_safe_file_name(directory: Path) -> None:
    made = SharedState.of(directory, "../evil/host:1", CONFIG)
    made.change(limited)
    made.close()
    assert file_of(directory).name == "..%2Fevil%2Fhost%3A1.json"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 100,
        b"{",
        b"[1]\n",
        b'{"failures": 3}\n',
        b"\xff\xfe\n",
        b"[" * 100_000,
    ],
)
def test_garbage_is_a_fresh_start(
    record: Callable[..., SharedState], directory: Path, garbage: bytes
) -> None:
    """B35: nobody waits because a file is broken; the next change mends it."""
    directory.mkdir()
    (directory / "registry.test%3A5000.json").write_bytes(garbage)
    assert record().read() == Circuit()
    record().change(limited)
    assert record().read() == limited(Circuit())


@pytest.mark.parametrize(
    ("key", "value"),
    [("failures", "3"), ("opened_at", "now"), ("opened_at", float("inf")), ("reason", 1), ("limit", True)],
)
def test_values_of_another_kind_are_garbage(
    record: Callable[..., SharedState], directory: Path, key: str, value: Any
) -> None:
    record().change(limited)
    path = file_of(directory)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}) + "\n")
    assert record().read() == Circuit()


@pytest.mark.parametrize(
    "changed", [{"username": "bob"}, {"url": "https://other.test"}, {"password_file": "x"}]
)
def test_another_credential_is_another_record(
    record: Callable[..., SharedState], changed: dict[str, str]
) -> None:
    """B30: what the one may not ask, the other may."""
    record().change(limited)
    assert record(CONFIG.model_copy(update=changed)).read() == Circuit()


def test_no_password_is_in_the_record(record: Callable[..., SharedState], directory: Path) -> None:
    """B62: not even as a hash."""
    secret = Upstream(url=CONFIG.url, username="ann", password="hunter2")
    assert fingerprint(NAME, secret) == fingerprint(NAME, CONFIG)
    record(secret).change(limited)
    assert b"hunter2" not in file_of(directory).read_bytes()


def test_a_storage_that_cannot_be_written_keeps_it_in_the_process(
    record: Callable[..., SharedState], tmp_path: Path
) -> None:
    """B44: the upstream is spared nevertheless."""
    (tmp_path / "file").write_bytes(b"")
    mine = record(where=tmp_path / "file" / "upstreams")
    mine.change(limited)
    mine.change(lambda known: after_failure(known, 1.0, 2.0, "dns"))
    assert (mine.read().manifests_limited_until, mine.read().failures) == (1060.0, 1)


def test_a_storage_that_can_be_written_again_learns_what_was_kept(
    record: Callable[..., SharedState], tmp_path: Path
) -> None:
    (tmp_path / "upstreams").write_bytes(b"")
    mine = record(where=tmp_path / "upstreams")
    mine.change(limited)
    (tmp_path / "upstreams").unlink()
    mine.change(lambda known: known)
    assert record(where=tmp_path / "upstreams").read() == limited(Circuit())


def test_a_file_that_was_removed_is_made_again(record: Callable[..., SharedState], directory: Path) -> None:
    mine, other = record(), record()
    mine.change(limited)
    file_of(directory).unlink()
    mine.change(limited)
    assert other.read() == limited(Circuit())


def test_a_process_that_was_stopped_with_the_lock_stops_nobody(
    record: Callable[..., SharedState], directory: Path
) -> None:
    """B35."""
    record().change(limited)
    holder = os.open(file_of(directory), os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        record().change(lambda known: after_failure(known, 1.0, 2.0, "dns"))
        assert record().read().failures == 1
    finally:
        os.close(holder)


def test_two_processes_that_change_it_both_count(record: Callable[..., SharedState]) -> None:
    """Read, decide, write under one lock."""
    first, second = record(), record()
    for number in range(10):
        for mine in (first, second):
            mine.change(partial(after_failure, began=2.0 + number, now=2.0 + number, reason="reset"))
    assert first.read() == second.read()
    assert first.read().is_open
